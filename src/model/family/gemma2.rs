//! Gemma-2: norms before and after attention and MLP, whose weights count from 1; capped scores and logits; an embedding
//! scaled by the root of the width; a sliding window in every other layer.

use super::llama;
use super::record::{
    ACTIVATIONS, Architecture, Bias, Biases, EmbedScale, Keys, Names, SlidingLayers, Windows,
};

pub(super) const NAMES: Names = Names {
    norm2: Some("pre_feedforward_layernorm"),
    post: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    ..llama::NAMES
};

/// Source: transformers `modeling_gemma2.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma2",
    keys: Keys { activation: "hidden_activation", ..llama::KEYS },
    // Attention is causal here.
    required: &[("use_bidirectional_attention", false)],
    ignored: &["mlp_bias"],
    names: NAMES,
    head_width: Some(256),
    gain_offset: 1.0,
    activations: ACTIVATIONS,
    biases: Biases {
        qkv: Bias::Key("attention_bias", false),
        out: Bias::Key("attention_bias", false),
        mlp: Bias::Never,
        head: false,
    },
    tied: true,
    embed_scale: EmbedScale::RootWidth,
    score_scale: Some(("query_pre_attn_scalar", 256.0)),
    score_cap: Some(50.0),
    logit_cap: Some(30.0),
    windows: Some(Windows {
        default: 4096,
        layers: SlidingLayers::Periodic { keys: &[], period: 2 },
    }),
    ..llama::ARCHITECTURE
};
