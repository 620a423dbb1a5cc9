#!/usr/bin/env bash
# Type-checks the whole workspace for Apple Silicon on a Debian machine. The compiler and the standard
# library's source are Debian's; cargo is the one on the path. Installing needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web rust-web-src)
installed() { dpkg -s "${packages[@]}" 2>/dev/null | grep -c '^Status: install ok installed$' || true; }
if [ "$(installed)" -ne "${#packages[@]}" ]; then
    export DEBIAN_FRONTEND=noninteractive
    dpkg --configure -a
    apt-get -o DPkg::Lock::Timeout=300 update -qq
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${packages[@]}"
fi

RUSTC=$(dpkg -L rustc-web | grep -x '.*/bin/rustc')
# No compiled standard library for this target is installed: cargo checks it first, which it only
# does for a compiler that accepts unstable flags.
export RUSTC RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/darwin"
cargo check -Zbuild-std=std,panic_abort --target aarch64-apple-darwin --workspace --all-targets
