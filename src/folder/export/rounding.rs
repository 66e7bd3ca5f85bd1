//! Storage dtype of a written model, and rounding to it.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::io::safetensors::Dtype;
use crate::ops::format::{EVALUATION, narrow, noise, widen};

/// The dtype that a model is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SaveDtype {
    /// Each tensor's in the folder that the run started from.
    #[default]
    Source,
    /// fp32 throughout; nothing is rounded, at twice the bytes of a 16-bit model.
    F32,
}

/// Rounding of numbers to 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SaveRounding {
    /// Up or down, with the probabilities that keep the mean: of many small motions the sum stays. What is a number of the
    /// dtype already stays that.
    #[default]
    Stochastic,
    /// To the nearest number, of two to the even one: what moved by less than half a step goes back to where it was.
    Nearest,
}

/// Dtype and rounding of a written model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Save {
    /// In what,
    pub dtype: SaveDtype,
    /// by which rounding,
    pub rounding: SaveRounding,
    /// and from which root seed.
    pub seed: u64,
}

impl Save {
    /// Returns the dtype that a tensor of `stored` is written in; what is no float stays what it is.
    pub(super) fn dtype(&self, stored: Dtype) -> Dtype {
        if self.dtype == SaveDtype::F32 && stored.is_float() { Dtype::F32 } else { stored }
    }

    /// Rounds numbers that are to be written as `dtype`, in place; tells what that leaves of the change from those that
    /// `source` writes, which is not asked where nothing is rounded.
    ///
    /// They are the ones from `first` on of a parameter whose noise has this seed ([`crate::ops::format::noise_seed`]), so
    /// that bf16 numbers become those that an evaluation in bf16 sees.
    pub(crate) fn round(
        &self,
        dtype: Dtype,
        (seed, first): (u64, usize),
        after: &mut [f32],
        source: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Kept> {
        if dtype == Dtype::F32 {
            return Ok(Kept::default());
        }
        let mut before = vec![0.0; after.len()];
        source(&mut before)?;
        let pieces: Vec<Kept> = before
            .par_chunks(PIECE)
            .zip(after.par_chunks_mut(PIECE))
            .enumerate()
            .map(|(piece, (before, after))| {
                let mut kept = Kept::default();
                for (i, (&was, x)) in before.iter().zip(after).enumerate() {
                    let rounded = match self.rounding {
                        SaveRounding::Nearest => dtype.round(*x),
                        SaveRounding::Stochastic => {
                            let index = (first + piece * PIECE + i) as u64;
                            dithered(dtype, *x, noise(seed, EVALUATION, index))
                        }
                    };
                    let change = f64::from(*x) - f64::from(was);
                    kept.change += change * change;
                    kept.along += change * (f64::from(rounded) - f64::from(was));
                    *x = rounded;
                }
                kept
            })
            .collect();
        let mut kept = Kept::default();
        pieces.into_iter().for_each(|piece| kept.add(piece));
        Ok(kept)
    }
}

/// Numbers whose sums are made one by one: so threads share the work, and the digits do not depend on them.
const PIECE: usize = 1 << 16;

/// Share of the change from the source that is left after rounding to 16 bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept {
    /// Squared length of the change before it was rounded, over the tensors that are written in 16 bits.
    change: f64,
    /// Inner product of the change as written with the one before it was rounded.
    along: f64,
}

impl Kept {
    /// Returns the part of the change that the folder holds: 1 where nothing is lost, or nothing had changed.
    ///
    /// It is the written change's component along the one that was to be written, over the latter's length.
    pub fn share(&self) -> f64 {
        if self.change == 0.0 { 1.0 } else { self.along / self.change }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.change += other.change;
        self.along += other.along;
    }
}

