#!/usr/bin/env bash
# Every kernel and whole steps of nepenthe, and what PyTorch makes of the same shapes, in one run on one device.
#
#   PYTHON=python3 benches/compare.sh OUT [MODEL...]
#   PYTHON=python3 benches/compare.sh --rehearse OUT
#
# Writes OUT/ours.jsonl (nepenthe bench), OUT/theirs.jsonl (benches/peers/rivals.py: torch.matmul and addmm, SDPA with
# cuDNN and flash backends, compiled RMSNorm and SwiGLU, chunked linear and loss, foreach, compiled and Triton updates,
# generation by transformers, whole steps in several settings), OUT/environment.json and OUT/table.md. Models: those of
# `nepenthe bench`, all without any. PYTHON needs torch and transformers. A setting that does not fit the device's
# memory says so in the table.
#
# --rehearse runs the same path with the tiny model, ours in the simulator, theirs on the CPU: it shows that the scripts
# work, and its times mean nothing.
#
# Settings, by environment: NEPENTHE (the binary; built in release, with cuBLASLt as rival, where not given), REPEAT (50).
set -euo pipefail

usage() { sed -n '4,5p' "$0" >&2; exit 2; }
rehearse=false
if [ "${1:-}" = --rehearse ]; then rehearse=true; shift; fi
[ $# -ge 1 ] || usage
mkdir -p "$1"
out=$(realpath "$1")
shift
if [ -n "${NEPENTHE:-}" ]; then NEPENTHE=$(realpath "$NEPENTHE"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -c 'import torch, transformers' 2> /dev/null || {
    echo "$python: wanted torch and transformers; name an interpreter that has them with PYTHON" >&2
    exit 2
}

features=rivals device=cuda models=("$@") ours=(--repeat "${REPEAT:-50}") theirs=(--device cuda --repeat "${REPEAT:-50}")
if $rehearse; then
    features=sim device=sim models=(tiny) ours=(--repeat 1) theirs=(--device cpu --repeat 2 --steps 1)
fi
if [ -z "${NEPENTHE:-}" ]; then
    cargo build --release --locked --features "$features"
    NEPENTHE=target/release/nepenthe
fi
[ ${#models[@]} -gt 0 ] || models=("")
: > "$out/ours.jsonl"
for model in "${models[@]}"; do
    "$NEPENTHE" bench --device "$device" --json "${ours[@]}" ${model:+--model "$model"} >> "$out/ours.jsonl"
done
if [ ! -s "$out/ours.jsonl" ]; then
    echo "nothing was measured: no CUDA device (benches/compare_cpu.sh compares on the CPU)" >&2
    exit 6
fi
"$python" benches/peers/rivals.py "$out/ours.jsonl" "${theirs[@]}" > "$out/theirs.jsonl"
"$python" - > "$out/environment.json" <<'PY'
import datetime, json, platform
import torch, transformers
print(json.dumps({"date": datetime.date.today().isoformat(), "python": platform.python_version(), "torch": torch.__version__,
                  "cuda": torch.version.cuda, "transformers": transformers.__version__,
                  "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}))
PY
"$python" benches/peers/table.py "$out" > "$out/table.md"
cat "$out/table.md"
