//! Every kernel against the CPU backend: in the simulator, and on a GPU where there is one.

use crate::support::on_a_gpu;
use nepenthe::backend::gpu::Gpu;
use nepenthe::conformance::FAMILIES;

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
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::support::{simulated, simulated_as};
    use nepenthe::backend::gpu::Precision;
    use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};

    /// Families whose ops have kernels of their own on compute capability 9.0.
    const SM90: [&str; 4] = ["linear", "fused", "head", "attention"];

    fn run(timing: usize, precision: Precision) {
        let timing = Timing::ALL[timing];
        if simulated(timing, precision).is_some() {
            let what = format!("{precision:?} {timing:?}");
            run_all(&what, |_| true, || simulated(timing, precision).unwrap());
        }
    }

    fn run_sm90(timing: usize) {
        let timing = Timing::ALL[timing];
        let device = || simulated_as(timing, Precision::Bf16, (9, 0));
        if device().is_some() {
            let what = format!("sm_90 {timing:?}");
            run_all(&what, |name| SM90.contains(&name), || device().unwrap());
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

    /// Lists all kernels: docs/kernels.md names them, which tests/kernels_table.rs compares with the compiled code.
    fn all() -> BTreeSet<String> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
        let text = std::fs::read_to_string(page).unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_kernel_is_launched_by_some_case() {
        let mut missing = all();
        assert!(missing.len() > 150, "{} kernels found", missing.len());
        for (capability, precision, wanted) in [
            ((8, 0), Precision::Bf16, &[][..]),
            ((8, 0), Precision::Fp32, &[]),
            ((8, 6), Precision::Bf16, &SMALL),
            ((9, 0), Precision::Bf16, &SM90),
        ] {
            let Ok(driver) = Simulator::open_as(Timing::ALL[0], capability) else {
                eprintln!("skipped: no simulator");
                return;
            };
            for (name, run) in FAMILIES {
                if wanted.is_empty() || wanted.contains(name) {
                    // Kernels need not run, but where a case ends with the first wrong number.
                    driver.run_kernels(*name == "state");
                    run(&Gpu::new(driver.clone(), precision, 0).unwrap());
                }
            }
            for kernel in driver.launched() {
                missing.remove(kernel);
            }
        }
        assert!(missing.is_empty(), "no case of doctor launches {missing:?}");
    }

    #[test]
    fn attention_with_wide_heads_agrees_where_a_block_gets_little_shared_memory() {
        for capability in [(8, 6), (8, 9), (12, 0)] {
            let device = || simulated_as(Timing::ALL[1], Precision::Bf16, capability);
            if device().is_some() {
                let what = format!("{capability:?}");
                run_all(&what, |name| name == "attention", || device().unwrap());
            }
        }
    }

    #[test]
    fn every_sm90_kernel_agrees_lazily_in_random_order() {
        run_sm90(4);
    }

    #[test]
    fn every_sm90_kernel_agrees_eagerly_backward() {
        run_sm90(3);
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
