//! Forward and backward ops on activations.

use super::mlp::Mlp;
use super::sample::Sampling;
use super::weight::{Matched, TokenWeight, Toward};
use crate::error::Result;

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
    /// What scaled scores s are capped at: softmax reads `cap tanh(s / cap)`; `None` leaves them as they are (Gemma-2).
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

/// The numbers of an RMSNorm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rms {
    /// What is added to the mean of squares.
    pub eps: f64,
    /// What is added to the gain: 0, or 1 where the stored gain counts from there (Gemma).
    pub plus: f64,
}

impl Rms {
    /// Makes the norm whose gain is what is stored.
    pub fn plain(eps: f64) -> Self {
        Self { eps, plus: 0.0 }
    }
}

/// Whether rotary positions are applied or (in the backward pass) taken back.
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

/// Documents laid end to end without padding, as the host hands them to a backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackData {
    /// Token ids, N.
    pub ids: Vec<u32>,
    /// Position of each token in its own document, N.
    pub positions: Vec<u32>,
    /// Where each document starts, and N at the end: documents + 1.
    pub starts: Vec<u32>,
    /// The id each row is to predict (any id where its coefficient is 0), N.
    pub targets: Vec<u32>,
    /// What each row's loss is multiplied by: mask, normaliser and loss weight in one; 0 leaves the row out, N.
    pub coefs: Vec<f64>,
    /// What each row's value counts in a sweep's sum; 0 leaves it out, N.
    pub shares: Vec<f64>,
    /// What each row counts in the NLL and the accuracy that are monitored; 0 leaves it out, N.
    pub monitors: Vec<f64>,
    /// What the sum over each document's targets is divided by where documents are weighed.
    pub spans: Vec<u32>,
    /// The cache slot of each document (generation only).
    pub slots: Vec<u32>,
}

/// What a row counts in a loss and in the sums over a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowCounts {
    /// See [`PackData::coefs`].
    pub coef: f64,
    /// See [`PackData::shares`].
    pub share: f64,
    /// See [`PackData::monitors`].
    pub monitor: f64,
}

impl PackData {
    /// Empties the pack and keeps its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.starts.clear();
        self.targets.clear();
        self.coefs.clear();
        self.shares.clear();
        self.monitors.clear();
        self.spans.clear();
        self.slots.clear();
    }

    /// Appends a document whose token t predicts token t + 1; the last row's target is 0.
    ///
    /// `coef(t)` is the coefficient of row t; no row counts in sums.
    pub fn push(&mut self, ids: &[u32], mut coef: impl FnMut(usize) -> f64) {
        let span = ids.len().saturating_sub(1);
        self.push_counted(ids, span, |t| RowCounts { coef: coef(t), ..RowCounts::default() });
    }

    /// Appends a document whose token t predicts token t + 1 and counts `counts(t)`; the last row's target is 0.
    pub fn push_counted(
        &mut self,
        ids: &[u32],
        span: usize,
        counts: impl FnMut(usize) -> RowCounts,
    ) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        self.targets.extend_from_slice(ids.get(1..).unwrap_or(&[]));
        self.targets.extend(ids.first().map(|_| 0));
        for RowCounts { coef, share, monitor } in (0..ids.len()).map(counts) {
            self.coefs.push(coef);
            self.shares.push(share);
            self.monitors.push(monitor);
        }
        self.spans.push(span as u32);
        self.starts.push(self.ids.len() as u32);
    }

    /// Returns N.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Per-row results of a head sweep, on the backend.
#[derive(Debug)]
pub struct RowStats<S> {
    /// -log p of the target, nats; left alone where [`Matched::reads_teacher`].
    pub nll: S,
    /// The row's value before its coefficient.
    pub value: S,
    /// 1 where the target is the most probable token, else 0; left alone where [`Matched::reads_teacher`].
    pub hit: S,
}

/// The shape of a head sweep: `n` rows of width `c` against `v` logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// N, rows.
    pub n: usize,
    /// C, model width.
    pub c: usize,
    /// V, vocabulary.
    pub v: usize,
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

/// A head: its matrix, V x C, and its bias, V, where it has one; logits are `z = h w^T (+ bias)`, or `cap tanh(z / cap)`.
#[derive(Debug, Clone, Copy)]
pub struct HeadWeight<W> {
    /// The matrix.
    pub matrix: W,
    /// The bias.
    pub bias: Option<W>,
    /// What logits are capped at (Gemma-2); that of two heads that are compared is the same.
    pub cap: Option<f64>,
}

