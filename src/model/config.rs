//! config.json of a decoder: what is read, and what is refused.

mod ignored;
mod reader;
mod rotary;
mod rules;
mod windows;

use serde_json::Value;

use super::family::{self, Architecture, EmbedScale, Positions, Residual};
use crate::error::{Error, Result};
use crate::ops::{Heads, Mlp, Norm};
use reader::Reader;
use rotary::{local_rope, rope};
use rules::Rules;
use windows::windows;

const MOST_LAYERS: usize = 4096;
const LARGEST_MATRIX: u128 = 1 << 40;
const WIDEST_HEAD: usize = 1 << 16;

/// The settings of a decoder that its computation depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family, which has the names of its tensors.
    pub architecture: &'static Architecture,
    /// V.
    pub vocab: usize,
    /// C.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// D.
    pub head_width: usize,
    /// F.
    pub ffn: usize,
    /// Norm of the hidden states; norms of heads share its epsilon and offset.
    pub norm: Norm,
    /// Activation of the MLPs.
    pub mlp: Mlp,
    /// Residual connections of a layer.
    pub residual: Residual,
    /// Presence of norms of the outputs of attention and MLP, before they join the residual stream.
    pub post_norms: bool,
    /// Factor on the embedding.
    pub embed_scale: f64,
    /// Use of the embedding matrix as head.
    pub tied: bool,
    /// Presence of biases of query, key and value.
    pub qkv_bias: bool,
    /// Presence of a bias of the output projection.
    pub out_bias: bool,
    /// Presence of biases in the MLPs.
    pub mlp_bias: bool,
    /// Presence of a bias of the head.
    pub head_bias: bool,
    /// Presence of norms of query and key heads.
    pub qk_norm: bool,
    /// Rotary positions; of width 0 where positions are learned.
    pub rope: RopeConfig,
    /// Rotary positions of layers with a window, where they have their own.
    pub local_rope: Option<RopeConfig>,
    /// Factor on rotated query and key heads; its square is a factor on scores.
    pub head_scale: f64,
    /// The cap of attention scores s, which become `cap tanh(s / cap)`.
    pub score_cap: Option<f64>,
    /// The cap of logits, likewise.
    pub logit_cap: Option<f64>,
    /// Learned positions, where there are some.
    pub learned: Option<Learned>,
    /// Sliding window of each layer.
    pub windows: Vec<Option<usize>>,
    /// The longest sequence the model was made for.
    pub max_positions: usize,
}

/// Positions that are rows of a table, added to the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Rows of the table.
    pub rows: usize,
    /// The row of position 0.
    pub offset: usize,
}

/// Rotary position settings.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of the rotated part of a head; D unless `partial_rotary_factor` says less.
    pub width: usize,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Changes of rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    Default,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama-3: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// The context the model was first trained for, tokens.
        original: f64,
    },
}

