#!/usr/bin/env python3
"""Write the fixtures that pin block decoding to the `gguf` Python package.

For every block type, and for f16 and bf16, one file of random blocks followed by the values that
gguf.quants.dequantize gives for them, as little-endian f32.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy
    venv/bin/python tools/make_quant_fixtures.py [FOLDER]

FOLDER defaults to crates/kiln-core/tests/fixtures/quant. The output depends on nothing else: the
random numbers are seeded.
"""

import pathlib
import sys

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

SEED = 20240531
# Blocks in a fixture, by values per block.
BLOCKS = {1: 64, 32: 4, 256: 2}
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_FOLDER = REPOSITORY / "crates" / "kiln-core" / "tests" / "fixtures" / "quant"

# Byte offsets of the f16 fields of each block.
F16_FIELDS = {
    "F16": [0],
    "BF16": [],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "IQ4_NL": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_XS": [0],
}


def random_scales(rng: np.random.Generator, count: int) -> np.ndarray:
    """Finite f16 of either sign over many magnitudes, the last of them subnormal."""
    scales = rng.standard_normal(count) * np.exp2(rng.integers(-12, 4, count))
    scales[-1] = 5 * 2.0**-24
    return scales.astype("<f2")


def random_blocks(rng: np.random.Generator, name: str) -> np.ndarray:
    block_len, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    count = BLOCKS[block_len]
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for offset in F16_FIELDS[name]:
        blocks[:, offset : offset + 2] = random_scales(rng, count).view(np.uint8).reshape(count, 2)
    if name == "BF16":
        values = (rng.standard_normal(count) * np.exp2(rng.integers(-60, 60, count))).astype("<f4")
        blocks[:] = values.view(np.uint8).reshape(count, 4)[:, 2:]
    return blocks


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    for name in F16_FIELDS:
        blocks = random_blocks(rng, name)
        values = dequantize(blocks, GGMLQuantizationType[name]).astype("<f4")
        assert np.isfinite(values).all(), name
        (folder / f"{name.lower()}.bin").write_bytes(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
