//! The catalogue's compute ops as launches; each family's file in `ops` says how.

use std::sync::atomic::Ordering;

use super::ops::{
    activation, attention, decode, embed, fused, head, layernorm, linear, mse, norm, positions,
    rope, sample, swiglu,
};
use super::{Act, Gpu, Grad, Pack, Stat, Weight};
use crate::ops::{
    AttentionSaved, CachePlace, Compute, Direction, HeadGrads, HeadReference, HeadRows, HeadShape,
    HeadWeight, Heads, LinearArgs, LinearShape, Matched, Mlp, MseArgs, NormArgs, NormGrads,
    NormKind, QkNormArgs, RopeTable, Rotation, RowStats, Sampling, TokenWeight, Toward,
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

    fn linear(&self, args: LinearArgs<'_, Act, Weight<'_>>, residual: Option<&Act>, y: &mut Act) {
        linear::forward(self, args, residual, y);
    }

    fn linear_dgrad(&self, shape: LinearShape, dy: &Act, w: Weight<'_>, dx: &mut Act) {
        linear::dgrad(self, shape, dy, w, dx);
    }

    fn linear_wgrad(&self, shape: LinearShape, dy: &Act, x: &Act, dw: &mut Grad) {
        linear::wgrad(self, shape, dy, x, dw);
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

    fn norm(
        &self,
        args: NormArgs<'_, Act, Weight<'_>>,
        residual: Option<&Act>,
        y: &mut Act,
        stats: &mut Stat,
    ) {
        match args.norm.kind {
            NormKind::Rms => norm::forward(self, &args, residual, y, stats),
            NormKind::Layer if residual.is_some() => {
                self.refuse("layernorm: a residual is not supported");
            }
            NormKind::Layer => layernorm::forward(self, &args, y, stats),
        }
    }

    fn norm_bwd(
        &self,
        args: NormArgs<'_, Act, Weight<'_>>,
        dy: &Act,
        stats: &Stat,
        dx: &mut Act,
        grads: NormGrads<'_, Grad>,
    ) {
        match args.norm.kind {
            NormKind::Rms => norm::backward(self, &args, dy, stats, dx, grads.gain),
            NormKind::Layer => layernorm::backward(self, &args, dy, stats, dx, grads.gain),
        }
        if let Some(dbias) = grads.bias {
            linear::bias_grad(self, args.n, args.norm.width, dy, dbias);
        }
    }

    fn qk_norm(&self, args: QkNormArgs<'_, Act, Weight<'_>>, qkv: &mut Act, rstd: &mut Stat) {
        norm::qk_forward(self, &args, qkv, rstd);
    }

    fn qk_norm_bwd(
        &self,
        args: QkNormArgs<'_, Act, Weight<'_>>,
        rstd: &Stat,
        dqkv: &mut Act,
        dgains: Option<[&mut Grad; 2]>,
    ) {
        norm::qk_backward(self, &args, rstd, dqkv, dgains);
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
        saved: AttentionSaved<'_, Act, Stat>,
        dout: &Act,
        dqkv: &mut Act,
    ) {
        attention::backward(self, pack, heads, saved, dout, dqkv);
    }

    fn mlp(&self, n: usize, f: usize, mlp: Mlp, x: &Act, y: &mut Act) {
        match mlp {
            Mlp::SWIGLU => swiglu::forward(self, n, f, x, y),
            _ => activation::forward(self, n, f, mlp, x, y),
        }
    }

    fn mlp_bwd(&self, n: usize, f: usize, mlp: Mlp, dy: &mut Act, x: &mut Act) {
        match mlp {
            Mlp::SWIGLU => swiglu::backward(self, n, f, dy, x),
            _ => activation::backward(self, n, f, mlp, dy, x),
        }
    }

    fn linear_rope(
        &self,
        args: LinearArgs<'_, Act, Weight<'_>>,
        rotation: Rotation<'_, Pack>,
        qkv: &mut Act,
    ) {
        fused::rope(self, args, rotation, qkv);
    }

    fn linear_mlp(
        &self,
        args: LinearArgs<'_, Act, Weight<'_>>,
        mlp: Mlp,
        keep: bool,
        h: &mut Act,
        y: &mut Act,
    ) {
        if mlp == Mlp::SWIGLU {
            return fused::swiglu(self, args, keep, h, y);
        }
        self.linear(args, None, h);
        self.mlp(args.shape.n, mlp.inner(args.shape.o), mlp, h, y);
    }

    fn linear_dgrad_mlp(
        &self,
        shape: LinearShape,
        mlp: Mlp,
        dy: &Act,
        w: Weight<'_>,
        h: &mut Act,
        y: &mut Act,
    ) {
        if mlp == Mlp::SWIGLU {
            return fused::swiglu_backward(self, shape, dy, w, h, y);
        }
        self.linear_dgrad(shape, dy, w, y);
        self.mlp_bwd(shape.n, shape.i, mlp, y, h);
    }

    fn head_onehot(
        &self,
        rows: HeadRows<'_, Act, Pack, Weight<'_>>,
        weight: TokenWeight<'_, Stat>,
        stats: &mut RowStats<Stat>,
        grads: Option<HeadGrads<'_, Act, Grad>>,
    ) {
        head::onehot(self, rows, weight, stats, grads);
    }

    fn head_matched(
        &self,
        rows: HeadRows<'_, Act, Pack, Weight<'_>>,
        reference: HeadReference<'_, Act, Weight<'_>>,
        target: Matched,
        stats: &mut RowStats<Stat>,
        grads: Option<HeadGrads<'_, Act, Grad>>,
    ) {
        head::matched(self, rows, reference, target, stats, grads);
    }

    fn mse(
        &self,
        args: MseArgs<'_, Act, Pack>,
        toward: Toward<'_, Act, Stat>,
        value: &mut Stat,
        dx: Option<&mut Act>,
    ) {
        mse::mse(self, args, toward, value, dx);
    }

    fn cache_store(&self, pack: &Pack, heads: Heads, qkv: &Act, room: &mut Act, cache: CachePlace) {
        decode::store(self, pack, heads, qkv, room, cache);
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
        decode::attention(self, pack, heads, qkv, room, cache, out);
    }

    fn gather_rows(&self, c: usize, rows: &[u32], x: &Act, y: &mut Act) {
        decode::gather(self, c, rows, x, y);
    }

    fn head_argmax(&self, shape: HeadShape, h: &Act, w: HeadWeight<Weight<'_>>, ids: &mut [u32]) {
        sample::argmax(self, shape, h, w, ids);
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
        sample::sample(self, shape, h, w, sampling, draws, ids);
    }
}
