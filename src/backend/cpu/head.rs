//! The fused head: logits of a chunk of rows, their loss, and the way back, chunk by chunk.

use rayon::prelude::*;

use super::cap::Cap;
use super::gemm::{Matrix, parallel, serial};
use super::pool::Pool;
use super::rows::{max, simd, sum};
use super::{Grad, GradData, Real};
use crate::ops::{HeadGrads, HeadShape, HeadWeight, TokenFormula};

/// Numbers of a chunk's logits: 13 MB of f32, which a shared cache holds.
const CHUNK: usize = 3_200_000;
/// Vocabularies up to this size are swept one chunk a thread; larger ones with all threads on one product.
const SMALL: usize = 8192;

/// Rows of a chunk; depends on the vocabulary alone.
fn chunk_rows(v: usize) -> usize {
    if v <= SMALL { (SMALL * 32 / v).clamp(16, 256) } else { (CHUNK / v).max(16) }
}

/// Returns the bytes of the logits that sweeps hold at once: one chunk, or one for each thread; matched ones hold twice
/// as many.
pub(super) fn chunk_bytes<T>(HeadShape { n, v, .. }: HeadShape, matched: bool) -> Vec<u64> {
    let chunks = if v <= SMALL { rayon::current_num_threads() } else { 1 };
    let rows = (chunk_rows(v.max(1)) * chunks).min(n);
    vec![(rows * v * size_of::<T>()) as u64; if matched { 2 } else { 1 }]
}

/// Loss of one row.
#[derive(Default)]
pub(super) struct RowResult {
    pub nll: f64,
    pub value: f64,
    pub hit: bool,
}

/// The loss of a row: turns its logits (and those of the difference to the teacher) into the gradient.
pub(super) trait RowLoss<T>: Sync {
    /// Handles row `row`; `z` holds logits on entry and, with `grad`, the gradient on return. `extra` holds the second
    /// logits of the sweep, if any.
    fn row(&self, row: usize, z: &mut [T], extra: &mut [T], grad: bool) -> RowResult;
}

/// Buffers and matrices of a sweep.
pub(super) struct Sweep<'a, T> {
    pub shape: HeadShape,
    /// Inputs of the first logits: hidden states [N, C] and head.
    pub first: (&'a [T], HeadWeight<&'a [T]>),
    /// Inputs of the second logits, if any.
    pub second: Option<(&'a [T], HeadWeight<&'a [T]>)>,
    /// The student's matrix, for the way back.
    pub w: &'a [T],
    /// The student's rows, for the matrix gradient.
    pub h: &'a [T],
}

/// Where results of rows go.
pub(super) struct Results<'a, T> {
    pub nll: Option<&'a mut [T]>,
    pub value: &'a mut [T],
    pub hit: Option<&'a mut [T]>,
}

type Product<T> = fn((usize, usize, usize), Matrix<T>, Matrix<T>, &mut [T], bool);

