//! Causal attention over packed documents, a strip of queries at a time; one task a document and kv head.

use std::ops::Range;

use rayon::prelude::*;

use super::Real;
use super::cap::Cap;
use super::gemm::Matrix;
use super::pool::Pool;
use super::rows::{max, simd, sum, sum2};
use super::strip::{LANES, ROWS, multiply, transpose};
use crate::ops::{AttentionSaved, Heads};

/// Queries whose contributions to the gradients of keys and values are added at once: a multiple of [`ROWS`].
const BLOCK: usize = 48;

/// Rows of a matrix that several tasks write, each its own columns and rows.
struct Shared<T>(*mut T, usize);
// SAFETY: every task takes the columns of its own heads and the rows of its own document.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr(), data.len())
    }

    /// Where entry `at` lies.
    fn at(&self, at: usize) -> *mut T {
        assert!(at < self.1, "entry {at} of {}", self.1);
        // SAFETY: inside, as just checked.
        unsafe { self.0.add(at) }
    }
}

/// The keys one query sees: those before it that the window leaves, and its own.
fn seen(heads: Heads, query: usize) -> Range<usize> {
    let from = heads.window.map_or(0, |w| (query + 1).saturating_sub(w));
    from..query + 1
}

/// The keys some of `rows` queries from `query` see, from a whole number of lanes on.
fn span(heads: Heads, query: usize, rows: usize) -> Range<usize> {
    seen(heads, query).start / LANES * LANES..query + rows
}

/// The cap of scores that are products of heads, where there is one, and what they are multiplied by behind it.
fn scores<T: Real>(heads: Heads) -> (Option<Cap<T>>, T) {
    let scale = 1.0 / (heads.d as f64).sqrt();
    match heads.cap {
        Some(cap) => (Some(Cap::new(cap, scale)), T::ONE),
        None => (None, T::from_f64(scale)),
    }
}

/// The documents of a pack with each kv head: the tasks.
fn tasks(starts: &[u32], heads: Heads) -> Vec<(usize, usize, usize)> {
    let docs = starts.windows(2).map(|w| (w[0] as usize, w[1] as usize));
    docs.flat_map(|(from, to)| (0..heads.g).map(move |g| (from, to - from, g))).collect()
}

pub(super) fn forward<T: Real>(
    pool: &Pool<T>,
    starts: &[u32],
    heads: Heads,
    qkv: &[T],
    out: &mut [T],
    lse: &mut [T],
) {
    let Heads { h, g, d, .. } = heads;
    let (width, ow) = (heads.qkv_width(), heads.out_width());
    let (cap, scale) = scores::<T>(heads);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    tasks(starts, heads).into_par_iter().for_each(|(from, len, kv)| {
        let stride = len.next_multiple_of(LANES);
        let mut keys = pool.lend(d * stride);
        let mut scores = pool.lend(ROWS * stride);
        let rows_of = |head: usize| &qkv[from * width + head * d..];
        simd(
            #[inline(always)]
            || transpose(rows_of(h + kv), width, (len, d), &mut keys, stride),
        );
        let values = Matrix::rows(rows_of(h + g + kv), width);
        for head in kv * (h / g)..(kv + 1) * (h / g) {
            for first in (0..len).step_by(ROWS) {
                let m = ROWS.min(len - first);
                let span = span(heads, first, m);
                let q = Matrix::rows(&rows_of(head)[first * width..], width);
                let columns = span.start..span.end.next_multiple_of(LANES);
                let c = (scores.as_mut_ptr(), stride);
                // SAFETY: keys hold d rows of `stride` columns, scores ROWS of them.
                unsafe { multiply(m, columns, 0..d, q, Matrix::rows(&keys, stride), c, false) };
                simd(
                    #[inline(always)]
                    || {
                        for r in 0..m {
                            let row = &mut scores[r * stride..(r + 1) * stride];
                            let seen = seen(heads, first + r);
                            row[span.start..seen.start].fill(T::ZERO);
                            row[seen.end..span.end].fill(T::ZERO);
                            let part = &mut row[seen];
                            if let Some(cap) = cap {
                                part.iter_mut().for_each(|s| *s = cap.at(*s).0);
                            }
                            let top = max(part);
                            part.iter_mut().for_each(|s| *s = ((*s - top) * scale).exp());
                            let total = sum(part, |s| s);
                            let inverse = T::from_f64(1.0 / total);
                            part.iter_mut().for_each(|s| *s *= inverse);
                            let stat = T::from_f64((top * scale).to_f64() + total.ln());
                            // SAFETY: this task alone writes this head's rows of this document.
                            unsafe { *lse.at((from + first + r) * h + head) = stat };
                        }
                    },
                );
                let c = (out.at((from + first) * ow + head * d), ow);
                // SAFETY: values hold the document's rows; the output's columns of this head are this task's own.
                unsafe { multiply(m, 0..d, span, Matrix::rows(&scores, stride), values, c, false) };
            }
        }
    });
}

