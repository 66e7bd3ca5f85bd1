//! Measures of what a model still knows: metrics, which are arithmetic on texts and numbers, and suites, which run models
//! for them. [`likelihood`] and [`verbatim`] also run the model.

pub mod likelihood;
pub mod metric;
pub mod monitored;
pub mod outcome;
pub mod suite;
pub mod verbatim;

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
