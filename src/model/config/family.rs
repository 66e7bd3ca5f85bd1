//! What tells families of decoders apart: the keys of their config.json, and what these mean.

use serde_json::Value;

use super::reader::Reader;
use super::{Learned, Norm, Residual};
use crate::error::{Error, Result};
use crate::ops::Activation;

const SCORE_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";
/// The key of the part of a head that rotates.
pub(super) const PARTIAL: &str = "partial_rotary_factor";

/// The `model_type`s this version computes.
pub const ARCHITECTURES: [&str; 10] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "opt",
    "phi",
    "gemma2",
    "gemma3_text",
];

/// Decoders whose tensors go by the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Llama, Mistral, Qwen2, Qwen3.
    Llama,
    /// GPT-2.
    Gpt2,
    /// GPT-NeoX, Pythia.
    NeoX,
    /// OPT.
    Opt,
    /// Phi-1, Phi-1.5 and Phi-2.
    Phi,
    /// Gemma-2.
    Gemma2,
    /// Gemma-3, text alone.
    Gemma3,
}

/// The keys of config.json that families name differently.
pub(super) struct Keys {
    pub width: &'static str,
    pub heads: &'static str,
    pub layers: &'static str,
    pub ffn: &'static str,
    pub activation: &'static str,
    /// None where the epsilon is fixed.
    pub eps: Option<&'static str>,
    pub positions: &'static str,
}

const LLAMA: Keys = Keys {
    width: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    ffn: "intermediate_size",
    activation: "hidden_act",
    eps: Some("rms_norm_eps"),
    positions: "max_position_embeddings",
};

const GPT2: Keys = Keys {
    width: "n_embd",
    heads: "n_head",
    layers: "n_layer",
    ffn: "n_inner",
    activation: "activation_function",
    eps: Some("layer_norm_epsilon"),
    positions: "n_positions",
};

/// Which linear maps have biases.
pub(super) struct Biases {
    pub qkv: bool,
    pub out: bool,
    pub mlp: bool,
}

impl Family {
    /// Returns the family of a `model_type`.
    ///
    /// Errors: [`crate::Kind::Model`] with the list of those that are known.
    pub fn of(architecture: &str) -> Result<Self> {
        match architecture {
            "llama" | "mistral" | "qwen2" | "qwen3" => Ok(Self::Llama),
            "gpt2" => Ok(Self::Gpt2),
            "gpt_neox" => Ok(Self::NeoX),
            "opt" => Ok(Self::Opt),
            "phi" => Ok(Self::Phi),
            "gemma2" => Ok(Self::Gemma2),
            "gemma3_text" => Ok(Self::Gemma3),
            // No nearest name: a model_type is never mistyped, and a similar name is another computation.
            other => Err(Error::model(format!(
                "config.json: model_type: architecture `{other}` is not supported"
            ))
            .hint(format!("supported are {}", ARCHITECTURES.join(", ")))),
        }
    }

    pub(super) fn keys(self) -> Keys {
        match self {
            Self::Llama => LLAMA,
            Self::Gemma2 | Self::Gemma3 => Keys { activation: "hidden_activation", ..LLAMA },
            Self::Gpt2 => GPT2,
            Self::NeoX | Self::Phi => Keys { eps: Some("layer_norm_eps"), ..LLAMA },
            // OPT's norms have the epsilon of PyTorch; there is no key for it.
            Self::Opt => {
                Keys { ffn: "ffn_dim", activation: "activation_function", eps: None, ..LLAMA }
            }
        }
    }

