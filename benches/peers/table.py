#!/usr/bin/env python3
"""One table of nepenthe's measurements and its rivals': table.py OUT, after benches/compare.sh has filled OUT."""
import json
import math
import sys
from pathlib import Path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def number(x, digits=3):
    return "-" if x is None else f"{x:.{digits}g}" if abs(x) < 1000 else f"{x:.0f}"


def main(out):
    ours, theirs = lines(out / "ours.jsonl"), lines(out / "theirs.jsonl")
    environment = json.loads((out / "environment.json").read_text())
    origin = {(line["device"], line["driver"], line["date"], line["commit"]) for line in ours}
    print("# nepenthe beside PyTorch\n")
    for device, driver, date, commit in sorted(origin):
        print(f"nepenthe: {device}, driver {driver}, {date}, commit {commit}. ")
    print(f"PyTorch {environment['torch']} (CUDA {environment['cuda']}), transformers {environment['transformers']}: "
          f"{environment['device']}, {environment['date']}.\n")
    print("`ratio` is the best rival's time over ours: above 1 nepenthe is faster. `roof` is our share of what the device "
          "could do, `predicted` what experiments/predictions.md expects of an H100.\n")
    print("| what | shape | ours us | rate | roof | predicted | best rival | its us | ratio | peak GiB: ours, its |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    ratios = {}
    for line in ours:
        rivals = [(r["median_us"], r["rival"], r.get("peak_bytes")) for r in theirs
                  if (r["kind"], r["name"], r["shape"]) == (line["kind"], line["name"], line["shape"]) and "median_us" in r]
        if line["rival_rate"]:
            rivals.append((line["median_us"] * line["rate"] / line["rival_rate"], line["rival"], None))
        time, name, peak = min(rivals, default=(None, None, None))
        ratio = time / line["median_us"] if time else None
        if ratio:
            ratios.setdefault(line["kind"], []).append(ratio)
        share = f"{100 * line['roof_share']:.0f} %" if line["roof_share"] else "-"
        held = "-"
        if line.get("peak_bytes"):
            held = f"{line['peak_bytes'] / 2**30:.2f}, {peak / 2**30:.2f}" if peak else f"{line['peak_bytes'] / 2**30:.2f}"
        print(f"| {line['name']}, {line['kind']} | {line['shape']} | {number(line['median_us'])} | "
              f"{number(line['rate'])} {line['unit']} | {share} | {number(line['predicted'])} | {name or '-'} | "
              f"{number(time)} | {number(ratio)} | {held} |")
    print("\n| kind | geometric mean of the ratios |\n|---|---|")
    for kind, values in ratios.items():
        print(f"| {kind} | {math.exp(sum(map(math.log, values)) / len(values)):.2f} |")
    failed = [r for r in theirs if "error" in r]
    if failed:
        print("\nSettings of rivals that did not run:\n")
        for r in failed:
            print(f"- {r['name']}, {r['kind']}: {r['rival']}: {r['error']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
