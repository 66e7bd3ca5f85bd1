//! The page that `doctor` prints: a screen of 24 lines, or everything.

use serde_json::Value;

use super::list;
use crate::cli::output::table;
use crate::report::units::bytes;

/// Devices that the short page lists.
const DEVICES: usize = 6;
/// Failures that the short page lists.
const FAILURES: usize = 4;

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

/// Writes at most `most` lines of `lines`, and how many there are besides.
fn first(lines: Vec<String>, most: usize, what: &str) -> Vec<String> {
    let more = lines.len().saturating_sub(most);
    let mut first: Vec<String> = lines.into_iter().take(most).collect();
    if more > 0 {
        first.push(format!("          {more} more {what}: --verbose lists all"));
    }
    first
}

/// Lists what failed, one line each.
fn failed(rows: &[Value], name: &str) -> Vec<String> {
    let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let line = |row: &Value, text: &Value| {
        format!("FAILED    {}, {}: {}", word(&row[name]), word(&row["precision"]), word(text))
    };
    rows.iter()
        .flat_map(|row| list(&row["failures"]).iter().map(move |text| line(row, text)))
        .collect()
}

/// Says how many of `rows` passed; `worst` is the largest share of its tolerance that any of them took.
fn passed(label: &str, rows: &[Value], worst: Option<f64>) -> String {
    let good = rows.iter().filter(|row| list(&row["failures"]).is_empty()).count();
    let worst = worst.map_or(String::new(), |worst| format!(", worst {worst:.2} of the tolerance"));
    format!("{label:<9} {good} of {} passed{worst}", rows.len())
}

