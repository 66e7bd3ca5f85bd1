//! Models whose memory can be planned without a folder.

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Models whose shape is known without a folder, by name, as config.json.
pub const MODELS: [(&str, &str); 5] = [
    (
        "llama-2-7b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":32000,"hidden_size":4096,
        "num_hidden_layers":32,"num_attention_heads":32,"intermediate_size":11008}"#,
    ),
    (
        "llama-3-8b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":128256,"hidden_size":4096,
        "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":128256,"hidden_size":2048,
        "num_hidden_layers":16,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,
        "intermediate_size":8192,"tie_word_embeddings":true}"#,
    ),
    (
        "smollm2-135m",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":49152,"hidden_size":576,
        "num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"intermediate_size":1536,
        "tie_word_embeddings":true}"#,
    ),
    (
        "tiny",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":1024,"hidden_size":128,
        "num_hidden_layers":5,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,
        "intermediate_size":384,"tie_word_embeddings":true}"#,
    ),
];

/// Returns the configuration of one of [`MODELS`].
pub fn model(name: &str) -> Result<ModelConfig> {
    match MODELS.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => ModelConfig::parse(text),
        None => Err(Error::config(format!("--params-preset {name}: unknown"))),
    }
}
