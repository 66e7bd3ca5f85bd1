//! Loss rows whose gradient reaches all logits, beside matched distributions: single logits, flattening.
//!
//! `d` holds D = z - z_ref on entry where another model is compared with, else z; the gradient on return.

use super::Real;
use super::rows::{max, sum, sum2};

/// `(2/b) mean log(1 + exp(b D))`; d becomes `2 coef / (V (1 + exp(-b D)))`.
#[inline(always)]
pub(super) fn logit_ratio<T: Real>(d: &mut [T], beta: f64, coef: f64) -> f64 {
    let v = d.len() as f64;
    let mut total = 0.0;
    for x in d {
        let scaled = beta * x.to_f64();
        total += scaled.max(0.0) + (-scaled.abs()).exp().ln_1p();
        *x = T::from_f64(2.0 * coef / v / (1.0 + (-scaled).exp()));
    }
    2.0 * total / (beta * v)
}

/// `-sum exp(z_ref) D`; d becomes `-coef exp(z_ref)`.
#[inline(always)]
pub(super) fn logit_kl<T: Real>(d: &mut [T], reference: &mut [T], coef: f64) -> f64 {
    reference.iter_mut().for_each(|x| *x = x.exp());
    let value = -sum2(reference, d, |r, d| r * d);
    let coef = T::from_f64(-coef);
    d.iter_mut().zip(&*reference).for_each(|(d, r)| *d = coef * *r);
    value
}

/// `(max z - mean z)^2`; z becomes `2 coef (max z - mean z) (e_argmax - 1/V)`.
#[inline(always)]
pub(super) fn spread<T: Real>(z: &mut [T], coef: f64) -> f64 {
    let v = z.len() as f64;
    let top = max(z);
    let gap = -sum(z, |x| x - top) / v;
    let at = z.iter().position(|x| *x == top).unwrap_or(0);
    z.fill(T::from_f64(-2.0 * coef * gap / v));
    z[at] += T::from_f64(2.0 * coef * gap);
    gap * gap
}