pub(super) fn backward<T: Real>(
    pool: &Pool<T>,
    starts: &[u32],
    heads: Heads,
    AttentionSaved { qkv, out, lse }: AttentionSaved<'_, Vec<T>, Vec<T>>,
    dout: &[T],
    dqkv: &mut [T],
) {
    let Heads { h, g, d, .. } = heads;
    let (width, ow) = (heads.qkv_width(), heads.out_width());
    let cap = scores::<T>(heads).0;
    let scale = T::from_f64(1.0 / (d as f64).sqrt());
    let total = starts.last().map_or(0, |n| *n as usize) * width;
    dqkv[..total].fill(T::ZERO);
    let dqkv = Shared::new(dqkv);
    tasks(starts, heads).into_par_iter().for_each(|(from, len, kv)| {
        let stride = len.next_multiple_of(LANES);
        let (mut keys, mut values) = (pool.lend(d * stride), pool.lend(d * stride));
        let (mut p, mut ds) = (pool.lend(BLOCK * stride), pool.lend(BLOCK * stride));
        let rows_of = |head: usize| &qkv[from * width + head * d..];
        simd(
            #[inline(always)]
            || {
                transpose(rows_of(h + kv), width, (len, d), &mut keys, stride);
                transpose(rows_of(h + g + kv), width, (len, d), &mut values, stride);
            },
        );
        for head in kv * (h / g)..(kv + 1) * (h / g) {
            let dy_of = |query: usize| &dout[(from + query) * ow + head * d..];
            let o_of = |query: usize| &out[(from + query) * ow + head * d..];
            for first in (0..len).step_by(BLOCK) {
                let m = BLOCK.min(len - first);
                let block = span(heads, first, m);
                for r in (0..m).step_by(ROWS) {
                    let query = first + r;
                    let rows = ROWS.min(m - r);
                    let span = span(heads, query, rows);
                    let columns = span.start..span.end.next_multiple_of(LANES);
                    let at = |buffer: &mut [T]| (buffer[r * stride..].as_mut_ptr(), stride);
                    let q = Matrix::rows(&rows_of(head)[query * width..], width);
                    let dy = Matrix::rows(dy_of(query), ow);
                    let (k, v) = (Matrix::rows(&keys, stride), Matrix::rows(&values, stride));
                    // SAFETY: keys and values hold d rows of `stride` columns, p and ds BLOCK of them.
                    unsafe {
                        multiply(rows, columns.clone(), 0..d, q, k, at(&mut p), false);
                        multiply(rows, columns, 0..d, dy, v, at(&mut ds), false);
                    }
                    simd(
                        #[inline(always)]
                        || {
                            for r in r..r + rows {
                                let at = r * stride..(r + 1) * stride;
                                let (p, ds) = (&mut p[at.clone()], &mut ds[at]);
                                let seen = seen(heads, first + r);
                                // The sums over this block's queries read all of its keys.
                                for row in [&mut *p, &mut *ds] {
                                    row[block.start..seen.start].fill(T::ZERO);
                                    row[seen.end..block.end].fill(T::ZERO);
                                }
                                let lse = lse[(from + first + r) * h + head];
                                let (o, dy) = (&o_of(first + r)[..d], &dy_of(first + r)[..d]);
                                let dot = T::from_f64(sum2(o, dy, |a, b| a * b));
                                let pairs = p[seen.clone()].iter_mut().zip(&mut ds[seen]);
                                match cap {
                                    None => {
                                        for (p, ds) in pairs {
                                            *p = (*p * scale - lse).exp();
                                            *ds = *p * (*ds - dot) * scale;
                                        }
                                    }
                                    Some(cap) => {
                                        for (p, ds) in pairs {
                                            let (capped, slope) = cap.at(*p);
                                            *p = (capped - lse).exp();
                                            *ds = *p * (*ds - dot) * slope * scale;
                                        }
                                    }
                                }
                            }
                        },
                    );
                    let k = Matrix::rows(rows_of(h + kv), width);
                    let dq = (dqkv.at((from + query) * width + head * d), width);
                    let ds = Matrix::rows(&ds[r * stride..], stride);
                    // SAFETY: the query columns of this head in the rows of this document are this task's own.
                    unsafe { multiply(rows, 0..d, span, ds, k, dq, false) };
                }
                let q = Matrix::rows(&rows_of(head)[first * width..], width);
                let dy = Matrix::rows(dy_of(first), ow);
                for key in block.clone().step_by(ROWS) {
                    let rows = ROWS.min(block.end - key);
                    // Queries before the first of these keys see none of them.
                    let queries = key.saturating_sub(first)..m;
                    let by_key = |buffer: &[T]| Matrix::rows(&buffer[key..], stride).t();
                    let at = |head: usize| (dqkv.at((from + key) * width + head * d), width);
                    // SAFETY: the key and value columns of this kv head in the rows of this document are this task's
                    // own; p and ds are zero where a query of the block does not see a key of it.
                    unsafe {
                        multiply(rows, 0..d, queries.clone(), by_key(&ds), q, at(h + kv), true);
                        multiply(rows, 0..d, queries, by_key(&p), dy, at(h + g + kv), true);
                    }
                }
            }
        }
    });
}

