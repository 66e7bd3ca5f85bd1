//! A run that is stopped and resumed ends in the same bytes as one that was not.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

/// A recorded model with a tokenizer, and two corpora of token ids.
fn inputs(dir: &Path) -> PathBuf {
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
        let rows: Vec<String> = (0..12)
            .map(|d| {
                let ids = (0..20 + d).map(|t| ((t * step + d * 13) % 500 + 2).to_string());
                format!("{{\"input_ids\": [{}]}}", ids.collect::<Vec<_>>().join(","))
            })
            .collect();
        std::fs::write(dir.join(format!("{name}.jsonl")), rows.join("\n")).unwrap();
    }
    model
}

fn command(dir: &Path, out: &str, steps: u64, more: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("nepenthe"));
    command.env("XDG_CACHE_HOME", dir.join("cache")).args(["unlearn", "--model"]);
    command.arg(dir.join("model")).arg("--forget").arg(dir.join("forget.jsonl"));
    command.arg("--retain").arg(dir.join("retain.jsonl")).arg("--out").arg(dir.join(out));
    let sets = [
        format!("run.steps={steps}"),
        "run.micro_batch=2".into(),
        "run.forget_accum_steps=2".into(),
        "run.kl_accum_steps=1".into(),
        "optim.lr=0.05".into(),
        "run.checkpoint_every=1".into(),
        "eval.documents=0".into(),
    ];
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command.args(more);
    command
}

fn run(dir: &Path, out: &str, steps: u64, more: &[&str]) {
    let output = command(dir, out, steps, more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The bytes of the model and of the newest checkpoint's state.
fn bytes(dir: &Path, out: &str, steps: u64) -> Vec<Vec<u8>> {
    let checkpoint = dir.join(out).join(format!("checkpoints/step-{steps:08}"));
    let mut files: Vec<PathBuf> = std::fs::read_dir(&checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "bin"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files.push(dir.join(out).join("model/model.safetensors"));
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn twenty_steps_equal_ten_resumed_to_twenty_in_both_state_modes() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    for mode in ["exact", "compact"] {
        let state = format!("model.state={mode}");
        let set = ["--set", state.as_str()];
        let (straight, halves) = (format!("{mode}-straight"), format!("{mode}-halves"));
        run(dir.path(), &straight, 20, &set);
        run(dir.path(), &halves, 10, &set);
        run(dir.path(), &halves, 20, &[set[0], set[1], "--resume"]);
        assert!(bytes(dir.path(), &straight, 20) == bytes(dir.path(), &halves, 20), "{mode}");
        let lines = std::fs::read_to_string(dir.path().join(halves).join("metrics.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 20);
    }
}

#[test]
fn packing_changes_the_result_by_rounding_only() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    run(dir.path(), "large", 5, &["--set", "run.pack_tokens=512"]);
    run(dir.path(), "small", 5, &["--set", "run.pack_tokens=32"]);
    let read = |out: &str| {
        let path = dir.path().join(out).join("model/model.safetensors");
        let weights = nepenthe::io::safetensors::Weights::open_file(&path).unwrap();
        weights.read_f64("model.layers.0.mlp.down_proj.weight").unwrap()
    };
    let (large, small) = (read("large"), read("small"));
    let off: f64 = large.iter().zip(&small).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = large.iter().map(|a| a * a).sum();
    assert!((off / size).sqrt() < 1e-6, "{}", (off / size).sqrt());
}

#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    run(dir.path(), "straight", 60, &[]);
    // Kills at moments spread over start, steps and checkpoints; each time the run goes on from what is whole.
    for round in 0..20u64 {
        let mut child = command(dir.path(), "killed", 60, &["--resume"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(5 + round * 37 % 120));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(dir.path(), "killed", 60, &["--resume"]);
    assert!(bytes(dir.path(), "straight", 60) == bytes(dir.path(), "killed", 60));
}

#[cfg(unix)]
#[test]
fn sigterm_checkpoints_and_exits_with_its_own_code() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    let child = command(dir.path(), "run", 1_000_000, &[]).spawn().unwrap();
    let metrics = dir.path().join("run/metrics.jsonl");
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    let lines = std::fs::read_to_string(&metrics).unwrap().lines().count();
    run(dir.path(), "run", lines as u64 + 1, &["--resume"]);
    let lines_after = std::fs::read_to_string(&metrics).unwrap().lines().count();
    assert_eq!(lines_after, lines + 1);
}

#[test]
fn resume_with_another_recipe_is_refused() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    run(dir.path(), "run", 2, &[]);
    let output =
        command(dir.path(), "run", 4, &["--resume", "--set", "method.damping=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("is of another run: its recipe differs"), "{stderr}");
}
