//! Llama, and the names and keys that most later decoders share with it.

use super::record::{
    Architecture, Bias, Biases, EmbedScale, Keys, Names, PARTIAL, Positions, Residual,
    ResidualRule, Rotary, Storage,
};
use crate::ops::{Activation, NormKind};

pub(super) const KEYS: Keys = Keys {
    width: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    ffn: "intermediate_size",
    activation: "hidden_act",
    eps: Some("rms_norm_eps"),
    positions: "max_position_embeddings",
};

pub(super) const NAMES: Names = Names {
    embed: "model.embed_tokens",
    positions: None,
    layers: "model.layers",
    norm1: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: None,
    out: "self_attn.o_proj",
    norm2: Some("post_attention_layernorm"),
    post: None,
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "model.norm",
    head: "lm_head",
    storage: Storage::Plain,
    masks: &[],
};

pub(super) const ROTARY: Rotary =
    Rotary { base: ("rope_theta", 1e4), part: (PARTIAL, 1.0), partial: false, local: None };

/// Source: transformers `modeling_llama.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    keys: KEYS,
    required: &[],
    fixed: &[],
    ignored: &[],
    names: NAMES,
    head_width: None,
    ffn_factor: None,
    norm: NormKind::Rms,
    gain_offset: 0.0,
    eps: 1e-6,
    activations: &[("silu", Activation::Silu)],
    gated: true,
    residual: ResidualRule::Always(Residual::Sequential),
    biases: Biases {
        qkv: Bias::Key("attention_bias", false),
        out: Bias::Key("attention_bias", false),
        mlp: Bias::Key("mlp_bias", false),
        head: false,
    },
    tied: false,
    embed_scale: EmbedScale::One,
    positions: Positions::Rotary(ROTARY),
    score_scale: None,
    score_cap: None,
    logit_cap: None,
    windows: None,
};
