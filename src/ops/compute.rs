//! Forward and backward ops on activations.

use super::head::{HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, RowStats};
use super::heads::{AttentionSaved, CachePlace, Direction, Heads, RopeTable};
use super::linear::{LinearArgs, LinearShape, Rotation};
use super::memory::Memory;
use super::mlp::Mlp;
use super::norm::{NormArgs, NormGrads, QkNormArgs};
use super::sample::Sampling;
use super::weight::{Matched, MseArgs, TokenWeight, Toward};

/// Forward and backward ops. Buffers are allocated at start and are at least as long as an op needs; no op
/// allocates or synchronises. A failed launch is kept by the backend and surfaces at
/// [`Transfer::sync`](super::Transfer::sync).
///
/// The number of rows comes with each call, from the pack in hand.
pub trait Compute: Memory {
    /// A read-only weight tensor as the compute reads it.
    type Weight<'a>: Copy;

    /// Says whether the passes that follow are of single tokens, as generation makes them: nobody holds their rows to
    /// the bits of another pass, so a product with few rows may add in the order that is fastest for it.
    fn single_tokens(&self, on: bool) {
        let _ = on;
    }
    /// Sets the first `len` activations to 0.
    fn zero(&self, len: usize, act: &mut Self::Act);

    /// Linear map: `y[N,O] = x[N,I] w[O,I]^T (+ bias[O]) (+ residual[N,O])`.
    fn linear(
        &self,
        args: LinearArgs<'_, Self::Act, Self::Weight<'_>>,
        residual: Option<&Self::Act>,
        y: &mut Self::Act,
    );
    /// Input gradient of a linear map: `dx[N,I] = dy[N,O] w[O,I]`.
    fn linear_dgrad(
        &self,
        shape: LinearShape,
        dy: &Self::Act,
        w: Self::Weight<'_>,
        dx: &mut Self::Act,
    );
    /// Weight gradient of a linear map: `dw[O,I] += dy[N,O]^T x[N,I]`.
    fn linear_wgrad(&self, shape: LinearShape, dy: &Self::Act, x: &Self::Act, dw: &mut Self::Grad);
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