/// Lays out what `doctor` found, on one screen or, where `verbose`, all of it.
pub(super) fn text(value: &Value, verbose: bool) -> String {
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
    match kernels {
        [] => lines.push(format!("kernels   none: {}", word(&build["why_no_kernels"]))),
        _ => {
            let count: usize = kernels.iter().map(|image| list(&image["kernels"]).len()).sum();
            let mut targets: Vec<String> = Vec::new();
            for target in kernels.iter().flat_map(|image| list(&image["architectures"])) {
                if !targets.contains(&word(target)) {
                    targets.push(word(target));
                }
            }
            lines.push(format!(
                "kernels   {count} in {} files, for {} and as PTX; nvcc {}",
                kernels.len(),
                targets.join(", "),
                word(&build["nvcc"])
            ));
        }
    }
    if verbose {
        lines.extend(kernels.iter().map(|image| {
            format!(
                "          {}: {} for {}; sha256 {}",
                word(&image["file"]),
                words(&image["kernels"]),
                words(&image["architectures"]),
                word(&image["sha256"])
            )
        }));
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
    let version = match &driver["cuda"] {
        Value::String(version) => format!("CUDA {version}"),
        _ => "none".to_owned(),
    };
    // What keeps a device from being used is said once, below, with what to do.
    let why_no_cuda = value["possible"]["why_no_cuda"].as_str();
    let problem =
        driver["problem"].as_str().filter(|p| !why_no_cuda.is_some_and(|w| w.contains(p)));
    let problem = problem.map_or(String::new(), |problem| format!("; problem: {problem}"));
    lines.push(format!("driver    {version}{problem}"));
    let devices = list(&driver["devices"]).iter().map(|device| {
        let supported = match device["supported"] == true {
            true => "",
            false => "; not supported: 8.0 or higher is needed",
        };
        format!(
            "device    {}: {}, compute capability {}, {}, {} free{supported}",
            device["ordinal"],
            word(&device["name"]),
            word(&device["capability"]),
            size(&device["total_bytes"]),
            size(&device["free_bytes"])
        )
    });
    lines.extend(first(devices.collect(), if verbose { usize::MAX } else { DEVICES }, "devices"));
    lines.push("possible  --device cpu".to_owned());
    if value["possible"]["cuda"] == true {
        lines.push("possible  --device cuda".to_owned());
    } else if let Some(why) = why_no_cuda {
        lines.push(format!("not       {why}"));
        if let Some(hint) = value["possible"]["hint"].as_str() {
            lines.push(format!("          {hint}"));
        }
    }
    let (conformance, trajectories) = (list(&value["conformance"]), list(&value["trajectories"]));
    if conformance.is_empty() {
        return lines.join("\n");
    }
    if verbose {
        lines.push(format!("\n{}", families(conformance)));
        lines.push(runs(trajectories));
    }
    let shares =
        |rows: &[Value]| rows.iter().filter_map(|row| row["worst"].as_f64()).reduce(f64::max);
    lines.push(passed("families", conformance, shares(conformance)));
    let of_runs = trajectories.iter().flat_map(|run| list(&run["rows"])).flat_map(|row| {
        (0..2).filter_map(|at| Some(row["deviation"][at].as_f64()? / row["allowed"][at].as_f64()?))
    });
    lines.push(passed("runs", trajectories, of_runs.reduce(f64::max)));
    if !verbose {
        let mut all = failed(conformance, "family");
        all.extend(failed(trajectories, "trajectory"));
        lines.extend(first(all, FAILURES, "failures"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::problem_of;
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

    fn report(devices: usize, failures: &[&str]) -> Value {
        let image = |file: &str| {
            json!({
                "file": file, "kernels": ["one", "two"], "architectures": ["sm_80", "sm_90a"],
                "bytes": 9, "sha256": "0123", "spills": [],
            })
        };
        let device = |ordinal: usize| {
            json!({
                "ordinal": ordinal, "name": "GPU", "capability": "9.0", "total_bytes": 1 << 30,
                "free_bytes": 1 << 20, "supported": true,
            })
        };
        let family = |at: usize| {
            json!({
                "family": format!("family{at}"), "precision": "bf16", "cases": 3, "worst": 0.25, "seconds": 0.1,
                "failures": if at == 0 { failures } else { &[] },
            })
        };
        let row = json!({"what": "loss", "deviation": [0.1, 0.2], "allowed": [0.5, 0.5]});
        json!({
            "build": {
                "version": "1", "features": ["cuda"], "profile": "release", "target": "x", "nvcc": "13.0.88",
                "kernels": (0..28).map(|i| image(&format!("k{i}.cu"))).collect::<Vec<_>>(), "why_no_kernels": "",
            },
            "cpu": {"threads": 2, "features": ["avx2"]},
            "memory": {"total_bytes": 1, "available_bytes": 1},
            "driver": {
                "present": true, "cuda": "13.0", "devices": (0..devices).map(device).collect::<Vec<_>>(),
                "problem": null,
            },
            "possible": {"cpu": true, "cuda": true, "why_no_cuda": null, "hint": null},
            "conformance": (0..32).map(family).collect::<Vec<_>>(),
            "trajectories": [{"trajectory": "a", "precision": "bf16", "rows": [row], "failures": []}],
        })
    }

    #[test]
    fn the_page_fits_a_screen_however_many_devices_kernels_and_failures_there_are() {
        for (devices, failures) in [(0, 0), (1, 0), (8, 0), (16, 40)] {
            let failures: Vec<&str> = vec!["case: off"; failures];
            let value = report(devices, &failures);
            let page = text(&value, false);
            assert!(page.lines().count() <= 24, "{page}");
            assert!(!page.contains("none:") && !page.contains("sha256"), "{page}");
            assert!(page.contains("kernels   56 in 28 files, for sm_80, sm_90a"), "{page}");
            let good = if failures.is_empty() { 32 } else { 31 };
            assert!(page.contains(&format!("families  {good} of 32 passed")), "{page}");
            assert_eq!(page.contains("FAILED    family0, bf16: case: off"), !failures.is_empty());
            assert_eq!(page.contains("36 more failures: --verbose"), !failures.is_empty());
            let all = text(&value, true);
            assert!(all.contains("k27.cu: one two for sm_80 sm_90a; sha256 0123"), "{all}");
            assert_eq!(all.matches("case: off").count(), failures.len(), "{all}");
        }
    }

    #[test]
    fn a_problem_is_told_once_with_what_to_do() {
        let mut value = report(1, &[]);
        let problem = "the NVIDIA driver supports CUDA 12.8, wanted 13.0";
        value["conformance"] = json!([]);
        value["driver"]["problem"] = json!(problem);
        value["possible"] = json!({
            "cpu": true, "cuda": false, "why_no_cuda": format!("device cuda: {problem}"), "hint": "update it",
        });
        let page = text(&value, false);
        assert_eq!(page.matches(problem).count(), 1, "{page}");
        assert!(page.ends_with(&format!("not       device cuda: {problem}\n          update it")));
        // What the device says and the probe does not is told too.
        value["possible"]["why_no_cuda"] = json!("device cuda: another one");
        assert!(text(&value, false).contains(&format!("problem: {problem}")));
    }
}