/// Returns one of the two numbers of a 16-bit `dtype` that `x` lies between, each with the probability that makes their
/// mean x over all `random` bits; the nearest where one of the two is infinite.
fn dithered(dtype: Dtype, x: f32, random: u32) -> f32 {
    /// The distance of the numbers of half precision next to zero,
    const STEP: f64 = 1.0 / (1 << 24) as f64;
    /// and the smallest from which on it grows.
    const NORMAL: f32 = 1.0 / (1 << 14) as f32;
    let rounded = match dtype {
        // What evaluation does.
        Dtype::Bf16 => widen(narrow(x, random & 0xffff)),
        Dtype::F16 if x.abs() < NORMAL => {
            let up = f64::from(random) / (u64::from(u32::MAX) + 1) as f64;
            // Away from zero, as the others, and with the sign of a zero kept.
            (((f64::from(x.abs()) / STEP + up).floor() * STEP) as f32).copysign(x)
        }
        // The same with the three more bits that half precision keeps.
        Dtype::F16 => f32::from_bits(x.to_bits().wrapping_add(random & 0x1fff) & !0x1fff),
        _ => x,
    };
    if dtype.round(rounded).is_finite() { rounded } else { dtype.round(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use approx::{abs_diff_eq, assert_abs_diff_eq};

    const DTYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

    #[test]
    fn the_mean_of_dithered_numbers_is_the_number_and_each_is_a_neighbour() {
        let stream = Stream::new(3, "numbers");
        // Normal numbers, those next to zero in half precision, and both signs.
        for (i, size) in [1.0f32, 0.02, 3e-5, 1e-7, 700.0].into_iter().cycle().take(60).enumerate()
        {
            let x = size * (stream.uniform(0, i as u64) as f32 - 0.5);
            for dtype in DTYPES {
                let draws = 4096u32;
                // Spread evenly over all random bits that count, so that the mean has no error of its own.
                let drawn: Vec<f32> = (0..draws)
                    .map(|n| dithered(dtype, x, (n << 20) | (n << 4) | (n >> 9)))
                    .collect();
                let mean = drawn.iter().map(|x| f64::from(*x)).sum::<f64>() / f64::from(draws);
                let [least, most] = [f32::min, f32::max]
                    .map(|pick| drawn.iter().copied().reduce(pick).unwrap_or(f32::NAN));
                assert!(least <= x && x <= most, "{dtype} {x}: {least} to {most}");
                let step = f64::from(most) - f64::from(least);
                assert!(
                    abs_diff_eq!(mean, f64::from(x), epsilon = 0.01 * step),
                    "{dtype} {x}: {mean}"
                );
                for end in [least, most] {
                    assert_eq!(dtype.round(end), end, "{dtype} {x}");
                }
                let nearest = dtype.round(x);
                assert!(nearest == least || nearest == most, "{dtype} {x}: {nearest}");
            }
        }
    }

    #[test]
    fn numbers_of_the_dtype_and_the_largest_ones_stay() {
        for dtype in DTYPES {
            for x in [0.0, -0.0, 1.0, -0.375, 6e-8, 3e38, 65519.0, f32::INFINITY, f32::NAN] {
                let x = dtype.round(x);
                for random in [0, 1, u32::MAX] {
                    assert_eq!(dithered(dtype, x, random).to_bits(), x.to_bits(), "{dtype} {x}");
                }
            }
            // Above the largest finite number, where the nearest is that one.
            let x = if dtype == Dtype::F16 { 65510.0 } else { 3.3961e38 };
            assert_eq!(dithered(dtype, x, u32::MAX), dtype.round(x));
        }
    }

    #[test]
    fn small_changes_are_lost_to_the_nearest_and_kept_in_the_mean() {
        let stream = Stream::new(5, "weights");
        let before: Vec<f32> =
            (0..200_000).map(|i| Dtype::Bf16.round(stream.uniform(0, i) as f32 - 0.5)).collect();
        // A thousandth away from zero: a quarter of the way to the next number, or less.
        let moved: Vec<f32> = before.iter().map(|x| x * 1.001).collect();
        let share = |rounding| {
            let save = Save { rounding, ..Save::default() };
            let mut after = moved.clone();
            let kept = save.round(Dtype::Bf16, (9, 3), &mut after, |source| {
                source.copy_from_slice(&before);
                Ok(())
            });
            assert!(after.iter().all(|x| Dtype::Bf16.round(*x) == *x));
            kept.unwrap().share()
        };
        assert_eq!(share(SaveRounding::Nearest), 0.0);
        assert_abs_diff_eq!(share(SaveRounding::Stochastic), 1.0, epsilon = 0.02);
    }
}
