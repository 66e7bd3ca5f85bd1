//! OPT: learned positions, LayerNorm, plain MLPs.

use super::llama;
use super::record::{ACTIVATIONS, Architecture, Bias, Biases, Keys, Names, Positions, Size};
use crate::ops::NormKind;

const BIAS: Bias = Bias::Key("enable_bias", true);

/// Source: transformers `modeling_opt.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "opt",
    keys: Keys {
        ffn: "ffn_dim",
        activation: "activation_function",
        // The norms have the epsilon of PyTorch; there is no key for it.
        eps: None,
        ..llama::KEYS
    },
    // OPT-350m norms after attention and MLP, and has neither a final norm nor an embedding of the model's width.
    required: &[
        ("do_layer_norm_before", true),
        ("_remove_final_layer_norm", false),
        ("layer_norm_elementwise_affine", true),
    ],
    fixed: &[
        ("word_embed_proj_dim", Size::Width),
        ("num_key_value_heads", Size::Heads),
        ("head_dim", Size::HeadWidth),
    ],
    names: Names {
        embed: "model.decoder.embed_tokens",
        positions: Some("model.decoder.embed_positions"),
        layers: "model.decoder.layers",
        norm1: "self_attn_layer_norm",
        out: "self_attn.out_proj",
        norm2: Some("final_layer_norm"),
        up: &["fc1"],
        down: "fc2",
        norm: "model.decoder.final_layer_norm",
        ..llama::NAMES
    },
    norm: NormKind::Layer,
    eps: 1e-5,
    activations: ACTIVATIONS,
    gated: false,
    biases: Biases { qkv: BIAS, out: BIAS, mlp: BIAS, head: false },
    tied: true,
    // The first two rows are reserved for padding.
    positions: Positions::Learned { offset: 2 },
    ..llama::ARCHITECTURE
};
