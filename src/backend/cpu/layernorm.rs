//! LayerNorm of rows, forward and backward.

use super::rows::{each, each2, simd, sum, sum2};
use super::{Grad, Real};
use crate::ops::NormArgs;

/// Numbers of a row that are handled together where a sum has more than two factors.
const BLOCK: usize = 256;

pub(super) fn forward<T: Real>(args: &NormArgs<'_, Vec<T>, &[T]>, y: &mut [T], stats: &mut [T]) {
    let NormArgs { n, norm, x, gain, bias } = args;
    let (n, c, eps) = (*n, norm.width, norm.eps);
    debug_assert!(bias.is_some(), "LayerNorm has a bias");
    let bias = bias.unwrap_or_default();
    each2(
        n,
        (c, 2),
        y,
        stats,
        #[inline(always)]
        |r, y, stats| {
            let x = &x[r * c..(r + 1) * c];
            let mean = T::from_f64(sum(x, |v| v) / c as f64);
            let squares = sum(
                x,
                #[inline(always)]
                |v| (v - mean) * (v - mean),
            );
            let rstd = T::from_f64(1.0 / (squares / c as f64 + eps).sqrt());
            for (((y, x), g), b) in y.iter_mut().zip(x).zip(*gain).zip(bias) {
                *y = (*x - mean) * rstd * *g + *b;
            }
            stats.copy_from_slice(&[mean, rstd]);
        },
    );
}

/// Adds to `dx`, and the rows' sums to `dgain`, with `sums` to make them in.
pub(super) fn backward<T: Real>(
    args: &NormArgs<'_, Vec<T>, &[T]>,
    dy: &[T],
    stats: &[T],
    dx: &mut [T],
    dgain: Option<(&mut Grad<T>, &mut [T])>,
) {
    let NormArgs { n, norm, x, gain, .. } = args;
    let (n, c) = (*n, norm.width);
    each(
        n,
        c,
        dx,
        #[inline(always)]
        |r, dx| {
            let (dy, x) = (&dy[r * c..(r + 1) * c], &x[r * c..(r + 1) * c]);
            let (mean, rstd) = (stats[2 * r], stats[2 * r + 1]);
            let (mut total, mut dot) = (0.0, 0.0);
            let mut block = [T::ZERO; BLOCK];
            for start in (0..c).step_by(BLOCK) {
                let end = (start + BLOCK).min(c);
                let block = &mut block[..end - start];
                for ((b, d), g) in block.iter_mut().zip(&dy[start..end]).zip(&gain[start..end]) {
                    *b = *d * *g;
                }
                total += sum(block, |b| b);
                dot += sum2(
                    block,
                    &x[start..end],
                    #[inline(always)]
                    |b, x| b * (x - mean),
                );
            }
            let total = T::from_f64(total / c as f64);
            let dot = T::from_f64(dot / c as f64) * rstd * rstd;
            for (((dx, d), x), g) in dx.iter_mut().zip(dy).zip(x).zip(*gain) {
                *dx += rstd * (*d * *g - total - (*x - mean) * dot);
            }
        },
    );
    if let Some((dgain, sums)) = dgain {
        sums.fill(T::ZERO);
        simd(
            #[inline(always)]
            || {
                let rows = dy[..n * c].chunks_exact(c).zip(x.chunks_exact(c));
                for ((dy, x), stats) in rows.zip(stats.chunks_exact(2)) {
                    for ((s, d), x) in sums.iter_mut().zip(dy).zip(x) {
                        *s += *d * (*x - stats[0]) * stats[1];
                    }
                }
            },
        );
        dgain.open();
        dgain.add(0, sums);
    }
}
