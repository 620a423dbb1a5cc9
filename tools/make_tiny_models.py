#!/usr/bin/env python3
"""Make the tiny random models that kiln-models is tested with, and their reference logits.

Each model is built with transformers, filled with seeded random weights, run once in f32 over a fixed list
of tokens, and written as a GGUF file (F32 tensors) in the conventions of llama.cpp's converter:

    llama         GQA 4:2, untied output, SPM tokenizer
    llama_tied    GQA 6:2, tied output, llama 3 RoPE scaling (rope_freqs tensor), byte-level BPE
    qwen2         GQA 4:2, Q/K/V biases, untied output
    qwen3         Q/K norm, head_dim 32 with hidden/heads 16, tied output
    gemma3        7 layers of which the sixth is global, sliding window 8, two RoPE bases,
                  linear RoPE factor 4 on the global layer only, Q/K norm, four norms a layer, tied output

    python3 tools/make_tiny_models.py [OUTPUT_DIRECTORY]

OUTPUT_DIRECTORY defaults to crates/kiln-models/tests/fixtures. For each NAME it gets NAME.gguf, NAME.f32
(logits, row-major [T, V], raw little-endian f32) and NAME.json (tokens, logits_shape, logits_file).
Needs numpy, torch, transformers and gguf. The weights depend on numpy's generator only.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re

import gguf
import numpy as np
import torch
import transformers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = REPOSITORY / "crates" / "kiln-models" / "tests" / "fixtures"
TRAINING_TEXT = REPOSITORY / "tools" / "data" / "eval_text.txt"

VOCABULARY = 320
CONTEXT = 256
TOKENS = 40

NORMAL, UNKNOWN, CONTROL, BYTE = (gguf.TokenType[name] for name in ("NORMAL", "UNKNOWN", "CONTROL", "BYTE"))

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclasses.dataclass
class Tiny:
    """One model to make: its name, seed, transformers configuration and class, and tokenizer."""

    name: str
    seed: int
    config: transformers.PreTrainedConfig
    model_class: type
    tokenizer: dict

    @property
    def architecture(self):
        return {"gemma3_text": "gemma3"}.get(self.config.model_type, self.config.model_type)


# ---- tokenizers

def byte_symbols():
    """The printable character that stands for each byte in a byte-level BPE vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def learn_merges(words, count):
    """Byte-pair encoding: `count` merges learnt from `words`, a Counter of symbol tuples."""
    words, merges = dict(words), []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, times in words.items():
            symbols, i = [], 0
            while i < len(word):
                joined = word[i:i + 2] == best
                symbols.append("".join(word[i:i + 2]) if joined else word[i])
                i += 2 if joined else 1
            merged[tuple(symbols)] += times
        words = merged
    return merges


def training_words():
    return re.findall(r" ?[A-Za-z]+", TRAINING_TEXT.read_text(encoding="utf-8"))


def bpe_tokenizer(pre, specials, bos, eos, add_bos):
    """A byte-level BPE ("gpt2") tokenizer: 256 bytes, merges, then the special tokens."""
    symbols = byte_symbols()
    words = collections.Counter(tuple(symbols[byte] for byte in word.encode()) for word in training_words())
    merges = learn_merges(words, VOCABULARY - 256 - len(specials))
    tokens = [symbols[byte] for byte in range(256)] + ["".join(merge) for merge in merges] + specials
    return {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": [" ".join(merge) for merge in merges],
        "types": [NORMAL] * (VOCABULARY - len(specials)) + [CONTROL] * len(specials),
        "bos": tokens.index(bos), "eos": tokens.index(eos), "add_bos": add_bos,
    }


def spm_tokenizer(specials, unknown, bos, eos, add_space_prefix):
    """A SentencePiece ("llama") tokenizer: special tokens, 256 byte tokens, characters, merged pieces."""
    words = [word.replace(" ", "\u2581") for word in training_words()]
    frequency = collections.Counter("".join(words))
    letters = sorted(frequency, key=lambda letter: (-frequency[letter], letter))[:28]
    words = collections.Counter(tuple(word) for word in words if set(word) <= set(letters))
    merges = learn_merges(words, VOCABULARY - len(specials) - 256 - len(letters))
    pieces = ["".join(merge) for merge in merges] + letters
    tokens = specials + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    return {
        "model": "llama", "pre": "default", "tokens": tokens,
        "scores": [0.0] * (len(specials) + 256) + [-float(rank) for rank in range(len(pieces))],
        "types": [UNKNOWN if token == unknown else CONTROL for token in specials] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "bos": tokens.index(bos), "eos": tokens.index(eos), "unknown": tokens.index(unknown),
        "add_bos": True, "add_space_prefix": add_space_prefix,
    }


def write_tokenizer(writer, tokenizer):
    writer.add_tokenizer_model(tokenizer["model"])
    writer.add_tokenizer_pre(tokenizer["pre"])
    writer.add_token_list(tokenizer["tokens"])
    writer.add_token_types(tokenizer["types"])
    writer.add_bos_token_id(tokenizer["bos"])
    writer.add_eos_token_id(tokenizer["eos"])
    writer.add_add_bos_token(tokenizer["add_bos"])
    if tokenizer["model"] == "gpt2":
        writer.add_token_merges(tokenizer["merges"])
    else:
        writer.add_token_scores(tokenizer["scores"])
        writer.add_unk_token_id(tokenizer["unknown"])
        writer.add_add_space_prefix(tokenizer["add_space_prefix"])


