//! The catalogue's compute ops on the CPU.

use super::cap::Cap;
use super::gemm::{Matrix, parallel};
use super::head::{
    Capped, Monitored, OneHot, Results, Sweep, accumulate, add_rows, each_logits, sweep,
};
use super::matched::MatchedRows;
use super::rows::{self, each};
use super::{Cpu, Grad, Real, attention, layernorm, mlp, norm};
use crate::ops::{
    AttentionSaved, CachePlace, Compute, Direction, HeadGrads, HeadReference, HeadRows, HeadShape,
    HeadWeight, Heads, LinearArgs, LinearShape, Matched, Mlp, MseArgs, NormArgs, NormGrads,
    NormKind, PackData, QkNormArgs, RopeTable, RowStats, Sampling, TokenWeight, Toward, sample,
};

/// A loaded pack: the host's own data.
#[derive(Debug, Clone, Default)]
pub struct Pack {
    pub(super) data: PackData,
}

impl Pack {
    pub(super) fn data(&self) -> &PackData {
        &self.data
    }
}

impl<T: Real> Cpu<T> {
    /// Lends the results of rows from `first` on.
    fn results<'a>(
        stats: &'a mut RowStats<Vec<T>>,
        first: usize,
        monitors: bool,
    ) -> Results<'a, T> {
        let RowStats { nll, value, hit } = stats;
        let (nll, hit) = if monitors {
            (Some(&mut nll[first..]), Some(&mut hit[first..]))
        } else {
            (None, None)
        };
        Results { nll, value: &mut value[first..], hit }
    }
}

/// Gradients of a sweep whose first row is number `at / C` of the pack.
fn from<T>(
    grads: Option<HeadGrads<'_, Vec<T>, Grad<T>>>,
    at: usize,
) -> Option<HeadGrads<'_, [T], Grad<T>>> {
    grads.map(|g| HeadGrads { dh: &mut g.dh[at..], dw: g.dw, db: g.db })
}

impl<T: Real> Compute for Cpu<T> {
    type Weight<'a> = &'a [T];

    fn zero(&self, len: usize, act: &mut Vec<T>) {
        act[..len].fill(T::ZERO);
    }

    fn linear(
        &self,
        args: LinearArgs<'_, Vec<T>, &[T]>,
        residual: Option<&Vec<T>>,
        y: &mut Vec<T>,
    ) {
        let LinearArgs { shape: LinearShape { n, o, i }, x, w, bias } = args;
        let start = bias.is_some() || residual.is_some();
        if start {
            each(
                n,
                o,
                y,
                #[inline(always)]
                |r, row| {
                    match residual {
                        Some(residual) => row.copy_from_slice(&residual[r * o..(r + 1) * o]),
                        None => row.fill(T::ZERO),
                    }
                    if let Some(bias) = bias {
                        row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
                    }
                },
            );
        }
        parallel((n, o, i), Matrix::rows(x, i), Matrix::rows(w, i).t(), y, start);
    }

    fn linear_dgrad(&self, shape: LinearShape, dy: &Vec<T>, w: &[T], dx: &mut Vec<T>) {
        let LinearShape { n, o, i } = shape;
        parallel((n, i, o), Matrix::rows(dy, o), Matrix::rows(w, i), dx, false);
    }

    fn linear_wgrad(&self, shape: LinearShape, dy: &Vec<T>, x: &Vec<T>, dw: &mut Grad<T>) {
        let LinearShape { n, o, i } = shape;
        accumulate(&self.pool, (o, i, n), Matrix::rows(dy, o).t(), Matrix::rows(x, i), dw);
    }

    fn bias_grad(&self, n: usize, o: usize, dy: &Vec<T>, db: &mut Grad<T>) {
        add_rows(&self.pool, &dy[..n * o], o, db);
    }

    fn embed(&self, pack: &Pack, c: usize, scale: f64, table: &[T], x: &mut Vec<T>) {
        let (ids, scale) = (&pack.data.ids, T::from_f64(scale));
        each(
            ids.len(),
            c,
            x,
            #[inline(always)]
            |r, row| {
                let id = ids[r] as usize;
                row.iter_mut().zip(&table[id * c..(id + 1) * c]).for_each(|(x, t)| *x = scale * *t);
            },
        );
    }

    fn embed_bwd(&self, pack: &Pack, c: usize, scale: f64, dx: &Vec<T>, dtable: &mut Grad<T>) {
        dtable.open();
        let (mut scaled, scale) = (self.pool.lend(c), T::from_f64(scale));
        for (row, &id) in dx.chunks_exact(c).zip(&pack.data.ids) {
            scaled.iter_mut().zip(row).for_each(|(s, x)| *s = scale * *x);
            dtable.add(id as usize * c, &scaled);
        }
    }

    fn positions(
        &self,
        pack: &Pack,
        c: usize,
        (rows, first): (usize, usize),
        table: &[T],
        x: &mut Vec<T>,
    ) {
        let positions = &pack.data.positions;
        each(
            positions.len(),
            c,
            x,
            #[inline(always)]
            |r, row| {
                let at = (first + positions[r] as usize).min(rows - 1) * c;
                row.iter_mut().zip(&table[at..at + c]).for_each(|(x, p)| *x += *p);
            },
        );
    }

