//! Floors of an op: FLOPs of its GEMMs, and bytes that must be read from or written to memory.
//!
//! Counted from the shape alone. Operands count once, however often a kernel reads them; what a kernel keeps for
//! itself on the way (chunks of logits, partial sums) does not count. `stored` is the bytes of a stored number.

use super::Roofs;
use crate::model::ModelConfig;
use crate::ops::{HeadShape, Heads, StateBytes, StateMode};
use crate::optim::UpdateRule;

/// The least that an op does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// Floating-point operations of matrix products; 0 where there are none worth counting.
    pub flop: f64,
    /// Bytes of device memory, read and written.
    pub bytes: f64,
}

impl Floor {
    /// Makes the floor of an op without products.
    fn of_bytes(bytes: f64) -> Self {
        Self { flop: 0.0, bytes }
    }

    /// Adds bytes.
    fn and(self, bytes: f64) -> Self {
        Self { bytes: self.bytes + bytes, ..self }
    }

    /// Returns the seconds below which the op cannot be done.
    pub fn seconds(&self, roofs: &Roofs) -> f64 {
        (self.flop / roofs.flops).max(self.bytes / roofs.bytes)
    }
}

fn f(n: usize) -> f64 {
    n as f64
}

/// A product `[m, k] [k, n]` into numbers of `out` bytes; one that `adds` also reads as many.
pub fn product((m, n, k): (usize, usize, usize), stored: f64, out: f64, adds: bool) -> Floor {
    let (m, n, k) = (f(m), f(n), f(k));
    let times = if adds { 2.0 } else { 1.0 };
    Floor { flop: 2.0 * m * n * k, bytes: stored * (m * k + n * k) + times * out * m * n }
}

/// Query-key pairs of causal attention inside documents.
fn pairs(lengths: &[usize]) -> f64 {
    lengths.iter().map(|t| f(*t) * (f(*t) + 1.0) / 2.0).sum()
}

fn sum(lengths: &[usize]) -> f64 {
    f(lengths.iter().sum())
}

/// Attention forward: two products over the pairs that a token sees; reads qkv, writes out and `lse`.
pub fn attention(lengths: &[usize], heads: Heads, stored: f64) -> Floor {
    let rows = stored * f(heads.qkv_width() + heads.out_width()) + 4.0 * f(heads.h);
    Floor { flop: 4.0 * f(heads.out_width()) * pairs(lengths), bytes: rows * sum(lengths) }
}

/// Attention backward: five products; reads qkv, out, its gradient and `lse`, writes the gradient of qkv.
pub fn attention_bwd(lengths: &[usize], heads: Heads, stored: f64) -> Floor {
    let rows = stored * f(2 * heads.qkv_width() + 2 * heads.out_width()) + 4.0 * f(heads.h);
    Floor { flop: 10.0 * f(heads.out_width()) * pairs(lengths), bytes: rows * sum(lengths) }
}

/// Attention of one token a sequence against `lengths` cached ones: reads the caches.
pub fn decode(lengths: &[usize], heads: Heads, stored: f64) -> Floor {
    let (cached, rows) = (2 * heads.g * heads.d, heads.qkv_width() + heads.out_width());
    Floor::of_bytes(stored * (f(cached) * sum(lengths) + f(rows) * f(lengths.len())))
}

/// RMSNorm: reads a row and the gain, writes a row and its statistic.
pub fn rmsnorm(n: usize, c: usize, stored: f64) -> Floor {
    Floor::of_bytes(stored * f(2 * n * c + c) + 4.0 * f(n))
}

/// RMSNorm backward: reads `dy`, `x`, the gain and the statistic, adds to `dx`.
pub fn rmsnorm_bwd(n: usize, c: usize, stored: f64) -> Floor {
    Floor::of_bytes(stored * f(4 * n * c + c) + 4.0 * f(n))
}

/// Rotary positions in place on query and key heads; reads positions.
pub fn rope(n: usize, heads: Heads, stored: f64) -> Floor {
    Floor::of_bytes(stored * f(2 * n * (heads.h + heads.g) * heads.d) + 4.0 * f(n))
}

