#!/usr/bin/env bash
# Compiles every CUDA kernel for sm_80 and sm_90a with NVRTC from PyPI, without a GPU, and fails where
# a kernel does not compile or uses local memory without a reason (see the example's list), or where a
# copy has lost its descriptor (see `unknown` in ptx.cuh).
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0

site=target/nvrtc
lib=$site/nvidia/cu13/lib
disassembler=$site/nvidia/cu13/bin/nvdisasm
if [ ! -e "$lib/libnvrtc.so.13" ] || [ ! -e "$disassembler" ]; then
    rm -rf "$site" "$site.new"
    python3 -m pip install --quiet --target "$site.new" \
        nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvdisasm==13.2.51
    mv "$site.new" "$site"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
if LD_LIBRARY_PATH=$lib cargo run --quiet --release -p kiln-cuda --example compile_kernels -- \
    --nvrtc "$lib/libnvrtc.so.13" --cache "$work/kernels" sm_80 sm_90a >"$log"; then
    tail -n 1 "$log"
else
    grep -v ': ok' "$log"
    exit 1
fi

# The header of a kept kernel has 16 bytes. A descriptor takes an even register and the next one.
chmod +x "$disassembler"
for kept in "$work"/kernels/stream_mat_vec_*.cubin; do
    tail -c +17 "$kept" >"$work/cubin"
    "$disassembler" -c "$work/cubin" >"$work/text"
    grep -q LDGSTS "$work/text" || { echo "no copies found in $kept"; exit 1; }
    if grep 'desc\[UR[0-9]*[13579]\]' "$work/text"; then
        echo "a copy without its descriptor in $kept"
        exit 1
    fi
done
echo "copies of $(ls "$work"/kernels/stream_mat_vec_*.cubin | wc -l) units have their descriptors"
