//! `doctor`: what is measured. [`page`] lays it out.

mod page;

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::engine::{DeviceArgs, Engine};
use super::output::Output;
use crate::backend::gpu::{Gpu, Precision, images, probe};
use crate::conformance::FAMILIES;
use crate::conformance::trajectory::{self, Recorded, Response, Row, judge};
use crate::error::{Error, Kind, Result};

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Also list the kernels with their hashes, every op family and every quantity of the recorded runs
    #[arg(long)]
    verbose: bool,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let (engine, problem) = args.device.open_or_why()?;
    let why_no_cuda = problem.as_ref().map(Error::message);
    let hint = problem.as_ref().and_then(Error::hint_text);
    let probe = probe::probe();
    let kernels: Vec<Value> = images::IMAGES
        .iter()
        .map(|image| {
            let names: Vec<&str> = image.kernels.iter().map(|kernel| kernel.name).collect();
            json!({
                "file": image.file, "kernels": names, "architectures": image.architectures(),
                "bytes": image.fatbin.len(), "sha256": image.sha256(), "spills": image.spills(),
            })
        })
        .collect();
    let devices: Vec<Value> = probe
        .devices
        .iter()
        .map(|d| {
            json!({
                "ordinal": d.ordinal, "name": d.name,
                "capability": format!("{}.{}", d.capability.0, d.capability.1),
                "total_bytes": d.total_bytes, "free_bytes": d.free_bytes, "supported": d.supported(),
            })
        })
        .collect();
    let (total, available) = host_memory();
    let features: &[&str] = if cfg!(feature = "cuda") { &["cuda"] } else { &[] };
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let value = json!({
        "build": {
            "version": env!("CARGO_PKG_VERSION"), "features": features, "profile": profile,
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "nvcc": images::NVCC_VERSION, "kernels": kernels, "why_no_kernels": images::WHY_EMPTY,
        },
        "cpu": {"threads": rayon::current_num_threads(), "features": cpu_features()},
        "memory": {"total_bytes": total, "available_bytes": available},
        "driver": {
            "present": probe.driver_present, "cuda": probe.version.map(|v| v.to_string()),
            "devices": devices, "problem": probe.problem.as_ref().map(|p| p.to_string()),
        },
        "possible": {
            "cpu": true, "cuda": engine.name() == "cuda", "why_no_cuda": why_no_cuda, "hint": hint,
        },
        "conformance": conformance(&engine)?,
        "trajectories": trajectories(&engine)?,
    });
    out.result(&value, || page::text(&value, args.verbose))?;
    match problem_of(&value) {
        None => Ok(()),
        Some(problem) => Err(Error::new(Kind::Device, format!("doctor: {problem}"))
            .hint("use --device cpu, and report the output of `nepenthe doctor --verbose`")),
    }
}

/// Says how many families and recorded runs failed, if any did.
fn problem_of(value: &Value) -> Option<String> {
    let count = |key: &str, what: &str| {
        let rows = list(&value[key]);
        let failed = rows.iter().filter(|row| !list(&row["failures"]).is_empty()).count();
        (failed > 0).then(|| format!("{failed} of {} {what}", rows.len()))
    };
    let parts = [
        count("conformance", "families differ from the CPU backend"),
        count("trajectories", "recorded runs end too far from the record"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Returns the items of a JSON array; none for anything else.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Starts a bar of checks, which leaves nothing on the screen; hidden where stderr is no terminal.
fn progress(checks: usize) -> ProgressBar {
    let bar = ProgressBar::new(checks as u64);
    match ProgressStyle::with_template("check {pos}/{len}  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Runs every family of ops on a GPU in both precisions against the CPU backend; nothing on the CPU.
fn conformance(engine: &Engine) -> Result<Vec<Value>> {
    let Engine::Gpu(driver, ..) = engine else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    let bar = progress(2 * FAMILIES.len());
    for precision in [Precision::Bf16, Precision::Fp32] {
        let label = precision.name();
        for (name, family) in FAMILIES {
            bar.set_message(format!("{name}, {label}"));
            // A device of its own for each family: what its cases allocate goes back with it.
            let gpu = Gpu::new(driver.clone(), precision, 0)?;
            let start = Instant::now();
            let verdicts = family(&gpu);
            let failures: Vec<String> = verdicts
                .iter()
                .filter_map(|v| Some(format!("{}: {}", v.case, v.failure.as_ref()?)))
                .collect();
            rows.push(json!({
                "family": name, "precision": label, "cases": verdicts.len(),
                "worst": verdicts.iter().fold(0.0, |worst: f64, v| worst.max(v.worst)),
                "seconds": start.elapsed().as_secs_f64(), "failures": failures,
            }));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Repeats the recorded runs on a GPU in both precisions; nothing on the CPU.
fn trajectories(engine: &Engine) -> Result<Vec<Value>> {
    let Engine::Gpu(driver, ..) = engine else { return Ok(Vec::new()) };
    let mut runs = Vec::new();
    let cases = Recorded::embedded()?;
    let bar = progress(2 * cases.len());
    for case in cases {
        let response = Response::measure(&case)?;
        for (precision, state) in [(Precision::Fp32, "exact"), (Precision::Bf16, "compact")] {
            let label = precision.name();
            bar.set_message(format!("{}, {label}", case.name));
            let start = Instant::now();
            let gpu = Gpu::new(driver.clone(), precision, 0)?;
            let run = trajectory::run(&gpu, &case, judge::plan(precision));
            let judged = run.and_then(|trace| {
                let rows = response.judge(&case, precision, &trace)?;
                Ok((trace, rows))
            });
            let (steps, rows, failures) = match judged {
                Ok((trace, rows)) => {
                    let failures = rows.iter().filter(|row| row.failed()).map(failure).collect();
                    (trace.figures.iter().map(|figure| json!(figure)).collect(), rows, failures)
                }
                Err(error) => (Vec::new(), Vec::new(), vec![error.to_string()]),
            };
            runs.push(json!({
                "trajectory": case.name, "precision": label, "state": state,
                "seconds": start.elapsed().as_secs_f64(), "rows": rows, "failures": failures,
                "steps": steps,
            }));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(runs)
}

fn failure(row: &Row) -> String {
    let Row { what, deviation: [a, b], allowed: [of_a, of_b], .. } = row;
    format!("{what}: off by {a:.2e} and {b:.2e}, allowed {of_a:.2e} and {of_b:.2e}")
}

/// Names the instruction sets that matter to the CPU backend and that this CPU has.
fn cpu_features() -> Vec<&'static str> {
    #[allow(unused_mut)]
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($name:tt),*) => {
                $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })*
            };
        }
        look!(
            "sse4.2",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512bf16"
        );
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        found.push("neon");
    }
    found
}

/// Returns all memory of this machine and what is available now, in bytes, where the system says.
pub(super) fn host_memory() -> (Option<u64>, Option<u64>) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable"))
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_reads_kibibytes_and_survives_nonsense() {
        let text = "MemTotal:       16 kB\nMemAvailable:  many kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16384));
        assert_eq!(meminfo(text, "MemAvailable"), None);
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
