//! GPT-2: learned positions, LayerNorm, plain MLPs, matrices stored as `[inputs, outputs]`.

use super::llama;
use super::record::{
    ACTIVATIONS, Architecture, Bias, Biases, Keys, Names, Positions, Size, Storage,
};
use crate::ops::NormKind;

/// Source: transformers `modeling_gpt2.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt2",
    keys: Keys {
        width: "n_embd",
        heads: "n_head",
        layers: "n_layer",
        ffn: "n_inner",
        activation: "activation_function",
        eps: Some("layer_norm_epsilon"),
        positions: "n_positions",
    },
    required: &[
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ],
    // It has no grouped heads.
    fixed: &[("num_key_value_heads", Size::Heads), ("head_dim", Size::HeadWidth)],
    names: Names {
        embed: "transformer.wte",
        positions: Some("transformer.wpe"),
        layers: "transformer.h",
        norm1: "ln_1",
        qkv: &["attn.c_attn"],
        qk_norm: None,
        out: "attn.c_proj",
        norm2: Some("ln_2"),
        post: None,
        up: &["mlp.c_fc"],
        down: "mlp.c_proj",
        norm: "transformer.ln_f",
        head: "lm_head",
        storage: Storage::Transposed,
        masks: &[".attn.bias", ".attn.masked_bias"],
    },
    ffn_factor: Some(4),
    norm: NormKind::Layer,
    eps: 1e-5,
    activations: ACTIVATIONS,
    gated: false,
    biases: Biases { qkv: Bias::Always, out: Bias::Always, mlp: Bias::Always, head: false },
    tied: true,
    positions: Positions::Learned { offset: 0 },
    ..llama::ARCHITECTURE
};
