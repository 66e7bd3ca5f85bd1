//! The catalogue's compute ops as launches; each family's file in `ops` says how.

use std::sync::atomic::Ordering;

use super::ops::{
    activation, attention, choose, embed, fused, generate, head, layernorm, linear, norm,
    positions, pull, rope, swiglu,
};
use super::{Act, Gpu, Grad, Pack, Stat, Weight};
use crate::ops::{
    CachePlace, Compute, Direction, HeadGrads, HeadShape, HeadWeight, Heads, Matched, Mlp, Rms,
    RopeTable, RowStats, Sampling, TokenWeight, Toward,
};

impl Compute for Gpu {
    type Weight<'a> = Weight<'a>;

    fn single_tokens(&self, on: bool) {
        self.few_rows.store(on, Ordering::Relaxed);
    }

    fn zero(&self, len: usize, act: &mut Act) {
        let bytes = len.min(act.len) as u64 * self.precision.bytes();
        self.keep(self.fill(act.at, 0, bytes));
    }

    fn linear(
        &self,
        n: usize,
        oi: (usize, usize),
        x: &Act,
        w: Weight<'_>,
        bias: Option<Weight<'_>>,
        residual: Option<&Act>,
        y: &mut Act,
    ) {
        linear::forward(self, n, oi, x, w, bias, residual, y);
    }

    fn linear_dgrad(&self, n: usize, oi: (usize, usize), dy: &Act, w: Weight<'_>, dx: &mut Act) {
        linear::dgrad(self, n, oi, dy, w, dx);
    }

    fn linear_wgrad(&self, n: usize, oi: (usize, usize), dy: &Act, x: &Act, dw: &mut Grad) {
        linear::wgrad(self, n, oi, dy, x, dw);
    }

    fn bias_grad(&self, n: usize, o: usize, dy: &Act, db: &mut Grad) {
        linear::bias_grad(self, n, o, dy, db);
    }

    fn embed(&self, pack: &Pack, c: usize, scale: f64, table: Weight<'_>, x: &mut Act) {
        embed::forward(self, pack, c, scale, table, x);
    }

    fn embed_bwd(&self, pack: &Pack, c: usize, scale: f64, dx: &Act, dtable: &mut Grad) {
        embed::backward(self, pack, c, scale, dx, dtable);
    }

    fn positions(
        &self,
        pack: &Pack,
        c: usize,
        rows_first: (usize, usize),
        table: Weight<'_>,
        x: &mut Act,
    ) {
        positions::forward(self, pack, c, rows_first, table, x);
    }

    fn positions_bwd(
        &self,
        pack: &Pack,
        c: usize,
        rows_first: (usize, usize),
        dx: &Act,
        dtable: &mut Grad,
    ) {
        positions::backward(self, pack, c, rows_first, dx, dtable);
    }

    fn rmsnorm(
        &self,
        n: usize,
        c: usize,
        rms: Rms,
        x: &Act,
        gain: Weight<'_>,
        residual: Option<&Act>,
        y: &mut Act,
        rstd: &mut Stat,
    ) {
        norm::forward(self, n, c, rms, x, gain, residual, y, rstd);
    }

    fn rmsnorm_bwd(
        &self,
        n: usize,
        c: usize,
        rms: Rms,
        dy: &Act,
        x: &Act,
        gain: Weight<'_>,
        rstd: &Stat,
        dx: &mut Act,
        dgain: Option<&mut Grad>,
    ) {
        norm::backward(self, n, c, rms, dy, x, gain, rstd, dx, dgain);
    }

