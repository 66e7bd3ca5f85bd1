//! RMSNorm of rows and of heads, forward and backward.

use super::rows::{each, each2, simd, sum, sum2};
use super::{Grad, Real};
use crate::ops::{Norm, NormArgs, QkNormArgs};

#[inline(always)]
fn forward<T: Real>(x: &[T], gain: &[T], norm: &Norm, y: &mut [T]) -> T {
    let mean = sum(x, |v| v * v) / x.len() as f64;
    let rstd = T::from_f64(1.0 / (mean + norm.eps).sqrt());
    let plus = T::from_f64(norm.offset);
    for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
        *y = *x * rstd * (*g + plus);
    }
    rstd
}

/// `dx = rstd (dy g - xhat mean(dy g xhat))` with `g = plus + gain`, handed to `put` with its index.
#[inline(always)]
fn backward<T: Real>(
    dy: &[T],
    x: &[T],
    (gain, plus): (&[T], T),
    rstd: T,
    mut put: impl FnMut(usize, T),
) {
    let mut dot = 0.0;
    // Three factors: sum2 takes two, so the product with the gain is made in blocks.
    let mut block = [T::ZERO; 256];
    for start in (0..x.len()).step_by(256) {
        let end = (start + 256).min(x.len());
        let block = &mut block[..end - start];
        for ((b, d), g) in block.iter_mut().zip(&dy[start..end]).zip(&gain[start..end]) {
            *b = *d * (*g + plus);
        }
        dot += sum2(block, &x[start..end], |a, b| a * b);
    }
    let mean = T::from_f64(dot / x.len() as f64) * rstd * rstd;
    for i in 0..x.len() {
        put(i, rstd * (dy[i] * (gain[i] + plus) - x[i] * mean));
    }
}

pub(super) fn rmsnorm<T: Real>(
    args: &NormArgs<'_, Vec<T>, &[T]>,
    residual: Option<&Vec<T>>,
    y: &mut [T],
    rstd: &mut [T],
) {
    let NormArgs { n, norm, x, gain, .. } = args;
    let (n, c) = (*n, norm.width);
    each2(
        n,
        (c, 1),
        y,
        rstd,
        #[inline(always)]
        |r, y, rstd| {
            rstd[0] = forward(&x[r * c..(r + 1) * c], &gain[..c], norm, y);
            if let Some(residual) = residual {
                y.iter_mut().zip(&residual[r * c..(r + 1) * c]).for_each(|(y, x)| *y += *x);
            }
        },
    );
}

pub(super) fn rmsnorm_bwd<T: Real>(
    args: &NormArgs<'_, Vec<T>, &[T]>,
    dy: &[T],
    rstd: &[T],
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
            let at = r * c..(r + 1) * c;
            let (dy, x) = (&dy[at.clone()], &x[at]);
            let gain = (&gain[..c], T::from_f64(norm.offset));
            backward(dy, x, gain, rstd[r], |i, v| dx[i] += v);
        },
    );
    if let Some((dgain, sums)) = dgain {
        let all = 0..n;
        gain_sums(all.map(|r| (&dy[r * c..(r + 1) * c], &x[r * c..(r + 1) * c], rstd[r])), sums);
        dgain.open();
        dgain.add(0, sums);
    }
}

/// Adds up `dy xhat` over rows, in row order.
fn gain_sums<'a, T: Real>(rows: impl Iterator<Item = (&'a [T], &'a [T], T)>, sums: &mut [T]) {
    sums.fill(T::ZERO);
    simd(
        #[inline(always)]
        || {
            for (dy, x, rstd) in rows {
                for ((s, d), x) in sums.iter_mut().zip(dy).zip(x) {
                    *s += *d * *x * rstd;
                }
            }
        },
    );
}

pub(super) fn qk_norm<T: Real>(args: &QkNormArgs<'_, Vec<T>, &[T]>, qkv: &mut [T], rstd: &mut [T]) {
    let QkNormArgs { n, heads, norm, raw, gains } = args;
    let (width, d, normed) = (heads.qkv_width(), heads.d, heads.h + heads.g);
    each2(
        *n,
        (width, normed),
        qkv,
        rstd,
        #[inline(always)]
        |r, row, rstd| {
            let raw = &raw[r * width..(r + 1) * width];
            for (h, rstd) in rstd.iter_mut().enumerate() {
                let gain = &gains[usize::from(h >= heads.h)][..d];
                let at = h * d..(h + 1) * d;
                *rstd = forward(&raw[at.clone()], gain, norm, &mut row[at]);
            }
            row[normed * d..].copy_from_slice(&raw[normed * d..]);
        },
    );
}

pub(super) fn qk_norm_bwd<T: Real>(
    args: &QkNormArgs<'_, Vec<T>, &[T]>,
    rstd: &[T],
    dqkv: &mut [T],
    dgains: Option<([&mut Grad<T>; 2], &mut [T])>,
) {
    let QkNormArgs { n, heads, norm, raw, gains } = args;
    let n = *n;
    let (width, d, normed) = (heads.qkv_width(), heads.d, heads.h + heads.g);
    let plus = T::from_f64(norm.offset);
    if let Some((dgains, sums)) = dgains {
        for (grad, range) in dgains.into_iter().zip([0..heads.h, heads.h..normed]) {
            let rows = (0..n).flat_map(|r| range.clone().map(move |h| (r, h)));
            let parts = rows.map(|(r, h)| {
                let at = r * width + h * d..r * width + (h + 1) * d;
                (&dqkv[at.clone()], &raw[at], rstd[r * normed + h])
            });
            gain_sums(parts, &mut sums[..d]);
            grad.open();
            grad.add(0, &sums[..d]);
        }
    }
    each(
        n,
        width,
        dqkv,
        #[inline(always)]
        |r, row| {
            for h in 0..normed {
                let gain = &gains[usize::from(h >= heads.h)][..d];
                let x = &raw[r * width + h * d..r * width + (h + 1) * d];
                let dy = &mut row[h * d..(h + 1) * d];
                // In place: the mean needs all of dy first, and each entry then only itself.
                let dot: f64 = (0..d).map(|i| (dy[i] * (gain[i] + plus) * x[i]).to_f64()).sum();
                let rstd = rstd[r * normed + h];
                let mean = T::from_f64(dot / d as f64) * rstd * rstd;
                for i in 0..d {
                    dy[i] = rstd * (dy[i] * (gain[i] + plus) - x[i] * mean);
                }
            }
        },
    );
}