    fn positions_bwd(
        &self,
        pack: &Pack,
        c: usize,
        (rows, first): (usize, usize),
        dx: &Vec<T>,
        dtable: &mut Grad<T>,
    ) {
        dtable.open();
        for (row, &position) in dx.chunks_exact(c).zip(&pack.data.positions) {
            let to = first + position as usize;
            if to < rows {
                dtable.add(to * c, row);
            }
        }
    }

    fn norm(
        &self,
        args: NormArgs<'_, Vec<T>, &[T]>,
        residual: Option<&Vec<T>>,
        y: &mut Vec<T>,
        stats: &mut Vec<T>,
    ) {
        match args.norm.kind {
            NormKind::Rms => norm::rmsnorm(&args, residual, y, stats),
            NormKind::Layer => {
                debug_assert!(residual.is_none(), "LayerNorm has no residual");
                layernorm::forward(&args, y, stats);
            }
        }
    }

    fn norm_bwd(
        &self,
        args: NormArgs<'_, Vec<T>, &[T]>,
        dy: &Vec<T>,
        stats: &Vec<T>,
        dx: &mut Vec<T>,
        grads: NormGrads<'_, Grad<T>>,
    ) {
        let (n, c) = (args.n, args.norm.width);
        let mut sums = self.pool.lend(c);
        let dgain = grads.gain.map(|g| (g, &mut sums[..]));
        match args.norm.kind {
            NormKind::Rms => norm::rmsnorm_bwd(&args, dy, stats, dx, dgain),
            NormKind::Layer => layernorm::backward(&args, dy, stats, dx, dgain),
        }
        if let Some(dbias) = grads.bias {
            self.bias_grad(n, c, dy, dbias);
        }
    }

    fn qk_norm(&self, args: QkNormArgs<'_, Vec<T>, &[T]>, qkv: &mut Vec<T>, rstd: &mut Vec<T>) {
        norm::qk_norm(&args, qkv, rstd);
    }

    fn qk_norm_bwd(
        &self,
        args: QkNormArgs<'_, Vec<T>, &[T]>,
        rstd: &Vec<T>,
        dqkv: &mut Vec<T>,
        dgains: Option<[&mut Grad<T>; 2]>,
    ) {
        let mut sums = self.pool.lend(args.heads.d);
        norm::qk_norm_bwd(&args, rstd, dqkv, dgains.map(|g| (g, &mut sums[..])));
    }

    fn rope(
        &self,
        pack: &Pack,
        heads: Heads,
        table: &RopeTable,
        direction: Direction,
        qkv: &mut Vec<T>,
    ) {
        self.angles.rotate(&pack.data.positions, heads, table, direction, qkv);
    }

    fn attention(
        &self,
        pack: &Pack,
        heads: Heads,
        qkv: &Vec<T>,
        out: &mut Vec<T>,
        lse: &mut Vec<T>,
    ) {
        attention::forward(&self.pool, &pack.data.starts, heads, qkv, out, lse);
    }

    fn attention_bwd(
        &self,
        pack: &Pack,
        heads: Heads,
        saved: AttentionSaved<'_, Vec<T>, Vec<T>>,
        dout: &Vec<T>,
        dqkv: &mut Vec<T>,
    ) {
        attention::backward(&self.pool, &pack.data.starts, heads, saved, dout, dqkv);
    }

    fn mlp(&self, n: usize, f: usize, mlp: Mlp, x: &Vec<T>, y: &mut Vec<T>) {
        mlp::forward(n, f, mlp, x, y);
    }

    fn mlp_bwd(&self, n: usize, f: usize, mlp: Mlp, dy: &mut Vec<T>, x: &mut Vec<T>) {
        mlp::backward(n, f, mlp, dy, x);
    }

    fn head_onehot(
        &self,
        rows: HeadRows<'_, Vec<T>, Pack, &[T]>,
        weight: TokenWeight<'_, Vec<T>>,
        stats: &mut RowStats<Vec<T>>,
        grads: Option<HeadGrads<'_, Vec<T>, Grad<T>>>,
    ) {
        let HeadRows { shape, first, pack, h, w } = rows;
        let (formula, weights) = match weight {
            TokenWeight::Formula(formula) => (Some(formula), &[][..]),
            TokenWeight::PerRow(weights) => (None, &weights[first..]),
        };
        let (targets, coefs) = (&pack.data.targets[first..], &pack.data.coefs[first..]);
        let loss = OneHot { targets, coefs, formula, weights };
        let at = first * shape.c;
        let h = &h[at..];
        let job = Sweep { shape, first: (h, w), second: None, w: w.matrix, h };
        let (to, results) = (from(grads, at), Self::results(stats, first, true));
        let pool = &self.pool;
        match w.cap.map(|cap| Cap::new(cap, 1.0)) {
            Some(cap) => sweep(pool, &job, &Capped { loss: &loss, cap, pool }, results, to),
            None => sweep(pool, &job, &loss, results, to),
        }
    }

