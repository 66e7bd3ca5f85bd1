//! Causal attention over packed documents, by blocks of queries; one task a document and kv head.

use rayon::prelude::*;

use super::Real;
use super::gemm::{Matrix, serial};
use super::pool::Pool;
use super::rows::{max, simd, sum, sum2};
use crate::ops::Heads;

/// Queries of a block.
const BLOCK: usize = 64;

/// Rows of a matrix that several tasks write, each its own columns and rows.
struct Shared<T>(*mut T, usize);
// SAFETY: every task takes the columns of its own heads and the rows of its own document.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// Tasks must write disjoint elements of what they get.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, from: usize) -> &mut [T] {
        // SAFETY: from is inside (checked by the caller's shapes); disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), self.1 - from) }
    }
}

/// The keys a block of queries sees: from the first that the window leaves to its own last.
fn keys(heads: Heads, first: usize, last: usize) -> std::ops::Range<usize> {
    let from = heads.window.map_or(0, |w| (first + 1).saturating_sub(w));
    from..last + 1
}

/// The keys one query sees.
fn seen(heads: Heads, query: usize) -> std::ops::Range<usize> {
    keys(heads, query, query)
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
    let scale = T::from_f64(1.0 / (d as f64).sqrt());
    let (out, lse) = (Shared(out.as_mut_ptr(), out.len()), Shared(lse.as_mut_ptr(), lse.len()));
    tasks(starts, heads).into_par_iter().for_each(|(from, len, kv)| {
        let mut scores = pool.lend(BLOCK * len);
        for head in kv * (h / g)..(kv + 1) * (h / g) {
            for first in (0..len).step_by(BLOCK) {
                let m = BLOCK.min(len - first);
                let range = keys(heads, first, first + m - 1);
                let n = range.len();
                let at = |token: usize, column: usize| (from + token) * width + column * d;
                let q = Matrix::rows(&qkv[at(first, head)..], width);
                let k = Matrix::rows(&qkv[at(range.start, h + kv)..], width);
                let v = Matrix::rows(&qkv[at(range.start, h + g + kv)..], width);
                serial((m, n, d), q, k.t(), &mut scores, n, false);
                simd(
                    #[inline(always)]
                    || {
                        for r in 0..m {
                            let row = &mut scores[r * n..(r + 1) * n];
                            let seen = seen(heads, first + r);
                            let (low, high) = (seen.start - range.start, seen.end - range.start);
                            row[..low].fill(T::ZERO);
                            row[high..].fill(T::ZERO);
                            let part = &mut row[low..high];
                            let top = max(part);
                            part.iter_mut().for_each(|s| *s = ((*s - top) * scale).exp());
                            let total = sum(part, |s| s);
                            let inverse = T::from_f64(1.0 / total);
                            part.iter_mut().for_each(|s| *s *= inverse);
                            // SAFETY: this task alone writes this head's rows of this document.
                            let lse = unsafe { lse.slice((from + first + r) * h + head) };
                            lse[0] = T::from_f64((top * scale).to_f64() + total.ln());
                        }
                    },
                );
                // SAFETY: as above, for the output's columns of this head.
                let rows = unsafe { out.slice((from + first) * ow + head * d) };
                serial((m, d, n), Matrix::rows(&scores, n), v, rows, ow, false);
            }
        }
    });
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: Real>(
    pool: &Pool<T>,
    starts: &[u32],
    heads: Heads,
    qkv: &[T],
    out: &[T],
    lse: &[T],
    dout: &[T],
    dqkv: &mut [T],
) {
    let Heads { h, g, d, .. } = heads;
    let (width, ow) = (heads.qkv_width(), heads.out_width());
    let scale = T::from_f64(1.0 / (d as f64).sqrt());
    let total = starts.last().map_or(0, |n| *n as usize) * width;
    dqkv[..total].fill(T::ZERO);
    let dqkv = Shared(dqkv.as_mut_ptr(), dqkv.len());
    tasks(starts, heads).into_par_iter().for_each(|(from, len, kv)| {
        let mut p = pool.lend(BLOCK * len);
        let mut ds = pool.lend(BLOCK * len);
        for head in kv * (h / g)..(kv + 1) * (h / g) {
            for first in (0..len).step_by(BLOCK) {
                let m = BLOCK.min(len - first);
                let range = keys(heads, first, first + m - 1);
                let n = range.len();
                let at = |token: usize, column: usize| (from + token) * width + column * d;
                let o_at = (from + first) * ow + head * d;
                let q = Matrix::rows(&qkv[at(first, head)..], width);
                let k = Matrix::rows(&qkv[at(range.start, h + kv)..], width);
                let v = Matrix::rows(&qkv[at(range.start, h + g + kv)..], width);
                let dy = Matrix::rows(&dout[o_at..], ow);
                serial((m, n, d), q, k.t(), &mut p, n, false);
                serial((m, n, d), dy, v.t(), &mut ds, n, false);
                simd(
                    #[inline(always)]
                    || {
                        for r in 0..m {
                            let (p, ds) = (&mut p[r * n..(r + 1) * n], &mut ds[r * n..(r + 1) * n]);
                            let seen = seen(heads, first + r);
                            let (low, high) = (seen.start - range.start, seen.end - range.start);
                            for row in [&mut *p, &mut *ds] {
                                row[..low].fill(T::ZERO);
                                row[high..].fill(T::ZERO);
                            }
                            let lse = lse[(from + first + r) * h + head];
                            let o = &out[o_at + r * ow..][..d];
                            let dy = &dout[o_at + r * ow..][..d];
                            let dot = T::from_f64(sum2(o, dy, |a, b| a * b));
                            for (p, ds) in p[low..high].iter_mut().zip(&mut ds[low..high]) {
                                *p = (*p * scale - lse).exp();
                                *ds = *p * (*ds - dot) * scale;
                            }
                        }
                    },
                );
                let (p, ds) = (Matrix::rows(&p, n), Matrix::rows(&ds, n));
                // SAFETY: the query columns of this head and the key and value columns of this kv head, in the rows
                // of this document, belong to this task alone; each slice is dropped before the next is made.
                unsafe {
                    serial((m, d, n), ds, k, dqkv.slice(at(first, head)), width, false);
                    serial((n, d, m), ds.t(), q, dqkv.slice(at(range.start, h + kv)), width, true);
                    let dv = dqkv.slice(at(range.start, h + g + kv));
                    serial((n, d, m), p.t(), dy, dv, width, true);
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
    let scale = T::from_f64(1.0 / (d as f64).sqrt());
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
                        *s = T::from_f64(sum2(q, k, |a, b| a * b)) * scale;
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
