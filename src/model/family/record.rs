//! The record of a model family, and the types of its fields.

use std::fmt;

use crate::ops::{Activation, NormKind};

/// A model family: everything that distinguishes its computation, its config.json and its tensors from those of others.
///
/// Two records are equal if their `model_type` is.
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    pub(in crate::model) keys: Keys,
    /// Flags of config.json with the only value that is supported, which is also the default; another value changes the
    /// computation and is refused.
    pub(in crate::model) required: &'static [(&'static str, bool)],
    /// Sizes of config.json that follow from others in this family; another value is refused.
    pub(in crate::model) fixed: &'static [(&'static str, Size)],
    /// Flags that other families compute with and transformers ignores here: reported, not refused.
    pub(in crate::model) ignored: &'static [&'static str],
    pub(in crate::model) names: Names,
    /// D where config.json has no `head_dim`; `None` for the model's width over the number of heads.
    pub(in crate::model) head_width: Option<usize>,
    /// F over the model's width where config.json has no F; `None` where it must have one.
    pub(in crate::model) ffn_factor: Option<usize>,
    pub(in crate::model) norm: NormKind,
    /// Offset of the weight of a norm: 1 where the stored weight counts from there.
    pub(in crate::model) gain_offset: f64,
    /// Epsilon of norms where config.json has none.
    pub(in crate::model) eps: f64,
    /// Supported names of the activation.
    pub(in crate::model) activations: &'static [(&'static str, Activation)],
    /// Presence of gates in the MLPs.
    pub(in crate::model) gated: bool,
    pub(in crate::model) residual: ResidualRule,
    pub(in crate::model) biases: Biases,
    /// Use of the embedding matrix as head where config.json does not say.
    pub(in crate::model) tied: bool,
    pub(in crate::model) embed_scale: EmbedScale,
    pub(in crate::model) positions: Positions,
    /// Key and default of a number s where scores are divided by sqrt(s) instead of sqrt(D).
    pub(in crate::model) score_scale: Option<(&'static str, f64)>,
    /// Cap of attention scores where config.json has none; without a default, caps are refused.
    pub(in crate::model) score_cap: Option<f64>,
    /// Cap of logits, likewise.
    pub(in crate::model) logit_cap: Option<f64>,
    /// Sliding windows; without them, keys that ask for windows are ignored, as in transformers, and reported.
    pub(in crate::model) windows: Option<Windows>,
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl Eq for Architecture {}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.model_type, f)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

/// Keys of config.json whose names differ between families.
pub(in crate::model) struct Keys {
    pub width: &'static str,
    pub heads: &'static str,
    pub layers: &'static str,
    pub ffn: &'static str,
    pub activation: &'static str,
    /// `None` where the epsilon is fixed.
    pub eps: Option<&'static str>,
    pub positions: &'static str,
}

/// A size that another key must agree with.
#[derive(Clone, Copy)]
pub(in crate::model) enum Size {
    Width,
    Heads,
    HeadWidth,
}

/// Names of modules in safetensors files; those of a layer follow `layers` and its number.
pub(in crate::model) struct Names {
    pub embed: &'static str,
    /// The table of learned positions.
    pub positions: Option<&'static str>,
    pub layers: &'static str,
    /// The norm before attention.
    pub norm1: &'static str,
    /// Query, key and value, or the one module that holds all three.
    pub qkv: &'static [&'static str],
    /// Norms of query and key heads.
    pub qk_norm: Option<[&'static str; 2]>,
    pub out: &'static str,
    /// The norm before the MLP; `None` where both read the same normed hidden states.
    pub norm2: Option<&'static str>,
    /// Norms of the outputs of attention and MLP.
    pub post: Option<[&'static str; 2]>,
    /// Gate and up, or up alone.
    pub up: &'static [&'static str],
    pub down: &'static str,
    /// The final norm.
    pub norm: &'static str,
    pub head: &'static str,
    pub storage: Storage,
    /// Endings of masks that older exporters left in the files; no computation reads them.
    pub masks: &'static [&'static str],
}

/// Order of the numbers of a layer's matrices in files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Storage {
    /// `[outputs, inputs]`, as the ops read them.
    Plain,
    /// `[inputs, outputs]`.
    Transposed,
    /// `[outputs, inputs]`, and query, key and value rows of one head after the other in the matrix that holds all three.
    ByHead,
}

/// Residual connections of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residual {
    /// The MLP reads the residual stream after attention.
    Sequential,
    /// The MLP reads the input of the layer through its own norm: `x + attention(norm1 x) + mlp(norm2 x)`.
    Parallel,
    /// The MLP reads the input of the layer through the norm of attention: `x + attention(norm x) + mlp(norm x)`.
    Shared,
}

impl Residual {
    /// Tells whether attention and MLP read the same hidden states.
    pub fn parallel(self) -> bool {
        self != Self::Sequential
    }
}

/// Source of a model's [`Residual`].
pub(in crate::model) enum ResidualRule {
    Always(Residual),
    /// Parallel if the flag is set, which is the default; sequential otherwise.
    ParallelIf(&'static str),
}

/// Source of a bias.
#[derive(Clone, Copy)]
pub(in crate::model) enum Bias {
    Always,
    Never,
    /// A flag of config.json, and its default.
    Key(&'static str, bool),
}

/// Biases of linear maps.
pub(in crate::model) struct Biases {
    pub qkv: Bias,
    pub out: Bias,
    pub mlp: Bias,
    pub head: bool,
}

/// Factor on the embedding.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::model) enum EmbedScale {
    One,
    /// sqrt(C).
    RootWidth,
}

/// Positions of tokens.
pub(in crate::model) enum Positions {
    /// A table, whose row `offset` is position 0, added to the embedding.
    Learned { offset: usize },
    /// Rotary positions.
    Rotary(Rotary),
}

/// Rotary settings; pairs of a head are half its rotated width apart.
pub(in crate::model) struct Rotary {
    /// Key of the base outside of `rope_parameters`, and the default.
    pub base: (&'static str, f64),
    /// Key of the rotated part of a head outside of `rope_parameters`, and the default.
    pub part: (&'static str, f64),
    /// True if part of a head may rotate; otherwise whole heads do, and the key is ignored, as in transformers.
    pub partial: bool,
    /// Key outside of `rope_parameters` and default of the base in layers with a window, where they have their own.
    pub local: Option<(&'static str, f64)>,
}

/// Sliding windows.
pub(in crate::model) struct Windows {
    /// Window where config.json has no `sliding_window`, tokens.
    pub default: usize,
    pub layers: SlidingLayers,
}

/// Layers with a sliding window.
pub(in crate::model) enum SlidingLayers {
    /// All, whatever `layer_types` says.
    All,
    /// None unless `use_sliding_window` is set; then those that `layer_types` names, else those from layer
    /// `max_window_layers` on, by default `first`.
    Switched { first: usize },
    /// Those that `layer_types` names, else all but every `period`-th; the first of `keys` in config.json replaces
    /// `period`.
    Periodic { keys: &'static [&'static str], period: usize },
}

/// The key of the rotated part of a head.
pub(in crate::model) const PARTIAL: &str = "partial_rotary_factor";

/// Activations of plain MLPs, under the names of transformers.
pub(in crate::model) const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
];