    fn layernorm(
        &self,
        n: usize,
        c: usize,
        eps: f64,
        x: &Act,
        gain_bias: [Weight<'_>; 2],
        y: &mut Act,
        stats: &mut Stat,
    ) {
        layernorm::forward(self, n, c, eps, x, gain_bias, y, stats);
    }

    fn layernorm_bwd(
        &self,
        n: usize,
        c: usize,
        dy: &Act,
        x: &Act,
        gain: Weight<'_>,
        stats: &Stat,
        dx: &mut Act,
        dgain: Option<&mut Grad>,
    ) {
        layernorm::backward(self, n, c, dy, x, gain, stats, dx, dgain);
    }

    fn qk_norm(
        &self,
        n: usize,
        heads: Heads,
        rms: Rms,
        gains: [Weight<'_>; 2],
        raw: &Act,
        qkv: &mut Act,
        rstd: &mut Stat,
    ) {
        norm::qk_forward(self, n, heads, rms, gains, raw, qkv, rstd);
    }

    fn qk_norm_bwd(
        &self,
        n: usize,
        heads: Heads,
        rms: Rms,
        gains: [Weight<'_>; 2],
        raw: &Act,
        rstd: &Stat,
        dqkv: &mut Act,
        dgains: Option<[&mut Grad; 2]>,
    ) {
        norm::qk_backward(self, n, heads, rms, gains, raw, rstd, dqkv, dgains);
    }

    fn rope(
        &self,
        pack: &Pack,
        heads: Heads,
        table: &RopeTable,
        direction: Direction,
        qkv: &mut Act,
    ) {
        rope::rotate(self, pack, heads, table, direction, qkv);
    }

    fn attention(&self, pack: &Pack, heads: Heads, qkv: &Act, out: &mut Act, lse: &mut Stat) {
        attention::forward(self, pack, heads, qkv, out, lse);
    }

    fn attention_bwd(
        &self,
        pack: &Pack,
        heads: Heads,
        qkv: &Act,
        out: &Act,
        lse: &Stat,
        dout: &Act,
        dqkv: &mut Act,
    ) {
        attention::backward(self, pack, heads, qkv, out, lse, dout, dqkv);
    }

    fn swiglu(&self, n: usize, f: usize, gate_up: &Act, y: &mut Act) {
        swiglu::forward(self, n, f, gate_up, y);
    }

    fn swiglu_bwd(&self, n: usize, f: usize, dy: &mut Act, gate_up: &mut Act) {
        swiglu::backward(self, n, f, dy, gate_up);
    }

    fn activation(&self, n: usize, f: usize, mlp: Mlp, x: &Act, y: &mut Act) {
        activation::forward(self, n, f, mlp, x, y);
    }

    fn activation_bwd(&self, n: usize, f: usize, mlp: Mlp, dy: &mut Act, x: &mut Act) {
        activation::backward(self, n, f, mlp, dy, x);
    }

    fn linear_rope(
        &self,
        pack: &Pack,
        nc: (usize, usize),
        heads: Heads,
        table: &RopeTable,
        x: &Act,
        w: Weight<'_>,
        bias: Option<Weight<'_>>,
        qkv: &mut Act,
    ) {
        fused::rope(self, pack, nc, heads, table, x, w, bias, qkv);
    }

    fn linear_swiglu(
        &self,
        n: usize,
        fc: (usize, usize),
        x: &Act,
        w: Weight<'_>,
        bias: Option<Weight<'_>>,
        keep: bool,
        gate_up: &mut Act,
        y: &mut Act,
    ) {
        fused::swiglu(self, n, fc, x, w, bias, keep, gate_up, y);
    }

    fn linear_dgrad_swiglu(
        &self,
        n: usize,
        cf: (usize, usize),
        dy: &Act,
        w: Weight<'_>,
        gate_up: &mut Act,
        y: &mut Act,
    ) {
        fused::swiglu_backward(self, n, cf, dy, w, gate_up, y);
    }

    fn head_onehot(
        &self,
        shape: HeadShape,
        first: usize,
        pack: &Pack,
        h: &Act,
        w: HeadWeight<Weight<'_>>,
        weight: TokenWeight<'_, Stat>,
        stats: &mut RowStats<Stat>,
        grads: Option<HeadGrads<'_, Act, Grad>>,
    ) {
        head::onehot(self, (shape, first), pack, h, w, weight, stats, grads);
    }

    fn head_matched(
        &self,
        shape: HeadShape,
        first: usize,
        pack: &Pack,
        h: &Act,
        h_ref: &Act,
        w: HeadWeight<Weight<'_>>,
        w_ref: Option<HeadWeight<Weight<'_>>>,
        target: Matched,
        stats: &mut RowStats<Stat>,
        grads: Option<HeadGrads<'_, Act, Grad>>,
    ) {
        head::matched(self, (shape, first), pack, (h, h_ref), (w, w_ref), target, stats, grads);
    }

    fn pull(
        &self,
        n: usize,
        c: usize,
        pack: &Pack,
        x: &Act,
        toward: Toward<'_, Act, Stat>,
        value: &mut Stat,
        dx: Option<&mut Act>,
    ) {
        pull::pull(self, n, c, pack, x, toward, value, dx);
    }

    fn cache_store(&self, pack: &Pack, heads: Heads, qkv: &Act, room: &mut Act, cache: CachePlace) {
        generate::store(self, pack, heads, qkv, room, cache);
    }

    fn decode_attention(
        &self,
        pack: &Pack,
        heads: Heads,
        qkv: &Act,
        room: &Act,
        cache: CachePlace,
        out: &mut Act,
    ) {
        generate::attention(self, pack, heads, qkv, room, cache, out);
    }

    fn gather_rows(&self, c: usize, rows: &[u32], x: &Act, y: &mut Act) {
        generate::gather(self, c, rows, x, y);
    }

    fn head_argmax(&self, shape: HeadShape, h: &Act, w: HeadWeight<Weight<'_>>, ids: &mut [u32]) {
        choose::argmax(self, shape, h, w, ids);
    }

    fn head_sample(
        &self,
        shape: HeadShape,
        h: &Act,
        w: HeadWeight<Weight<'_>>,
        sampling: Sampling,
        draws: &[f64],
        ids: &mut [u32],
    ) {
        choose::sample(self, shape, h, w, sampling, draws, ids);
    }
}
