//! Every kernel against the CPU backend: in the simulator, and on a GPU where there is one.

use crate::support::on_a_gpu;
use nepenthe::backend::gpu::Gpu;
use nepenthe::run::conformance::FAMILIES;

/// Runs the families that are `wanted` (or the one of them named by `NEPENTHE_FAMILY`) and fails with every case that
/// failed.
fn run_all(what: &str, wanted: impl Fn(&str) -> bool, gpu: impl Fn() -> Gpu) {
    let only = std::env::var("NEPENTHE_FAMILY").ok();
    let mut failed = Vec::new();
    for (name, run) in FAMILIES
        .iter()
        .filter(|(name, _)| wanted(name) && only.as_deref().is_none_or(|o| o == *name))
    {
        let started = std::time::Instant::now();
        let verdicts = run(&gpu());
        let worst = verdicts.iter().fold(0.0, |a: f64, v| a.max(v.worst));
        eprintln!(
            "{what}: {name}: {} cases, worst {worst:.3} of the tolerance, {:.1} s",
            verdicts.len(),
            started.elapsed().as_secs_f64()
        );
        assert!(!verdicts.is_empty(), "{name}: no case");
        for verdict in verdicts {
            if let Some(failure) = verdict.failure {
                failed.push(format!("{what}: {name}: {}: {failure}", verdict.case));
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[cfg(feature = "sim")]
mod simulated {
    use super::*;
    use crate::support::{simulated, simulated_as};
    use nepenthe::backend::gpu::Precision;
    use nepenthe::backend::gpu::driver::sim::Timing;

    /// Families whose ops have kernels of their own on compute capability 9.0.
    const HOPPER: [&str; 4] = ["linear", "fused", "head", "attention"];

    fn run(timing: usize, precision: Precision) {
        let timing = Timing::ALL[timing];
        if simulated(timing, precision).is_some() {
            let what = format!("{precision:?} {timing:?}");
            run_all(&what, |_| true, || simulated(timing, precision).unwrap());
        }
    }

    fn run_hopper(timing: usize) {
        let timing = Timing::ALL[timing];
        let device = || simulated_as(timing, Precision::Bf16, (9, 0));
        if device().is_some() {
            let what = format!("sm_90 {timing:?}");
            run_all(&what, |name| HOPPER.contains(&name), || device().unwrap());
        }
    }

    /// Families whose kernels differ where a block gets 99 KiB of shared memory.
    const SMALL: [&str; 2] = ["linear", "fused"];

    #[test]
    fn products_agree_where_a_block_gets_little_shared_memory() {
        let device = || simulated_as(Timing::ALL[4], Precision::Bf16, (8, 6));
        if let Some(gpu) = device() {
            // What follows would show nothing of the narrow blocks otherwise.
            assert!(gpu.driver().identity().shared_bytes < 100 << 10);
            run_all("sm_86", |name| SMALL.contains(&name), || device().unwrap());
        }
    }

    #[test]
    fn every_hopper_kernel_agrees_lazily_in_random_order() {
        run_hopper(4);
    }

    #[test]
    fn every_hopper_kernel_agrees_eagerly_backward() {
        run_hopper(3);
    }

    #[test]
    fn every_kernel_agrees_in_bf16_lazily_forward() {
        run(0, Precision::Bf16);
    }

    #[test]
    fn every_kernel_agrees_in_bf16_eagerly_backward() {
        run(3, Precision::Bf16);
    }

    #[test]
    fn every_kernel_agrees_in_fp32_lazily_backward() {
        run(1, Precision::Fp32);
    }

    #[test]
    fn every_kernel_agrees_in_fp32_eagerly_forward() {
        run(2, Precision::Fp32);
    }
}

#[test]
fn every_kernel_agrees_on_a_gpu_where_there_is_one() {
    on_a_gpu(|precision, device| run_all(&format!("{precision:?}"), |_| true, device));
}
