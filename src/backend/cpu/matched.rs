//! Full-vocabulary losses: one function per loss, from the logits of a row to its value and gradient.
//!
//! `d` holds D = z - z_ref on entry where the loss compares with another model, else z; the gradient on return.

use super::Real;
use super::head::{RowLoss, RowResult};
use super::rows::{max, sum, sum2};
use crate::ops::Matched;

/// Rows of a full-vocabulary loss.
pub(super) struct MatchedRows<'a> {
    pub loss: Matched,
    pub targets: &'a [u32],
    pub coefs: &'a [f64],
}

impl<T: Real> RowLoss<T> for MatchedRows<'_> {
    #[inline(always)]
    fn row(&self, row: usize, z: &mut [T], extra: &mut [T], grad: bool) -> RowResult {
        let coef = self.coefs[row];
        if coef == 0.0 {
            if grad {
                z.fill(T::ZERO);
            }
            return RowResult::default();
        }
        let value = match self.loss {
            Matched::Uniform => uniform(z, coef),
            Matched::Qkl => qkl(z, extra, coef),
            Matched::Kl => kl(z, extra, coef),
            Matched::Undial { strength } => {
                // KL against z_ref - s e_y: D grows where the target's logit falls.
                let (y, strength) = (self.targets[row] as usize, T::from_f64(strength));
                z[y] += strength;
                extra[y] -= strength;
                kl(z, extra, coef)
            }
            Matched::LogitRatio { beta } => logit_ratio(z, beta, coef),
            Matched::LogitKl => logit_kl(z, extra, coef),
            Matched::Flatten => flatten(z, coef),
        };
        RowResult { value, ..RowResult::default() }
    }
}

/// `KL(uniform, p)`; z becomes `coef (p - 1/V)`.
#[inline(always)]
fn uniform<T: Real>(z: &mut [T], coef: f64) -> f64 {
    let v = z.len() as f64;
    let top = max(z);
    let mean = sum(z, |x| x - top) / v;
    z.iter_mut().for_each(|x| *x = (*x - top).exp());
    let total = sum(z, |x| x);
    let (scale, floor) = (T::from_f64(coef / total), T::from_f64(coef / v));
    z.iter_mut().for_each(|x| *x = *x * scale - floor);
    total.ln() - mean - v.ln()
}

/// Turns teacher logits into probabilities and returns `E_q D`.
#[inline(always)]
fn teacher<T: Real>(d: &[T], q: &mut [T]) -> T {
    let top = max(q);
    q.iter_mut().for_each(|x| *x = (*x - top).exp());
    let inverse = T::from_f64(1.0 / sum(q, |x| x));
    q.iter_mut().for_each(|x| *x *= inverse);
    T::from_f64(sum2(q, d, |q, d| q * d))
}

/// `Var_q(D)`; d becomes `coef q (D - E_q D)`.
#[inline(always)]
fn qkl<T: Real>(d: &mut [T], q: &mut [T], coef: f64) -> f64 {
    let mean = teacher(d, q);
    let value = sum2(q, d, |q, d| q * (d - mean) * (d - mean));
    let coef = T::from_f64(coef);
    d.iter_mut().zip(q).for_each(|(d, q)| *d = coef * *q * (*d - mean));
    value
}

/// `KL(q, p)`; d becomes `coef (p - q)`.
///
/// With D' = D - E_q D and E = E_q(e^D' - 1 - D'), p/q = e^D'/(1 + E) and KL = log(1 + E): nothing cancels, and D = 0
/// gives exactly 0.
#[inline(always)]
fn kl<T: Real>(d: &mut [T], q: &mut [T], coef: f64) -> f64 {
    let mean = teacher(d, q);
    let excess = sum2(q, d, |q, d| q * (d - mean).exp_minus_linear());
    let (e, scale) = (T::from_f64(excess), T::from_f64(coef / (1.0 + excess)));
    for (d, q) in d.iter_mut().zip(q) {
        let centred = *d - mean;
        *d = scale * *q * (centred.exp_minus_linear() + centred - e);
    }
    excess.ln_1p()
}

/// `(2/b) mean log(1 + exp(b D))`; d becomes `2 coef / (V (1 + exp(-b D)))`.
#[inline(always)]
fn logit_ratio<T: Real>(d: &mut [T], beta: f64, coef: f64) -> f64 {
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
fn logit_kl<T: Real>(d: &mut [T], reference: &mut [T], coef: f64) -> f64 {
    reference.iter_mut().for_each(|x| *x = x.exp());
    let value = -sum2(reference, d, |r, d| r * d);
    let coef = T::from_f64(-coef);
    d.iter_mut().zip(&*reference).for_each(|(d, r)| *d = coef * *r);
    value
}

/// `(max z - mean z)^2`; z becomes `2 coef (max z - mean z) (e_argmax - 1/V)`.
#[inline(always)]
fn flatten<T: Real>(z: &mut [T], coef: f64) -> f64 {
    let v = z.len() as f64;
    let top = max(z);
    let gap = -sum(z, |x| x - top) / v;
    let at = z.iter().position(|x| *x == top).unwrap_or(0);
    z.fill(T::from_f64(-2.0 * coef * gap / v));
    z[at] += T::from_f64(2.0 * coef * gap);
    gap * gap
}
