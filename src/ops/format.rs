//! The bit formats of the compact state, shared to the bit by every backend.
//!
//! theta is kept as two 16-bit planes whose split is dithered: with b the fp32 bits and r 16 random bits,
//! `hi = (b + r) >> 16` (a bf16, what the products read) and `lo = (b + r) & 0xffff`. Since r can be recomputed,
//! `b = (hi << 16 | lo) - r` is exact, and hi is an unbiased bf16 view of theta. The teacher is split with the
//! same r, so that equal weights stay equal in bf16.

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

/// Rounding bits that make a split round to the nearest bf16 (ties away from zero in magnitude).
pub const NEAREST: u32 = 0x8000;

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

/// The largest exponent k for which `bound * 2^k` still fits an fp16 with two bits of room; 0 for a zero bound.
pub fn drift_exponent(bound: f64) -> i32 {
    if bound > 0.0 && bound.is_finite() { 13 - bound.log2().ceil() as i32 } else { 0 }
}

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
