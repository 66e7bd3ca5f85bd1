//! The bit formats of the compact state, shared to the bit by every backend.
//!
//! theta is kept as two 16-bit planes whose split is dithered: with b the fp32 bits and r 16 random bits,
//! `hi = (b + r) >> 16` (a bf16, what the products read) and `lo = (b + r) & 0xffff`. Since r can be recomputed,
//! `b = (hi << 16 | lo) - r` is exact, and hi is an unbiased bf16 view of theta. The teacher is split with the
//! same r, so that equal weights stay equal in bf16.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Returns the seed of the [`noise`] of the parameter `name` under a root seed.
pub fn noise_seed(name: &str, root: u64) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), root)
}

/// Returns 32 random bits of element `index` at `step`: the low half dithers theta, the high half rounds moments.
///
/// The same integer operations run in kernels/common.cuh.
#[inline(always)]
pub fn noise(seed: u64, step: u64, index: u64) -> u32 {
    let mut x = index as u32 ^ ((index >> 32) as u32).wrapping_mul(0x9E37_79B9) ^ seed as u32;
    x = x.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    // Added behind the first mix: the steps' noises are not permutations of one another.
    let turn = (step as u32).wrapping_mul(0x9E37_79B9);
    x = x.wrapping_add(turn).wrapping_add((seed >> 32) as u32).wrapping_mul(0xC2B2_AE35);
    x ^= x >> 16;
    x = x.wrapping_mul(0x27D4_EB2F);
    x ^ (x >> 15)
}

/// The step whose [`noise`] evaluation and export round by: one that training never comes to.
///
/// Rounding to the nearest would hide all motion below half the distance of two bf16 numbers from figures and saved
/// model alike where training starts at bf16 numbers; by noise, figures are those of the weights in the mean, and as the
/// noise is always the same, those of unmoved weights never change.
pub const EVALUATION: u64 = u32::MAX as u64;

/// Splits fp32 bits into (hi, lo) under `r` < 2^16.
#[inline(always)]
pub fn split(theta: f32, r: u32) -> (u16, u16) {
    let sum = theta.to_bits().wrapping_add(r);
    ((sum >> 16) as u16, sum as u16)
}

/// Joins what [`split`] made with the same `r`.
#[inline(always)]
pub fn join(hi: u16, lo: u16, r: u32) -> f32 {
    f32::from_bits((u32::from(hi) << 16 | u32::from(lo)).wrapping_sub(r))
}

/// Widens a bf16.
#[inline(always)]
pub fn widen(hi: u16) -> f32 {
    f32::from_bits(u32::from(hi) << 16)
}

