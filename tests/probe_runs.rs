//! `probe` replays a recorded run: in exact state it is the run, in compact state it stays near, and the run folder is not
//! touched, whatever is looked at.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};

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
fn ngd_and_gradients_read_the_run_and_leave_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path());
    let before = files(&run);
    let shown = run.display().to_string();
    let ngd = [
        "probe",
        "ngd",
        &shown,
        "--at",
        "0,3",
        "--draws",
        "1",
        "--iterations",
        "4",
        "--lanczos",
        "3",
    ];
    let (code, stdout, stderr) =
        nepenthe(&[&ngd[..], &["--losses", "ll,npo", "--steps", "2", "--json"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = nepenthe(&["probe", "gradients", &shown, "--every", "2"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let out = run.join("probe");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let compared = lines(&out.join("ngd.jsonl"));
    assert_eq!(summary["ngd"], Value::from(compared.clone()));
    // The student starts where the teacher is: no drift, but a step to make.
    assert_eq!((&compared[0]["steps"], compared[0]["drift"].as_f64()), (&0.into(), Some(0.0)));
    assert!(compared[1]["drift"].as_f64() > Some(0.0) && compared[1]["step"].as_f64() > Some(0.0));
    let share = |line: &Value| line["share"].as_f64().unwrap();
    let parts = compared[1]["parts"].as_array().unwrap();
    assert!((parts.iter().map(share).sum::<f64>() - 1.0).abs() < 1e-9);
    for line in &compared {
        let residuals = line["residuals"].as_array().unwrap();
        assert!(residuals.last().unwrap().as_f64() < residuals[0].as_f64(), "{line}");
        assert!(line["product_error"].as_f64() < Some(1e-2), "{line}");
    }
    // Probing between its steps does not change the run: its last step is the recorded one, to the bit.
    let logged = lines(&run.join("metrics.jsonl"));
    for key in ["global_step", "loss_tr", "loss_kl", "grad_norm"] {
        assert_eq!(summary["replayed"][key], logged[STEPS - 1][key], "{key}");
    }
    let spectrum = compared[1]["spectrum"].as_array().unwrap();
    assert_eq!(spectrum.len(), 3);
    let weights = spectrum.iter().map(|node| node[1].as_f64().unwrap());
    assert!((weights.sum::<f64>() - 1.0).abs() < 1e-9, "{spectrum:?}");
    let places = lines(&out.join("ngd-path.jsonl"));
    assert_eq!(places.len(), 3 * 3);
    let zero = places.iter().filter(|place| place["steps"] == 0);
    assert!(zero.clone().all(|place| place["moved"] == 0.0 && place["kl"] == 0.0));
    assert!(places.iter().filter(|p| p["steps"] == 2).all(|p| p["moved"].as_f64() > Some(0.0)));
    let healths = lines(&out.join("gradients.jsonl"));
    let steps: Vec<&Value> =
        healths.iter().filter(|h| h["loss"] == "nlul").map(|h| &h["steps"]).collect();
    assert_eq!(steps, [0, 2, 3]);
    for name in ["ngd.svg", "ngd-curvature.svg", "ngd-forget.svg", "ngd-kl.svg", "gradients.svg"] {
        let svg = std::fs::read_to_string(out.join(name)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("polyline") || svg.contains("path"),
            "{name}"
        );
    }
    let elsewhere = dir.path().join("curvature").display().to_string();
    let (code, stdout, stderr) =
        nepenthe(&["probe", "curvature", &shown, &shown, "--out", &elsewhere, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let [a, b] = [&summary["updates"][0], &summary["updates"][1]];
    assert!(a["curvature"].as_f64() > Some(0.0) && a["length"].as_f64() > Some(0.0), "{a}");
    assert_eq!((&a["curvature"], &a["shares"]), (&b["curvature"], &b["shares"]));
    let (code, _, stderr) = nepenthe(&["probe", "ngd", &shown, "--losses", "nlull"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("nearest is nlul"), "{stderr}");
}

#[test]
fn precision_replays_the_run_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = recorded(dir.path());
    let before = files(&run);
    let shown = run.display().to_string();
    let states = "compact,tiny,approx";
    let (code, stdout, stderr) =
        nepenthe(&["probe", "precision", &shown, "--states", states, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(files(&run), before);
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let (replayed, logged) =
        (lines(&run.join("probe/precision.jsonl")), lines(&run.join("metrics.jsonl")));
    assert_eq!((replayed.len(), logged.len()), (3 * STEPS, STEPS));
    assert_eq!(summary["last"][0], replayed[3 * STEPS - 3]);
    for (three, logged) in replayed.chunks(3).zip(&logged) {
        for (line, (state, bytes, most)) in three.iter().zip([
            ("compact", 10.0, 0.5),
            ("tiny", 9.015625, 0.5),
            ("approx", 8.0, 1e3),
        ]) {
            for key in ["loss_tr", "loss_kl", "grad_norm"] {
                let exact = &line[format!("{key}_exact")];
                assert_eq!(*exact, logged[key], "{key}: exact state is the run");
            }
            assert_eq!(
                (&line["state"], &line["bytes_per_parameter"]),
                (&json!(state), &json!(bytes))
            );
            for key in ["motion_error", "drift_error"] {
                let error = line[key].as_f64().unwrap();
                assert!(error > 1e-5 && error < most, "{state}: {key}: {error}");
            }
            assert_ne!(line["loss_tr"], line["loss_tr_exact"], "{state} state rounds");
        }
    }
    for name in ["precision-parameters.svg", "precision-metrics.svg"] {
        let svg = std::fs::read_to_string(run.join("probe").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("compact: "), "{name}");
    }
    let (code, _, stderr) = nepenthe(&["probe", "precision", &shown, "--states", "huge"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("states: huge is no state mode"), "{stderr}");
}
