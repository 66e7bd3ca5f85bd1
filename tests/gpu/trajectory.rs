//! Recorded runs of the reference on a device, all their steps: in the simulator, and on a GPU where there is one.

use crate::support::on_a_gpu;
use nepenthe::backend::gpu::{Gpu, Precision};
use nepenthe::conformance::trajectory::{Recorded, Response, judge, run};

/// Repeats every record on devices that `gpu` makes and fails with every line of the table that failed.
fn repeat(what: &str, precision: Precision, gpu: impl Fn() -> Gpu) {
    let cases = Recorded::embedded().unwrap();
    assert!(cases.len() >= 2);
    let mut failed = Vec::new();
    for case in cases {
        let trace = run(&gpu(), &case, judge::plan(precision)).unwrap();
        let rows = Response::measure(&case).unwrap().judge(&case, precision, &trace).unwrap();
        let share = |part: usize| {
            rows.iter().map(|row| row.deviation[part] / row.allowed[part]).fold(0.0, f64::max)
        };
        eprintln!(
            "{what}: {}: {} steps, at most {:.2} and {:.2} of what is allowed",
            case.name,
            case.steps(),
            share(0),
            share(1)
        );
        let lines = rows.iter().filter(|row| row.failed());
        failed.extend(lines.map(|row| format!("{what}: {}: {row:?}", case.name)));
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[cfg(feature = "sim")]
mod simulated {
    use super::*;
    use crate::support::simulated;
    use nepenthe::backend::gpu::driver::sim::Timing;

    fn simulate(timing: usize, precision: Precision) {
        let timing = Timing::ALL[timing];
        if simulated(timing, precision).is_some() {
            let what = format!("{precision:?} {timing:?}");
            repeat(&what, precision, || simulated(timing, precision).unwrap());
        }
    }

    #[test]
    fn recorded_runs_agree_in_fp32() {
        simulate(1, Precision::Fp32);
    }

    #[test]
    fn recorded_runs_agree_in_bf16() {
        simulate(2, Precision::Bf16);
    }
}

#[test]
fn recorded_runs_agree_on_a_gpu_where_there_is_one() {
    on_a_gpu(|precision, device| repeat(&format!("{precision:?}"), precision, device));
}
