#!/usr/bin/env python3
"""Reference logits of a llama-architecture GGUF: transformers' LlamaForCausalLM on dequantised weights.

Every tensor is dequantised to f32 with the `gguf` package, the Q and K rows are put back into the order
transformers expects, and one causal forward pass runs over the given tokens. Nothing of llama.cpp or of
this repository takes part in the arithmetic.

    python3 tools/reference_logits.py MODEL.gguf TOKENS.u32 OUTPUT_PREFIX [--dtype float32|float64]

TOKENS.u32 holds token ids as raw little-endian u32. Written, for T tokens and a vocabulary of V:

    OUTPUT_PREFIX_tokens.u32    the T token ids, raw little-endian u32
    OUTPUT_PREFIX_logits.f32    logits, row-major [T, V], raw little-endian f32
    OUTPUT_PREFIX_eval.npz      the same two arrays: tokens (u32), logits (f32)
    OUTPUT_PREFIX_eval.json     tokens, top1 (argmax per position), mean NLL of token t+1 at position t, perplexity

Needs numpy, torch, transformers and gguf.
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
import torch
import transformers

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config_of(reader):
    """The transformers configuration that the GGUF's metadata describes."""

    def value(key, default=None):
        field = reader.get_field(key)
        if field is None and default is None:
            raise SystemExit(f"{key} is missing")
        return default if field is None else field.contents()

    if value("general.architecture") != "llama":
        raise SystemExit("only general.architecture = llama is understood")
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names or reader.get_field("llama.rope.scaling.type") is not None:
        raise SystemExit("RoPE scaling is not understood")
    heads = value("llama.attention.head_count")
    width = value("llama.embedding_length")
    return transformers.LlamaConfig(
        vocab_size=next(t.shape[1] for t in reader.tensors if t.name == "token_embd.weight").item(),
        hidden_size=width,
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=value("llama.attention.head_count_kv", heads),
        head_dim=value("llama.attention.key_length", width // heads),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in names,
        attn_implementation="eager",
    )


def unpermute(rows, heads):
    """Undo the GGUF order of Q/K rows: within a head, adjacent pairs (2i, 2i+1) become (i, i + D/2)."""
    count, width = rows.shape
    return rows.reshape(heads, count // heads // 2, 2, width).swapaxes(1, 2).reshape(count, width)


def state_dict_of(reader, config, dtype):
    state = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        stem, kind = tensor.name.rsplit(".", 1)
        if stem in TOP_TENSORS:
            name = TOP_TENSORS[stem]
        else:
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{LAYER_TENSORS[part]}"
            if part == "attn_q":
                data = unpermute(data, config.num_attention_heads)
            elif part == "attn_k":
                data = unpermute(data, config.num_key_value_heads)
        state[f"{name}.{kind}"] = torch.from_numpy(np.ascontiguousarray(data)).to(dtype)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("prefix")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="type of the arithmetic")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    reader = gguf.GGUFReader(arguments.model)
    config = config_of(reader)
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    model.load_state_dict(state_dict_of(reader, config, dtype), strict=True)

    tokens = np.fromfile(arguments.tokens, dtype="<u4")
    with torch.no_grad():
        output = model(torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0]
    target = torch.from_numpy(tokens[1:].astype(np.int64))
    nll = torch.nn.functional.cross_entropy(output[:-1].double(), target).item()
    logits = output.float().numpy().astype("<f4")

    prefix = pathlib.Path(arguments.prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tokens.tofile(f"{prefix}_tokens.u32")
    logits.tofile(f"{prefix}_logits.f32")
    np.savez(f"{prefix}_eval.npz", tokens=tokens, logits=logits)
    summary = {
        "model": pathlib.Path(arguments.model).name,
        "arithmetic": arguments.dtype,
        "tokens": tokens.tolist(),
        "logits_shape": list(logits.shape),
        "top1": logits.argmax(axis=1).tolist(),
        "mean_nll": nll,
        "perplexity": float(np.exp(nll)),
    }
    pathlib.Path(f"{prefix}_eval.json").write_text(json.dumps(summary) + "\n")
    print(f"tokens {len(tokens)}, mean NLL {nll:.6f}, perplexity {np.exp(nll):.4f}")


if __name__ == "__main__":
    main()