impl<W> HeadWeight<W> {
    /// Makes a head without a bias and a cap.
    pub fn plain(matrix: W) -> Self {
        Self { matrix, bias: None, cap: None }
    }
}

/// Where a head sweep writes gradients.
#[derive(Debug)]
pub struct HeadGrads<'a, A: ?Sized, G> {
    /// Gradient at the final hidden rows [N, C], overwritten.
    pub dh: &'a mut A,
    /// Gradient of the head matrix [V, C], accumulated; `None` where the head is frozen.
    pub dw: Option<&'a mut G>,
    /// Gradient of its bias, V, accumulated likewise.
    pub db: Option<&'a mut G>,
}

/// Forward and backward ops. Buffers are allocated at start and are at least as long as an op needs; no op
/// allocates or synchronises. A failed launch is kept by the backend and surfaces at [`Compute::sync`].
///
/// The number of rows comes with each call, from the pack in hand.
pub trait Compute {
    /// Activations in the backend's compute type.
    type Act: Send;
    /// Vectors kept in (at least) fp32: statistics, row losses.
    type Stat;
    /// A loaded [`PackData`].
    type Pack;
    /// A read-only weight tensor as the compute reads it.
    type Weight<'a>: Copy;
    /// A gradient sink; the first write of a step overwrites, later ones add.
    type Grad: Send;

    /// Allocates `len` activations.
    fn act(&self, len: usize) -> Result<Self::Act>;
    /// Allocates `len` statistics.
    fn stat(&self, len: usize) -> Result<Self::Stat>;
    /// Allocates room for packs of up to `tokens` tokens.
    fn pack(&self, tokens: usize) -> Result<Self::Pack>;
    /// Loads `data` into `pack`.
    fn load_pack(&self, pack: &mut Self::Pack, data: &PackData);
    /// Copies the first `out.len()` statistics to the host.
    fn read_stat(&self, stat: &Self::Stat, out: &mut [f64]);
    /// Copies host numbers into the first entries of `stat`.
    fn write_stat(&self, values: &[f64], stat: &mut Self::Stat);
    /// Copies the first `out.len()` activations to the host.
    fn read_act(&self, act: &Self::Act, out: &mut [f32]);
    /// Copies host numbers into the first entries of `act`, rounded to the nearest stored number.
    fn write_act(&self, values: &[f32], act: &mut Self::Act);
    /// Makes room for head sweeps over packs of up to `shape.n` rows, those of matched rows only where asked for, so that
    /// none allocates later.
    fn reserve(&self, shape: HeadShape, matched: bool) -> Result<()>;
    /// Says whether the passes that follow are of single tokens, as generation makes them: nobody holds their rows to
    /// the bits of another pass, so a product with few rows may add in the order that is fastest for it.
    fn single_tokens(&self, on: bool) {
        let _ = on;
    }
    /// Sets the first `len` activations to 0.
    fn zero(&self, len: usize, act: &mut Self::Act);
    /// Waits for all work and returns the first error it met.
    fn sync(&self) -> Result<()>;

    /// Linear map: `y[N,O] = x[N,I] w[O,I]^T (+ bias[O]) (+ residual[N,O])`.
    #[allow(clippy::too_many_arguments)]
    fn linear(
        &self,
        n: usize,
        oi: (usize, usize),
        x: &Self::Act,
        w: Self::Weight<'_>,
        bias: Option<Self::Weight<'_>>,
        residual: Option<&Self::Act>,
        y: &mut Self::Act,
    );
    /// Input gradient of a linear map: `dx[N,I] = dy[N,O] w[O,I]`.
    fn linear_dgrad(
        &self,
        n: usize,
        oi: (usize, usize),
        dy: &Self::Act,
        w: Self::Weight<'_>,
        dx: &mut Self::Act,
    );
    /// Weight gradient of a linear map: `dw[O,I] += dy[N,O]^T x[N,I]`.
    fn linear_wgrad(
        &self,
        n: usize,
        oi: (usize, usize),
        dy: &Self::Act,
        x: &Self::Act,
        dw: &mut Self::Grad,
    );
    /// Bias gradient: `db[O] += sum over rows of dy[N,O]`.
    fn bias_grad(&self, n: usize, o: usize, dy: &Self::Act, db: &mut Self::Grad);

