//! What a model still knows: perplexity, verbatim memory, knowledge, membership.
//!
//! Everything here is arithmetic on texts and numbers; no model is run.

pub mod extraction;
pub mod ks;
pub mod membership;
pub mod muse;
pub mod rouge;
pub mod tofu;
pub mod zlib;

/// Returns the arithmetic mean, or NaN of nothing (as numpy does).
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    sum / n as f64
}

/// Returns the values in their order, zeros of both signs as one; `None` where there are none or one is not finite.
fn sorted_finite(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || !values.iter().all(|x| x.is_finite()) {
        return None;
    }
    let mut values: Vec<f64> = values.iter().map(|x| x + 0.0).collect();
    values.sort_unstable_by(f64::total_cmp);
    Some(values)
}
