#!/usr/bin/env bash
# Installs the CUDA compiler from PyPI into .cuda/ of this checkout, where build.rs looks for it, and its disassemblers,
# which have no release of CUDA 13.0 there: those of 13.2 read its code as well. tests/sass needs them.
# Needs python3 with pip, about 150 MB of download and 500 MB of disk. Nothing outside .cuda/ is touched.
# A second call finds the stamp of the same versions and does nothing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=.cuda
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvdisasm==13.2.51
    nvidia-cuda-cuobjdump==13.2.51
)
stamp="$target/installed"
nvcc="$target/nvidia/cu13/bin/nvcc"

fail() {
    echo "install-nvcc: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

if [[ -x $nvcc && -f $stamp && "$(cat "$stamp")" == "${packages[*]}" ]]; then
    echo "nvcc is installed: $PWD/$nvcc"
    exit 0
fi

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-aarch64) ;;
    *) fail "no nvcc package for $(uname -s) on $(uname -m)" "build without kernels: NEPENTHE_NVCC=off cargo build" ;;
esac

python=""
for candidate in "${PYTHON:-}" python3 python; do
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[[ -n $python ]] || fail "no python 3.8 or newer found" "install python3, or set PYTHON to one"
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip" "install python3-pip, or set PYTHON to an interpreter that has it"

# A half-written folder must never look installed, so pip fills a new one and a rename puts it in place.
fresh="$target.tmp"
trap 'rm -rf "$fresh"' EXIT
rm -rf "$fresh"
"$python" -m pip install --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    --no-deps --only-binary :all: --quiet --target "$fresh" "${packages[@]}" ||
    fail "pip could not install ${packages[*]}" "pip's message above says why; a proxy or index is set by PIP_INDEX_URL"
chmod +x "$fresh"/nvidia/cu13/bin/* "$fresh"/nvidia/cu13/nvvm/bin/* 2>/dev/null || true
[[ -x $fresh/nvidia/cu13/bin/nvcc ]] ||
    fail "the packages brought no nvidia/cu13/bin/nvcc" "check the versions pinned in scripts/install-nvcc.sh"
[[ -x $fresh/nvidia/cu13/bin/nvdisasm && -x $fresh/nvidia/cu13/bin/cuobjdump ]] ||
    fail "the packages brought no nvdisasm or cuobjdump" "check the versions pinned in scripts/install-nvcc.sh"
echo "${packages[*]}" >"$fresh/installed"
rm -rf "$target"
mv "$fresh" "$target"
# build.rs cannot watch a folder that may not exist; a new time stamp makes cargo run it again.
touch build.rs
"$nvcc" --version | tail -n 2
echo "nvcc is installed: $PWD/$nvcc"
