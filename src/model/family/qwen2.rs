//! Qwen2: Llama with biases on query, key and value, and sliding windows in the upper layers.

use super::llama;
use super::record::{Architecture, Bias, Biases, SlidingLayers, Windows};

/// Source: transformers `modeling_qwen2.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2",
    ignored: &["attention_bias", "mlp_bias"],
    biases: Biases { qkv: Bias::Always, out: Bias::Never, mlp: Bias::Never, head: false },
    windows: Some(Windows { default: 4096, layers: SlidingLayers::Switched { first: 28 } }),
    ..llama::ARCHITECTURE
};
