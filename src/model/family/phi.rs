//! Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel after one LayerNorm, partly rotated heads, a bias on the head.

use super::llama;
use super::record::{
    ACTIVATIONS, Architecture, Bias, Biases, Keys, Names, PARTIAL, Positions, Residual,
    ResidualRule, Rotary,
};
use crate::ops::NormKind;

/// Source: transformers `modeling_phi.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "phi",
    keys: Keys { eps: Some("layer_norm_eps"), ..llama::KEYS },
    // No released model norms its heads; they would need LayerNorms of heads.
    required: &[("qk_layernorm", false)],
    names: Names {
        out: "self_attn.dense",
        norm2: None,
        up: &["mlp.fc1"],
        down: "mlp.fc2",
        norm: "model.final_layernorm",
        ..llama::NAMES
    },
    norm: NormKind::Layer,
    eps: 1e-5,
    activations: ACTIVATIONS,
    gated: false,
    residual: ResidualRule::Always(Residual::Shared),
    biases: Biases { qkv: Bias::Always, out: Bias::Always, mlp: Bias::Always, head: true },
    positions: Positions::Rotary(Rotary { part: (PARTIAL, 0.5), partial: true, ..llama::ROTARY }),
    ..llama::ARCHITECTURE
};
