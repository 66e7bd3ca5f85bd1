//! The catalogue's compute ops as launches; each family's file in `ops` says how.

use std::sync::atomic::Ordering;

use super::ops::{
    activation, attention, decode, embed, fused, head, layernorm, linear, mse, norm, positions,
    rope, sample, swiglu,
};
use super::{Act, Gpu, Grad, Pack, Stat, Weight};
use crate::error::Result;
use crate::ops::{
    CachePlace, Compute, Direction, HeadGrads, HeadShape, HeadWeight, Heads, Matched, Mlp,
    PackData, Rms, RopeTable, RowStats, Sampling, TokenWeight, Toward,
};

impl Compute for Gpu {
    type Act = Act;
    type Stat = Stat;
    type Pack = Pack;
    type Weight<'a> = Weight<'a>;
    type Grad = Grad;

    fn act(&self, len: usize) -> Result<Act> {
        self.new_act(len)
    }

    fn stat(&self, len: usize) -> Result<Stat> {
        self.new_stat(len)
    }

    fn pack(&self, tokens: usize) -> Result<Pack> {
        self.new_pack(tokens)
    }

    fn load_pack(&self, pack: &mut Pack, data: &PackData) {
        self.keep(self.upload_pack(pack, data));
    }

    fn read_stat(&self, stat: &Stat, out: &mut [f64]) {
        let mut narrow = vec![0f32; out.len().min(stat.len)];
        self.keep(self.download(stat.at, bytemuck::cast_slice_mut(&mut narrow)));
        out.iter_mut().zip(narrow).for_each(|(to, from)| *to = f64::from(from));
    }

    fn write_stat(&self, values: &[f64], stat: &mut Stat) {
        let narrow: Vec<f32> = values.iter().take(stat.len).map(|v| *v as f32).collect();
        self.keep(self.upload(stat.at, bytemuck::cast_slice(&narrow)));
    }

    fn read_act(&self, act: &Act, out: &mut [f32]) {
        let n = out.len().min(act.len);
        self.keep(self.download_act(act.at, &mut out[..n]));
    }

    fn write_act(&self, values: &[f32], act: &mut Act) {
        let n = values.len().min(act.len);
        self.keep(self.upload_act(act.at, &values[..n]));
    }

    fn reserve(&self, shape: HeadShape, matched: bool) -> Result<()> {
        head::reserve(self, shape, matched)
    }

    fn single_tokens(&self, on: bool) {
        self.few_rows.store(on, Ordering::Relaxed);
    }

    fn zero(&self, len: usize, act: &mut Act) {
        let bytes = len.min(act.len) as u64 * self.precision.bytes();
        self.keep(self.fill(act.at, 0, bytes));
    }

    fn sync(&self) -> Result<()> {
        let result = self.driver.sync();
        self.take_failure().and(result)
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

    fn mse(
        &self,
        n: usize,
        c: usize,
        pack: &Pack,
        x: &Act,
        toward: Toward<'_, Act, Stat>,
        value: &mut Stat,
        dx: Option<&mut Act>,
    ) {
        mse::mse(self, n, c, pack, x, toward, value, dx);
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
