//! Helpers of the tests of ops and of the update: the one tolerance, random numbers, comparisons.
#![allow(dead_code)]

pub mod folder;
pub mod model;

use approx::abs_diff_eq;
use nepenthe::conformance;
pub use nepenthe::conformance::{Dtype, tol};

/// The step that balances truncation (h^4) and rounding (eps / h) of a five-point difference: eps^(1/5). A difference in
/// f64 is off by `tol(Dtype::F64, terms) / STEP`.
pub const STEP: f64 = 1.0 / 2048.0;

/// Opens the simulator in the place of a device, every buffer an allocation of its own; `None`, and a line that says
/// why, where this build has none.
#[cfg(feature = "sim")]
pub fn simulated(
    timing: nepenthe::backend::gpu::driver::sim::Timing,
    precision: nepenthe::backend::gpu::Precision,
) -> Option<nepenthe::backend::gpu::Gpu> {
    simulated_as(timing, precision, (8, 0))
}

/// The same as a device of this compute capability.
#[cfg(feature = "sim")]
pub fn simulated_as(
    timing: nepenthe::backend::gpu::driver::sim::Timing,
    precision: nepenthe::backend::gpu::Precision,
    capability: (u32, u32),
) -> Option<nepenthe::backend::gpu::Gpu> {
    use nepenthe::backend::gpu::{Gpu, driver::sim::Simulator};
    match Simulator::open_as(timing, capability) {
        Ok(driver) => Some(Gpu::guarded(driver, precision).unwrap()),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Does `work` in either precision with what opens the machine's GPU; without one says why not.
pub fn on_a_gpu(
    work: impl Fn(nepenthe::backend::gpu::Precision, &dyn Fn() -> nepenthe::backend::gpu::Gpu),
) {
    use nepenthe::backend::gpu::{Gpu, Precision, open};
    match open() {
        Ok(driver) => {
            for precision in [Precision::Bf16, Precision::Fp32] {
                work(precision, &|| Gpu::new(driver.clone(), precision, 0).unwrap());
            }
        }
        Err(error) => eprintln!("skipped: {error}"),
    }
}

/// The library's numbers, and some that stay away from 0.
pub struct Random(conformance::Random);

impl std::ops::Deref for Random {
    type Target = conformance::Random;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::ops::DerefMut for Random {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(conformance::Random::new(seed))
    }

    /// Draws numbers of magnitude 1/4 to 1, exact in f32: norms of few numbers stay smooth within a step.
    pub fn vec(&mut self, len: usize) -> Vec<f64> {
        (0..len)
            .map(|_| {
                let x = 2.0 * self.unit() - 1.0;
                f64::from((0.75 * x + x.signum() / 4.0) as f32)
            })
            .collect()
    }
}

/// Fails unless `got` is within `allowed` of `want`, relative to the largest entry of `want`.
pub fn assert_near(what: &str, got: &[f64], want: &[f64], allowed: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(
            error <= allowed * scale,
            "{what}: entry {i}: got {got:e}, want {want:e}, scale {scale:e}: off by {:e}, allowed {allowed:e}",
            error / scale
        );
    }
}

/// Compares `grad` with the difference quotient of `cotangent . eval(x)` at single entries and along directions.
///
/// Differences are taken output by output, so that outputs which do not move add no rounding. `terms` is the
/// length of the longest reduction.
pub fn assert_gradient(
    what: &str,
    terms: usize,
    x: &[f64],
    grad: &[f64],
    cotangent: &[f64],
    eval: &mut dyn FnMut(&[f64]) -> Vec<f64>,
) {
    assert_eq!(x.len(), grad.len(), "{what}");
    let mut random = Random::new(50);
    let mut directions: Vec<(String, Vec<(usize, f64)>)> = Vec::new();
    let singles: Vec<usize> = if x.len() <= 6 {
        (0..x.len()).collect()
    } else {
        let mut picked = vec![0, x.len() - 1];
        picked.extend((0..4).map(|_| random.below(x.len())));
        picked
    };
    directions.extend(singles.iter().map(|&i| (format!("entry {i}"), vec![(i, 1.0)])));
    let length = (x.len() as f64).sqrt();
    for k in 0..2 {
        let sign = |random: &mut Random| if random.below(2) == 0 { -1.0 } else { 1.0 };
        let all = (0..x.len()).map(|i| (i, sign(&mut random) / length)).collect();
        directions.push((format!("direction {k}"), all));
    }
    for (name, direction) in directions {
        let mut moved = x.to_vec();
        let mut at = |steps: f64| {
            direction.iter().for_each(|&(i, d)| moved[i] = x[i] + steps * STEP * d);
            let y = eval(&moved);
            assert_eq!(y.len(), cotangent.len(), "{what}: outputs");
            y
        };
        let [a, b, c, d] = [at(1.0), at(-1.0), at(2.0), at(-2.0)];
        let (mut slope, mut scale, mut largest) = (0.0, 0.0, 0.0f64);
        for i in 0..cotangent.len() {
            let difference = 8.0 * (a[i] - b[i]) - (c[i] - d[i]);
            slope += cotangent[i] * difference / (12.0 * STEP);
            // An output near 0 is made of terms of unit size, like the inputs.
            let size = (cotangent[i] * (1.0 + a[i].abs())).powi(2);
            largest = largest.max(size);
            scale += if difference == 0.0 { 0.0 } else { size };
        }
        let scale = scale.max(largest).sqrt();
        let want: f64 = direction.iter().map(|&(i, d)| grad[i] * d).sum();
        let magnitude = direction.iter().map(|&(i, d)| (grad[i] * d).abs()).fold(0.0, f64::max);
        let allowed = tol(Dtype::F64, terms) / STEP * (magnitude + scale);
        assert!(
            abs_diff_eq!(slope, want, epsilon = allowed),
            "{what}: {name}: backward {want:e}, difference {slope:e}, off by {:e}, allowed {allowed:e}",
            (slope - want).abs()
        );
    }
}
