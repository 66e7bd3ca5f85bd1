//! `nepenthe bench`: skipped without a device, and its whole path in the simulator.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use assert_cmd::Command;
use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::bench::{FAMILIES, ROOF};
use serde_json::Value;

/// The keys of every line, in their order.
const KEYS: [&str; 16] = [
    "kind",
    "name",
    "shape",
    "dtype",
    "median_us",
    "rate",
    "unit",
    "roof",
    "roof_share",
    "rival",
    "rival_rate",
    "predicted",
    "device",
    "driver",
    "date",
    "commit",
];

/// Runs `nepenthe bench`; returns exit code, stdout and stderr.
fn bench(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    // No device is shown even where there is one.
    let output =
        command.env("CUDA_VISIBLE_DEVICES", "-1").arg("bench").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn simulator() -> bool {
    let opened = Simulator::open(Timing::ALL[0]);
    if let Err(error) = &opened {
        eprintln!("skipped: {error}");
    }
    opened.is_ok()
}

/// Checks the lines of a run and returns their families.
fn check(lines: &str, dtype: &str) -> BTreeSet<String> {
    let mut kinds = BTreeSet::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let object = line.as_object().unwrap();
        let kind = line["kind"].as_str().unwrap();
        let mut wanted = KEYS.to_vec();
        if kind == "step" {
            wanted.extend(["peak_bytes", "planned_bytes"]);
        }
        assert_eq!(object.keys().map(String::as_str).collect::<Vec<_>>(), wanted, "{line}");
        for key in ["name", "shape", "date", "commit"] {
            assert!(line[key].as_str().is_some_and(|text| !text.is_empty()), "{line}");
        }
        assert_eq!((&line["device"], &line["dtype"]), (&"simulated".into(), &dtype.into()));
        assert!(["TFLOP/s", "GB/s", "tokens/s"].contains(&line["unit"].as_str().unwrap()));
        assert!(line["rival"].is_null() && line["rival_rate"].is_null(), "{line}");
        for key in ["median_us", "rate"] {
            assert!(line[key].as_f64().is_some_and(|x| x > 0.0), "{line}");
        }
        assert_eq!(line["roof"].is_null(), kind == ROOF, "{line}");
        assert_eq!(line["roof_share"].is_null(), kind == ROOF, "{line}");
        assert_eq!(line["predicted"].is_null(), kind == ROOF || dtype == "fp32", "{line}");
        kinds.insert(kind.to_owned());
    }
    kinds
}

#[test]
fn without_a_device_it_says_so_and_succeeds() {
    for args in [&[][..], &["--json"], &["--device", "cuda"]] {
        let (code, stdout, stderr) = bench(args);
        assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
        assert!(stderr.starts_with("skipped: no CUDA device: device cuda: "), "{stderr}");
    }
}

#[test]
fn every_family_is_measured_in_bf16() {
    if !simulator() {
        return;
    }
    let (code, stdout, stderr) = bench(&["--json", "--device", "sim", "--repeat", "2"]);
    assert_eq!(code, 0, "{stderr}");
    let wanted = FAMILIES.iter().map(|(name, _)| (*name).to_owned()).chain([ROOF.to_owned()]);
    assert_eq!(check(&stdout, "bf16"), wanted.collect());
    assert_eq!(stderr.matches("no rival: ").count(), 1, "{stderr}");
    assert!(!stderr.contains("left out"), "{stderr}");
}

#[test]
fn one_family_is_measured_in_fp32_and_laid_out_as_a_table() {
    if !simulator() {
        return;
    }
    let args = ["--device", "sim", "--precision", "fp32", "--repeat", "1", "--only"];
    for family in ["gemm", "attention", "head", "update"] {
        let args = [&args[..], &[family, "--json"]].concat();
        let (code, stdout, stderr) = bench(&args);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(check(&stdout, "fp32"), BTreeSet::from([family.to_owned()]));
    }
    let (code, stdout, stderr) = bench(&[&args[..], &["norm"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("simulated, driver simulator, "), "{stdout}");
    assert!(stdout.contains("tiny backward"), "{stdout}");
}