# ---- models

def tiny_models():
    shared = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "attn_implementation": "eager",
              "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    qwen_specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    qwen_tokenizer = bpe_tokenizer("qwen2", qwen_specials, "<|endoftext|>", "<|im_end|>", False)
    yield Tiny(
        "llama", 1,
        transformers.LlamaConfig(
            **shared, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        transformers.LlamaForCausalLM,
        spm_tokenizer(["<unk>", "<s>", "</s>"], "<unk>", "<s>", "</s>", True))
    yield Tiny(
        "llama_tied", 2,
        transformers.LlamaConfig(
            **shared, hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        transformers.LlamaForCausalLM,
        bpe_tokenizer("llama-bpe", ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
                      "<|begin_of_text|>", "<|eot_id|>", True))
    yield Tiny(
        "qwen2", 3,
        transformers.Qwen2Config(
            **shared, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        transformers.Qwen2ForCausalLM, qwen_tokenizer)
    yield Tiny(
        "qwen3", 4,
        transformers.Qwen3Config(
            **shared, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        transformers.Qwen3ForCausalLM, qwen_tokenizer)
    gemma_specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    yield Tiny(
        "gemma3", 5,
        transformers.Gemma3TextConfig(
            **shared, hidden_size=64, intermediate_size=64, num_hidden_layers=7, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            rope_parameters={"full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 4.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
        transformers.Gemma3ForCausalLM,
        spm_tokenizer(gemma_specials, "<unk>", "<bos>", "<eos>", False))


def fill_weights(model, seed):
    """Random weights large enough that attention is far from uniform and every norm, bias and gate matters."""
    generator = np.random.default_rng(seed)
    shift = 1.0 if "Gemma" in type(model).__name__ else 0.0
    for name, parameter in sorted(model.named_parameters()):
        noise = generator.standard_normal(tuple(parameter.shape)).astype(np.float32)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            values = 2.0 - shift + 0.4 * noise
        elif name.endswith("norm.weight"):
            values = 1.0 - shift + 0.3 * noise
        elif name.endswith(".bias"):
            values = noise
        elif "embed_tokens" in name or "lm_head" in name:
            values = noise * 2.0 / np.sqrt(parameter.shape[1])
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            values = noise * gain / np.sqrt(parameter.shape[1])
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))


# ---- GGUF

def permute(rows, heads):
    """GGUF order of llama's Q/K rows: within a head, rows i and i + D/2 become neighbours 2i and 2i + 1."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(tiny, model):
    """Yield (GGUF name, f32 array) for every tensor of the file."""
    config, state = tiny.config, model.state_dict()
    layer_tensors = {**LAYER_TENSORS, **(GEMMA_NORMS if tiny.architecture == "gemma3" else {})}
    for name, parameter in state.items():
        values = parameter.float().numpy()
        stem, kind = name.rsplit(".", 1)
        if stem == "lm_head" and config.tie_word_embeddings:
            continue
        if stem in TOP_TENSORS:
            stem = TOP_TENSORS[stem]
        else:
            layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem).groups()
            stem = f"blk.{layer}.{layer_tensors[part]}"
            if tiny.architecture == "llama" and part == "self_attn.q_proj":
                values = permute(values, config.num_attention_heads)
            elif tiny.architecture == "llama" and part == "self_attn.k_proj":
                values = permute(values, config.num_key_value_heads)
        if tiny.architecture == "gemma3" and stem.endswith("norm"):
            values = values + 1.0
        yield f"{stem}.{kind}", np.ascontiguousarray(values, dtype=np.float32)
    if config.rope_parameters.get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        exponent = np.arange(len(scaled), dtype=np.float32) / len(scaled)
        plain = 1.0 / config.rope_parameters["rope_theta"] ** exponent
        yield "rope_freqs.weight", (plain / scaled).astype(np.float32)


def write_gguf(path, tiny, model):
    config = tiny.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer = gguf.GGUFWriter(path, tiny.architecture)
    writer.add_type("model")
    writer.add_name(f"Kiln tiny random {tiny.name}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if tiny.architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if tiny.architecture in ("qwen3", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if tiny.architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    write_tokenizer(writer, tiny.tokenizer)
    for name, values in gguf_tensors(tiny, model):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(tiny, directory):
    model = tiny.model_class(tiny.config).float().eval()
    fill_weights(model, tiny.seed)
    tokens = np.random.default_rng(1000 + tiny.seed).integers(0, VOCABULARY, TOKENS)
    if tiny.tokenizer["add_bos"]:
        tokens[0] = tiny.tokenizer["bos"]
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy().astype("<f4")
    write_gguf(directory / f"{tiny.name}.gguf", tiny, model)
    logits.tofile(directory / f"{tiny.name}.f32")
    summary = {"tokens": tokens.tolist(), "logits_shape": list(logits.shape), "logits_file": f"{tiny.name}.f32"}
    (directory / f"{tiny.name}.json").write_text(json.dumps(summary) + "\n")
    print(f"{tiny.name}: {(directory / f'{tiny.name}.gguf').stat().st_size} bytes, logits std {logits.std():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=DEFAULT_OUTPUT)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for tiny in tiny_models():
        make(tiny, output)


if __name__ == "__main__":
    main()