/// SwiGLU: reads gate and up, writes their product.
pub fn swiglu(n: usize, ffn: usize, stored: f64) -> Floor {
    Floor::of_bytes(stored * f(3 * n * ffn))
}

/// SwiGLU backward: reads `dy`, gate and up, writes the gradients of both and the forward pass's result.
pub fn swiglu_bwd(n: usize, ffn: usize, stored: f64) -> Floor {
    Floor::of_bytes(stored * f(6 * n * ffn))
}

/// A product to qkv rows with rotary positions: also reads positions.
pub fn linear_rope(n: usize, c: usize, heads: Heads, stored: f64) -> Floor {
    product((n, heads.qkv_width(), c), stored, stored, false).and(4.0 * f(n))
}

/// A product to gate and up with SwiGLU: writes its result, and gate and up where they are kept.
pub fn linear_swiglu(n: usize, (ffn, c): (usize, usize), stored: f64, keep: bool) -> Floor {
    let kept = if keep { stored } else { 0.0 };
    product((n, 2 * ffn, c), stored, kept, false).and(stored * f(n * ffn))
}

/// An input gradient sent on through SwiGLU: reads gate and up in its place, writes their gradients and the forward
/// pass's result; the gradient between them stays inside.
pub fn linear_dgrad_swiglu(n: usize, (c, ffn): (usize, usize), stored: f64) -> Floor {
    product((n, ffn, c), stored, 0.0, false).and(stored * f(5 * n * ffn))
}

/// Embedding of `n` ids of which `distinct` differ: reads their rows, writes `n` rows.
pub fn embed(n: usize, distinct: usize, c: usize, stored: f64) -> Floor {
    Floor::of_bytes(stored * f((n + distinct) * c) + 4.0 * f(n))
}

/// Embedding backward: reads `n` rows, adds to `distinct` rows of numbers of `out` bytes.
pub fn embed_bwd(n: usize, distinct: usize, c: usize, stored: f64, out: f64) -> Floor {
    Floor::of_bytes(stored * f(n * c) + 2.0 * out * f(distinct * c) + 4.0 * f(n))
}

/// A head sweep of `products` products over all rows: reads rows and head, writes rows where it goes back.
pub fn head(shape: HeadShape, products: usize, stored: f64) -> Floor {
    let HeadShape { n, c, v } = shape;
    let rows = if products > 1 { 2 * n } else { n };
    Floor { flop: 2.0 * f(products) * f(n) * f(c) * f(v), bytes: stored * f((rows + v) * c) }
}

/// A whole update of `len` weights with a teacher: reads the gradient for its norm and again for the update, reads and
/// writes everything else once.
pub fn update(len: usize, mode: StateMode, rule: &UpdateRule) -> Floor {
    let StateBytes { weights, teacher, moment, gradient } = mode.bytes();
    let moments = f(rule.moments());
    Floor::of_bytes(f(len) * 2.0 * (weights + teacher + moments * moment + gradient))
}

/// Making the teacher's weights of compact state: reads both planes and the drift, writes a weight.
pub fn teacher(len: usize, stored: f64) -> Floor {
    let StateBytes { weights, teacher, .. } = StateMode::Compact.bytes();
    Floor::of_bytes(f(len) * (weights + teacher + stored))
}

/// Operations of the products of a mean-teacher step with a penalty and a frozen head; `forget` and `retain` are the
/// number of documents and their length.
///
/// Forward counts 1, backward 2 (the head 1, as it is frozen; attention 2.5; no input gradient below the first layer),
/// the teacher's forward pass 1.
pub fn step(config: &ModelConfig, forget: (usize, usize), retain: (usize, usize)) -> f64 {
    let heads = config.heads(0);
    let qkv = f(config.width * heads.qkv_width());
    let layer = qkv + f(config.width * heads.out_width() + 3 * config.width * config.ffn);
    let linear = 2.0 * f(config.layers) * layer;
    let head = 2.0 * f(config.width * config.vocab);
    let pass = |(count, len): (usize, usize), student: bool| {
        let tokens = f(count * len);
        let attention = f(count * config.layers) * attention(&[len], heads, 0.0).flop;
        if student {
            tokens * (3.0 * linear - 2.0 * qkv + 2.0 * head) + 3.5 * attention
        } else {
            tokens * (linear + head) + attention
        }
    };
    pass(forget, true) + pass(retain, true) + pass(retain, false)
}

