//! A run that is stopped and resumed ends in the same bytes as one that was not.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use nepenthe::io::checkpoint::{Checkpoint, list};
use support::folder;
use tempfile::TempDir;

/// A recorded model with a tokenizer, and two corpora of token ids.
fn inputs(dir: &Path) -> PathBuf {
    let model = folder::recorded(dir);
    for (name, step) in [("forget", 7), ("retain", 11)] {
        folder::corpus(dir, name, 12, 20, step);
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
fn twenty_steps_equal_ten_resumed_to_twenty_in_all_state_modes() {
    let dir = TempDir::new().unwrap();
    inputs(dir.path());
    for mode in ["exact", "compact", "tiny", "approx"] {
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

/// Every file under `dir` by its path, but for the logs of times.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(tree(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

/// The weights of a model folder, and the names of all its files.
fn exported(model: &Path) -> (Vec<u8>, Vec<String>) {
    let mut names: Vec<String> = std::fs::read_dir(model)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    (std::fs::read(model.join("model.safetensors")).unwrap(), names)
}

/// The state blobs of a checkpoint.
fn state(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    checkpoint
        .names()
        .map(|name| (name.to_owned(), checkpoint.blob(name).unwrap().to_vec()))
        .collect()
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::null()).stderr(Stdio::piped())
}

#[test]
fn two_hundred_kills_leave_two_hundred_clean_resumes() {
    const STEPS: u64 = 16;
    const KILLS: u64 = 200;
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    inputs(dir);
    let short = [
        "--set",
        "run.forget_accum_steps=1",
        "--set",
        "data.forget_context=24",
        "--set",
        "data.retain_context=16",
        "--set",
        "run.checkpoint_every=2",
    ];
    run(dir, "straight", STEPS, &[&short[..], &["--set", "run.keep_checkpoints=1000"]].concat());
    let wanted: BTreeMap<u64, _> = (2..=STEPS)
        .step_by(2)
        .map(|step| {
            let folder = dir.join(format!("straight/checkpoints/step-{step:08}"));
            (step, state(&Checkpoint::open(&folder).unwrap()))
        })
        .collect();
    let model = exported(&dir.join("straight/model"));
    let mut life = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        run(dir, "timed", STEPS, &short);
        life = life.min(start.elapsed());
        std::fs::remove_dir_all(dir.join("timed")).unwrap();
    }
    let out = dir.join("killed");
    let args = [&short[..], &["--resume"]].concat();
    let random = nepenthe::rng::Stream::new(7, "kills");
    let (mut kills, mut lives, mut draws, mut steps_seen) = (0, 0, 0, BTreeSet::new());
    let (mut in_checkpoint, mut in_export, mut after_kill) = (0, 0, false);
    while kills < KILLS {
        let mut child = quiet(&mut command(dir, "killed", STEPS, &args)).spawn().unwrap();
        // Up to the whole life of a run that is not killed: start, steps, checkpoints, export, report.
        let delay = life.mul_f64(random.below(0, draws, 1 << 20) as f64 / f64::from(1 << 20));
        draws += 1;
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Whether killed or not, nothing it met on its way may have been an error.
        assert!(!said.contains("error:"), "after {kills} kills: {said}");
        if ended {
            assert!(output.status.success(), "after {kills} kills: {said}");
            assert_eq!(bytes(dir, "straight", STEPS), bytes(dir, "killed", STEPS));
            assert!(exported(&out.join("model")) == model);
            // Of all the kills before, nothing is left lying about.
            let left = |dir: &Path| -> Vec<String> {
                let items = std::fs::read_dir(dir).unwrap();
                items.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
            };
            for folder in [out.clone(), out.join("checkpoints")] {
                assert!(left(&folder).iter().all(|n| !n.starts_with('.')), "{:?}", left(&folder));
            }
            lives += 1;
            after_kill = false;
            // The load of the machine changes; too long a guess would meet only runs that have ended.
            life = life.mul_f64(0.9);
            std::fs::remove_dir_all(&out).unwrap();
            continue;
        }
        kills += 1;
        after_kill = true;
        life = life.mul_f64(1.02);
        // What is there is whole: the newest checkpoint has the state of the straight run at its step.
        let hidden = |folder: &Path| {
            let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
            items.filter(|e| e.file_name().to_string_lossy().starts_with('.')).count()
        };
        in_checkpoint += hidden(&out.join("checkpoints")).min(1);
        in_export += hidden(&out).min(1);
        // Opened without clearing up, which is left to the run that resumes.
        if let Some((_, newest)) = list(&out.join("checkpoints")).unwrap().first() {
            let found = Checkpoint::open(newest).unwrap();
            assert!(state(&found) == wanted[&found.step()], "step {}", found.step());
            steps_seen.insert(found.step());
        }
        if out.join("model").exists() {
            assert!(exported(&out.join("model")) == model, "after {kills} kills");
        }
    }
    if after_kill {
        run(dir, "killed", STEPS, &args);
        assert_eq!(bytes(dir, "straight", STEPS), bytes(dir, "killed", STEPS));
        assert!(exported(&out.join("model")) == model);
    }
    println!(
        "{kills} kills within {life:?}: {} different last steps, {in_checkpoint} inside a checkpoint, {in_export} inside \
         another write, {lives} runs brought to their end",
        steps_seen.len()
    );
    assert!(steps_seen.len() > 3 && in_checkpoint > 0, "the kills did not meet the steps");
}

#[cfg(unix)]
#[test]
fn full_disk_in_export_or_checkpoint_keeps_what_was_there() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    inputs(dir);
    run(dir, "straight", 3, &[]);
    run(dir, "run", 2, &[]);
    let old = tree(&dir.join("run/model"));
    // A limit on the size of files stands in for a full disk: writes fail half-way in the same manner. The weights
    // have 500 KiB, the largest block of a checkpoint 48, config.resolved.toml 12; a unit of the limit is 512 or 1024 bytes.
    let limited = |blocks: u32, out: &str, steps: u64| {
        let inner = command(dir, out, steps, &["--resume"]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" \"$@\"")]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env("XDG_CACHE_HOME", dir.join("cache")).output().unwrap()
    };
    let output = limited(400, "run", 3);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("model.safetensors: cannot write: File too large"), "{said}");
    assert!(tree(&dir.join("run/model")) == old);
    assert_eq!(std::fs::read_dir(dir.join("run")).unwrap().count(), 6);
    run(dir, "run", 3, &["--resume"]);
    assert_eq!(bytes(dir, "straight", 3), bytes(dir, "run", 3));

    let output = limited(40, "small", 3);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert_eq!(std::fs::read_dir(dir.join("small/checkpoints")).unwrap().count(), 0);
    assert!(!dir.join("small/model").exists());
    run(dir, "small", 3, &["--resume"]);
    assert_eq!(bytes(dir, "straight", 3), bytes(dir, "small", 3));
}