fn serial_dense<T: Real>(
    shape: (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    accumulate: bool,
) {
    serial(shape, a, b, (c, shape.1), accumulate);
}

/// Sweeps all rows; `grads.dh` holds the rows of the sweep alone.
pub(super) fn sweep<T: Real>(
    pool: &Pool<T>,
    job: &Sweep<'_, T>,
    loss: &impl RowLoss<T>,
    results: Results<'_, T>,
    grads: Option<HeadGrads<'_, [T], Grad<T>>>,
) {
    let HeadShape { n, c, v } = job.shape;
    let rows = chunk_rows(v);
    let grad = grads.is_some();
    let (dh, mut dw, mut db) = grads.map_or((None, None, None), |g| (Some(g.dh), g.dw, g.db));
    let mut scratch_dh = pool.lend(if grad { 0 } else { n * c });
    let dh = dh.unwrap_or(&mut scratch_dh);
    let mut collected: Vec<RowResult> = Vec::with_capacity(n);
    if v <= SMALL && dw.is_none() && db.is_none() {
        let parts: Vec<Vec<RowResult>> = dh[..n * c]
            .par_chunks_mut(rows * c)
            .enumerate()
            .map(|(g, dh)| {
                let m = dh.len() / c;
                let mut z = pool.lend(m * v);
                let mut extra = pool.lend(if job.second.is_some() { m * v } else { 0 });
                logits(job, g * rows, m, &mut z, &mut extra, serial_dense);
                let done = each_row(loss, g * rows, &mut z, &mut extra, v, grad);
                if grad {
                    let (z, w) = (Matrix::rows(&z, v), Matrix::rows(job.w, c));
                    serial((m, c, v), z, w, (dh, c), false);
                }
                done
            })
            .collect();
        parts.into_iter().for_each(|part| collected.extend(part));
    } else {
        let mut z = pool.lend(rows.min(n) * v);
        let mut extra = pool.lend(if job.second.is_some() { rows.min(n) * v } else { 0 });
        for start in (0..n).step_by(rows) {
            let m = rows.min(n - start);
            logits(job, start, m, &mut z, &mut extra, parallel);
            let step = m.div_ceil(16).max(1);
            let second = if extra.is_empty() { 0 } else { v };
            let parts: Vec<Vec<RowResult>> = z[..m * v]
                .par_chunks_mut(step * v)
                .zip(split(&mut extra, m, step, second))
                .enumerate()
                .map(|(g, (z, extra))| each_row(loss, start + g * step, z, extra, v, grad))
                .collect();
            parts.into_iter().for_each(|part| collected.extend(part));
            if grad {
                let dz = Matrix::rows(&z, v);
                let rows = &mut dh[start * c..(start + m) * c];
                parallel((m, c, v), dz, Matrix::rows(job.w, c), rows, false);
                if let Some(dw) = dw.as_deref_mut() {
                    let h = Matrix::rows(&job.h[start * c..], c);
                    accumulate(pool, (v, c, m), dz.t(), h, dw);
                }
                if let Some(db) = db.as_deref_mut() {
                    add_rows(pool, &z[..m * v], v, db);
                }
            }
        }
    }
    for (row, result) in collected.iter().enumerate() {
        results.value[row] = T::from_f64(result.value);
    }
    if let Some(nll) = results.nll {
        nll.iter_mut().zip(&collected).for_each(|(x, r)| *x = T::from_f64(r.nll));
    }
    if let Some(hit) = results.hit {
        hit.iter_mut().zip(&collected).for_each(|(x, r)| *x = T::from_f64(f64::from(r.hit)));
    }
}

/// Cuts the second logits like the first; empty pieces where there are none.
fn split<T: Real>(extra: &mut [T], rows: usize, step: usize, width: usize) -> Vec<&mut [T]> {
    let mut pieces = Vec::with_capacity(rows.div_ceil(step));
    let mut rest = extra;
    for start in (0..rows).step_by(step) {
        let (here, after) = rest.split_at_mut(step.min(rows - start) * width);
        pieces.push(here);
        rest = after;
    }
    pieces
}

fn logits<T: Real>(
    job: &Sweep<'_, T>,
    start: usize,
    m: usize,
    z: &mut [T],
    extra: &mut [T],
    product: Product<T>,
) {
    let HeadShape { c, v, .. } = job.shape;
    let rows = |h: &'_ [T]| Matrix::rows(&h[start * c..(start + m) * c], c);
    let make = |(h, w): (&'_ [T], HeadWeight<&'_ [T]>), z: &mut [T]| {
        start_rows(&mut z[..m * v], v, w.bias);
        product((m, v, c), rows(h), Matrix::rows(w.matrix, c).t(), z, w.bias.is_some());
    };
    make(job.first, z);
    if let Some(second) = job.second {
        make(second, extra);
    }
}

/// Fills rows of logits with the bias that their product is added to, where there is one.
fn start_rows<T: Real>(z: &mut [T], v: usize, bias: Option<&[T]>) {
    if let Some(bias) = bias {
        z.chunks_exact_mut(v).for_each(|row| row.copy_from_slice(&bias[..v]));
    }
}

/// Adds the sum of rows of `width` numbers to a gradient, in their order.
pub(super) fn add_rows<T: Real>(pool: &Pool<T>, rows: &[T], width: usize, grad: &mut Grad<T>) {
    let mut sums = pool.lend(width);
    sums.fill(T::ZERO);
    simd(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(s, d)| *s += *d);
            }
        },
    );
    grad.open();
    grad.add(0, &sums);
}

