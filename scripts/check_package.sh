#!/usr/bin/env bash
# Packs the crate, holds it to its size, and checks that it is complete: everything in it compiles, and the ops and the
# recorded runs that it carries pass, from the unpacked package alone.
#
# Needs no network beyond the dependencies of Cargo.lock. Built in target/ with the dependencies of the other checks.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

most=8000000
target=$(cargo metadata --format-version 1 --no-deps --offline |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')

cargo package --no-verify --allow-dirty --locked --quiet
package=$(ls -t "$target"/package/nepenthe-*.crate | head -1)
bytes=$(wc -c < "$package")
echo "$(basename "$package"): $bytes bytes, at most $most"
[ "$bytes" -le "$most" ] || exit 1

# The folder of the unpacked package is not within the repository, so that no test finds there what the package lacks.
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
tar xzf "$package" -C "$place"
cd "$place"/nepenthe-*/

export CARGO_TARGET_DIR="$target" NEPENTHE_NVCC=off NEPENTHE_REQUIRE_NVCC=0
cargo check --release --locked --all-targets --quiet
# Without the binary, and less optimized than a release: what is built here is run once.
cargo --config 'profile.release.package.nepenthe.opt-level=1' \
    test --release --locked --no-default-features --test golden --test ops
