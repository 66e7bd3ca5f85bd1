//! Mistral: Llama with a sliding window in every layer and never a bias.

use super::llama;
use super::record::{Architecture, Bias, Biases, SlidingLayers, Windows};

/// Source: transformers `modeling_mistral.py`.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    ignored: &["attention_bias", "mlp_bias"],
    biases: Biases { qkv: Bias::Never, out: Bias::Never, mlp: Bias::Never, head: false },
    windows: Some(Windows { default: 4096, layers: SlidingLayers::All }),
    ..llama::ARCHITECTURE
};
