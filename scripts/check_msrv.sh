#!/usr/bin/env bash
# Checks that the oldest Rust of Cargo.toml (rust-version) can build the crate, as far as this machine can tell.
#
# With that toolchain (rustup toolchain install 1.89) the crate is checked by it. Without it, no dependency of Cargo.lock
# may ask for a newer one; the standard library items of this crate's own code are checked by clippy
# (incompatible_msrv, denied in Cargo.toml). Neither of the two sees syntax and language features that are newer: for
# those the toolchain is needed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

# Of all features, as far as their packages can be had; without a network those that are here.
metadata() {
    cargo metadata --format-version 1 --locked --all-features 2> /dev/null ||
        cargo metadata --format-version 1 --locked --offline --filter-platform "$(rustc -vV | sed -n 's/^host: //p')"
}

metadata |
    python3 -c '
import json, sys

number = lambda version: [int(part) for part in version.split(".")[:2]]
packages = json.load(sys.stdin)["packages"]
newer = [p for p in packages if p["rust_version"] and number(p["rust_version"]) > number(sys.argv[1])]
for p in newer:
    name, version, rust = p["name"], p["version"], p["rust_version"]
    print(f"{name} {version} needs Rust {rust}, wanted {sys.argv[1]} or older", file=sys.stderr)
stated = sum(p["rust_version"] is not None for p in packages)
print(f"{len(packages)} packages, {stated} of them state a Rust version, {len(newer)} a newer one than {sys.argv[1]}")
sys.exit(bool(newer))
' "$msrv"

if command -v rustup > /dev/null && rustup run "$msrv" rustc --version 2> /dev/null; then
    NEPENTHE_NVCC=off cargo "+$msrv" check --release --locked --all-targets
else
    echo "Rust $msrv is not installed: the crate itself was checked by clippy alone (incompatible_msrv)"
fi
