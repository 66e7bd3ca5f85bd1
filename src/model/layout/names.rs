//! What the tensors of a family are called, and how their numbers lie in its files.

use super::Order;
use crate::model::config::{Family, ModelConfig};

/// Names of modules; those of a layer stand behind `layers` and its number.
pub(super) struct Names {
    pub embed: &'static str,
    /// Of learned positions.
    pub positions: &'static str,
    pub layers: &'static str,
    pub norm1: &'static str,
    /// Query, key and value, or the one that holds all three.
    pub qkv: &'static [&'static str],
    pub out: &'static str,
    pub norm2: &'static str,
    /// Norms of what attention and MLP make.
    pub post: [&'static str; 2],
    /// What the MLP starts with, and
    pub up: &'static [&'static str],
    /// what it ends with.
    pub down: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    /// Whether matrices of layers are stored as `[inputs, outputs]`.
    pub transposed: bool,
}

const LLAMA: Names = Names {
    embed: "model.embed_tokens",
    positions: "",
    layers: "model.layers",
    norm1: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.o_proj",
    norm2: "post_attention_layernorm",
    post: [""; 2],
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "model.norm",
    head: "lm_head",
    transposed: false,
};

const GPT2: Names = Names {
    embed: "transformer.wte",
    positions: "transformer.wpe",
    layers: "transformer.h",
    norm1: "ln_1",
    qkv: &["attn.c_attn"],
    out: "attn.c_proj",
    norm2: "ln_2",
    post: [""; 2],
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: "transformer.ln_f",
    head: "lm_head",
    transposed: true,
};

const NEOX: Names = Names {
    embed: "gpt_neox.embed_in",
    positions: "",
    layers: "gpt_neox.layers",
    norm1: "input_layernorm",
    qkv: &["attention.query_key_value"],
    out: "attention.dense",
    norm2: "post_attention_layernorm",
    post: [""; 2],
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    transposed: false,
};

const OPT: Names = Names {
    embed: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    layers: "model.decoder.layers",
    norm1: "self_attn_layer_norm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    norm2: "final_layer_norm",
    post: [""; 2],
    up: &["fc1"],
    down: "fc2",
    norm: "model.decoder.final_layer_norm",
    head: "lm_head",
    transposed: false,
};

const PHI: Names = Names {
    out: "self_attn.dense",
    // There is none: the MLP reads what attention reads.
    norm2: "",
    up: &["mlp.fc1"],
    down: "mlp.fc2",
    norm: "model.final_layernorm",
    ..LLAMA
};

const GEMMA: Names = Names {
    norm2: "pre_feedforward_layernorm",
    post: ["post_attention_layernorm", "post_feedforward_layernorm"],
    ..LLAMA
};

impl Names {
    pub(super) fn of(family: Family) -> &'static Self {
        match family {
            Family::Llama => &LLAMA,
            Family::Gpt2 => &GPT2,
            Family::NeoX => &NEOX,
            Family::Opt => &OPT,
            Family::Phi => &PHI,
            Family::Gemma2 | Family::Gemma3 => &GEMMA,
        }
    }

    /// Returns how a matrix of a layer lies in the files.
    pub(super) fn matrix(&self) -> Order {
        if self.transposed { Order::Transposed } else { Order::Same }
    }

    /// Returns how the tensors of query, key and value lie in the files: matrix and bias.
    pub(super) fn qkv_order(&self, config: &ModelConfig) -> [Order; 2] {
        let (heads, width) = (config.heads, config.head_width);
        match config.family {
            Family::NeoX => [Order::ByHead { heads, width }; 2],
            _ => [self.matrix(), Order::Same],
        }
    }
}

/// Tells whether a tensor that no computation reads belongs to files of the family: masks and frequencies that older
/// exporters left behind.
pub(super) fn is_leftover(family: Family, name: &str) -> bool {
    let masks: &[&str] = match family {
        Family::Gpt2 => &[".attn.bias", ".attn.masked_bias"],
        Family::NeoX => &[".attention.bias", ".attention.masked_bias"],
        Family::Llama | Family::Opt | Family::Phi | Family::Gemma2 | Family::Gemma3 => &[],
    };
    name.ends_with("rotary_emb.inv_freq") || masks.iter().any(|mask| name.ends_with(mask))
}
