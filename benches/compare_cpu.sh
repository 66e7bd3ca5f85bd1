#!/usr/bin/env bash
# The mean-teacher step of nepenthe and of PyTorch in turn, on the same threads of one machine.
#
#   PYTHON=python3 benches/compare_cpu.sh OUT.jsonl [THREADS]
#
# PYTHON needs torch and transformers. Every setting runs twice, the programs alternating; the better run of each
# counts, so that a disturbance on the machine does not decide. OUT gets every line, a table goes to stdout.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:?usage: benches/compare_cpu.sh OUT.jsonl [THREADS]}")
threads=${2:-2}
python=${PYTHON:-python3}
cargo build --release --locked --bench step
ours=$(cargo bench --locked --bench step --no-run --message-format=json 2>/dev/null |
    "$python" -c 'import json,sys
print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("target",{}).get("name")=="step" and m.get("executable")][-1])')
export OMP_NUM_THREADS=$threads

mkdir -p "$(dirname "$out")"
"$python" - "$threads" > "$out" <<'PY'
import datetime, json, subprocess, sys
cpu = [l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")][0]
commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
print(json.dumps({"kind": "env", "cpu": cpu, "threads": int(sys.argv[1]), "commit": commit,
                  "date": datetime.date.today().isoformat(), "command": "benches/compare_cpu.sh"}))
PY

nepenthe() { "$ours" --threads "$threads" "$@" | tee -a "$out"; }
torch() {
    "$python" benches/peers/torch_mt.py --device cpu --dtype f32 --warmup 1 --threads "$threads" --update foreach --phases "$@" |
        grep '"kind": "step"' | tee -a "$out"
}

for _ in 1 2; do
    shape=(--seq 192 --forget-batch 4 --retain-batch 8 --steps 8)
    nepenthe --model tiny "${shape[@]}" --pack-tokens 1536
    torch --preset tiny "${shape[@]}" --impl native --loss-impl chunked
    torch --preset tiny "${shape[@]}" --impl native --loss-impl full
    nepenthe --model tiny --state compact "${shape[@]}" --pack-tokens 1536
    torch --preset tiny "${shape[@]}" --impl hf --loss-impl full
    torch --preset tiny "${shape[@]}" --impl native --loss-impl chunked --compile
done
for _ in 1 2; do
    shape=(--seq 256 --forget-batch 2 --retain-batch 2 --steps 3)
    nepenthe --model smollm2-135m "${shape[@]}" --pack-tokens 512 --warmup 1
    torch --preset smollm2-135m "${shape[@]}" --impl native --loss-impl chunked --chunk 256
    nepenthe --model smollm2-135m "${shape[@]}" --pack-tokens 256 --warmup 1
    torch --preset smollm2-135m "${shape[@]}" --impl hf --loss-impl full
    nepenthe --model smollm2-135m --state compact "${shape[@]}" --pack-tokens 512 --warmup 1
done

"$python" - "$out" <<'PY'
import json, sys
best = {}
for line in map(json.loads, open(sys.argv[1])):
    if line["kind"] != "step":
        continue
    if line.get("program") == "nepenthe":
        name = f'nepenthe, {line["state"]}, packs of {line["pack_tokens"]}'
    else:
        name = f'PyTorch, {line["impl"]}, {line["loss"]} loss' + (", compiled" if line["compile"] else "")
    key = (line["preset"], name)
    if key not in best or line["median_ms"] < best[key]["median_ms"]:
        best[key] = line
print("| model | program | s/step (median) | tokens/s | GFLOP/s | peak MB | PyTorch's best / this: time, memory |")
print("|---|---|---|---|---|---|---|")
for (preset, name), line in best.items():
    rivals = [l for (p, n), l in best.items() if p == preset and n.startswith("PyTorch")]
    rate = line["gflop_per_s"] if "gflop_per_s" in line else line["model_tflops_per_s"] * 1e3
    time = min(r["median_ms"] for r in rivals) / line["median_ms"]
    memory = min(r["peak_mb"] for r in rivals) / line["peak_mb"]
    print(f'| {preset} | {name} | {line["median_ms"] / 1e3:.3f} | {line["tokens_per_s"]:.0f} | {rate:.0f} | '
          f'{line["peak_mb"]:.0f} | {time:.2f}, {memory:.2f} |')
PY
