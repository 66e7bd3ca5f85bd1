//! `doctor`.

use serde_json::{Value, json};

use std::time::Instant;

use super::engine::{DeviceArgs, Engine};
use super::output::{Output, bytes, note, table};
use crate::backend::gpu::{Gpu, Precision, images, probe};
use crate::error::{Error, Kind, Result};
use crate::run::conformance::FAMILIES;

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
}

/// The architectures that build.rs compiles every kernel for.
const KERNEL_TARGETS: [&str; 3] = ["sm_80", "sm_90a", "PTX"];

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let (engine, problem) = args.device.open_or_why()?;
    let why_no_cuda = problem.as_ref().map(Error::message);
    let probe = probe::probe();
    let kernels: Vec<Value> = images::IMAGES
        .iter()
        .map(|image| {
            json!({
                "name": image.name, "kernels": image.kernels, "architectures": KERNEL_TARGETS,
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
    });
    out.result(&value, || text(&value))?;
    let failed = |row: &&Value| row["failures"].as_array().is_some_and(|list| !list.is_empty());
    let rows = value["conformance"].as_array().map(Vec::as_slice).unwrap_or_default();
    match rows.iter().filter(failed).count() {
        0 => Ok(()),
        n => Err(Error::new(
            Kind::Device,
            format!("doctor: {n} of {} families differ from the CPU backend", rows.len()),
        )
        .hint("use --device cpu, and report the table above with the driver's version")),
    }
}

/// Runs every family of ops on a GPU in both precisions against the CPU backend; nothing on the CPU.
fn conformance(engine: &Engine) -> Result<Vec<Value>> {
    let Engine::Gpu(driver, ..) = engine else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for (precision, label) in [(Precision::Bf16, "bf16"), (Precision::Fp32, "fp32")] {
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

/// Lays the families out: cases, the worst share of the tolerance, seconds, and what failed below.
fn families(rows: &[Value]) -> String {
    let head = ["family", "precision", "cases", "worst", "seconds", ""].map(str::to_owned);
    let mut cells = vec![head.to_vec()];
    let mut failures = String::new();
    for row in rows {
        let failed = row["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
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
    let list = |v: &Value| match v.as_array().filter(|items| !items.is_empty()) {
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
        format!("features  {}", list(&build["features"])),
    ];
    let kernels = build["kernels"].as_array().map(Vec::as_slice).unwrap_or_default();
    if kernels.is_empty() {
        lines.push(format!("kernels   none: {}", word(&build["why_no_kernels"])));
    }
    for image in kernels {
        lines.push(format!(
            "kernels   {}: {} for {}; sha256 {}",
            word(&image["name"]),
            list(&image["kernels"]),
            list(&image["architectures"]),
            word(&image["sha256"])
        ));
    }
    lines.push(format!(
        "cpu       {} threads; {}",
        value["cpu"]["threads"],
        list(&value["cpu"]["features"])
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
    let rows = value["conformance"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !rows.is_empty() {
        lines.push(format!("\n{}", families(rows)));
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
    fn meminfo_reads_kibibytes_and_survives_nonsense() {
        let text = "MemTotal:       16 kB\nMemAvailable:  many kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16384));
        assert_eq!(meminfo(text, "MemAvailable"), None);
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