/// Generation of `new` tokens for each of `prompts` prompts of `len`: the pass over the prompts, then all steps of one
/// token a prompt together.
///
/// A step reads every weight of layers and head once, and the keys and values of all tokens before it.
pub fn generation(
    config: &ModelConfig,
    (prompts, len, new): (usize, usize, usize),
    stored: f64,
) -> [Floor; 2] {
    let heads = config.heads(0);
    let (c, l) = (config.width, f(config.layers));
    let layer = f(c * heads.qkv_width() + c * heads.out_width() + 3 * c * config.ffn);
    let head = f(c * config.vocab);
    let tokens = f(prompts * len);
    let attended = attention(&[len], heads, 0.0).flop * f(prompts);
    let weights = stored * (l * layer + head);
    let first = Floor {
        flop: 2.0 * tokens * l * layer + l * attended + 2.0 * f(prompts) * head,
        bytes: weights,
    };
    let cached = |step: usize| l * decode(&vec![len + step; prompts], heads, stored).bytes;
    let steps = new.saturating_sub(1);
    let rest = Floor {
        flop: 2.0 * f(prompts * steps) * (l * layer + head),
        bytes: f(steps) * weights + (1..=steps).map(cached).sum::<f64>(),
    };
    [first, rest]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::plan::model;

    const LLAMA: Heads = Heads { h: 32, g: 8, d: 128, window: None, cap: None };
    const SGD: UpdateRule = UpdateRule::Sgd { momentum: 0.9 };

    #[test]
    fn products_count_two_operations_a_pair_and_operands_once() {
        // 2 * 2 * 3 * 5; 2 bytes of 2*5 + 3*5, 4 bytes of 2*3, twice where it adds.
        assert_eq!(product((2, 3, 5), 2.0, 4.0, false), Floor { flop: 60.0, bytes: 50.0 + 24.0 });
        assert_eq!(product((2, 3, 5), 2.0, 4.0, true).bytes, 50.0 + 48.0);
    }

    #[test]
    fn attention_counts_the_pairs_that_a_token_sees() {
        // 3 and 2 tokens: 6 + 3 pairs; 4 operations for each of 4096 columns; backward 10.
        assert_eq!(attention(&[3, 2], LLAMA, 2.0).flop, 4.0 * 4096.0 * 9.0);
        assert_eq!(attention_bwd(&[3, 2], LLAMA, 2.0).flop, 10.0 * 4096.0 * 9.0);
        // Rows of 6144 and 4096 numbers in bf16 and 32 sums in fp32.
        assert_eq!(attention(&[3, 2], LLAMA, 2.0).bytes, 5.0 * (2.0 * 10240.0 + 128.0));
        assert_eq!(attention_bwd(&[5], LLAMA, 2.0).bytes, 5.0 * (2.0 * 20480.0 + 128.0));
        // 7 cached tokens of 2 * 8 * 128 numbers, two rows of 6144 + 4096.
        assert_eq!(decode(&[3, 4], LLAMA, 2.0).bytes, 2.0 * (7.0 * 2048.0 + 2.0 * 10240.0));
    }

    #[test]
    fn generation_reads_weights_a_step_and_the_cache_behind_each_token() {
        let config = model("llama-2-7b").unwrap();
        let weights = 2.0 * (32.0 * 202_375_168.0 + 131_072_000.0);
        let [first, rest] = generation(&config, (3, 5, 3), 2.0);
        assert_eq!((first.bytes, rest.flop), (weights, 2.0 * 3.0 * weights));
        // Two steps, behind 6 and 7 tokens, of 8192 numbers each; the rows of the tokens themselves beside them.
        let cache = 32.0 * 2.0 * 3.0 * (13.0 * 8192.0 + 2.0 * 16_384.0);
        assert_eq!(rest.bytes, 2.0 * weights + cache);
        assert_eq!(generation(&config, (1, 1, 1), 2.0)[1], Floor { flop: 0.0, bytes: 0.0 });
    }

    #[test]
    fn rows_are_read_and_written_once() {
        assert_eq!(rmsnorm(3, 8, 2.0).bytes, 2.0 * 56.0 + 12.0);
        assert_eq!(rmsnorm_bwd(3, 8, 2.0).bytes, 2.0 * 104.0 + 12.0);
        assert_eq!(rope(3, LLAMA, 2.0).bytes, 2.0 * 2.0 * 3.0 * 40.0 * 128.0 + 12.0);
        assert_eq!((swiglu(3, 8, 2.0).bytes, swiglu_bwd(3, 8, 2.0).bytes), (144.0, 288.0));
        assert_eq!(embed(5, 4, 8, 2.0).bytes, 2.0 * 72.0 + 20.0);
        assert_eq!(embed_bwd(5, 4, 8, 2.0, 4.0).bytes, 2.0 * 40.0 + 2.0 * 4.0 * 32.0 + 20.0);
    }

    #[test]
    fn fused_products_write_what_is_left() {
        // Rows of 3 * 8 and 6144 numbers, a matrix of 8 * 6144.
        let rope = linear_rope(3, 8, LLAMA, 2.0);
        assert_eq!(rope.flop, 2.0 * 3.0 * 8.0 * 6144.0);
        assert_eq!(rope.bytes, 2.0 * (24.0 + 3.0 * 6144.0 + 8.0 * 6144.0) + 12.0);
        // x 3 * 5, w 10 * 5 * 2, gate and up 3 * 20, y 3 * 10.
        let swiglu = |keep| linear_swiglu(3, (10, 5), 2.0, keep);
        assert_eq!(swiglu(true), Floor { flop: 600.0, bytes: 2.0 * 205.0 });
        assert_eq!(swiglu(false).bytes, 2.0 * 145.0);
        // dy 3 * 5, w 5 * 10, gate and up twice, y.
        let backward = linear_dgrad_swiglu(3, (5, 10), 2.0);
        assert_eq!(backward, Floor { flop: 300.0, bytes: 2.0 * (65.0 + 150.0) });
    }

    #[test]
    fn head_counts_its_products_and_no_logits() {
        let shape = HeadShape { n: 4, c: 8, v: 16 };
        assert_eq!(head(shape, 1, 2.0), Floor { flop: 1024.0, bytes: 2.0 * 20.0 * 8.0 });
        assert_eq!(head(shape, 3, 2.0), Floor { flop: 3072.0, bytes: 2.0 * 24.0 * 8.0 });
    }

    #[test]
    fn update_moves_every_plane_twice() {
        let adamw = UpdateRule::AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.0 };
        // Compact: hi, lo, drift, momentum and gradient are 10 bytes.
        assert_eq!(update(7, StateMode::Compact, &SGD).bytes, 7.0 * 20.0);
        assert_eq!(update(7, StateMode::Compact, &adamw).bytes, 7.0 * 24.0);
        assert_eq!(update(7, StateMode::Exact, &SGD).bytes, 7.0 * 32.0);
        assert_eq!(teacher(7, 2.0).bytes, 7.0 * 8.0);
    }

    #[test]
    fn the_papers_step_of_llama_2_7b_is_2735_tflop() {
        let flop = step(&model("llama-2-7b").unwrap(), (40, 1024), (40, 512));
        assert_eq!(format!("{:.0}", flop / 1e12), "2735");
    }

    #[test]
    fn seconds_are_those_of_the_tighter_roof() {
        let roofs = Roofs { flops: 10.0, bytes: 2.0 };
        assert_eq!(Floor { flop: 40.0, bytes: 2.0 }.seconds(&roofs), 4.0);
        assert_eq!(Floor { flop: 40.0, bytes: 12.0 }.seconds(&roofs), 6.0);
    }
}
