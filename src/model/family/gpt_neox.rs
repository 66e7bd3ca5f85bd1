//! GPT-NeoX and Pythia: parallel residuals, partly rotated heads, query, key and value stored head by head.

use super::llama;
use super::record::{
    ACTIVATIONS, Architecture, Bias, Biases, Keys, Names, Positions, ResidualRule, Rotary, Size,
    Storage,
};
use crate::ops::NormKind;

/// Source: transformers `modeling_gpt_neox.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt_neox",
    keys: Keys { eps: Some("layer_norm_eps"), ..llama::KEYS },
    // It has no grouped heads.
    fixed: &[("num_key_value_heads", Size::Heads), ("head_dim", Size::HeadWidth)],
    names: Names {
        embed: "gpt_neox.embed_in",
        layers: "gpt_neox.layers",
        qkv: &["attention.query_key_value"],
        out: "attention.dense",
        up: &["mlp.dense_h_to_4h"],
        down: "mlp.dense_4h_to_h",
        norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
        storage: Storage::ByHead,
        masks: &[".attention.bias", ".attention.masked_bias"],
        ..llama::NAMES
    },
    norm: NormKind::Layer,
    eps: 1e-5,
    activations: ACTIVATIONS,
    gated: false,
    residual: ResidualRule::ParallelIf("use_parallel_residual"),
    biases: Biases {
        qkv: Bias::Key("attention_bias", true),
        out: Bias::Key("attention_bias", true),
        mlp: Bias::Always,
        head: false,
    },
    positions: Positions::Rotary(Rotary {
        base: ("rotary_emb_base", 1e4),
        part: ("rotary_pct", 0.25),
        partial: true,
        local: None,
    }),
    ..llama::ARCHITECTURE
};
