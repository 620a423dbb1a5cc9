#!/usr/bin/env python3
"""Fetches Metal kernels that others published and runs them with msl-host against plain computations.

The packages come through cargo, into its own registry folder; their sources are copied to a temporary folder.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGES = {"candle-metal-kernels": "0.9.1", "llama-cpp-sys-2": "0.1.122"}


def packages(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of the packages in cargo's registry."""
    lines = [f'{name} = "={version}"' for name, version in PACKAGES.items()]
    text = '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\n'
    (folder / "Cargo.toml").write_text(text + "\n".join(lines) + "\n")
    (folder / "src").mkdir()
    (folder / "src/lib.rs").write_text("")
    command = ["cargo", "metadata", "--format-version", "1", "--manifest-path", folder / "Cargo.toml"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    return {p["name"]: pathlib.Path(p["manifest_path"]).parent for p in found if p["name"] in PACKAGES}


def inlined(path: pathlib.Path, folders: list[pathlib.Path]) -> str:
    """The text of a file with its own headers put in their places."""

    def replace(match: re.Match) -> str:
        header = next((f / match[1] for f in folders if (f / match[1]).is_file()), None)
        return inlined(header, folders) if header else match[0]

    return re.sub(r'^[ \t]*#include "([^"]+)"', replace, path.read_text(), flags=re.MULTILINE)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "fetch").mkdir()
        found = packages(folder / "fetch")
        sources = folder / "sources"
        for part in ("candle", "ggml"):
            (sources / part).mkdir(parents=True)
        for path in (found["candle-metal-kernels"] / "src").rglob("*.metal"):
            (sources / "candle" / path.name).write_bytes(path.read_bytes())
        ggml = found["llama-cpp-sys-2"] / "llama.cpp/ggml/src"
        text = inlined(ggml / "ggml-metal/ggml-metal.metal", [ggml / "ggml-metal", ggml])
        (sources / "ggml/ggml-metal.metal").write_text(text)
        command = ["cargo", "run", "--release", "-p", "msl-host", "--example", "published_kernels", "--", sources]
        return subprocess.run(command + sys.argv[1:]).returncode


if __name__ == "__main__":
    sys.exit(main())