    /// Refuses settings that change the computation to one that is not there.
    pub(super) fn refuse(self, json: &Reader<'_>) -> Result<()> {
        let flags: &[(&str, bool)] = match self {
            Self::Llama | Self::NeoX => &[],
            Self::Gemma2 | Self::Gemma3 => &[("use_bidirectional_attention", false)],
            Self::Gpt2 => &[
                ("scale_attn_weights", true),
                ("scale_attn_by_inverse_layer_idx", false),
                ("add_cross_attention", false),
            ],
            Self::Opt => &[
                ("do_layer_norm_before", true),
                ("_remove_final_layer_norm", false),
                ("layer_norm_elementwise_affine", true),
            ],
            Self::Phi => &[("qk_layernorm", false)],
        };
        for (key, wanted) in flags {
            if json.flag(key, *wanted)? != *wanted {
                return Err(Error::model(format!(
                    "config.json: {key}: {} is not supported, wanted {wanted}",
                    !wanted
                )));
            }
        }
        for key in [SCORE_CAP, LOGIT_CAP] {
            if let Some(cap) = json.present(key).filter(|_| self != Self::Gemma2) {
                return Err(Error::model(format!(
                    "config.json: {key}: {cap} is not supported, wanted null"
                )));
            }
        }
        // Sizes that are fixed by others.
        let keys = self.keys();
        let [width, heads] = [keys.width, keys.heads].map(|key| json.optional_size(key));
        let (width, heads) = (width?, heads?);
        let head_width = width.zip(heads).map(|(width, heads)| width / heads);
        let fixed: &[(&str, Option<usize>)] = match self {
            Self::Opt => &[
                ("word_embed_proj_dim", width),
                ("num_key_value_heads", heads),
                ("head_dim", head_width),
            ],
            Self::Gpt2 | Self::NeoX => &[("num_key_value_heads", heads), ("head_dim", head_width)],
            Self::Llama | Self::Phi | Self::Gemma2 | Self::Gemma3 => &[],
        };
        for (key, wanted) in fixed {
            if let (Some(got), Some(wanted)) = (json.optional_size(key)?, wanted)
                && got != *wanted
            {
                return Err(Error::model(format!(
                    "config.json: {key}: {got} is not supported, wanted {wanted}"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn activation(self, json: &Reader<'_>) -> Result<Activation> {
        let key = self.keys().activation;
        let name = json.text(key)?;
        let known: &[(&str, Activation)] = match self {
            Self::Llama => &[("silu", Activation::Silu)],
            _ => &[
                ("gelu", Activation::Gelu),
                ("gelu_new", Activation::GeluTanh),
                ("gelu_fast", Activation::GeluTanh),
                ("gelu_pytorch_tanh", Activation::GeluTanh),
                ("relu", Activation::Relu),
                ("silu", Activation::Silu),
            ],
        };
        known.iter().find(|(known, _)| *known == name).map(|(_, found)| *found).ok_or_else(|| {
            let known: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            Error::model(format!(
                "config.json: {key}: `{name}` is not supported, wanted {}",
                known.join(", ")
            ))
        })
    }

    pub(super) fn biases(self, json: &Reader<'_>) -> Result<Biases> {
        let all = |on| Biases { qkv: on, out: on, mlp: on };
        Ok(match self {
            Self::Llama | Self::Gemma2 | Self::Gemma3 => {
                let bias = json.flag("attention_bias", false)?;
                match json.text("model_type")?.as_str() {
                    "llama" => Biases { qkv: bias, out: bias, mlp: json.flag("mlp_bias", false)? },
                    "mistral" => all(false),
                    "qwen2" => Biases { qkv: true, out: false, mlp: false },
                    _ => Biases { qkv: bias, out: bias, mlp: false },
                }
            }
            Self::Gpt2 | Self::Phi => all(true),
            Self::NeoX => {
                let bias = json.flag("attention_bias", true)?;
                Biases { qkv: bias, out: bias, mlp: true }
            }
            Self::Opt => all(json.flag("enable_bias", true)?),
        })
    }

    pub(super) fn norm(self) -> Norm {
        match self {
            Self::Llama => Norm::Rms,
            Self::Gemma2 | Self::Gemma3 => Norm::RmsFromOne,
            Self::Gpt2 | Self::NeoX | Self::Opt | Self::Phi => Norm::Layer,
        }
    }

    /// Returns the epsilon of norms where config.json has none.
    pub(super) fn eps(self) -> f64 {
        match self.norm() {
            Norm::Rms | Norm::RmsFromOne => 1e-6,
            Norm::Layer => 1e-5,
        }
    }

    pub(super) fn residual(self, json: &Reader<'_>) -> Result<Residual> {
        Ok(match self {
            Self::NeoX if json.flag("use_parallel_residual", true)? => Residual::Parallel,
            Self::Phi => Residual::Shared,
            _ => Residual::Sequential,
        })
    }

    /// Tells whether the head is the embedding matrix where config.json does not say.
    pub(super) fn tied(self) -> bool {
        matches!(self, Self::Gpt2 | Self::Opt) || self.gemma()
    }

    pub(super) fn learned(self, positions: usize) -> Option<Learned> {
        match self {
            Self::Gpt2 => Some(Learned { rows: positions, offset: 0 }),
            // The reference keeps two rows for padding in front.
            Self::Opt => Some(Learned { rows: positions + 2, offset: 2 }),
            Self::Llama | Self::NeoX | Self::Phi | Self::Gemma2 | Self::Gemma3 => None,
        }
    }

    /// Tells whether MLPs have gates.
    pub(super) fn gated(self) -> bool {
        self == Self::Llama || self.gemma()
    }

    /// Returns the base of rotary frequencies where config.json has none.
    pub(super) fn rope_base(self) -> f64 {
        if self == Self::Gemma3 { 1e6 } else { 1e4 }
    }

    /// Returns what query and key heads are multiplied by, so that scores are divided by the root of
    /// `query_pre_attn_scalar` and not of D.
    pub(super) fn head_scale(self, json: &Reader<'_>, head_width: usize) -> Result<f64> {
        if !self.gemma() {
            return Ok(1.0);
        }
        let scalar = json.number("query_pre_attn_scalar", Some(256.0))?;
        if scalar <= 0.0 {
            return Err(Error::model(format!(
                "config.json: query_pre_attn_scalar: {scalar} must be positive"
            )));
        }
        Ok((head_width as f64 / scalar).powf(0.25))
    }

    /// Returns the cap of a key: what config.json says, where null means that there is none, else Gemma-2's own.
    fn cap(self, json: &Reader<'_>, key: &str, own: f64) -> Result<Option<f64>> {
        if self != Self::Gemma2 || json.root.get(key).is_some_and(Value::is_null) {
            return Ok(None);
        }
        let cap = json.number(key, Some(own))?;
        // Tensor cores' tangents are off by 2^-23 or two, and so is a capped number by as many parts of the cap.
        if (1e-3..=1e3).contains(&cap) {
            Ok(Some(cap))
        } else {
            Err(Error::model(format!("config.json: {key}: wanted 0.001 to 1000, got {cap}")))
        }
    }

    /// Returns the cap of attention's scores.
    pub(super) fn score_cap(self, json: &Reader<'_>) -> Result<Option<f64>> {
        self.cap(json, SCORE_CAP, 50.0)
    }

    /// Returns the cap of logits.
    pub(super) fn logit_cap(self, json: &Reader<'_>) -> Result<Option<f64>> {
        self.cap(json, LOGIT_CAP, 30.0)
    }

    /// Returns the width of a head where config.json has none, if it is not the model's over the number of heads.
    pub(super) fn head_width(self) -> Option<usize> {
        self.gemma().then_some(256)
    }

    /// Tells whether this is Gemma: a norm behind attention and MLP, an enlarged embedding, scores that are scaled by a
    /// number of their own.
    pub(super) fn gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Returns the keys of the rotary base and of the rotated part of a head outside of `rope_parameters`, and that part
    /// where no key says it.
    pub(super) fn rope_keys(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::NeoX => ("rotary_emb_base", "rotary_pct", 0.25),
            Self::Phi => ("rope_theta", PARTIAL, 0.5),
            _ => ("rope_theta", PARTIAL, 1.0),
        }
    }

    /// Tells whether a part of a head may rotate; the other families rotate whole heads, whatever config.json says.
    pub(super) fn rotates_parts(self) -> bool {
        matches!(self, Self::NeoX | Self::Phi)
    }
}
