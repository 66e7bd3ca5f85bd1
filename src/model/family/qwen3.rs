//! Qwen3: Qwen2 with norms of query and key heads, and biases only where config.json asks for them.

use super::record::{Architecture, Bias, Biases, Names};
use super::{llama, qwen2};

/// Source: transformers `modeling_qwen3.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3",
    ignored: &["mlp_bias"],
    names: Names { qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama::NAMES },
    biases: Biases {
        qkv: Bias::Key("attention_bias", false),
        out: Bias::Key("attention_bias", false),
        mlp: Bias::Never,
        head: false,
    },
    ..qwen2::ARCHITECTURE
};