/// Attention of one token per document against cached keys and values, `[slots, capacity, G, D]` each.
pub(super) fn decode<T: Real>(
    heads: Heads,
    qkv: &[T],
    positions: &[u32],
    cached: impl Fn(usize, usize) -> (usize, usize) + Sync,
    (keys_of, values_of): (&[T], &[T]),
    pool: &Pool<T>,
    out: &mut [T],
) {
    let Heads { h, g, d, .. } = heads;
    let (width, ow) = (heads.qkv_width(), heads.out_width());
    let (cap, scale) = scores::<T>(heads);
    let n = positions.len();
    out[..n * ow].par_chunks_mut(ow).enumerate().for_each(|(row, out)| {
        let seen = seen(heads, positions[row] as usize);
        let mut scores = pool.lend(seen.len());
        simd(
            #[inline(always)]
            || {
                for head in 0..h {
                    let q = &qkv[row * width + head * d..][..d];
                    let (start, step) = cached(row, head / (h / g));
                    for (s, t) in scores.iter_mut().zip(seen.clone()) {
                        let k = &keys_of[start + t * step..][..d];
                        *s = T::from_f64(sum2(q, k, |a, b| a * b));
                    }
                    match cap {
                        Some(cap) => scores.iter_mut().for_each(|s| *s = cap.at(*s).0),
                        None => scores.iter_mut().for_each(|s| *s *= scale),
                    }
                    let top = max(&scores);
                    scores.iter_mut().for_each(|s| *s = (*s - top).exp());
                    let inverse = T::from_f64(1.0 / sum(&scores, |s| s));
                    let out = &mut out[head * d..(head + 1) * d];
                    out.fill(T::ZERO);
                    for (s, t) in scores.iter().zip(seen.clone()) {
                        let v = &values_of[start + t * step..][..d];
                        let p = *s * inverse;
                        out.iter_mut().zip(v).for_each(|(o, v)| *o += p * *v);
                    }
                }
            },
        );
    });
}