fn each_row<T: Real>(
    loss: &impl RowLoss<T>,
    start: usize,
    z: &mut [T],
    extra: &mut [T],
    v: usize,
    grad: bool,
) -> Vec<RowResult> {
    simd(
        #[inline(always)]
        || {
            let count = z.len() / v;
            let width = if extra.is_empty() { 0 } else { v };
            (0..count)
                .map(
                    #[inline(always)]
                    |r| {
                        let (z, extra) =
                            (&mut z[r * v..(r + 1) * v], &mut extra[r * width..(r + 1) * width]);
                        loss.row(start + r, z, extra, grad)
                    },
                )
                .collect()
        },
    )
}

/// Fills `out[row]` with `f(row, logits of the row)`, in chunks of rows; logits are capped and rounded to f32.
pub(super) fn each_logits<T: Real>(
    pool: &Pool<T>,
    HeadShape { n, c, v }: HeadShape,
    h: &[T],
    w: HeadWeight<&[T]>,
    out: &mut [u32],
    f: impl Fn(usize, &[f32]) -> u32 + Sync,
) {
    let rows = chunk_rows(v);
    let mut z = pool.lend(rows.min(n) * v);
    for (g, out) in out[..n].chunks_mut(rows).enumerate() {
        let (start, m) = (g * rows, out.len());
        let h = Matrix::rows(&h[start * c..(start + m) * c], c);
        start_rows(&mut z[..m * v], v, w.bias);
        parallel((m, v, c), h, Matrix::rows(w.matrix, c).t(), &mut z, w.bias.is_some());
        if let Some(cap) = w.cap.map(|cap| Cap::<T>::new(cap, 1.0)) {
            z[..m * v].par_iter_mut().for_each(|z| *z = cap.at(*z).0);
        }
        let z = &z[..m * v];
        out.par_iter_mut().enumerate().for_each(|(r, out)| {
            let narrow: Vec<f32> = z[r * v..(r + 1) * v].iter().map(|z| z.to_f32()).collect();
            *out = f(start + r, &narrow);
        });
    }
}

/// `dw += a b`, wide or through a wide scratch into bf16.
pub(super) fn accumulate<T: Real>(
    pool: &Pool<T>,
    (m, n, k): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    dw: &mut Grad<T>,
) {
    let first = dw.empty;
    match &mut dw.data {
        GradData::Wide(data) => parallel((m, n, k), a, b, data, !first),
        GradData::Bf16(_) => {
            let mut wide = pool.lend(m * n);
            parallel((m, n, k), a, b, &mut wide, false);
            dw.open();
            dw.add(0, &wide);
        }
    }
    dw.empty = false;
}

/// Rows whose logits are capped before the loss reads them.
pub(super) struct Capped<'a, T, L> {
    pub loss: &'a L,
    pub cap: Cap<T>,
    pub pool: &'a Pool<T>,
}

impl<T: Real, L: RowLoss<T>> RowLoss<T> for Capped<'_, T, L> {
    #[inline(always)]
    fn row(&self, row: usize, z: &mut [T], extra: &mut [T], grad: bool) -> RowResult {
        let mut slopes = self.pool.lend(z.len());
        if extra.is_empty() {
            for (z, slope) in z.iter_mut().zip(&mut *slopes) {
                (*z, *slope) = self.cap.at(*z);
            }
        } else {
            for ((z, r), slope) in z.iter_mut().zip(&mut *extra).zip(&mut *slopes) {
                *slope = self.cap.pair(z, r);
            }
        }
        let result = self.loss.row(row, z, extra, grad);
        if grad {
            z.iter_mut().zip(&*slopes).for_each(|(z, slope)| *z *= *slope);
        }
        result
    }
}

