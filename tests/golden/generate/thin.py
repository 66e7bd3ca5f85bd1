#!/usr/bin/env python3
"""Thins recorded reference runs, so that the repository stays small.

    python tests/golden/generate/thin.py tests/golden/data

Needs numpy and safetensors. Full recordings are replaced in place; thinned files stay as they are, so that it can run again
after a new recording. The result depends on the recorded numbers alone. `tests/golden/thinned.rs` reads both forms.

- Logits `logits_f64` [B, T, V] become `logits_kept`, one entry in 8 of all positions and columns, and `logits_sums`
  [B * T, 8], signed sums over all columns of a position: the entries say how far a logit may be off, the sums that
  none of the others is wrong.
- A gradient NAME of more than 64 entries becomes `NAME.sums` [33]: its L2 norm and 32 signed sums over all its entries. For random signs the mean
  square of a signed sum of differences is the square of their L2 norm, so that the relative L2 error of a gradient is
  estimated to about an eighth of itself, and an error in any single entry shows in every sum.
- Of the final state of a trajectory that the binary does not carry, one entry in 4 is kept of each tensor.

Entries and signs follow from a hash of the flat index (SplitMix64): entry i is kept if the low bits of its hash are 0,
and sum k takes its sign from bit 8 + k.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

KEEP_LOGITS, KEEP_FINALS = 8, 4
LOGIT_SUMS, GRADIENT_SUMS = 8, 32
# Gradients of at most so many entries stay.
SMALL = 64
# `src/conformance/trajectory/cases.rs` embeds these, and `nepenthe doctor` compares every entry.
EMBEDDED = ("a_sgd_nlul_qkl", "f_adamw_nlul_kl_damped")


def mix(count):
    """Returns the hashes of the indices below `count`."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def signs(hashes, sums):
    """Returns the signs of every sum, [sums, entries]."""
    bits = np.stack([(hashes >> np.uint64(8 + k)) & np.uint64(1) for k in range(sums)])
    return np.where(bits == 1, 1.0, -1.0)


def kept(values, every):
    flat = values.reshape(-1)
    return flat[mix(flat.size) % np.uint64(every) == 0]


def thin_logits(tensors):
    logits = tensors.pop("logits_f64")
    tensors.pop("logits_f32", None)
    flat = logits.astype(np.float64).reshape(-1)
    tensors["logits_kept"] = kept(flat, KEEP_LOGITS)
    signed = signs(mix(flat.size), LOGIT_SUMS) * flat
    tensors["logits_sums"] = np.ascontiguousarray(signed.reshape(LOGIT_SUMS, -1, logits.shape[-1]).sum(axis=2).T)
    return tensors


def thin_gradient(name, gradient):
    """Returns the name and the tensor that stand for a gradient."""
    if gradient.size <= SMALL:
        return name, gradient
    flat = gradient.astype(np.float64).reshape(-1)
    sums = (signs(mix(flat.size), GRADIENT_SUMS) * flat).sum(axis=1)
    return f"{name}.sums", np.concatenate(([np.sqrt((flat * flat).sum())], sums))


def thin(path):
    """Returns the thinned tensors of a file, or None where nothing is to be thinned."""
    with safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    if metadata.get("thinned"):
        return None
    if "logits_f64" in tensors:
        return thin_logits(tensors)
    if path.name == "grad_nll.safetensors":
        return dict(thin_gradient(*item) for item in tensors.items())
    if any(name.startswith("grad.") for name in tensors):
        return dict(thin_gradient(*item) if item[0].startswith("grad.") else item for item in tensors.items())
    if path.name.startswith("final_") and path.parent.name not in EMBEDDED:
        return {name: kept(value, KEEP_FINALS) for name, value in tensors.items()}
    return None


def main(root):
    manifest = json.loads((root / "manifest.json").read_text())
    for path in sorted(root.rglob("*.safetensors")):
        tensors = thin(path)
        if tensors is None:
            continue
        before = path.stat().st_size
        save_file({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, path, {"thinned": "thin.py"})
        data = path.read_bytes()
        name = path.relative_to(root).as_posix()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        print(f"{name}: {before} -> {len(data)} bytes")
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


main(Path(sys.argv[1]))