    fn head_matched(
        &self,
        rows: HeadRows<'_, Vec<T>, Pack, &[T]>,
        reference: HeadReference<'_, Vec<T>, &[T]>,
        target: Matched,
        stats: &mut RowStats<Vec<T>>,
        grads: Option<HeadGrads<'_, Vec<T>, Grad<T>>>,
    ) {
        let HeadRows { shape, first, pack, h, w } = rows;
        let HeadReference { h: h_ref, w: w_ref } = reference;
        let (targets, coefs) = (&pack.data.targets[first..], &pack.data.coefs[first..]);
        let loss = &MatchedRows { loss: target, targets, coefs };
        let at = first * shape.c;
        let h = &h[at..];
        let compares = target.compares();
        let shared = compares && w_ref.is_none();
        let mut diff = self.pool.lend(if shared { shape.n * shape.c } else { 0 });
        if shared {
            each(
                shape.n,
                shape.c,
                &mut diff,
                #[inline(always)]
                |r, row| {
                    let at = r * shape.c..(r + 1) * shape.c;
                    for ((d, a), b) in row.iter_mut().zip(&h[at.clone()]).zip(&h_ref[at]) {
                        *d = *a - *b;
                    }
                },
            );
        }
        // Of two heads that are the same the bias takes itself off.
        let own = if shared { (&diff[..], HeadWeight::plain(w.matrix)) } else { (h, w) };
        let second = compares.then(|| (&h_ref[..], w_ref.unwrap_or(w)));
        let job = Sweep { shape, first: own, second, w: w.matrix, h };
        let monitors = !target.reads_teacher();
        let (to, results) = (from(grads, at), Self::results(stats, first, monitors));
        let (subtract, pool) = (compares && !shared, &self.pool);
        let cap = w.cap.map(|cap| Cap::new(cap, 1.0));
        match cap.map(|cap| Capped { loss, cap, pool }) {
            Some(loss) => {
                let loss = Monitored { loss: &loss, targets, monitors, subtract, cap, pool };
                sweep(pool, &job, &loss, results, to);
            }
            None => {
                let loss = Monitored { loss, targets, monitors, subtract, cap, pool };
                sweep(pool, &job, &loss, results, to);
            }
        }
    }

    fn mse(
        &self,
        MseArgs { n, c, pack, x }: MseArgs<'_, Vec<T>, Pack>,
        toward: Toward<'_, Vec<T>, Vec<T>>,
        value: &mut Vec<T>,
        dx: Option<&mut Vec<T>>,
    ) {
        rows::mse((n, c), &pack.data.coefs, x, toward, value, dx);
    }

    fn cache_store(
        &self,
        pack: &Pack,
        heads: Heads,
        qkv: &Vec<T>,
        room: &mut Vec<T>,
        cache: CachePlace,
    ) {
        let (width, gd) = (heads.qkv_width(), heads.g * heads.d);
        let (keys, values) = room[cache.start..].split_at_mut(cache.half(heads));
        let key = heads.h * heads.d;
        for (ends, &slot) in pack.data.starts.windows(2).zip(&pack.data.slots) {
            for row in ends[0] as usize..ends[1] as usize {
                let position = pack.data.positions[row] as usize;
                let to = (slot as usize * cache.capacity + position) * gd;
                let from = &qkv[row * width + key..(row + 1) * width];
                keys[to..to + gd].copy_from_slice(&from[..gd]);
                values[to..to + gd].copy_from_slice(&from[gd..]);
            }
        }
    }

    fn decode_attention(
        &self,
        pack: &Pack,
        heads: Heads,
        qkv: &Vec<T>,
        room: &Vec<T>,
        cache: CachePlace,
        out: &mut Vec<T>,
    ) {
        let (gd, d) = (heads.g * heads.d, heads.d);
        let slots = &pack.data.slots;
        let at = |row: usize, g: usize| (slots[row] as usize * cache.capacity * gd + g * d, gd);
        let cached = room[cache.start..].split_at(cache.half(heads));
        attention::decode(heads, qkv, &pack.data.positions, at, cached, &self.pool, out);
    }

    fn gather_rows(&self, c: usize, rows: &[u32], x: &Vec<T>, y: &mut Vec<T>) {
        for (to, &row) in y.chunks_exact_mut(c).zip(rows) {
            to.copy_from_slice(&x[row as usize * c..(row as usize + 1) * c]);
        }
    }

    fn head_argmax(&self, shape: HeadShape, h: &Vec<T>, w: HeadWeight<&[T]>, ids: &mut [u32]) {
        // The largest logit is that also where all are capped.
        let w = HeadWeight { cap: None, ..w };
        each_logits(&self.pool, shape, h, w, ids, |_, logits| sample::argmax(logits));
    }

    fn head_sample(
        &self,
        shape: HeadShape,
        h: &Vec<T>,
        w: HeadWeight<&[T]>,
        sampling: Sampling,
        draws: &[f64],
        ids: &mut [u32],
    ) {
        let sample = |row: usize, logits: &[f32]| sample::sample(logits, sampling, draws[row]);
        each_logits(&self.pool, shape, h, w, ids, sample);
    }
}