#[test]
fn model_folder_of_something_else_is_never_replaced() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    inputs(dir);
    let refused = |wanted: &str| {
        let output = command(dir, "run", 2, &["--resume"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(wanted), "{said}");
        assert!(!dir.join("run/metrics.jsonl").exists(), "refused only after the steps");
    };
    let model = dir.join("run/model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("thesis.txt"), "years of work").unwrap();
    let before = tree(&dir.join("run"));
    refused("run/model: the folder has files but no unlearning.json, so it is not replaced");
    assert!(tree(&dir.join("run")) == before);
    std::fs::remove_dir_all(&model).unwrap();
    std::fs::write(&model, "a file").unwrap();
    refused("run/model: is a file, wanted a folder to write the model to");
    std::fs::remove_file(&model).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.join("model"), &model).unwrap();
        refused("run/model: is a link, wanted a folder to write the model to");
        std::fs::remove_file(&model).unwrap();
    }
    std::fs::create_dir(&model).unwrap();
    run(dir, "run", 2, &["--resume"]);
    run(dir, "run", 3, &["--resume"]);
    // Its own output as the model to start from would be replaced while it is read.
    let out = dir.join("run");
    let output = Command::new(cargo_bin("nepenthe"))
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .args(["unlearn", "--resume", "--model"])
        .arg(&model)
        .arg("--forget")
        .arg(dir.join("forget.jsonl"))
        .arg("--retain")
        .arg(dir.join("retain.jsonl"))
        .arg("--out")
        .arg(out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("run/model: is the model to start from, so it is not replaced"),
        "{said}"
    );
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
