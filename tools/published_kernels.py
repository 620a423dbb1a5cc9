#!/usr/bin/env python3
"""Fetches Metal kernels that others published and runs them with msl-host against plain computations."""

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import urllib.request

URL = "https://static.crates.io/crates/candle-metal-kernels/candle-metal-kernels-0.9.1.crate"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        with urllib.request.urlopen(URL, timeout=60) as response:
            archive = tarfile.open(fileobj=io.BytesIO(response.read()), mode="r:gz")
        for member in archive.getmembers():
            if member.isfile() and member.name.endswith(".metal"):
                data = archive.extractfile(member).read()
                (pathlib.Path(folder) / pathlib.Path(member.name).name).write_bytes(data)
        command = ["cargo", "run", "--release", "-p", "msl-host", "--example", "published_kernels", "--", folder]
        return subprocess.run(command + sys.argv[1:]).returncode


if __name__ == "__main__":
    sys.exit(main())
