#!/usr/bin/env bash
# Compiles every CUDA kernel for sm_80 and sm_90a with NVRTC from PyPI, without a GPU, and fails where
# a kernel does not compile or uses local memory without a reason (see the example's list).
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0

site=target/nvrtc
lib=$site/nvidia/cu13/lib
if [ ! -e "$lib/libnvrtc.so.13" ]; then
    rm -rf "$site"
    python3 -m pip install --quiet --target "$site.new" nvidia-cuda-nvrtc==13.0.88
    mv "$site.new" "$site"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if LD_LIBRARY_PATH=$lib cargo run --quiet --release -p kiln-cuda --example compile_kernels -- \
    --nvrtc "$lib/libnvrtc.so.13" sm_80 sm_90a >"$log"; then
    tail -n 1 "$log"
else
    grep -v ': ok' "$log"
    exit 1
fi
