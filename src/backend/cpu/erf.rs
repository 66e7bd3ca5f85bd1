//! The error function.

/// Returns `2/sqrt(pi)` times the integral of `exp(-t^2)` from 0 to `x`, within a few units in the last place.
///
/// Source: W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969), 631-637: one
/// quotient of polynomials for erf near 0, two for `exp(x^2) erfc(x)` beyond.
pub(super) fn erf(x: f64) -> f64 {
    const NEAR: ([f64; 5], [f64; 5]) = (
        [
            1.857_777_061_846_031_5e-1,
            3.161_123_743_870_565_6,
            1.138_641_541_510_501_6e2,
            3.774_852_376_853_02e2,
            3.209_377_589_138_469_4e3,
        ],
        [
            1.0,
            2.360_129_095_234_412_2e1,
            2.440_246_379_344_441_7e2,
            1.282_616_526_077_372_3e3,
            2.844_236_833_439_171e3,
        ],
    );
    const MIDDLE: ([f64; 9], [f64; 9]) = (
        [
            2.153_115_354_744_038_3e-8,
            5.641_884_969_886_701e-1,
            8.883_149_794_388_376,
            6.611_919_063_714_163e1,
            2.986_351_381_974_001e2,
            8.819_522_212_417_69e2,
            1.712_047_612_634_070_7e3,
            2.051_078_377_826_071_6e3,
            1.230_339_354_797_997_2e3,
        ],
        [
            1.0,
            1.574_492_611_070_983_3e1,
            1.176_939_508_913_125e2,
            5.371_811_018_620_099e2,
            1.621_389_574_566_690_3e3,
            3.290_799_235_733_459_7e3,
            4.362_619_090_143_247e3,
            3.439_367_674_143_721_6e3,
            1.230_339_354_803_749_5e3,
        ],
    );
    const FAR: ([f64; 6], [f64; 6]) = (
        [
            1.631_538_713_730_209_8e-2,
            3.053_266_349_612_323_6e-1,
            3.603_448_999_498_044_5e-1,
            1.257_817_261_112_292_6e-1,
            1.608_378_514_874_227_5e-2,
            6.587_491_615_298_378e-4,
        ],
        [
            1.0,
            2.568_520_192_289_822,
            1.872_952_849_923_460_4,
            5.279_051_029_514_285e-1,
            6.051_834_131_244_132e-2,
            2.335_204_976_268_691_8e-3,
        ],
    );
    fn quotient<const N: usize>((p, q): ([f64; N], [f64; N]), x: f64) -> f64 {
        let horner = |c: [f64; N]| c.into_iter().fold(0.0, |sum, c| sum * x + c);
        horner(p) / horner(q)
    }
    let size = x.abs();
    if size <= 0.468_75 {
        return x * quotient(NEAR, x * x);
    }
    let tail = if size <= 4.0 {
        quotient(MIDDLE, size) * (-size * size).exp()
    } else {
        let inverse = 1.0 / (size * size);
        let series = std::f64::consts::FRAC_2_SQRT_PI / 2.0 - inverse * quotient(FAR, inverse);
        series / size * (-size * size).exp()
    };
    // NaN stays NaN: none of the comparisons holds for it.
    if x.is_nan() { x } else { (1.0 - tail).copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    /// All of whose terms are positive: `2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!`.
    fn series(x: f64) -> f64 {
        let mut term = x;
        let mut sum = 0.0;
        for n in 1..400 {
            sum += term;
            term *= 2.0 * x * x / f64::from(2 * n + 1);
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    #[test]
    fn erf_agrees_with_its_series() {
        for i in -6000..=6000 {
            let x = f64::from(i) * 1e-3;
            // The series adds up to 400 terms, whose roundings are most of the difference.
            assert!(
                abs_diff_eq!(erf(x), series(x), epsilon = 4e-15),
                "{x}: {} {}",
                erf(x),
                series(x)
            );
        }
        assert_eq!([f64::INFINITY, f64::NEG_INFINITY, -0.0].map(erf), [1.0, -1.0, -0.0]);
        assert!(erf(f64::NAN).is_nan());
    }
}