    /// Embedding: `x[N,C] = scale table[ids]`.
    fn embed(
        &self,
        pack: &Self::Pack,
        c: usize,
        scale: f64,
        table: Self::Weight<'_>,
        x: &mut Self::Act,
    );
    /// Embedding backward: `dtable[ids] += scale dx`, rows of equal id added in row order.
    fn embed_bwd(
        &self,
        pack: &Self::Pack,
        c: usize,
        scale: f64,
        dx: &Self::Act,
        dtable: &mut Self::Grad,
    );
    /// Learned positions: `x[N,C] += table[first + position]`; behind the table's `rows` its last one is read.
    fn positions(
        &self,
        pack: &Self::Pack,
        c: usize,
        rows_first: (usize, usize),
        table: Self::Weight<'_>,
        x: &mut Self::Act,
    );
    /// Learned positions backward: `dtable[first + position] += dx`, rows of equal position added in the order of
    /// documents, whose positions all count from 0. What lies behind the table's `rows` is left out.
    fn positions_bwd(
        &self,
        pack: &Self::Pack,
        c: usize,
        rows_first: (usize, usize),
        dx: &Self::Act,
        dtable: &mut Self::Grad,
    );

    /// RMSNorm: `rstd = 1/sqrt(mean(x^2) + eps)`, `y = x rstd (plus + gain) (+ residual)`; saves `rstd[N]`.
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm(
        &self,
        n: usize,
        c: usize,
        rms: Rms,
        x: &Self::Act,
        gain: Self::Weight<'_>,
        residual: Option<&Self::Act>,
        y: &mut Self::Act,
        rstd: &mut Self::Stat,
    );
    /// RMSNorm backward: with `g = plus + gain` and xhat = x rstd, `dx += rstd (dy g - xhat mean(dy g xhat))`;
    /// `dgain += sum over rows of dy xhat` where asked for.
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_bwd(
        &self,
        n: usize,
        c: usize,
        rms: Rms,
        dy: &Self::Act,
        x: &Self::Act,
        gain: Self::Weight<'_>,
        rstd: &Self::Stat,
        dx: &mut Self::Act,
        dgain: Option<&mut Self::Grad>,
    );
    /// LayerNorm: `mean = mean(x)`, `rstd = 1/sqrt(mean((x - mean)^2) + eps)`, `y = (x - mean) rstd gain + bias`; saves
    /// mean and rstd of each row, `stats[N, 2]`.
    ///
    /// `gain_bias` are C numbers each.
    #[allow(clippy::too_many_arguments)]
    fn layernorm(
        &self,
        n: usize,
        c: usize,
        eps: f64,
        x: &Self::Act,
        gain_bias: [Self::Weight<'_>; 2],
        y: &mut Self::Act,
        stats: &mut Self::Stat,
    );
    /// LayerNorm backward: `dx += rstd (dy gain - mean(dy gain) - xhat mean(dy gain xhat))`, xhat = (x - mean) rstd;
    /// `dgain += sum over rows of dy xhat` where asked for. The gradient of the bias is [`Compute::bias_grad`] of `dy`.
    ///
    /// Source: arXiv 1607.06450.
    #[allow(clippy::too_many_arguments)]
    fn layernorm_bwd(
        &self,
        n: usize,
        c: usize,
        dy: &Self::Act,
        x: &Self::Act,
        gain: Self::Weight<'_>,
        stats: &Self::Stat,
        dx: &mut Self::Act,
        dgain: Option<&mut Self::Grad>,
    );
    /// RMSNorm of each query head and each key head: `qkv = norm(raw)`; saves `rstd[N, H+G]`.
    ///
    /// `gains` are those of queries and keys, D each. Value heads are copied.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm(
        &self,
        n: usize,
        heads: Heads,
        rms: Rms,
        gains: [Self::Weight<'_>; 2],
        raw: &Self::Act,
        qkv: &mut Self::Act,
        rstd: &mut Self::Stat,
    );
    /// Backward of [`Compute::qk_norm`] in place on `dqkv`; `raw` holds the qkv rows from before the norm.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm_bwd(
        &self,
        n: usize,
        heads: Heads,
        rms: Rms,
        gains: [Self::Weight<'_>; 2],
        raw: &Self::Act,
        rstd: &Self::Stat,
        dqkv: &mut Self::Act,
        dgains: Option<[&mut Self::Grad; 2]>,
    );

    /// Rotary positions on the H query and G key heads of qkv rows, in place, half-split pairs (i, i + R/2).
    fn rope(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        table: &RopeTable,
        direction: Direction,
        qkv: &mut Self::Act,
    );

    /// Causal attention inside each document: `out = softmax(s) v` with the scores `s = q k^T / sqrt(D)`, capped where the
    /// heads have a cap; saves `lse[N, H]`.
    fn attention(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        qkv: &Self::Act,
        out: &mut Self::Act,
        lse: &mut Self::Stat,
    );
    /// Attention backward: all of `dqkv` is overwritten.
    #[allow(clippy::too_many_arguments)]
    fn attention_bwd(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        qkv: &Self::Act,
        out: &Self::Act,
        lse: &Self::Stat,
        dout: &Self::Act,
        dqkv: &mut Self::Act,
    );

    /// SwiGLU: `y[N,F] = silu(gate) up`, a `gate_up` row being F gates and then F ups.
    fn swiglu(&self, n: usize, f: usize, gate_up: &Self::Act, y: &mut Self::Act);
    /// SwiGLU backward in place: `gate_up` becomes its own gradient, and `dy` the `y` of the forward pass, made again.
    fn swiglu_bwd(&self, n: usize, f: usize, dy: &mut Self::Act, gate_up: &mut Self::Act);

    /// Any activation of an MLP: `y[N,F] = act(x)`, gated `act(gate) up` with rows of F gates and then F ups.
    fn activation(&self, n: usize, f: usize, mlp: Mlp, x: &Self::Act, y: &mut Self::Act);
    /// Its backward in place: `x` becomes its own gradient, and `dy` the `y` of the forward pass, made again to the bit.
    fn activation_bwd(&self, n: usize, f: usize, mlp: Mlp, dy: &mut Self::Act, x: &mut Self::Act);

    /// Linear map to qkv rows and rotary positions on them: [`Compute::linear`], then [`Compute::rope`].
    ///
    /// A backend that does both at once rounds once: the rows from before the rotation are never stored.
    #[allow(clippy::too_many_arguments)]
    fn linear_rope(
        &self,
        pack: &Self::Pack,
        (n, c): (usize, usize),
        heads: Heads,
        table: &RopeTable,
        x: &Self::Act,
        w: Self::Weight<'_>,
        bias: Option<Self::Weight<'_>>,
        qkv: &mut Self::Act,
    ) {
        self.linear(n, (heads.qkv_width(), c), x, w, bias, None, qkv);
        self.rope(pack, heads, table, Direction::Forward, qkv);
    }
    /// Linear map to gate and up, and SwiGLU of them: [`Compute::linear`] to `2 F` columns, then
    /// [`Compute::swiglu`], to the bit.
    ///
    /// Without `keep` the content of `gate_up` is undefined afterwards, and need not be written.
    #[allow(clippy::too_many_arguments)]
    fn linear_swiglu(
        &self,
        n: usize,
        (f, c): (usize, usize),
        x: &Self::Act,
        w: Self::Weight<'_>,
        bias: Option<Self::Weight<'_>>,
        keep: bool,
        gate_up: &mut Self::Act,
        y: &mut Self::Act,
    ) {
        let _ = keep;
        self.linear(n, (2 * f, c), x, w, bias, None, gate_up);
        self.swiglu(n, f, gate_up, y);
    }
    /// Input gradient of the linear map `[C,F]` behind SwiGLU, sent on through it: [`Compute::linear_dgrad`], then
    /// [`Compute::swiglu_bwd`], which leaves `y` and the gradient of `gate_up`.
    ///
    /// A backend that does both at once never rounds the gradient at `y`.
    #[allow(clippy::too_many_arguments)]
    fn linear_dgrad_swiglu(
        &self,
        n: usize,
        (c, f): (usize, usize),
        dy: &Self::Act,
        w: Self::Weight<'_>,
        gate_up: &mut Self::Act,
        y: &mut Self::Act,
    ) {
        self.linear_dgrad(n, (c, f), dy, w, y);
        self.swiglu_bwd(n, f, y, gate_up);
    }

    /// Fused head and target-token loss, chunked over rows so that logits never exist for a whole batch.
    ///
    /// For each row: `z = h w^T (+ bias)`, statistics of its target, weight, and with `grads` the gradient
    /// `coef weight (softmax(z) - e_y)` sent back through `w`. Rows with coefficient 0 still get statistics,
    /// and a zero gradient.
    ///
    /// The rows are `first` to `first + shape.n` of the pack, of `h`, the weights, the statistics and `dh`.
    #[allow(clippy::too_many_arguments)]
    fn head_onehot(
        &self,
        shape: HeadShape,
        first: usize,
        pack: &Self::Pack,
        h: &Self::Act,
        w: HeadWeight<Self::Weight<'_>>,
        weight: TokenWeight<'_, Self::Stat>,
        stats: &mut RowStats<Self::Stat>,
        grads: Option<HeadGrads<'_, Self::Act, Self::Grad>>,
    );
    /// Fused head and full-vocabulary loss, chunked over rows.
    ///
    /// `h_ref` and `w_ref` are those of the model compared with; `w_ref` is `None` where both share the head, and then
    /// D = (h - h_ref) w^T is one product without cancellation. Neither is read where [`Matched::compares`] is false.
    /// Rows with coefficient 0 get value 0 and a zero gradient. The statistics of targets are those of
    /// [`Compute::head_onehot`], also where the coefficient is 0.
    ///
    /// The rows are `first` to `first + shape.n` of the pack, of `h`, the statistics and `dh`, and those of `h_ref` from 0 on.
    #[allow(clippy::too_many_arguments)]
    fn head_matched(
        &self,
        shape: HeadShape,
        first: usize,
        pack: &Self::Pack,
        h: &Self::Act,
        h_ref: &Self::Act,
        w: HeadWeight<Self::Weight<'_>>,
        w_ref: Option<HeadWeight<Self::Weight<'_>>>,
        target: Matched,
        stats: &mut RowStats<Self::Stat>,
        grads: Option<HeadGrads<'_, Self::Act, Self::Grad>>,
    );

    /// Mean squared error of hidden states `x[N,C]` against t: value `mean over C of (x - t)^2`, and with `dx` the gradient
    /// `dx = 2 coef (x - t) / C`. Rows with coefficient 0 get value 0 and a zero gradient.
    #[allow(clippy::too_many_arguments)]
    fn mse(
        &self,
        n: usize,
        c: usize,
        pack: &Self::Pack,
        x: &Self::Act,
        toward: Toward<'_, Self::Act, Self::Stat>,
        value: &mut Self::Stat,
        dx: Option<&mut Self::Act>,
    );

    /// Stores the keys and values of every token of the pack at its document's slot and its position, in the cache that
    /// lies in `room` as `cache` says.
    fn cache_store(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        qkv: &Self::Act,
        room: &mut Self::Act,
        cache: CachePlace,
    );
    /// Attention of single tokens against the cache in `room`: each document of the pack is one token that sees
    /// positions up to its own (which [`Compute::cache_store`] has stored) within the window.
    fn decode_attention(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        qkv: &Self::Act,
        room: &Self::Act,
        cache: CachePlace,
        out: &mut Self::Act,
    );
    /// Copies rows `rows` of `x[N,C]` to the front of `y`.
    fn gather_rows(&self, c: usize, rows: &[u32], x: &Self::Act, y: &mut Self::Act);
    /// Picks the token with the largest logit of each row, as [`argmax`](super::sample::argmax) does; waits for it.
    ///
    /// Logits are made in chunks of rows on the device and stay there: `shape.n` ids come back, those of `ids`.
    fn head_argmax(
        &self,
        shape: HeadShape,
        h: &Self::Act,
        w: HeadWeight<Self::Weight<'_>>,
        ids: &mut [u32],
    );
    /// Draws a token for each row with `draws[row]`, uniform in [0, 1), as [`sample`](super::sample::sample) does
    /// up to rounding; else like [`Compute::head_argmax`].
    fn head_sample(
        &self,
        shape: HeadShape,
        h: &Self::Act,
        w: HeadWeight<Self::Weight<'_>>,
        sampling: Sampling,
        draws: &[f64],
        ids: &mut [u32],
    );
}