    /// Norm of rows, with the statistics that [`Compute::norm_bwd`] needs, `stats[N]` or `[N, 2]`.
    ///
    /// RMSNorm: `rstd = 1/sqrt(mean(x^2) + eps)`, `y = x rstd (offset + gain) (+ residual)`; saves rstd. LayerNorm, without
    /// `residual`: `mean = mean(x)`, `rstd = 1/sqrt(mean((x - mean)^2) + eps)`, `y = (x - mean) rstd gain + bias`; saves mean
    /// and rstd of each row.
    ///
    /// Source: arXiv 1910.07467, 1607.06450.
    fn norm(
        &self,
        args: NormArgs<'_, Self::Act, Self::Weight<'_>>,
        residual: Option<&Self::Act>,
        y: &mut Self::Act,
        stats: &mut Self::Stat,
    );
    /// Backward of [`Compute::norm`]; the bias is not read.
    ///
    /// RMSNorm, with `g = offset + gain` and xhat = x rstd: `dx += rstd (dy g - xhat mean(dy g xhat))`. LayerNorm, with
    /// xhat = (x - mean) rstd: `dx += rstd (dy gain - mean(dy gain) - xhat mean(dy gain xhat))`. Both: `dgain += sum over
    /// rows of dy xhat`, `dbias += sum over rows of dy`.
    fn norm_bwd(
        &self,
        args: NormArgs<'_, Self::Act, Self::Weight<'_>>,
        dy: &Self::Act,
        stats: &Self::Stat,
        dx: &mut Self::Act,
        grads: NormGrads<'_, Self::Grad>,
    );
    /// RMSNorm of each query head and each key head: `qkv = norm(raw)`; saves `rstd[N, H+G]`. Value heads are copied.
    fn qk_norm(
        &self,
        args: QkNormArgs<'_, Self::Act, Self::Weight<'_>>,
        qkv: &mut Self::Act,
        rstd: &mut Self::Stat,
    );
    /// Backward of [`Compute::qk_norm`] in place on `dqkv`; the gradients of both weights, where they train, are
    /// accumulated.
    fn qk_norm_bwd(
        &self,
        args: QkNormArgs<'_, Self::Act, Self::Weight<'_>>,
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
    fn attention_bwd(
        &self,
        pack: &Self::Pack,
        heads: Heads,
        saved: AttentionSaved<'_, Self::Act, Self::Stat>,
        dout: &Self::Act,
        dqkv: &mut Self::Act,
    );

    /// Activation of an MLP: `y[N,F] = act(x)`, gated `act(gate) up` with rows of F gates and then F ups.
    fn mlp(&self, n: usize, f: usize, mlp: Mlp, x: &Self::Act, y: &mut Self::Act);
    /// Backward of [`Compute::mlp`] in place: `x` becomes its own gradient, and `dy` the `y` of the forward pass, recomputed
    /// to the bit.
    fn mlp_bwd(&self, n: usize, f: usize, mlp: Mlp, dy: &mut Self::Act, x: &mut Self::Act);

    /// Linear map to qkv rows and rotary positions on them: [`Compute::linear`], then [`Compute::rope`].
    ///
    /// A backend that does both at once rounds once: the rows before the rotation are never stored.
    fn linear_rope(
        &self,
        args: LinearArgs<'_, Self::Act, Self::Weight<'_>>,
        rotation: Rotation<'_, Self::Pack>,
        qkv: &mut Self::Act,
    ) {
        let Rotation { pack, heads, table } = rotation;
        self.linear(args, None, qkv);
        self.rope(pack, heads, table, Direction::Forward, qkv);
    }
    /// First linear map of an MLP and its activation: [`Compute::linear`] to rows `h` of [`Mlp::width`] numbers, then
    /// [`Compute::mlp`], to the bit.
    ///
    /// Without `keep` the content of `h` is undefined afterwards, and need not be written.
    fn linear_mlp(
        &self,
        args: LinearArgs<'_, Self::Act, Self::Weight<'_>>,
        mlp: Mlp,
        keep: bool,
        h: &mut Self::Act,
        y: &mut Self::Act,
    ) {
        let _ = keep;
        self.linear(args, None, h);
        self.mlp(args.shape.n, mlp.inner(args.shape.o), mlp, h, y);
    }
    /// Input gradient of the last linear map of an MLP, `[C,F]`, and of the activation before it:
    /// [`Compute::linear_dgrad`], then [`Compute::mlp_bwd`], which leaves `y` and the gradient of `h`.
    ///
    /// A backend that does both at once never rounds the gradient at `y`.
    fn linear_dgrad_mlp(
        &self,
        shape: LinearShape,
        mlp: Mlp,
        dy: &Self::Act,
        w: Self::Weight<'_>,
        h: &mut Self::Act,
        y: &mut Self::Act,
    ) {
        self.linear_dgrad(shape, dy, w, y);
        self.mlp_bwd(shape.n, shape.i, mlp, y, h);
    }

    /// Fused head and target-token loss, chunked over rows so that logits never exist for a whole batch.
    ///
    /// For each row: `z = h w^T (+ bias)`, statistics of its target, weight, and with `grads` the gradient
    /// `coef weight (softmax(z) - e_y)` sent back through `w`. Rows with coefficient 0 still get statistics,
    /// and a zero gradient.
    ///
    /// Weights, statistics and `dh` have the rows that `h` has.
    fn head_onehot(
        &self,
        rows: HeadRows<'_, Self::Act, Self::Pack, Self::Weight<'_>>,
        weight: TokenWeight<'_, Self::Stat>,
        stats: &mut RowStats<Self::Stat>,
        grads: Option<HeadGrads<'_, Self::Act, Self::Grad>>,
    );
    /// Fused head and full-vocabulary loss, chunked over rows.
    ///
    /// Without a matrix of its own the reference shares the head, and then D = (h - h_ref) w^T is one product without
    /// cancellation. The reference is not read where [`Matched::compares`] is false.
    /// Rows with coefficient 0 get value 0 and a zero gradient. The statistics of targets are those of
    /// [`Compute::head_onehot`], also where the coefficient is 0.
    ///
    /// Statistics and `dh` have the rows that `h` has.
    fn head_matched(
        &self,
        rows: HeadRows<'_, Self::Act, Self::Pack, Self::Weight<'_>>,
        reference: HeadReference<'_, Self::Act, Self::Weight<'_>>,
        target: Matched,
        stats: &mut RowStats<Self::Stat>,
        grads: Option<HeadGrads<'_, Self::Act, Self::Grad>>,
    );

    /// Mean squared error of hidden states `x[N,C]` against t: value `mean over C of (x - t)^2`, and with `dx` the gradient
    /// `dx = 2 coef (x - t) / C`. Rows with coefficient 0 get value 0 and a zero gradient.
    fn mse(
        &self,
        args: MseArgs<'_, Self::Act, Self::Pack>,
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
