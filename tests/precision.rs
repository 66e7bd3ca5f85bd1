//! `probe precision` replays a recorded run: in exact state it is the run, in compact state it stays near, and the run
//! folder is not touched.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

const STEPS: usize = 3;

fn nepenthe(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(cargo_bin("nepenthe")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

/// Makes a short run of a recorded model and returns its folder.
fn recorded(dir: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    let model = dir.join("model");
    std::fs::create_dir(&model).unwrap();
    for (from, name) in [
        ("models/llama-gqa", "config.json"),
        ("models/llama-gqa", "model.safetensors"),
        ("tokenizer/bytelevel", "tokenizer.json"),
        ("tokenizer/bytelevel", "tokenizer_config.json"),
    ] {
        std::fs::copy(golden.join(from).join(name), model.join(name)).unwrap();
    }
    for (name, step) in [("forget", 7), ("retain", 11)] {
        let rows: Vec<String> = (0..6)
            .map(|d| {
                let ids = (0..20 + d).map(|t| ((t * step + d * 13) % 500 + 2).to_string());
                format!("{{\"input_ids\": [{}]}}", ids.collect::<Vec<_>>().join(","))
            })
            .collect();
        std::fs::write(dir.join(format!("{name}.jsonl")), rows.join("\n")).unwrap();
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let steps = format!("run.steps={STEPS}");
    let cache = format!("data.cache={}", path("cache"));
    let (code, _, stderr) = nepenthe(&[
        "unlearn",
        "--model",
        &path("model"),
        "--forget",
        &path("forget.jsonl"),
        "--retain",
        &path("retain.jsonl"),
        "--out",
        &path("run"),
        "--set",
        &steps,
        "--set",
        &cache,
        "--set",
        "run.micro_batch=2",
        "--set",
        "optim.lr=0.05",
        "--set",
        "eval.documents=0",
    ]);
    assert_eq!(code, 0, "{stderr}");
    dir.join("run")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All files below a folder but those in a folder called `probe`.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("probe") {
                found.extend(files(&path));
            }
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn precision_replays_the_run_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path());
    let before = files(&run);
    let shown = run.display().to_string();
    let (code, stdout, stderr) = nepenthe(&["probe", "precision", &shown, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let (replayed, logged) =
        (lines(&run.join("probe/precision.jsonl")), lines(&run.join("metrics.jsonl")));
    assert_eq!((replayed.len(), logged.len()), (STEPS, STEPS));
    assert_eq!(summary["last"][0], replayed[STEPS - 1]);
    for (line, logged) in replayed.iter().zip(&logged) {
        for key in ["loss_tr", "loss_kl", "grad_norm"] {
            assert_eq!(line[format!("{key}_exact")], logged[key], "{key}: exact state is the run");
        }
        assert_eq!(line["bytes_per_parameter"], 10);
        for key in ["motion_error", "drift_error"] {
            let error = line[key].as_f64().unwrap();
            assert!(error > 1e-5 && error < 0.5, "{key}: {error}");
        }
        assert_ne!(line["loss_tr"], line["loss_tr_exact"], "compact state rounds");
    }
    for name in ["precision-parameters.svg", "precision-metrics.svg"] {
        let svg = std::fs::read_to_string(run.join("probe").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("compact: "), "{name}");
    }
    for state in ["tiny", "approx"] {
        let (code, _, stderr) = nepenthe(&["probe", "precision", &shown, "--states", state]);
        assert_eq!(code, 2);
        assert!(stderr.contains(&format!("states: {state}: this build keeps")), "{stderr}");
    }
}