impl ModelConfig {
    /// Reads config.json, in the style of transformers 4 and 5.
    ///
    /// Errors: [`crate::Kind::Model`] for JSON that is not an object, missing or ill-typed keys, an unknown
    /// architecture, or a setting that this version does not compute.
    pub fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text).map_err(|e| {
            Error::model(format!("config.json: not valid JSON: {e}")).with_source(e)
        })?;
        let json = Reader { root: &root };
        let model_type = json.text("model_type")?;
        if json.root.get("text_config").is_some_and(Value::is_object) {
            return Err(Error::model(format!(
                "config.json: model_type `{model_type}` is a multimodal model (text_config inside), which is not \
                 supported"
            ))
            .hint(format!(
                "use a text-only model; supported model_types are {}",
                family::supported()
            )));
        }
        let architecture = family::find(&model_type)?;
        let rules = Rules { json: &json, family: architecture };
        rules.refuse()?;
        let Architecture { keys, names, biases, .. } = architecture;
        let width = json.size(keys.width)?;
        let heads = json.size(keys.heads)?;
        let layers = json.size(keys.layers)?;
        let head_width = match json.optional_size("head_dim")?.or(architecture.head_width) {
            Some(d) => d,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                return Err(Error::model(format!(
                    "config.json: {} {width} is no multiple of {} {heads}, and head_dim is missing",
                    keys.width, keys.heads
                )));
            }
        };
        let kv_heads = json.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::model(format!(
                "config.json: {} {heads} is no multiple of num_key_value_heads {kv_heads}",
                keys.heads
            )));
        }
        let vocab = json.size("vocab_size")?;
        let ffn = match (json.optional_size(keys.ffn)?, architecture.ffn_factor) {
            (Some(ffn), _) => ffn,
            (None, Some(factor)) => factor * width,
            (None, None) => json.size(keys.ffn)?,
        };
        // So that no size computed from these can overflow, and a wrong file cannot ask for memory by a number alone.
        if layers > MOST_LAYERS {
            return Err(Error::model(format!(
                "config.json: {}: wanted at most {MOST_LAYERS}, got {layers}",
                keys.layers
            )));
        }
        if head_width > WIDEST_HEAD {
            return Err(Error::model(format!(
                "config.json: head_dim: wanted at most {WIDEST_HEAD}, got {head_width}"
            )));
        }
        let max_positions = json.optional_size(keys.positions)?.unwrap_or(2048);
        let (learned, rotary) = match &architecture.positions {
            Positions::Learned { offset } => {
                (Some(Learned { rows: max_positions + offset, offset: *offset }), None)
            }
            Positions::Rotary(rotary) => (None, Some(rotary)),
        };
        let rows = (vocab as u128).max(2 * ffn as u128).max(max_learned(learned));
        let heads_wide = (heads as u128 + 2 * kv_heads as u128) * head_width as u128;
        let largest = rows.max(heads_wide) * width as u128;
        if largest > LARGEST_MATRIX {
            return Err(Error::model(format!(
                "config.json: a matrix of {largest} numbers, wanted at most {LARGEST_MATRIX}"
            )));
        }
        let bias = |bias| rules.bias(bias);
        let (qkv_bias, out_bias, mlp_bias) =
            (bias(biases.qkv)?, bias(biases.out)?, bias(biases.mlp)?);
        let eps = match keys.eps {
            Some(key) => json.number(key, Some(architecture.eps))?,
            None => architecture.eps,
        };
        Ok(Self {
            vocab,
            width,
            layers,
            heads,
            kv_heads,
            head_width,
            ffn,
            norm: Norm { kind: architecture.norm, width, eps, offset: architecture.gain_offset },
            mlp: Mlp { activation: rules.activation()?, gated: architecture.gated },
            residual: rules.residual()?,
            post_norms: names.post.is_some(),
            embed_scale: match architecture.embed_scale {
                EmbedScale::One => 1.0,
                EmbedScale::RootWidth => (width as f64).sqrt(),
            },
            tied: json.flag("tie_word_embeddings", architecture.tied)?,
            qkv_bias,
            out_bias,
            mlp_bias,
            head_bias: biases.head,
            qk_norm: names.qk_norm.is_some(),
            rope: match rotary {
                Some(rotary) => rope(&json, head_width, rotary)?,
                None => RopeConfig { theta: 1e4, width: 0, scaling: RopeScaling::Default },
            },
            local_rope: match rotary {
                Some(rotary) => local_rope(&json, head_width, rotary)?,
                None => None,
            },
            head_scale: rules.head_scale(head_width)?,
            score_cap: rules.score_cap()?,
            logit_cap: rules.logit_cap()?,
            learned,
            windows: windows(&json, layers, architecture)?,
            max_positions,
            architecture,
        })
    }

    /// Names the keys of a valid config.json that ask for a computation which transformers 5 leaves out of models of this
    /// `model_type`, and so does this crate.
    pub fn ignored_keys(root: &Value) -> Vec<String> {
        ignored::keys(&Reader { root })
    }

    /// Refuses a sequence that has no positions: one longer than the table of learned ones.
    ///
    /// Rotary positions go on beyond what a model was made for, so nothing is refused there.
    pub fn check_length(&self, tokens: usize) -> Result<()> {
        match self.learned {
            Some(Learned { rows, offset }) if tokens + offset > rows => {
                Err(Error::config(format!(
                    "a sequence of {tokens} tokens, but {} has learned positions for {}",
                    self.architecture,
                    rows.saturating_sub(offset)
                ))
                .hint("shorten the context, or the prompt and what is generated after it"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a layer that the model does not have, named by the setting `key`.
    ///
    /// Errors: [`crate::Kind::Config`].
    pub fn check_layer(&self, key: &str, layer: usize) -> Result<()> {
        if layer < self.layers {
            return Ok(());
        }
        Err(Error::config(format!(
            "{key}: names layer {layer}, and the model's layers are 0 to {}",
            self.layers - 1
        )))
    }

    /// Returns the heads of layer `layer`.
    pub fn heads(&self, layer: usize) -> Heads {
        Heads {
            h: self.heads,
            g: self.kv_heads,
            d: self.head_width,
            window: self.windows.get(layer).copied().flatten(),
            cap: self.score_cap,
        }
    }
}

fn max_learned(learned: Option<Learned>) -> u128 {
    learned.map_or(0, |learned| learned.rows as u128)
}

/// Reads the ids that end a generation from generation_config.json; empty if it names none.
///
/// Errors: [`crate::Kind::Model`] for JSON that is no object, or ids that are not.
pub fn end_tokens(text: &str) -> Result<Vec<u32>> {
    let wrong = |what: String| Error::model(format!("generation_config.json: {what}"));
    let root: serde_json::Map<String, Value> = serde_json::from_str(text)
        .map_err(|e| wrong(format!("not a JSON object: {e}")).with_source(e))?;
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            wrong(format!("eos_token_id: {value} is no token id, wanted an integer or a list"))
        })
    };
    match root.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LLAMA: &str = r#"{"model_type":"llama","hidden_act":"silu","hidden_size":64,"num_attention_heads":2,
        "num_hidden_layers":2,"vocab_size":512,"intermediate_size":96,"rope_theta":5e5,"sliding_window":null}"#;

    #[test]
    fn parse_fills_defaults() {
        let config = ModelConfig::parse(LLAMA).unwrap();
        assert_eq!((config.kv_heads, config.head_width, config.rope.width), (2, 32, 32));
        assert_eq!(config.rope.theta, 5e5);
        assert_eq!(config.windows, [None, None]);
    }

    #[test]
    fn parse_names_unknown_architecture_and_the_supported_ones() {
        let text = LLAMA.replace("\"llama\"", "\"lama\"");
        let error = ModelConfig::parse(&text).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "config.json: model_type: architecture `lama` is not supported\nhint: supported are {}",
                family::supported()
            )
        );
        assert!(family::supported().starts_with("llama, mistral, qwen2, "));
    }

    #[test]
    fn parse_reads_what_gemma_2_leaves_out_and_refuses_caps_that_are_none() {
        let text = |more: &str| {
            format!(
                r#"{{"model_type":"gemma2","hidden_activation":"gelu_pytorch_tanh","hidden_size":64,
                "num_attention_heads":2,"num_hidden_layers":3,"vocab_size":512,"intermediate_size":96{more}}}"#
            )
        };
        let parse = |more: &str| ModelConfig::parse(&text(more));
        let config = parse("").unwrap();
        assert_eq!((config.score_cap, config.logit_cap), (Some(50.0), Some(30.0)));
        assert_eq!((config.head_width, config.head_scale), (256, 1.0));
        assert_eq!(config.windows, [Some(4096), None, Some(4096)]);
        assert!(config.tied && config.post_norms && !config.qk_norm && config.local_rope.is_none());
        assert_eq!(config.rope.theta, 1e4);
        let off = parse(r#","attn_logit_softcapping":null,"sliding_window":null"#).unwrap();
        assert_eq!((off.score_cap, off.logit_cap), (None, Some(30.0)));
        assert_eq!(off.windows, [None; 3]);
        let error = parse(r#","final_logit_softcapping":0.0"#).unwrap_err();
        let wanted = "config.json: final_logit_softcapping: wanted 0.001 to 1000, got 0";
        assert_eq!(error.message(), wanted);
        let other = LLAMA.replace("\"rope_theta\":5e5", "\"final_logit_softcapping\":30.0");
        let wanted = "config.json: final_logit_softcapping: 30.0 is not supported, wanted null";
        assert_eq!(ModelConfig::parse(&other).unwrap_err().message(), wanted);
    }

    #[test]
    fn parse_refuses_sizes_that_no_machine_holds() {
        let message = |from: &str, to: &str| {
            let text = LLAMA.replace(from, to);
            ModelConfig::parse(&text).unwrap_err().message().to_owned()
        };
        assert_eq!(
            message("num_hidden_layers\":2", "num_hidden_layers\":2000000000"),
            "config.json: num_hidden_layers: wanted at most 4096, got 2000000000"
        );
        assert_eq!(
            message("hidden_size\":64", "hidden_size\":131072,\"head_dim\":1048576"),
            "config.json: head_dim: wanted at most 65536, got 1048576"
        );
        assert_eq!(
            message("hidden_size\":64", "hidden_size\":2147483646,\"head_dim\":65536"),
            "config.json: a matrix of 844424929345536 numbers, wanted at most 1099511627776"
        );
    }

    #[test]
    fn end_tokens_when_integer_list_or_absent_are_read() {
        assert_eq!(end_tokens(r#"{"eos_token_id": 2}"#).unwrap(), [2]);
        assert_eq!(end_tokens(r#"{"eos_token_id": [1, 128009]}"#).unwrap(), [1, 128_009]);
        assert!(end_tokens(r#"{"eos_token_id": null}"#).unwrap().is_empty());
        assert!(end_tokens("{}").unwrap().is_empty());
        for bad in ["-1", "[1, \"2\"]", "4294967296", "1.5", "{}"] {
            let error = end_tokens(&format!("{{\"eos_token_id\": {bad}}}")).unwrap_err();
            assert!(error.message().contains("is no token id"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(
            cut in 0usize..LLAMA.len(), byte in any::<u8>(), at in 0usize..LLAMA.len()
        ) {
            let mut bytes = LLAMA.as_bytes().to_vec();
            bytes[at] = byte;
            bytes.truncate(cut.max(at));
            let _ = ModelConfig::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
