#!/usr/bin/env python3
"""Write the fixture that pins the types of quantised files to llama.cpp's `llama-quantize`.

For small models of several shapes, the type that `llama-quantize` gives every tensor in every kind of
file: crates/kiln-models/tests/fixtures/quantize.json, with the tensors that a test needs to make the
same models.

    python3 -m venv venv && venv/bin/pip install gguf numpy
    venv/bin/python tools/make_quantize_fixtures.py LLAMA_QUANTIZE [FILE]
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np

FILE_TYPES = (
    "f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs "
    "q3_k_l q3_k_m q3_k_s q2_k"
).split()
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = REPOSITORY / "crates" / "kiln-models" / "tests" / "fixtures" / "quantize.json"
# Rows of every matrix: enough to be one.
ROWS = 2


def model(
    architecture, layers, heads, kv_heads, row, down_row, tied, experts=0, norms=(), only=None
):
    # The order is not that of the layers, on purpose: files need not be sorted.
    tensors = [("output_norm.weight", [row]), ("token_embd.weight", [ROWS, row])]
    if not tied:
        tensors.insert(0, ("output.weight", [ROWS, row]))
    for layer in reversed(range(layers)):
        add = lambda stem, *shape: tensors.append((f"blk.{layer}.{stem}", list(shape)))
        add("attn_norm.weight", row)
        for stem in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{stem}.weight", ROWS, row)
        add("attn_q.bias", ROWS)
        for stem in norms:
            add(f"{stem}.weight", row)
        if experts:
            add("ffn_gate_inp.weight", experts, row)
            add("ffn_gate_exps.weight", experts, ROWS, row)
            add("ffn_up_exps.weight", experts, ROWS, row)
            add("ffn_down_exps.weight", experts, ROWS, down_row)
        else:
            add("ffn_gate.weight", ROWS, row)
            add("ffn_up.weight", ROWS, row)
            add("ffn_down.weight", ROWS, down_row)
    if only:
        tensors = [tensor for tensor in tensors if any(part in tensor[0] for part in only)]
    return {
        "architecture": architecture,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "experts": experts,
        "tensors": tensors,
    }


MODELS = {
    "grouped": model("llama", 16, 32, 8, 256, 512, False),
    "tied": model("gemma3", 9, 4, 2, 256, 768, True, norms=("attn_q_norm", "post_ffw_norm")),
    "rows of 384": model("llama", 8, 4, 4, 384, 256, False),
    "rows of 384, tied": model("qwen2", 8, 4, 4, 384, 1024, True),
    "rows of 48": model("llama", 4, 4, 4, 48, 80, False),
    "experts": model("llama", 8, 8, 2, 256, 512, False, experts=8),
    "80 layers": model(
        "llama", 80, 64, 8, 256, 256, False, only=("output.weight", "attn_v", "ffn_down")
    ),
}


def write(path, described):
    writer = gguf.GGUFWriter(path, described["architecture"])
    writer.add_block_count(described["layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(described["tensors"][-1][1][-1])
    writer.add_feed_forward_length(64)
    writer.add_head_count(described["heads"])
    writer.add_head_count_kv(described["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(64)
    if described["experts"]:
        writer.add_expert_count(described["experts"])
        writer.add_expert_used_count(2)
    for name, shape in described["tensors"]:
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(path):
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def main():
    quantize = sys.argv[1]
    path = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("in.gguf", "out.gguf"))
        for described in MODELS.values():
            write(source, described)
            described["types"] = {}
            for pure in (False, True):
                for file_type in FILE_TYPES:
                    command = [quantize, *(["--pure"] if pure else []), source, target]
                    command += [file_type.upper(), "1"]
                    subprocess.run(command, check=True, capture_output=True)
                    got = types(target)
                    key = file_type + (" pure" if pure else "")
                    names = [name for name, _ in described["tensors"]]
                    described["types"][key] = " ".join(got[name] for name in names)
    path.write_text(text(MODELS) + "\n")


def text(models):
    """JSON with a line for every list of tensors and of types."""
    lines = []
    for name, described in models.items():
        types = described.pop("types")
        fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in described.items()]
        rows = ",\n".join(f"   {json.dumps(key)}: {json.dumps(row)}" for key, row in types.items())
        fields.append(f'  "types": {{\n{rows}\n  }}')
        lines.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    main()
