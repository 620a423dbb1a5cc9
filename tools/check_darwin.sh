#!/usr/bin/env bash
# Type-checks the whole workspace for aarch64-apple-darwin on Linux, without Xcode or a linker.
# Debian carries a compiler together with the sources of its standard library, which cargo builds
# for the target first. Needs root and Debian's package registry where the two are not installed.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web rust-web-src)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

RUSTC=$(dpkg -L rustc-web | grep 'bin/rustc$')
export RUSTC RUSTC_BOOTSTRAP=1
cargo check --workspace --target aarch64-apple-darwin -Zbuild-std=std,panic_abort \
    --target-dir target/darwin
