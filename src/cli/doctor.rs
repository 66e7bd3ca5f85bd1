//! `doctor`.

use serde_json::{Value, json};

use std::time::Instant;

use super::engine::{DeviceArgs, Engine};
use super::output::{Output, bytes, note, table};
use crate::backend::gpu::{Gpu, Precision, images, probe};
use crate::error::{Error, Kind, Result};
use crate::run::conformance::FAMILIES;
use crate::run::conformance::trajectory::{self, Recorded, Response, Row, judge};

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let (engine, problem) = args.device.open_or_why()?;
    let why_no_cuda = problem.as_ref().map(Error::message);
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
            "cpu": true, "cuda": engine.name() == "cuda", "why_no_cuda": why_no_cuda,
        },
        "conformance": conformance(&engine)?,
        "trajectories": trajectories(&engine)?,
    });
    out.result(&value, || text(&value))?;
    match problem_of(&value) {
        None => Ok(()),
        Some(problem) => Err(Error::new(Kind::Device, format!("doctor: {problem}"))
            .hint("use --device cpu, and report the table above with the driver's version")),
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

/// Runs every family of ops on a GPU in both precisions against the CPU backend; nothing on the CPU.
fn conformance(engine: &Engine) -> Result<Vec<Value>> {
    let Engine::Gpu(driver, ..) = engine else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for precision in [Precision::Bf16, Precision::Fp32] {
        let label = precision.name();
        for (name, family) in FAMILIES {
            note(&format!("{name}, {label}"));
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
        }
    }
    Ok(rows)
}

/// Repeats the recorded runs on a GPU in both precisions; nothing on the CPU.
fn trajectories(engine: &Engine) -> Result<Vec<Value>> {
    let Engine::Gpu(driver, ..) = engine else { return Ok(Vec::new()) };
    let mut runs = Vec::new();
    for case in Recorded::embedded()? {
        let response = Response::measure(&case)?;
        for (precision, state) in [(Precision::Fp32, "exact"), (Precision::Bf16, "compact")] {
            let label = precision.name();
            note(&format!("{}, {label}", case.name));
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
        }
    }
    Ok(runs)
}

fn failure(row: &Row) -> String {
    let Row { what, deviation: [a, b], allowed: [of_a, of_b], .. } = row;
    format!("{what}: off by {a:.2e} and {b:.2e}, allowed {of_a:.2e} and {of_b:.2e}")
}

/// Lays out the recorded runs, one line per logged quantity or part of the final state: deviations and tolerances.
fn runs(runs: &[Value]) -> String {
    let head = [
        "recorded run",
        "precision",
        "what",
        "first 5 steps or values",
        "allowed",
        "all steps or change",
        "allowed",
        "",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let mut failures = String::new();
    for run in runs {
        let word = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
        for row in list(&run["rows"]) {
            let part = |key: &str, at: usize| row[key][at].as_f64();
            // JSON has no NaN: a deviation that is no number has failed.
            let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.2e}"));
            let fits = |at| part("deviation", at).is_some_and(|x| Some(x) <= part("allowed", at));
            cells.push(vec![
                word("trajectory"),
                word("precision"),
                row["what"].as_str().unwrap_or_default().to_owned(),
                number(part("deviation", 0)),
                number(part("allowed", 0)),
                number(part("deviation", 1)),
                number(part("allowed", 1)),
                if fits(0) && fits(1) { String::new() } else { "FAILED".to_owned() },
            ]);
        }
        for text in list(&run["failures"]).iter().filter_map(Value::as_str) {
            failures.push_str(&format!(
                "FAILED {}, {}: {text}\n",
                word("trajectory"),
                word("precision")
            ));
        }
    }
    format!("{}{failures}", table(&cells))
}

/// Lays the families out: cases, the worst share of the tolerance, seconds, and what failed below.
fn families(rows: &[Value]) -> String {
    let head = ["family", "precision", "cases", "worst", "seconds", ""].map(str::to_owned);
    let mut cells = vec![head.to_vec()];
    let mut failures = String::new();
    for row in rows {
        let failed = list(&row["failures"]);
        cells.push(vec![
            row["family"].as_str().unwrap_or_default().to_owned(),
            row["precision"].as_str().unwrap_or_default().to_owned(),
            row["cases"].to_string(),
            // JSON has no infinity: a failed comparison has no share.
            row["worst"].as_f64().map_or("-".to_owned(), |worst| format!("{worst:.3}")),
            format!("{:.2}", row["seconds"].as_f64().unwrap_or(0.0)),
            if failed.is_empty() { String::new() } else { format!("{} FAILED", failed.len()) },
        ]);
        for text in failed.iter().filter_map(Value::as_str) {
            failures.push_str(&format!("FAILED {} {text}\n", row["family"]));
        }
    }
    format!("{}{failures}", table(&cells))
}

fn text(value: &Value) -> String {
    let word = |v: &Value| v.as_str().map_or_else(|| "none".to_owned(), str::to_owned);
    let words = |v: &Value| match v.as_array().filter(|items| !items.is_empty()) {
        Some(items) => items.iter().map(word).collect::<Vec<_>>().join(" "),
        None => "none".to_owned(),
    };
    let size = |v: &Value| v.as_u64().map_or_else(|| "unknown".to_owned(), bytes);
    let (build, driver) = (&value["build"], &value["driver"]);
    let mut lines = vec![
        format!(
            "version   {} ({}, {})",
            word(&build["version"]),
            word(&build["profile"]),
            word(&build["target"])
        ),
        format!("features  {}", words(&build["features"])),
    ];
    let kernels = list(&build["kernels"]);
    if kernels.is_empty() {
        lines.push(format!("kernels   none: {}", word(&build["why_no_kernels"])));
    }
    for image in kernels {
        lines.push(format!(
            "kernels   {}: {} for {}; sha256 {}",
            word(&image["name"]),
            words(&image["kernels"]),
            words(&image["architectures"]),
            word(&image["sha256"])
        ));
    }
    lines.push(format!(
        "cpu       {} threads; {}",
        value["cpu"]["threads"],
        words(&value["cpu"]["features"])
    ));
    lines.push(format!(
        "memory    {}, {} available",
        size(&value["memory"]["total_bytes"]),
        size(&value["memory"]["available_bytes"])
    ));
    lines.push(format!(
        "driver    CUDA {}; problem: {}",
        word(&driver["cuda"]),
        word(&driver["problem"])
    ));
    for device in driver["devices"].as_array().into_iter().flatten() {
        lines.push(format!(
            "device    {}: {}, compute capability {}, {}, {} free",
            device["ordinal"],
            word(&device["name"]),
            word(&device["capability"]),
            size(&device["total_bytes"]),
            size(&device["free_bytes"])
        ));
    }
    lines.push("possible  --device cpu".to_owned());
    if value["possible"]["cuda"] == true {
        lines.push("possible  --device cuda".to_owned());
    } else if let Some(why) = value["possible"]["why_no_cuda"].as_str() {
        lines.push(format!("not       {why}"));
    }
    if !list(&value["conformance"]).is_empty() {
        lines.push(format!("\n{}", families(list(&value["conformance"]))));
        lines.push(runs(list(&value["trajectories"])));
    }
    lines.join("\n")
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
    fn a_failed_run_is_named_and_counted() {
        let row = |deviation: Value| json!({"what": "loss_tr", "deviation": deviation, "allowed": [0.5, 0.5]});
        let run = |deviation, failures: Value| json!({"trajectory": "a", "precision": "bf16", "rows": [row(deviation)], "failures": failures});
        let good = run(json!([0.1, 0.5]), json!([]));
        // JSON writes a NaN as null.
        let bad = run(json!([0.1, null]), json!(["loss_tr: off"]));
        let value = |all: &[&Value]| json!({"conformance": [], "trajectories": all});
        assert_eq!(problem_of(&value(&[&good])), None);
        let problem = problem_of(&value(&[&good, &bad]));
        assert_eq!(problem.as_deref(), Some("1 of 2 recorded runs end too far from the record"));
        assert!(!runs(&[good]).contains("FAILED"));
        let text = runs(&[bad]);
        assert!(text.contains("FAILED a, bf16: loss_tr: off"), "{text}");
        assert_eq!(text.matches("FAILED").count(), 2, "{text}");
    }

    #[test]
    fn meminfo_reads_kibibytes_and_survives_nonsense() {
        let text = "MemTotal:       16 kB\nMemAvailable:  many kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16384));
        assert_eq!(meminfo(text, "MemAvailable"), None);
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
