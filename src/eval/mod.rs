//! What a model still knows: perplexity, verbatim memory, knowledge, membership.
//!
//! A metric is arithmetic on texts and numbers, next to its record ([`metric::Metric`]). [`likelihood`] and [`verbatim`] also
//! run the model.

pub mod extraction;
pub mod ks;
pub mod likelihood;
pub mod membership;
pub mod metric;
pub mod monitored;
pub mod muse;
pub mod outcome;
pub mod rouge;
pub mod tofu;
pub mod verbatim;
pub mod zlib;

/// Returns the arithmetic mean, or NaN of nothing (as numpy does).
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    sum / n as f64
}

/// Returns `value`, or `None` where it is not finite and JSON has no number for it.
pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
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

/// Picks `n` of `len` rows at equal distances, or all where there are no more.
fn spread(len: usize, n: usize) -> Vec<usize> {
    let n = n.min(len);
    (0..n).map(|i| i * len / n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_takes_all_or_equal_distances() {
        assert_eq!(spread(3, usize::MAX), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert!(spread(0, 4).is_empty() && spread(4, 0).is_empty());
    }
}
