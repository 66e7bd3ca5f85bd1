//! Evaluation inside a run: the rhythm, the early stop, the best model, and that resuming changes none of it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// Unpacks the demo's model and corpora.
fn inputs(dir: &Path) -> PathBuf {
    let output = Command::cargo_bin("nepenthe")
        .unwrap()
        .args(["demo", "--set", "run.steps=0", "--set", "eval.max_new_tokens=2", "--out"])
        .arg(dir.join("demo"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir.join("demo/input")
}

fn unlearn(input: &Path, out: &Path, more: &[&str]) -> Result<Value, (i32, String)> {
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    command.args(["unlearn", "--json", "--preset", "demo", "--model"]).arg(input.join("target"));
    command.arg("--forget").arg(input.join("data/forget.jsonl"));
    command.arg("--retain").arg(input.join("data/retain.jsonl"));
    command.arg("--out").arg(out).args(["--set", "eval.max_new_tokens=2"]);
    command.args(["--set", "eval.documents=3", "--set", "eval.every=2"]);
    let cache = format!("data.cache={:?}", input.join("cache"));
    command.args(["--set", &cache]).args(more);
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err((
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}

fn evaluations(run: &Path) -> String {
    std::fs::read_to_string(run.join("evaluations.jsonl")).unwrap()
}

fn steps_of(run: &Path) -> Vec<u64> {
    let value = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    evaluations(run).lines().map(|line| value(line)["global_step"].as_u64().unwrap()).collect()
}

#[test]
fn evaluation_keeps_its_rhythm_stops_early_keeps_the_best_and_survives_a_resume() {
    let dir = TempDir::new().unwrap();
    let input = inputs(dir.path());
    let free = ["--set", "eval.stop_metric=", "--set", "run.steps=5"];
    let all = dir.path().join("all");
    let value = unlearn(&input, &all, &free).unwrap();
    assert_eq!(steps_of(&all), [0, 2, 4]);
    assert_eq!(value["stopped_early"], false);
    assert!(!all.join("best").exists());
    assert!(value["before"]["nll_forget"].as_f64().unwrap() > 0.0);
    assert!(value["before"].get("nll_holdout").is_none(), "no file of held-out text was named");
    let nll: Vec<f64> = evaluations(&all)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["nll_forget"].as_f64().unwrap())
        .collect();
    assert!(nll[0] < nll[1] && nll[1] < nll[2], "{nll:?}");

    // An NLL stops the run strictly above its bound: here between the second and the third evaluation.
    let bound = format!("eval.stop_val={}", (nll[1] + nll[2]) / 2.0);
    let stop = ["--set", "eval.stop_metric=nll_forget", "--set", &bound, "--set", "run.steps=20"];
    let straight = dir.path().join("straight");
    let value = unlearn(&input, &straight, &stop).unwrap();
    assert_eq!(steps_of(&straight), [0, 2, 4]);
    assert_eq!((&value["steps"], &value["best_step"]), (&Value::from(4), &Value::from(2)));
    assert_eq!(value["stopped_early"], true);
    let model = |run: &Path, name: &str| std::fs::read(run.join(name)).unwrap();
    let (last, best) = ("model/model.safetensors", "best/model.safetensors");
    assert_ne!(model(&straight, last), model(&straight, best));

    // The same in two halves, and once more after the end.
    let halves = dir.path().join("halves");
    let three = [&stop[..4], &["--set", "run.steps=3"]].concat();
    unlearn(&input, &halves, &three).unwrap();
    let resume = [&stop[..], &["--resume"]].concat();
    for _ in 0..2 {
        let value = unlearn(&input, &halves, &resume).unwrap();
        assert_eq!((&value["steps"], &value["stopped_early"]), (&4.into(), &true.into()));
        assert_eq!(evaluations(&straight), evaluations(&halves));
        assert_eq!(model(&straight, last), model(&halves, last));
        assert_eq!(model(&straight, best), model(&halves, best));
    }
}

#[test]
fn stop_settings_that_cannot_work_are_refused() {
    let dir = TempDir::new().unwrap();
    let input = inputs(dir.path());
    for (sets, message) in [
        (
            &["eval.stop_metric=verbmem_forgot"][..],
            "error: eval.stop_metric: `verbmem_forgot` is unknown\nhint: known are verbmem_forget, verbmem_retain, nll_forget, \
             nll_retain, nll_holdout; nearest is verbmem_forget\n",
        ),
        (
            &["eval.every=0"],
            "error: eval.stop_metric: eval.every is 0, so nothing would be measured\nhint: set eval.every to the steps \
             between evaluations\n",
        ),
        (
            &["eval.stop_metric=nll_holdout"],
            "error: eval.stop_metric: this run does not measure nll_holdout\nhint: name the file it is measured on under \
             [eval], or raise eval.documents above 0; measured are verbmem_forget, verbmem_retain, nll_forget, nll_retain\n",
        ),
        (&["eval.stop_val=nan"], "error: eval.stop_val: wanted a number, got NaN\n"),
    ] {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let (code, text) = unlearn(&input, &dir.path().join("run"), &sets).unwrap_err();
        assert_eq!((code, text.as_str()), (2, message));
    }
}
