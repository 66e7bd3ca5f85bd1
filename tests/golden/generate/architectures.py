#!/usr/bin/env python3
"""Records small random models of families that the paper's code does not support, one entry of CONFIGS each.

Run with PyTorch and transformers (the committed files: torch 2.11, transformers 5.17; Gemma-2: torch 2.15,
transformers 5.24):

    python tests/golden/generate/architectures.py tests/golden/data [name ...]
    python tests/golden/generate/thin.py tests/golden/data

Tiny models of random weights, written by `save_pretrained`, and what transformers makes of them in f64: logits without a
mask, the NLL of the masked targets, and its gradient for every parameter. transformers forces f32 in norms, rotary tables
and softmax; here these are kept in f64 too, as in the other recorded models. The cases join the manifest.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

VOCAB, ROWS, TOKENS = 96, 2, 14

CONFIGS = {
    "phi": transformers.PhiConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        partial_rotary_factor=0.5, max_position_embeddings=64, layer_norm_eps=1e-5, pad_token_id=1,
        bos_token_id=0, eos_token_id=1, attention_dropout=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    ),
    # Caps that are small enough to bend most of what they are put on.
    "gemma2": transformers.Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=10, sliding_window=5, max_position_embeddings=64,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    ),
    "gemma3": transformers.Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=10, sliding_window=5,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    ),
}


def fill(model):
    """Weights of such a size that no part of the model could be left out unseen."""
    torch.manual_seed(3)
    for name, p in model.named_parameters():
        norm = "norm" in name
        scale = 0.3 if norm or p.dim() == 1 else 1.2 / p.shape[-1] ** 0.5
        start = 1.0 if norm and name.endswith("weight") and "gemma" not in type(model).__name__.lower() else 0.0
        with torch.no_grad():
            p.copy_(torch.randn_like(p) * scale + start)


def in_double(model):
    """Turns a model to f64, with what transformers computes in f32: rotary tables and the scale of an embedding."""
    model.double()
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = rotary(model.config, module)


def rotary(config, module):
    def forward(x, position_ids, layer_type=None):
        parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        f32 = getattr(module, f"{layer_type}_inv_freq" if layer_type else "inv_freq")
        steps = torch.arange(0, 2 * f32.numel(), 2, dtype=torch.float64) / (2 * f32.numel())
        exact = parameters["rope_theta"] ** -steps / parameters.get("factor", 1.0)
        assert torch.allclose(exact, f32.double(), rtol=1e-6)
        angles = position_ids[:, :, None].double() * exact
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    return forward


def main(root, names):
    to_f32, softmax = torch.Tensor.float, functional.softmax
    manifest = json.loads((root / "manifest.json").read_text())
    for name, config in CONFIGS.items():
        if names and name not in names:
            continue
        folder = root / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        fill(model)
        model.eval()
        model.save_pretrained(folder)
        ids = torch.randint(2, VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(5))
        mask = torch.ones_like(ids)
        mask[1, TOKENS - 3 :] = 0
        ids[mask == 0] = 1
        torch.Tensor.float = torch.Tensor.double
        functional.softmax = lambda x, dim=None, dtype=None: softmax(x, dim=dim)
        in_double(model)
        logits = model(ids).logits
        torch.Tensor.float, functional.softmax = to_f32, softmax
        keep = mask[:, 1:].bool()
        nll = functional.cross_entropy(logits[:, :-1][keep], ids[:, 1:][keep])
        nll.backward()
        record = {"input_ids": ids, "attention_mask": mask, "logits_f64": logits.detach(), "nll_f64": nll.detach()[None]}
        save_file(record, folder / "logits.safetensors")
        grads = {n: p.grad.to(torch.float32).contiguous() for n, p in model.named_parameters()}
        save_file(grads, folder / "grad_nll.safetensors")
        files = ["config.json", "model.safetensors", "logits.safetensors", "grad_nll.safetensors"]
        case = {
            "id": f"models/{name}",
            "kind": "forward+gradient",
            "files": [f"models/{name}/{file}" for file in files],
            "nll_f64": nll.item(),
            "made_by": "tests/golden/generate/architectures.py",
            "tolerance": {
                "logits max abs difference to logits_f64": {"f32 arithmetic": 1e-4, "f64 arithmetic": 1e-9},
                "nll abs": {"f32": 2e-5, "f64": 1e-10},
                "gradient, relative L2 per tensor": {"f32": 5e-5, "f64": 2e-7},
            },
        }
        (folder / "generation_config.json").unlink(missing_ok=True)
        manifest["cases"] = [c for c in manifest["cases"] if c["id"] != case["id"]] + [case]
        for file in case["files"]:
            data = (root / file).read_bytes()
            manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        print(name, f"nll {nll.item():.6f}, largest logit {logits.abs().max().item():.3f}")
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


main(Path(sys.argv[1]), sys.argv[2:])