/// Rounds to a bf16 with rounding bits `r` < 2^16: stochastic for random bits.
#[inline(always)]
pub fn narrow(value: f32, r: u32) -> u16 {
    split(value, r).0
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn narrow_even(value: f32) -> u16 {
    let bits = value.to_bits();
    // Rounding would carry a NaN of large payload over into a zero.
    if value.is_nan() {
        return (bits >> 16 | 0x40) as u16;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rounds to the nearest fp16, ties to even, for |x| < 65520; branch-free, so that it vectorises.
#[inline(always)]
pub fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // 0.5 has an ulp of 2^-24, the step of fp16 subnormals: the addition rounds to it.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let large = magnitude.wrapping_add(0xc800_0fff).wrapping_add(magnitude >> 13 & 1) >> 13;
    let rounded = if magnitude < 0x3880_0000 { small } else { large };
    (rounded | bits >> 16 & 0x8000) as u16
}

/// Widens a finite fp16.
#[inline(always)]
pub fn from_f16(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let shifted = u32::from(h & 0x7fff) << 13;
    // A subnormal gets the exponent of 2^-14 and an implicit one, which is then taken off.
    let small = (f32::from_bits(shifted + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let large = shifted + (112 << 23);
    f32::from_bits(sign | if shifted < 1 << 23 { small } else { large })
}

/// Numbers of a block of an 8-bit momentum, which have one scale: what a warp handles.
pub const MOMENT_BLOCK: usize = 256;

/// Returns the scale of a block whose largest magnitude is `top`.
#[inline(always)]
pub fn block_scale(top: f32) -> f32 {
    top / 127.0
}

/// Rounds a number of a block to 8 bits with rounding bits `r` < 2^16: stochastic for random ones, so that what is far
/// below the block's largest is kept on average.
#[inline(always)]
pub fn to_block(x: f32, scale: f32, r: u32) -> i8 {
    let steps = if scale > 0.0 { x / scale } else { 0.0 };
    // A sixteen-bit number times 2^-16 is exact.
    (steps + r as f32 * (1.0 / 65536.0)).floor().clamp(-127.0, 127.0) as i8
}

/// Widens what [`to_block`] made.
#[inline(always)]
pub fn from_block(q: i8, scale: f32) -> f32 {
    f32::from(q) * scale
}

/// Rounds a magnitude up to a bf16.
#[inline(always)]
pub fn ceil_bf16(magnitude: f32) -> u16 {
    (magnitude.to_bits().saturating_add(0xffff) >> 16) as u16
}

/// Draws the rounding bits of the second moment from the noise, independent of both its halves.
#[inline(always)]
pub fn remix(noise: u32) -> u32 {
    let x = (noise ^ noise >> 15).wrapping_mul(0x2C1B_3C6D);
    (x ^ x >> 12).wrapping_mul(0x297A_2D39) >> 16
}

/// The largest exponent k for which `bound * 2^k` still fits an fp16 with two bits of room; 0 for a zero bound.
///
/// In integers, so that every backend finds the same; a denormal bound counts as the largest of them.
pub fn drift_exponent(bound: f64) -> i32 {
    if !(bound > 0.0 && bound.is_finite()) {
        return 0;
    }
    let bits = bound.to_bits();
    let above = bits & ((1 << 52) - 1) != 0;
    13 - ((bits >> 52) as i32 - 1023 + i32::from(above))
}

/// Exponents stay where 2^k and 2^-k are normal fp32 numbers.
pub const EXPONENT_LIMIT: i32 = 120;

/// Bounds |m / (1 - b1^t)| / sqrt(v / (1 - b2^t)) of Adam after `t` steps, for any gradients.
///
/// With m = (1-b1) sum b1^(t-i) g_i and v = (1-b2) sum b2^(t-i) g_i^2, write b1^j = (b1/sqrt(b2))^j sqrt(b2)^j;
/// Cauchy-Schwarz gives m^2 <= (1-b1)^2/(1-b2) S v with S = sum over j < t of (b1^2/b2)^j. One at t = 1.
pub fn adam_bound((b1, b2): (f64, f64), t: f64) -> f64 {
    let ratio = b1 * b1 / b2;
    let sum = if (ratio - 1.0).abs() < 1e-9 { t } else { (1.0 - ratio.powf(t)) / (1.0 - ratio) };
    let bound = (1.0 - b1) * (sum * (1.0 - b2.powf(t)) / (1.0 - b2)).sqrt() / (1.0 - b1.powf(t));
    // b2 far below b1^2 has no useful bound; NaN comes from b2 = 0.
    if bound < ADAM_CEILING { bound } else { ADAM_CEILING }
}

const ADAM_CEILING: f64 = 1e4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn join_undoes_split_exactly(bits in any::<u32>(), r in 0u32..0x1_0000) {
            let theta = f32::from_bits(bits);
            prop_assume!(theta.is_finite() && theta.abs() < f32::MAX / 2.0);
            let (hi, lo) = split(theta, r);
            prop_assert_eq!(join(hi, lo, r).to_bits(), bits);
        }

        #[test]
        fn drift_exponent_never_saturates(bound in 1e-30f64..1e4) {
            let scaled = bound * 2f64.powi(drift_exponent(bound));
            prop_assert!(scaled <= 8192.0 && scaled > 2000.0);
        }
    }

    #[test]
    fn a_blocks_numbers_are_off_by_a_step_at_most_and_right_on_average() {
        let (top, n) = (0.3f32, 1u64 << 14);
        let scale = block_scale(top);
        for x in [top, -top, 0.0, 1e-5, -0.0371, 0.2999] {
            let drawn = (0..n).map(|i| from_block(to_block(x, scale, noise(3, 7, i) >> 16), scale));
            let drawn: Vec<f32> = drawn.collect();
            assert!(drawn.iter().all(|y| (y - x).abs() <= scale * 1.0001), "{x}");
            let mean = drawn.iter().map(|y| f64::from(*y)).sum::<f64>() / n as f64;
            // Half a step of standard deviation, 128 times less for the mean: six of those.
            let bound = f64::from(scale) * 6.0 * 0.5 / 128.0;
            assert!((mean - f64::from(x)).abs() < bound, "{x}: {mean}");
        }
        assert_eq!(to_block(0.0, 0.0, 0xffff), 0);
        assert!(widen(ceil_bf16(0.3)) >= 0.3 && widen(ceil_bf16(0.3)) < 0.3 * 1.01);
    }

    #[test]
    fn dithered_plane_is_unbiased() {
        let theta = 0.020_013_f32;
        let n = 1u64 << 16;
        let mean =
            (0..n).map(|i| f64::from(widen(split(theta, noise(5, 9, i) & 0xffff).0))).sum::<f64>()
                / n as f64;
        // One bf16 step at 0.02 is 1.2e-4; the mean of 65536 draws has a standard error of 2.4e-7.
        assert!((mean - f64::from(theta)).abs() < 1e-6, "{mean}");
    }
}
