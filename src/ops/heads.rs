//! Attention heads and their rotary positions.

/// The heads of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// H, query heads.
    pub h: usize,
    /// G, key and value heads; divides H.
    pub g: usize,
    /// D, head width.
    pub d: usize,
    /// A token sees itself and the `window - 1` before it; `None` sees all before it.
    pub window: Option<usize>,
    /// Cap of scaled scores s: softmax reads `cap tanh(s / cap)`; `None` for no cap.
    pub cap: Option<f64>,
}

impl Heads {
    /// Returns (H + 2G) D, the width of a qkv row: H query heads, G key heads, G value heads.
    pub fn qkv_width(&self) -> usize {
        (self.h + 2 * self.g) * self.d
    }

    /// Returns H D, the width of an attention output row.
    pub fn out_width(&self) -> usize {
        self.h * self.d
    }
}

/// Direction of a rotation: applied, or taken back in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Rotates by the angle.
    Forward,
    /// Rotates by minus the angle: the transpose, hence the backward.
    Backward,
}

/// Cosines and sines of rotary positions, made once per model in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    /// Angular frequency of each pair, R/2 of them, R <= D even: radians per position.
    pub inv_freq: Vec<f64>,
    /// Factor on cosine and sine (1 except for scaled variants).
    pub scale: f64,
}

/// Where the keys and values of one layer lie in a buffer of activations: keys `[slots, capacity, G, D]` from `start` on,
/// and behind them as many values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePlace {
    /// Numbers before the first key; a multiple of G D.
    pub start: usize,
    /// Sequences.
    pub slots: usize,
    /// Tokens of a sequence at most.
    pub capacity: usize,
}

impl CachePlace {
    /// Returns how many keys there are, as numbers; there are as many values.
    pub fn half(self, heads: Heads) -> usize {
        self.slots * self.capacity * heads.g * heads.d
    }

    /// Returns the numbers of keys and values together.
    pub fn len(self, heads: Heads) -> usize {
        2 * self.half(heads)
    }
}

/// The rows of a forward pass that the backward pass of attention reads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSaved<'a, A, S> {
    /// Queries, keys and values, [N, (H + 2G) D].
    pub qkv: &'a A,
    /// The output, [N, H D].
    pub out: &'a A,
    /// Logarithms of the sums of exponentials, [N, H].
    pub lse: &'a S,
}
