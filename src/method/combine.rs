//! Gradients of loss and penalty put together: added, or with regard to each other's direction.

use super::named;
use crate::error::Result;

/// How the gradients of loss, f, and penalty, r, become the direction that is descended; both carry their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// f + r, in one buffer.
    Sum,
    /// What is left of f where it goes against r, and r.
    ///
    /// Source: arXiv 2001.06782 (PCGrad), of which only the loss gives way; so does GRU's projection.
    Project,
    /// The shortest of all mixtures: no other direction of its length descends the worse of both faster.
    ///
    /// Source: MGDA, arXiv 1810.04650, section 3.2.
    MinNorm,
}

impl Combination {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sum, Self::Project, Self::MinNorm];

    /// Returns its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Project => "project",
            Self::MinNorm => "min_norm",
        }
    }

    /// Returns the direction, as a report prints it.
    pub fn formula(self) -> &'static str {
        match self {
            Self::Sum => "f + r",
            Self::Project => "f - min(0, f.r)/|r|^2 r + r",
            Self::MinNorm => "a f + (1 - a) r, a = r.(r - f)/|f - r|^2 held to 0..1",
        }
    }

    /// Finds a combination by name.
    pub fn find(name: &str) -> Result<Self> {
        named("method.combine", name, Self::ALL.map(|c| (c.name(), c)))
    }

    /// Returns the factors of f and r, given `[f.f, f.r, r.r]`.
    ///
    /// A product that is no number gives 1 and 1: the update then finds what is wrong with the gradients.
    pub fn factors(self, [ff, fr, rr]: [f64; 3]) -> [f64; 2] {
        if ![ff, fr, rr].iter().all(|x| x.is_finite()) {
            return [1.0, 1.0];
        }
        match self {
            Self::Sum => [1.0, 1.0],
            Self::Project if fr < 0.0 && rr > 0.0 => [1.0, 1.0 - fr / rr],
            Self::Project => [1.0, 1.0],
            Self::MinNorm => {
                let apart = ff + rr - 2.0 * fr;
                let share = if apart > 0.0 { ((rr - fr) / apart).clamp(0.0, 1.0) } else { 0.5 };
                [share, 1.0 - share]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn projection_leaves_nothing_against_the_penalty() {
        let (f, r) = ([1.0, -2.0, 0.5], [0.5, 1.0, 2.0]);
        let [a, b] = Combination::Project.factors([dot(f, f), dot(f, r), dot(r, r)]);
        let left: [f64; 3] = std::array::from_fn(|i| a * f[i] + (b - 1.0) * r[i]);
        assert!(dot(left, r).abs() < 1e-12 && dot(f, r) < 0.0);
        // Gradients that agree are added.
        assert_eq!(Combination::Project.factors([1.0, 0.5, 1.0]), [1.0, 1.0]);
        assert_eq!(Combination::Project.factors([1.0, 0.0, 0.0]), [1.0, 1.0]);
    }

    #[test]
    fn min_norm_is_the_shortest_mixture_and_descends_both() {
        for (f, r) in [
            ([1.0, -2.0, 0.5], [0.5, 1.0, 2.0]),
            ([3.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
            ([0.1, 0.0, 0.0], [5.0, 1.0, 0.0]),
        ] {
            let [a, b] = Combination::MinNorm.factors([dot(f, f), dot(f, r), dot(r, r)]);
            assert!((a + b - 1.0).abs() < 1e-15);
            let mixed = |a: f64| std::array::from_fn(|i| a * f[i] + (1.0 - a) * r[i]);
            let best: [f64; 3] = mixed(a);
            for k in 0..=100 {
                let other: [f64; 3] = mixed(f64::from(k) / 100.0);
                assert!(dot(best, best) <= dot(other, other) + 1e-12);
            }
            // The defining property of the minimum: at least its own length along both.
            assert!(dot(best, f) >= dot(best, best) - 1e-12);
            assert!(dot(best, r) >= dot(best, best) - 1e-12);
        }
        assert_eq!(Combination::MinNorm.factors([0.0; 3]), [0.5, 0.5]);
        assert_eq!(Combination::MinNorm.factors([f64::NAN, 0.0, 1.0]), [1.0, 1.0]);
    }
}
