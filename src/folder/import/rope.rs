//! Llama-3 rope scaling from the factors that a GGUF file holds in its place.
//!
//! Converters write, for each frequency f, the factor f is divided by: 1 for short wavelengths, F for long ones, and
//! between them 1 / ((1 - s) / F + s) with s = (original * f / 2 pi - low) / (high - low). Only the ratios of original,
//! low and high matter, so fixing low at 1, as all published models do, loses nothing.

use std::f64::consts::TAU;

use crate::model::config::{RopeConfig, RopeScaling};
use crate::model::rope::table;

/// The relative error that single-precision arithmetic in a converter explains.
const TOLERANCE: f64 = 1e-5;

/// Returns the scaling that divides the frequencies of base `theta` and head width `width` by `factors`, if there is one.
pub(super) fn reconstruct(theta: f64, width: usize, factors: &[f32]) -> Option<RopeScaling> {
    let largest = f64::from(factors.iter().copied().fold(f32::NAN, f32::max));
    let published = RopeScaling::Llama3 { factor: largest, low: 1.0, high: 4.0, original: 8192.0 };
    let first = RopeScaling::Linear { factor: f64::from(*factors.first()?) };
    let mut candidates = vec![RopeScaling::Default, first, published];
    if let Some((high, original)) = fit(theta, width, factors, largest) {
        let llama3 =
            |high, original| RopeScaling::Llama3 { factor: largest, low: 1.0, high, original };
        candidates.push(llama3(high.round(), original.round()));
        candidates.push(llama3(high, original));
    }
    candidates.into_iter().find(|scaling| fits(theta, width, factors, scaling))
}

/// Solves for high and original, at low = 1, from the outermost blended factors.
fn fit(theta: f64, width: usize, factors: &[f32], largest: f64) -> Option<(f64, f64)> {
    let plain = table(&RopeConfig { theta, width, scaling: RopeScaling::Default }).inv_freq;
    let mut blended = factors.iter().zip(&plain).filter_map(|(&factor, &f)| {
        let factor = f64::from(factor);
        let inner = factor > 1.0 + TOLERANCE && factor < largest * (1.0 - TOLERANCE);
        // (f / 2 pi, s): a line with slope original / (high - low) and value -low / (high - low) at 0.
        inner.then(|| (f / TAU, (1.0 / factor - 1.0 / largest) / (1.0 - 1.0 / largest)))
    });
    let first = blended.next()?;
    let last = blended.next_back()?;
    let slope = (first.1 - last.1) / (first.0 - last.0);
    let below = slope * first.0 - first.1;
    let range = 1.0 / below;
    (range.is_finite() && range > 0.0 && slope > 0.0).then_some((1.0 + range, slope * range))
}

fn fits(theta: f64, width: usize, factors: &[f32], scaling: &RopeScaling) -> bool {
    let inverse = |scaling| table(&RopeConfig { theta, width, scaling }).inv_freq;
    let (plain, scaled) = (inverse(RopeScaling::Default), inverse(scaling.clone()));
    plain.len() == factors.len()
        && plain.iter().zip(&scaled).zip(factors).all(|((plain, scaled), &factor)| {
            (scaled * f64::from(factor) / plain - 1.0).abs() <= TOLERANCE
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn factors(theta: f64, width: usize, scaling: RopeScaling) -> Vec<f32> {
        let inverse = |scaling| table(&RopeConfig { theta, width, scaling }).inv_freq;
        let (plain, scaled) = (inverse(RopeScaling::Default), inverse(scaling));
        plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
    }

    #[test]
    fn reconstruct_when_published_gives_the_published_numbers() {
        for (width, factor) in [(128, 8.0), (64, 32.0)] {
            let llama = RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 };
            let found = reconstruct(5e5, width, &factors(5e5, width, llama.clone()));
            assert_eq!(found, Some(llama));
        }
    }

    #[test]
    fn reconstruct_when_other_numbers_finds_them() {
        let scaling = RopeScaling::Llama3 { factor: 4.0, low: 1.0, high: 6.0, original: 2048.0 };
        assert_eq!(reconstruct(1e4, 64, &factors(1e4, 64, scaling.clone())), Some(scaling));
        assert_eq!(reconstruct(1e4, 8, &[1.0; 4]), Some(RopeScaling::Default));
        assert_eq!(reconstruct(1e4, 8, &[2.5; 4]), Some(RopeScaling::Linear { factor: 2.5 }));
    }

    #[test]
    fn reconstruct_when_factors_are_no_scaling_gives_none() {
        assert_eq!(reconstruct(1e4, 8, &[1.0, 2.0, 1.5, 3.0]), None);
        assert_eq!(reconstruct(1e4, 8, &[1.0; 3]), None);
        assert_eq!(reconstruct(1e4, 8, &[f32::NAN; 4]), None);
        assert_eq!(reconstruct(1e4, 8, &[0.0; 4]), None);
        assert_eq!(reconstruct(1e4, 8, &[]), None);
    }

    proptest! {
        #[test]
        fn reconstruct_gives_the_same_frequencies_whatever_low_is(
            factor in 1.5f64..64.0, low in 0.5f64..2.0, range in 1.0f64..8.0, original in 512.0f64..1e5
        ) {
            let scaling = RopeScaling::Llama3 { factor, low, high: low + range, original };
            let wanted = factors(5e5, 128, scaling);
            let found = reconstruct(5e5, 128, &wanted);
            prop_assert!(found.is_some());
            for (found, wanted) in factors(5e5, 128, found.unwrap()).iter().zip(&wanted) {
                prop_assert!((found / wanted - 1.0).abs() < 2e-5);
            }
        }
    }
}
