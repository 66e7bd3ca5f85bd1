//! Loops over rows: parallel by fixed-size groups, each compiled for the widest vector unit at hand.

use rayon::prelude::*;

use super::Real;
use crate::ops::Toward;

/// Runs `work` compiled for AVX-512, AVX2 or the baseline, whichever the machine has.
///
/// `work`, and every closure it calls, must be `#[inline(always)]`: a closure that stays a function of its own is
/// compiled for the baseline.
#[inline]
pub(super) fn simd<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Rows a task takes, such that it is worth a task; depends on the width alone.
pub(super) fn group(width: usize) -> usize {
    (1_usize << 14).div_ceil(width.max(1))
}

/// Calls `work(row, slice)` for `n` rows of `width` numbers of `out`.
pub(super) fn each<T: Real>(
    n: usize,
    width: usize,
    out: &mut [T],
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if width == 0 {
        return;
    }
    let rows = group(width);
    out[..n * width].par_chunks_mut(rows * width).enumerate().for_each(|(g, chunk)| {
        simd(
            #[inline(always)]
            || {
                for (r, row) in chunk.chunks_exact_mut(width).enumerate() {
                    work(g * rows + r, row);
                }
            },
        );
    });
}

/// Calls `work(row, slice, other)` for `n` rows of `width` numbers of `out` and `other` numbers of `more`.
pub(super) fn each2<T: Real>(
    n: usize,
    (width, other): (usize, usize),
    out: &mut [T],
    more: &mut [T],
    work: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    if width == 0 {
        return;
    }
    let rows = group(width);
    out[..n * width]
        .par_chunks_mut(rows * width)
        .zip(more[..n * other].par_chunks_mut(rows * other))
        .enumerate()
        .for_each(|(g, (chunk, more))| {
            simd(
                #[inline(always)]
                || {
                    let pairs = chunk.chunks_exact_mut(width).zip(more.chunks_exact_mut(other));
                    for (r, (row, more)) in pairs.enumerate() {
                        work(g * rows + r, row, more);
                    }
                },
            );
        });
}

/// Mean squared error of hidden states, see [`crate::ops::Compute::mse`].
pub(super) fn mse<T: Real>(
    (n, c): (usize, usize),
    coefs: &[f64],
    x: &[T],
    toward: Toward<'_, Vec<T>, Vec<T>>,
    value: &mut [T],
    dx: Option<&mut Vec<T>>,
) {
    let to = |r: usize| match toward {
        Toward::Rows(rows) => &rows[r * c..(r + 1) * c],
        Toward::Vector(vector) => &vector[..c],
    };
    let row = |r: usize| &x[r * c..(r + 1) * c];
    each(
        n,
        1,
        value,
        #[inline(always)]
        |r, value| {
            let squares = sum2(
                row(r),
                to(r),
                #[inline(always)]
                |x, t| (x - t) * (x - t),
            );
            value[0] = T::from_f64(if coefs[r] == 0.0 { 0.0 } else { squares / c as f64 });
        },
    );
    let Some(dx) = dx else { return };
    each(
        n,
        c,
        dx,
        #[inline(always)]
        |r, dx| {
            let scale = T::from_f64(2.0 * coefs[r] / c as f64);
            for ((dx, x), t) in dx.iter_mut().zip(row(r)).zip(to(r)) {
                // A product with 0 would keep what is not finite.
                *dx = if coefs[r] == 0.0 { T::ZERO } else { scale * (*x - *t) };
            }
        },
    );
}

/// Lanes of a reduction: enough for two AVX-512 registers of f32.
const LANES: usize = 32;

/// Sums `f(a_i)` in fixed lanes, which are joined in f64 every few hundred terms.
#[inline(always)]
pub(super) fn sum<T: Real>(a: &[T], f: impl Fn(T) -> T) -> f64 {
    let mut total = 0.0;
    for block in a.chunks(LANES * 32) {
        let mut lanes = [T::ZERO; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for l in 0..LANES {
                lanes[l] += f(chunk[l]);
            }
        }
        total += lanes.iter().map(|x| x.to_f64()).sum::<f64>();
        total += rest.iter().map(|x| f(*x).to_f64()).sum::<f64>();
    }
    total
}

/// Sums `f(a_i, b_i)` like [`sum`].
#[inline(always)]
pub(super) fn sum2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(LANES * 32).zip(b.chunks(LANES * 32)) {
        let mut lanes = [T::ZERO; LANES];
        let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let (ra, rb) = (ca.remainder(), cb.remainder());
        for (a, b) in ca.zip(cb) {
            for l in 0..LANES {
                lanes[l] += f(a[l], b[l]);
            }
        }
        total += lanes.iter().map(|x| x.to_f64()).sum::<f64>();
        total += ra.iter().zip(rb).map(|(a, b)| f(*a, *b).to_f64()).sum::<f64>();
    }
    total
}

/// Returns the largest entry; negative infinity for none.
#[inline(always)]
pub(super) fn max<T: Real>(a: &[T]) -> T {
    let mut lanes = [T::from_f64(f64::NEG_INFINITY); LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = lanes[l].larger(chunk[l]);
        }
    }
    rest.iter().chain(&lanes).copied().fold(T::from_f64(f64::NEG_INFINITY), T::larger)
}
