//! The small models that the tests of steps and of generation share or choose from.

/// A head width that has tensor-core attention, grouped heads, and an ffn that fills no tile.
pub const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":2,"num_key_value_heads":1,
    "head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":88,
    "rms_norm_eps":1e-5}"#;
/// Biases, head norms, a head width without tensor-core attention, a tied head.
pub const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":12,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":41,
    "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;
/// LayerNorm, learned positions, transposed matrices, the tanh form of GELU, biases everywhere.
pub const GPT2: &str = r#"{"model_type":"gpt2","n_embd":64,"n_head":2,"n_layer":2,"n_inner":88,"n_positions":64,
    "activation_function":"gelu_new","vocab_size":101}"#;
/// Attention and MLP beside each other, part of a head turned, GELU, an untied head.
pub const NEOX: &str = r#"{"model_type":"gpt_neox","hidden_size":64,"num_attention_heads":1,"rotary_pct":0.25,
    "hidden_act":"gelu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":41}"#;
/// Positions from the third row of their table on, ReLU.
pub const OPT: &str = r#"{"model_type":"opt","hidden_size":64,"num_attention_heads":4,"ffn_dim":72,
    "max_position_embeddings":48,"activation_function":"relu","vocab_size":101,"num_hidden_layers":2}"#;
/// One norm for attention and MLP, a head with a bias.
pub const PHI: &str = r#"{"model_type":"phi","hidden_size":64,"num_attention_heads":2,"hidden_act":"gelu_new",
    "vocab_size":101,"num_hidden_layers":2,"intermediate_size":72}"#;
/// Capped scores, at a head width with tensor-core attention, and capped logits.
pub const GEMMA2: &str = r#"{"model_type":"gemma2","hidden_size":64,"num_attention_heads":2,
    "num_key_value_heads":1,"head_dim":128,"hidden_activation":"gelu_pytorch_tanh","vocab_size":101,
    "num_hidden_layers":3,"intermediate_size":88,"query_pre_attn_scalar":20,"sliding_window":9,
    "attn_logit_softcapping":2.0,"final_logit_softcapping":3.0}"#;
/// Gains from 1, norms behind attention and MLP, gated GELU, layers of two kinds.
pub const GEMMA3: &str = r#"{"model_type":"gemma3_text","hidden_size":64,"num_attention_heads":2,
    "num_key_value_heads":1,"head_dim":32,"hidden_activation":"gelu_pytorch_tanh","vocab_size":101,
    "num_hidden_layers":3,"intermediate_size":88,"query_pre_attn_scalar":20,"sliding_window":9,
    "_sliding_window_pattern":2}"#;
/// Matrices that fill tiles of compute capability 9.0.
pub const WIDE: &str = r#"{"model_type":"llama","hidden_size":256,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":1,"intermediate_size":512,
    "rms_norm_eps":1e-5}"#;
