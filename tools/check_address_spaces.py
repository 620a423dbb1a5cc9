#!/usr/bin/env python3
"""Checks the address spaces of Metal kernels with clang++, where Apple's compiler is not at hand.

    cargo run --release -p kiln-metal --example sources -- target/metal
    python3 tools/check_address_spaces.py target/metal

`device`, `constant` and `threadgroup` become numbered address spaces of clang, vectors its own vector
types, and every kernel is instantiated: a pointer in the wrong space is an error, as on a Mac, and so is
what C++14 does not have. Only types are checked. Without clang++ nothing is, and that is printed.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SHIM = pathlib.Path(__file__).with_name("address_spaces.h")

# Constructors of vectors are calls of a template: clang's vector types have none.
VECTOR = r"\b((?:float|half|bfloat|uint|int|ushort|uchar|ulong|char)[234])\("


def translate(text: str) -> str:
    """MSL as C++ with address spaces."""
    text = re.sub(r"#include[^\n]*\n|using namespace metal;", "", text)
    expanded = subprocess.run(
        ["clang++", "-E", "-P", "-x", "c++", "-"], input=text, capture_output=True, text=True, check=True
    )
    text = expanded.stdout
    text = re.sub(
        r"constant\s+(\w+)\s+(\w+)\s*\[\[\s*function_constant\(\d+\)\s*\]\]\s*;", r"extern const \1 \2;", text
    )
    text = text.replace("constant constexpr", "constexpr")
    text = re.sub(r"\bconstant\b", "constant_space", text)
    text = re.sub(
        r"template\s*\[\[\s*host_name\([^)]*\)\s*\]\]\s*\[\[\s*kernel\s*\]\]\s*decltype\(.*?\)\s+(.*?);",
        r"template decltype(\1) \1;",
        text,
        flags=re.S,
    )
    # A variable in threadgroup memory is shared by all threads. Structs have no constructor there.
    text = re.sub(
        r"(?m)^(\s*)threadgroup\s+(\w+)\s+(\w+)\s*;", r"\1threadgroup \2& \3 = threadgroup_variable<\2>();", text
    )
    text = re.sub(
        r"(?m)^(\s*)threadgroup\s+([\w<>, ]+?\s+\w+\s*(\[[^\]]*\])+)\s*;", r"\1static threadgroup \2;", text
    )
    text = re.sub(r"\[\[\s*\w+(?:\(\w*\))?\s*\]\]|#pragma[^\n]*", "", text)
    text = re.sub(VECTOR, r"make_vector<\1>(", text)
    return re.sub(r"\bvec<(\w+), 4>\(", r"make_vector<vec<\1, 4>>(", text)


def check(path: pathlib.Path) -> bool:
    """Whether clang++ takes a source."""
    if "<metal_tensor>" in path.read_text():
        print(f"{path.name}: skipped, it needs Apple's tensor headers")
        return True
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as file:
        file.write(f'#include "{SHIM.resolve()}"\n{translate(path.read_text())}')
        file.flush()
        # MSL 3 is C++14; the header uses more, and is exempt.
        command = ["clang++", "-std=c++14", "--target=aarch64-linux-gnu", "-fsyntax-only"]
        command += ["-Wno-everything", "-Werror=c++17-extensions", "-Werror=c++20-extensions"]
        result = subprocess.run([*command, file.name], capture_output=True, text=True, check=False)
    print(f"{path.name}: {'ok' if result.returncode == 0 else 'FAILED'}\n{result.stderr}".rstrip())
    return result.returncode == 0


def main() -> int:
    """Checks every source of a folder."""
    if shutil.which("clang++") is None:
        print("skipped: no clang++ here to check address spaces with")
        return 0
    paths = sorted(pathlib.Path(sys.argv[1]).glob("*.metal"))
    if not paths:
        print(f"no sources in {sys.argv[1]}")
        return 1
    return 0 if all([check(path) for path in paths]) else 1


if __name__ == "__main__":
    sys.exit(main())
