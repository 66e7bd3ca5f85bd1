//! The two-sample Kolmogorov-Smirnov test, whose p-value TOFU calls forget quality.

use serde::{Deserialize, Serialize};

use super::{Direction, Metric};
use crate::eval::sorted_finite;

/// The p-value of [`ks_test`] on the truth ratios of this and a retrained model.
pub const FORGET_QUALITY: Metric = Metric {
    name: "forget_quality",
    label: None,
    unit: "0 to 1",
    definition: "p-value of the two-sided two-sample KS test on R over the forget set, this model against `--retrain`; exact \
                 at any size",
    direction: Direction::Higher,
    on_forget: None,
};

/// The distance that a p-value is of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// [`KsTest::distance`].
    pub ks_distance: f64,
}

/// Result of the test on two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KsTest {
    /// The largest distance between the two empirical distribution functions.
    pub distance: f64,
    /// The probability of that distance or a larger one if both samples are of one distribution.
    pub p: f64,
}

/// Compares two samples, two-sided and exactly; `None` where one is empty or holds a number that is not finite.
///
/// The p-value counts, over all orders in which the two samples can be merged, those whose distance is at least the
/// one seen, as scipy's `ks_2samp` does for samples of up to 10,000 (above it scipy approximates; this stays exact, at
/// a cost of the product of both sizes). Ties count as there: the distance is taken after all equal values.
pub fn ks_test(a: &[f64], b: &[f64]) -> Option<KsTest> {
    let (a, b) = (sorted_finite(a)?, sorted_finite(b)?);
    let (m, n) = (a.len() as u64, b.len() as u64);
    let (mut i, mut j, mut widest) = (0, 0, 0u64);
    while i < a.len() && j < b.len() {
        let value = a[i].min(b[j]);
        i += a[i..].iter().take_while(|x| **x == value).count();
        j += b[j..].iter().take_while(|x| **x == value).count();
        widest = widest.max(gap(i as u64, j as u64, m, n));
    }
    // In units of 1 / (m n) the distance is a whole number, so that no comparison is left to rounding.
    let distance = widest as f64 / (m * n) as f64;
    Some(KsTest { distance, p: share_outside(m, n, widest) })
}

/// |i/m - j/n| in units of 1 / (m n).
fn gap(i: u64, j: u64, m: u64, n: u64) -> u64 {
    (i * n).abs_diff(j * m)
}

/// The share of lattice paths from (0, 0) to (m, n) that reach a point whose gap is at least `widest`.
///
/// A path through (i, j) came from the left with probability i / (i + j): the share of paths to (i, j) that were outside
/// is the mean of its two neighbours with these weights. All terms are positive, so that small p-values keep their digits.
fn share_outside(m: u64, n: u64, widest: u64) -> f64 {
    let mut column: Vec<f64> = Vec::with_capacity(n as usize + 1);
    for i in 0..=m {
        for j in 0..=n {
            let share = if gap(i, j, m, n) >= widest {
                1.0
            } else {
                let left = if i > 0 { column[j as usize] * i as f64 } else { 0.0 };
                let below = if j > 0 { column[j as usize - 1] * j as f64 } else { 0.0 };
                (left + below) / (i + j).max(1) as f64
            };
            match column.get_mut(j as usize) {
                Some(place) => *place = share,
                None => column.push(share),
            }
        }
    }
    column[n as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    #[test]
    fn equal_samples_have_p_one_and_parted_samples_the_share_of_two_orders() {
        assert_eq!(ks_test(&[1.0, 2.0], &[2.0, 1.0]), Some(KsTest { distance: 0.0, p: 1.0 }));
        // Two of the C(6, 3) = 20 orders part three from three.
        let parted = ks_test(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).unwrap();
        assert_eq!(parted.distance, 1.0);
        assert!(abs_diff_eq!(parted.p, 0.1, epsilon = 1e-15), "{}", parted.p);
        assert_eq!(ks_test(&[], &[1.0]), None);
        assert_eq!(ks_test(&[f64::NAN], &[1.0]), None);
    }

    #[test]
    fn p_value_of_parted_large_samples_keeps_its_digits() {
        let (a, b): (Vec<f64>, Vec<f64>) =
            ((0..200).map(f64::from).collect(), (200..400).map(f64::from).collect());
        // 2 / C(400, 200).
        let mut orders = 1.0;
        for k in 1..=200 {
            orders *= f64::from(200 + k) / f64::from(k);
        }
        let p = ks_test(&a, &b).unwrap().p;
        assert!(abs_diff_eq!(p * orders / 2.0, 1.0, epsilon = 1e-10), "{p}");
    }
}
