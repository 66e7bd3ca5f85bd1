//! What a model still knows: perplexity, verbatim memory, membership.
//!
//! Everything here is arithmetic on texts and numbers; no model is run.

pub mod membership;
pub mod muse;
pub mod rouge;
pub mod zlib;

/// Returns the arithmetic mean, or NaN of nothing (as numpy does).
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    sum / n as f64
}
