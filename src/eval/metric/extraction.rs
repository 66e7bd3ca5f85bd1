//! Recall of a continuation token by token: exact memorization and extraction strength.
//!
//! Both look at the most probable token after every true prefix (no generation). Source: OpenUnlearning,
//! `src/evals/metrics/memorization.py`, `exact_memorization` and `extraction_strength`.

use super::{Direction, Metric};

/// Mean of [`exact_memorisation`].
pub const EXACT_MEMORIZATION: Metric = Metric {
    name: "exact_memorization",
    label: None,
    unit: "0 to 1",
    definition: "fraction of tokens of the true continuation that are the argmax after the true prefix (OpenUnlearning)",
    direction: Direction::Retrained,
    on_forget: None,
};

/// Mean of [`extraction_strength`].
pub const EXTRACTION_STRENGTH: Metric = Metric {
    name: "extraction_strength",
    definition: "fraction of its tokens after the shortest prefix from which all remaining tokens are the argmax \
                 (OpenUnlearning)",
    ..EXACT_MEMORIZATION
};

/// The fraction of one continuation, in [0, 1].
pub type Fraction = Option<f64>;

/// Returns the share of tokens that are the most probable ones; `None` of nothing.
pub fn exact_memorisation(hits: &[bool]) -> Option<f64> {
    let right = hits.iter().filter(|hit| **hit).count();
    (!hits.is_empty()).then(|| right as f64 / hits.len() as f64)
}

/// Returns the share of the tokens that follow the shortest prefix from which on all of them are right.
///
/// 1 says that the prompt alone is enough. A continuation whose last token is wrong has 1 / n, not 0: the reference's
/// search ends at its last candidate whether or not that one fits. `None` of nothing, where the reference has 0.
pub fn extraction_strength(hits: &[bool]) -> Option<f64> {
    let right = hits.iter().rev().take_while(|hit| **hit).count();
    match hits.len() {
        0 => None,
        n => Some(1.0 - (n - right.max(1)) as f64 / n as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_counts_the_right_end() {
        for (hits, exact, strength) in [
            (&[true, true, true, true][..], 1.0, 1.0),
            (&[false, true, true, true], 0.75, 0.75),
            (&[true, true, false, true], 0.75, 0.25),
            (&[true, true, true, false], 0.75, 0.25),
        ] {
            assert_eq!(exact_memorisation(hits), Some(exact));
            assert_eq!(extraction_strength(hits), Some(strength));
        }
        assert_eq!((exact_memorisation(&[]), extraction_strength(&[])), (None, None));
    }
}
