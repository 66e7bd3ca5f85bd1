//! The number types the CPU computes in.

use pulp::Simd;

/// f32 or f64.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + bytemuck::Pod
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds from f64.
    fn from_f64(x: f64) -> Self;
    /// Rounds from f32.
    fn from_f32(x: f32) -> Self;
    /// Widens to f64.
    fn to_f64(self) -> f64;
    /// Rounds to f32.
    fn to_f32(self) -> f32;
    /// e^x, written so that loops over it become vector code; 0 below the smallest normal number.
    fn exp(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// A register of `S` full of this type.
    type Lanes<S: Simd>: bytemuck::Pod;
    /// Returns a register full of `self`.
    fn splat<S: Simd>(self, simd: S) -> Self::Lanes<S>;
    /// Returns `a * b + c` lane by lane, rounded once where `S` has an instruction for it.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Lanes<S>,
        b: Self::Lanes<S>,
        c: Self::Lanes<S>,
    ) -> Self::Lanes<S>;
    /// Returns `a + b` lane by lane.
    fn plus<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of two numbers (either where one is NaN).
    fn larger(self, other: Self) -> Self;
    /// e^x - 1 - x without cancellation around 0.
    fn exp_minus_linear(self) -> Self;
    /// The hyperbolic tangent, written like [`Real::exp`].
    #[inline(always)]
    fn tanh(self) -> Self {
        let size = if self < Self::ZERO { -self } else { self };
        // 1 - e^(-2|x|); tanh|x| is that over 2 minus that.
        let twice = size + size;
        let below = if twice < Self::from_f64(SERIES) {
            twice - (-twice).exp_minus_linear()
        } else {
            Self::ONE - (-twice).exp()
        };
        let t = below / (Self::ONE + Self::ONE - below);
        if self < Self::ZERO { -t } else { t }
    }
    /// Returns `len` zeros, at most 2^14.
    fn zeros(len: usize) -> &'static [Self];
}

/// e^x in single precision: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; at most 2 ulp off.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number in any vector unit.
    let rounded = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = rounded - MAGIC;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    // The low bits of `rounded` are n: no conversion, whose checks for NaN would not become vector code.
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { y * scale }
}

/// Below this |x| the series of e^x - 1 - x is used.
const SERIES: f64 = 0.25;

macro_rules! real {
    ($type:ty, $exp:path, $terms:literal, $lanes:ident, $splat:ident, $mul_add:ident, $mul:ident, $add:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline]
            fn erf(self) -> Self {
                super::erf::erf(f64::from(self)) as $type
            }
            type Lanes<S: Simd> = S::$lanes;
            #[inline(always)]
            fn splat<S: Simd>(self, simd: S) -> S::$lanes {
                simd.$splat(self)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes, c: S::$lanes) -> S::$lanes {
                // On one lane pulp's fused product is a call into the C library.
                if S::IS_SCALAR { simd.$add(simd.$mul(a, b), c) } else { simd.$mul_add(a, b, c) }
            }
            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> S::$lanes {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                if self > other { self } else { other }
            }
            #[inline(always)]
            fn exp_minus_linear(self) -> Self {
                // x^2/2 (1 + x/3 (1 + x/4 (...))), enough terms for either precision.
                let mut tail = 1.0;
                for n in (3..=$terms).rev() {
                    tail = 1.0 + self / n as $type * tail;
                }
                let series = 0.5 * self * self * tail;
                if self.abs() < SERIES as $type { series } else { $exp(self) - 1.0 - self }
            }
            fn zeros(len: usize) -> &'static [Self] {
                static ZEROS: [$type; 1 << 14] = [0.0; 1 << 14];
                &ZEROS[..len]
            }
        }
    };
}

real!(f32, exp_f32, 8, f32s, splat_f32s, mul_add_f32s, mul_f32s, add_f32s);
real!(f64, f64::exp, 13, f64s, splat_f64s, mul_add_f64s, mul_f64s, add_f64s);

#[cfg(test)]
mod tests {
    use super::*;
    use approx::relative_eq;

    #[test]
    fn exp_f32_is_within_two_ulp() {
        for i in -86_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(exp_f32(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "{x}: {error}");
        }
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn exp_minus_linear_keeps_small_arguments() {
        for x in [1e-6f64, -1e-6, 1e-3, -0.24, 0.26, 2.0, -3.0] {
            let terms = (2..30).map(|n| x.powi(n) / (1..=n).map(f64::from).product::<f64>());
            let want: f64 = terms.collect::<Vec<_>>().iter().rev().sum();
            assert!(
                relative_eq!(x.exp_minus_linear(), want, epsilon = 0.0, max_relative = 1e-13),
                "{x}"
            );
            let single = (x as f32).exp_minus_linear();
            assert!(
                relative_eq!(f64::from(single), want, epsilon = 0.0, max_relative = 5e-6),
                "{x} {single} {want}"
            );
        }
    }
}
