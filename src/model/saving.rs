//! Activation checkpointing: the activations of each layer that are kept for the backward pass; it recomputes the others.
//!
//! A recomputed GEMM has the operands, the kernel and the shape of the first time, so gradients are the same to the bit
//! whatever is kept: the choice is one of memory against time.

use serde::Serialize;

use super::config::ModelConfig;

/// Activations of a layer that the backward pass finds. Each level keeps less than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// All outputs of GEMMs and attention; only norms and activation functions are recomputed.
    All,
    /// All but gate and up.
    Attention,
    /// The residual stream before each half and the output of attention; qkv rows, gate and up are recomputed.
    Residual,
    /// The input of the layer, from which all but its down projection is recomputed.
    Input,
}

impl Level {
    /// All levels, the one that keeps most first.
    pub const ALL: [Self; 4] = [Self::All, Self::Attention, Self::Residual, Self::Input];

    /// Returns its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Attention => "attention",
            Self::Residual => "residual",
            Self::Input => "input",
        }
    }
}

/// Activations of a layer that are kept, or recomputed, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The qkv rows, and those from before head norms.
    Qkv,
    /// The output of attention and its statistics, and the residual stream after it; the addend of the latter where it is
    /// normalized.
    Middle,
    /// Gate and up, or the input of the activation in an MLP without gates; the output of the MLP where it is normalized.
    GateUp,
}

impl Part {
    /// Tells whether a layer of `level` keeps it.
    fn kept(self, level: Level) -> bool {
        level
            <= match self {
                Self::GateUp => Level::All,
                Self::Qkv => Level::Attention,
                Self::Middle => Level::Residual,
            }
    }
}

/// The level of every layer: `first` layers at one, the rest at one that keeps less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Saving {
    /// Number of layers, from the first one on, at `level`.
    pub first: usize,
    /// Their level.
    pub level: Level,
    /// The level of the rest.
    pub rest: Level,
}

/// Returns the width of the rows that carry the gradient at attention's output and, where attention and MLP read the same
/// rows, the one at the normed input of attention too, while that of the MLP waits.
pub(super) fn dattn(config: &ModelConfig) -> usize {
    let hd = config.heads(0).out_width();
    if config.residual.parallel() { hd.max(config.width) } else { hd }
}

impl Saving {
    /// Keeps the same of every layer.
    pub fn same(level: Level) -> Self {
        Self { first: 0, level, rest: level }
    }

    /// Returns all choices for a model of `layers` layers: every level alone, and every split between two of them.
    pub fn choices(layers: usize) -> impl Iterator<Item = Self> {
        let pairs = Level::ALL.into_iter().flat_map(|level| Level::ALL.map(|rest| (level, rest)));
        pairs.filter(|(level, rest)| level <= rest).flat_map(move |(level, rest)| {
            let splits = if level == rest { 0..1 } else { 1..layers };
            splits.map(move |first| Self { first, level, rest })
        })
    }

    /// Returns the level of layer `l`.
    pub fn level(self, l: usize) -> Level {
        if l < self.first { self.level } else { self.rest }
    }

    /// Tells whether layer `l` has room of its own for a part. The others share one room.
    fn own(self, l: usize, part: Part) -> bool {
        part.kept(self.level(l))
    }

    /// Returns the room of each layer for a part. Room 0 is the shared one where there is one.
    pub(super) fn rooms(self, layers: usize, part: Part) -> Vec<usize> {
        let mut next = usize::from(self.shares(layers, part));
        let mut room = |l: usize| {
            let own = self.own(l, part);
            next += usize::from(own);
            if own { next - 1 } else { 0 }
        };
        (0..layers).map(&mut room).collect()
    }

    /// Tells whether layers share a room for a part: always the last one too, which keeps least.
    fn shares(self, layers: usize, part: Part) -> bool {
        layers > 0 && !self.own(layers - 1, part)
    }

    /// Tells whether the backward pass recomputes a part of layer `l`. Those of the last layer are still in the shared
    /// buffer.
    pub(super) fn again(self, layers: usize, l: usize, part: Part) -> bool {
        !self.own(l, part) && l + 1 < layers
    }

    /// Returns the operations per token that are repeated in a sequence of `context` tokens: of GEMMs, and of attention.
    pub fn again_flop(self, config: &ModelConfig, context: usize) -> [f64; 2] {
        let (heads, layers) = (config.heads(0), config.layers);
        let (c, up) = (config.width as f64, config.mlp.width(config.ffn) as f64);
        let (qkv, hd) = (heads.qkv_width() as f64, heads.out_width() as f64);
        let times = |part| (0..layers).filter(|l| self.again(layers, *l, part)).count() as f64;
        let middle = times(Part::Middle);
        let down = if config.post_norms { config.ffn as f64 } else { 0.0 };
        let products =
            times(Part::Qkv) * qkv * c + middle * hd * c + times(Part::GateUp) * (up + down) * c;
        // A token sees half of its document on average; 4 operations for each number of the output.
        [2.0 * products, middle * 2.0 * context as f64 * hd]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_shared_from_the_first_layer_that_keeps_nothing() {
        let mixed = Saving { first: 2, level: Level::Attention, rest: Level::Input };
        assert_eq!(mixed.rooms(4, Part::Qkv), [1, 2, 0, 0]);
        assert_eq!(mixed.rooms(4, Part::GateUp), [0, 0, 0, 0]);
        let again = |part| [0, 1, 2, 3].map(|l| mixed.again(4, l, part));
        assert_eq!(again(Part::Qkv), [false, false, true, false]);
        assert_eq!(again(Part::GateUp), [true, true, true, false]);
        assert_eq!(Saving::same(Level::All).rooms(3, Part::Middle), [0, 1, 2]);
    }

    #[test]
    fn choices_are_every_level_and_every_split_of_two() {
        assert_eq!(Saving::choices(1).count(), 4);
        assert_eq!(Saving::choices(5).count(), 4 + 6 * 4);
        assert!(Saving::choices(5).all(|saving| saving.level <= saving.rest));
    }

    #[test]
    fn keeping_less_takes_more_operations() {
        let config = ModelConfig::parse(
            r#"{"model_type":"qwen3","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
            "head_dim":12,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":4,"intermediate_size":41,
            "rms_norm_eps":1e-5}"#,
        )
        .unwrap();
        let of = |level| Saving::same(level).again_flop(&config, 100)[0];
        for pair in Level::ALL.windows(2) {
            assert!(of(pair[0]) < of(pair[1]), "{pair:?}");
        }
        assert_eq!(of(Level::All), 0.0);
        // Three of four layers; the last one's rows are still there.
        assert_eq!(of(Level::Attention), 3.0 * 2.0 * 64.0 * 82.0);
    }
}
