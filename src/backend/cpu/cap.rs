//! Numbers that are capped softly: `cap tanh(x / cap)`.

use super::Real;

/// A cap, and what numbers are multiplied by under it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cap<T> {
    cap: T,
    inverse: T,
}

impl<T: Real> Cap<T> {
    /// Caps `factor x`.
    pub fn new(cap: f64, factor: f64) -> Self {
        Self { cap: T::from_f64(cap), inverse: T::from_f64(factor / cap) }
    }

    /// Returns the capped number, and how much of a gradient at it goes on to `factor x`.
    #[inline(always)]
    pub fn at(self, x: T) -> (T, T) {
        let t = (x * self.inverse).tanh();
        (self.cap * t, T::ONE - t * t)
    }

    /// Turns `d`, by how much a number is larger than `r`, into by how much it is so when both are capped, and `r` into
    /// the capped one; returns how much of a gradient goes on to `d`.
    ///
    /// tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b): what cancels in the difference has cancelled in `d`.
    #[inline(always)]
    pub fn pair(self, d: &mut T, r: &mut T) -> T {
        let own = ((*r + *d) * self.inverse).tanh();
        let other = (*r * self.inverse).tanh();
        *d = self.cap * (*d * self.inverse).tanh() * (T::ONE - own * other);
        *r = self.cap * other;
        T::ONE - own * own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, relative_eq};

    #[test]
    fn tanh_is_that_of_the_library() {
        for i in -3000..3000 {
            let x = f64::from(i) * 1e-2;
            for x in [x, x * 1e-3, x * 1e-9] {
                let want = x.tanh();
                assert!(
                    relative_eq!(Real::tanh(x), want, epsilon = 0.0, max_relative = 2e-15),
                    "{x}"
                );
                let single = Real::tanh(x as f32);
                let want = f64::from(x as f32).tanh();
                assert!(
                    relative_eq!(f64::from(single), want, epsilon = 0.0, max_relative = 1e-6),
                    "{x}"
                );
            }
        }
        assert_eq!(Real::tanh(f32::INFINITY), 1.0);
        assert_eq!(Real::tanh(f64::NEG_INFINITY), -1.0);
        assert!(Real::tanh(f32::NAN).is_nan());
    }

    #[test]
    fn a_pair_is_the_difference_of_capped_numbers() {
        let cap = Cap::<f64>::new(3.0, 1.0);
        for (d, r) in [(0.0, 1.0), (1.0, -2.0), (-4.0, 3.0), (40.0, -90.0), (-90.0, 400.0)] {
            let (mut both, mut reference) = (d, r);
            let slope = cap.pair(&mut both, &mut reference);
            let (own, want) = cap.at(r + d);
            assert!(abs_diff_eq!(both, own - cap.at(r).0, epsilon = 2e-15), "{d} {r}: {both}");
            assert_eq!((reference, slope), (cap.at(r).0, want));
        }
        // Of nearly equal numbers nothing is lost.
        let (mut d, mut r) = (1e-14, 2.0);
        let slope = cap.pair(&mut d, &mut r);
        assert!(abs_diff_eq!(d / (slope * 1e-14), 1.0, epsilon = 1e-12), "{d}");
    }
}