/// Statistics of a row's target.
struct Target {
    nll: f64,
    /// Of equal logits that of the smallest id is the largest.
    hit: bool,
    /// exp(z_y - max z).
    e: f64,
    /// The same of all other entries: 1 - p is a sum of its own, never a difference.
    others: f64,
}

impl Target {
    /// Turns logits `z` into exp(z - max z) and returns the statistics of entry `y`.
    #[inline(always)]
    fn of<T: Real>(z: &mut [T], y: usize) -> Self {
        let top = max(z);
        let below = (top - z[y]).to_f64();
        let hit = z[y] == top && !z[..y].contains(&top);
        z.iter_mut().for_each(|x| *x = (*x - top).exp());
        let e = z[y].to_f64();
        let others = sum(&z[..y], |x| x) + sum(&z[y + 1..], |x| x);
        let nll = if others < e { (others / e).ln_1p() } else { (e + others).ln() + below };
        Self { nll, hit, e, others }
    }
}

/// A full-vocabulary loss with the statistics of its rows' targets; takes the second logits off the first.
pub(super) struct Monitored<'a, T, L> {
    pub loss: &'a L,
    pub targets: &'a [u32],
    /// False where nobody reads the statistics.
    pub monitors: bool,
    /// True if the first logits are z, else D = z - z_ref; they are subtracted element by element, so that equal GEMMs
    /// leave exactly 0, which one GEMM added to another does not.
    pub subtract: bool,
    pub cap: Option<Cap<T>>,
    pub pool: &'a Pool<T>,
}

impl<T: Real, L: RowLoss<T>> Monitored<'_, T, L> {
    #[inline(always)]
    fn statistics(&self, row: usize, z: &[T], extra: &[T]) -> RowResult {
        let mut own = self.pool.lend(z.len());
        own.copy_from_slice(z);
        if !extra.is_empty() && !self.subtract {
            own.iter_mut().zip(extra).for_each(|(z, r)| *z += *r);
        }
        if let Some(cap) = self.cap {
            own.iter_mut().for_each(|z| *z = cap.at(*z).0);
        }
        let Target { nll, hit, .. } = Target::of(&mut own, self.targets[row] as usize);
        RowResult { nll, value: 0.0, hit }
    }
}

impl<T: Real, L: RowLoss<T>> RowLoss<T> for Monitored<'_, T, L> {
    #[inline(always)]
    fn row(&self, row: usize, z: &mut [T], extra: &mut [T], grad: bool) -> RowResult {
        let found =
            if self.monitors { self.statistics(row, z, extra) } else { RowResult::default() };
        if self.subtract {
            z.iter_mut().zip(&*extra).for_each(|(z, r)| *z -= *r);
        }
        RowResult { value: self.loss.row(row, z, extra, grad).value, ..found }
    }
}

/// Rows of a target-token loss.
pub(super) struct OneHot<'a, T> {
    pub targets: &'a [u32],
    pub coefs: &'a [f64],
    pub formula: Option<TokenFormula>,
    pub weights: &'a [T],
}

impl<T: Real> RowLoss<T> for OneHot<'_, T> {
    #[inline(always)]
    fn row(&self, row: usize, z: &mut [T], _: &mut [T], grad: bool) -> RowResult {
        let y = self.targets[row] as usize;
        let Target { nll, hit, e, others } = Target::of(z, y);
        let total = e + others;
        let (p, q) = (e / total, others / total);
        let weight = match self.formula {
            Some(formula) => formula.weight(p, q),
            None => self.weights[row].to_f64(),
        };
        if grad && self.coefs[row] == 0.0 {
            // Also where the weight is no number: a document without targets has no mean to take one from.
            z.fill(T::ZERO);
        } else if grad {
            // At a pole the weight is the largest f32, which a coefficient above 4 would take to infinity.
            let limit = f64::from(f32::MAX);
            let k = (self.coefs[row] * weight).clamp(-limit, limit);
            let scale = T::from_f64(k / total);
            z.iter_mut().for_each(|x| *x *= scale);
            z[y] = T::from_f64(-k * q);
        }
        RowResult { nll, value: weight * nll, hit }
    }
}
