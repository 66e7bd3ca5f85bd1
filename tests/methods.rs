//! Every loss with every penalty, mean teacher on and off, through the command line: two steps on a recorded model.
#![allow(clippy::unwrap_used)]

mod support;

use approx::{abs_diff_eq, assert_abs_diff_eq};
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use nepenthe::io::safetensors::{Dtype, Weights};
use nepenthe::method::{FORGET, PENALTIES};
use serde_json::Value;
use support::folder::{self, convert, rewrite};
use support::model;
use tempfile::TempDir;

/// A recorded model with a tokenizer, and corpora of token ids.
fn inputs() -> TempDir {
    let dir = TempDir::new().unwrap();
    folder::recorded(dir.path());
    for (name, documents, step) in
        [("forget", 6, 7), ("retain", 6, 11), ("alternate", 6, 5), ("short", 3, 5)]
    {
        folder::corpus(dir.path(), name, documents, 9, step);
    }
    dir
}

/// The same with the model in bf16.
fn inputs_in_bf16() -> TempDir {
    let dir = inputs();
    let file = dir.path().join("model/model.safetensors");
    let wide = dir.path().join("wide");
    convert(&dir.path().join("model"), &wide, Dtype::F32, |x| x);
    rewrite(&wide, &file, Some(Dtype::Bf16), |_, x| x);
    dir
}

fn unlearn(dir: &Path, out: &str, sets: &[String]) -> Output {
    unlearning(dir, out, sets).output().unwrap()
}

fn unlearning(dir: &Path, out: &str, sets: &[String]) -> Command {
    let mut command = Command::new(cargo_bin("nepenthe"));
    command.env("XDG_CACHE_HOME", dir.join("cache")).args(["--json", "unlearn", "--model"]);
    command.arg(dir.join("model")).arg("--forget").arg(dir.join("forget.jsonl"));
    command.arg("--retain").arg(dir.join("retain.jsonl")).arg("--out").arg(dir.join(out));
    let fixed = [
        "run.steps=2",
        "run.micro_batch=2",
        "run.forget_accum_steps=1",
        "run.kl_accum_steps=1",
        "run.pack_tokens=64",
        "run.checkpoint_every=0",
        "optim.lr=0.05",
        "eval.documents=0",
        "method.rmu_layer=1",
    ];
    for set in fixed.into_iter().map(str::to_owned).chain(sets.iter().cloned()) {
        command.args(["--set", &set]);
    }
    command
}

/// The settings of a combination; `dpo` alone has alternatives.
fn sets(dir: &Path, loss: &str, penalty: &str, teacher: bool) -> Vec<String> {
    let mut sets = vec![format!("method.loss={loss}"), format!("method.penalty={penalty}")];
    if !teacher {
        sets.extend(["method.teacher_rate=0".to_owned(), "method.damping=0".to_owned()]);
    }
    if loss == "dpo" {
        sets.push(format!("data.alternate={}", dir.join("alternate.jsonl").display()));
    }
    sets
}

#[test]
fn every_loss_with_every_penalty_runs_two_steps() {
    let dir = inputs();
    let penalties: Vec<&str> =
        PENALTIES.iter().map(|penalty| penalty.name()).chain(["none"]).collect();
    let mut runs = Vec::new();
    // Each loss with one penalty, which turns, with the teacher and without.
    for (i, loss) in FORGET.iter().enumerate() {
        runs.push((loss.name(), penalties[i % penalties.len()], i % 2 == 0));
    }
    for (i, penalty) in penalties.iter().enumerate() {
        runs.push(("npo", *penalty, i % 2 == 1));
        runs.push(("rmu", *penalty, i % 2 == 1));
        runs.push(("undial", *penalty, i % 2 == 0));
    }
    for (i, (loss, penalty, teacher)) in runs.into_iter().enumerate() {
        let name = format!("{loss} + {penalty}, teacher {teacher}");
        let out = format!("run-{i}");
        let output = unlearn(dir.path(), &out, &sets(dir.path(), loss, penalty, teacher));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{name}: {said}");
        let log = std::fs::read_to_string(dir.path().join(&out).join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{name}");
        for line in &lines {
            let norm = line["grad_norm"].as_f64().unwrap();
            assert!(norm > 0.0 && norm.is_finite() && line["skipped"] == false, "{name}: {line}");
            assert!(line["loss_tr"].as_f64().unwrap() > 0.0, "{name}: {line}");
        }
        let record = dir.path().join(&out).join("model/unlearning.json");
        let record: Value =
            serde_json::from_str(&std::fs::read_to_string(record).unwrap()).unwrap();
        let formula = FORGET.iter().find(|o| o.name() == loss).unwrap().formula();
        assert_eq!(record["loss_formula"], formula, "{name}");
    }
}

#[test]
fn a_dual_variable_follows_its_penalty() {
    let dir = inputs();
    let mut sets = sets(dir.path(), "pdu", "nll", false);
    let dual = ["method.dual_rate=0.5", "method.dual_bound=1", "run.steps=3"];
    sets.extend(dual.map(str::to_owned));
    assert!(unlearn(dir.path(), "dual", &sets).status.success());
    let log = std::fs::read_to_string(dir.path().join("dual/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["retain_weight"], 1.0);
    for pair in lines.windows(2) {
        let of = |line: &Value, key: &str| line[key].as_f64().unwrap();
        let want = (of(&pair[0], "retain_weight") + 0.5 * (of(&pair[0], "loss_kl") - 1.0)).max(0.0);
        assert_eq!(of(&pair[1], "retain_weight"), want);
        assert_ne!(want, 1.0);
    }
}

#[test]
fn alternatives_must_be_there_and_as_many_as_forget_documents() {
    let dir = inputs();
    let dpo = ["method.loss=dpo".to_owned(), "method.penalty=none".to_owned()];
    let output = unlearn(dir.path(), "none", &dpo);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("data.alternate: is not set, and loss dpo compares"), "{said}");
    let mut short = dpo.to_vec();
    short.push(format!("data.alternate={}", dir.path().join("short.jsonl").display()));
    let output = unlearn(dir.path(), "short", &short);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("data.alternate: 3 documents, wanted one for each of the 6 forget documents"),
        "{said}"
    );
}

#[test]
fn combined_gradients_step_and_say_how() {
    let dir = inputs();
    for (combine, loss, penalty) in
        [("project", "uce", "kl"), ("min_norm", "undial", "nll"), ("project", "ll", "nll")]
    {
        let mut sets = sets(dir.path(), loss, penalty, false);
        // At the first step a divergence has no gradient: the starting model is the teacher.
        sets.extend([format!("method.combine={combine}"), "run.steps=3".to_owned()]);
        let out = format!("{combine}-{loss}");
        let output = unlearn(dir.path(), &out, &sets);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{out}: {said}");
        let log = std::fs::read_to_string(dir.path().join(&out).join("metrics.jsonl")).unwrap();
        for line in log.lines().skip(1) {
            let line: Value = serde_json::from_str(line).unwrap();
            let [own, other] = [0, 1].map(|i| line["factors"][i].as_f64().unwrap());
            match (combine, line["cosine"].as_f64().unwrap()) {
                ("min_norm", _) => {
                    assert!(abs_diff_eq!(own + other, 1.0, epsilon = 1e-12), "{line}")
                }
                (_, cosine) if cosine < 0.0 => assert!(own == 1.0 && other > 1.0, "{line}"),
                _ => assert!(own == 1.0 && other == 1.0, "{line}"),
            }
        }
    }
}

fn log(dir: &Path, out: &str) -> Vec<Value> {
    let log = std::fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// MOLLM: the direction that descends the loss and both penalties.
#[test]
fn three_gradients_are_mixed_to_the_shortest() {
    let dir = inputs();
    let mut sets = sets(dir.path(), "uce", "kl", false);
    sets.extend(words(&["method.second_penalty=nll", "method.combine=min_norm", "run.steps=4"]));
    let output = unlearn(dir.path(), "mollm", &sets);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = log(dir.path(), "mollm");
    assert_eq!(lines.len(), 4);
    // The divergence from the starting model has no gradient yet; the others are mixed without it.
    assert_eq!(lines[0]["factors"][1], 0.0);
    assert!(lines[1]["loss_kl"].as_f64().unwrap() > 0.0, "{lines:?}");
    for line in &lines[1..] {
        let factors = [&line["factors"][0], &line["factors"][1], &line["second_factor"]];
        let factors = factors.map(|factor| factor.as_f64().unwrap());
        assert!(factors.iter().all(|factor| *factor >= 0.0), "{line}");
        assert!(abs_diff_eq!(factors.iter().sum::<f64>(), 1.0, epsilon = 1e-12), "{line}");
        assert!(line["loss_second"].as_f64().unwrap() > 0.0, "{line}");
    }
    let record = std::fs::read_to_string(dir.path().join("mollm/model/unlearning.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["second_penalty"], "nll");
    // Added up they are another run.
    let at = sets.iter().position(|set| set.starts_with("method.combine")).unwrap();
    sets[at] = "method.combine=sum".into();
    assert!(unlearn(dir.path(), "sum", &sets).status.success());
    assert_ne!(log(dir.path(), "sum")[2]["grad_norm"], lines[2]["grad_norm"]);
}

/// RMU trains the matrices it says and leaves the layers behind alone.
#[test]
fn rmu_moves_the_layers_it_names() {
    let dir = inputs();
    let mut sets = sets(dir.path(), "rmu", "rmu_retain", false);
    sets.extend(words(&["model.train=down", "model.train_layers=0-1", "run.steps=4"]));
    let output = unlearn(dir.path(), "rmu", &sets);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = log(dir.path(), "rmu");
    let loss = |line: &Value| line["loss_tr"].as_f64().unwrap();
    assert!(loss(&lines[3]) < loss(&lines[0]), "{lines:?}");
    // The starting model is where the penalty has its rows.
    assert_eq!(lines[0]["loss_kl"], 0.0);
    assert!(lines[3]["loss_kl"].as_f64().unwrap() > 0.0);
    let [before, after] =
        ["model", "rmu/model"].map(|m| Weights::open(&dir.path().join(m)).unwrap());
    for name in before.names() {
        let moved = before.read_f64(name).unwrap() != after.read_f64(name).unwrap();
        let named = name.ends_with("down_proj.weight")
            && ["layers.0.", "layers.1."].iter().any(|layer| name.contains(layer));
        assert_eq!(moved, named, "{name}");
    }
    for (set, wanted) in [
        (
            "method.rmu_layer=40",
            "method.rmu_layer: names layer 40, and the model's layers are 0 to",
        ),
        ("model.train_layers=0-40", "model.train_layers: names layer 40"),
    ] {
        let mut wrong = sets.clone();
        wrong.push(set.into());
        let output = unlearn(dir.path(), "wrong", &wrong);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(wanted), "{said}");
        assert!(!dir.path().join("wrong/metrics.jsonl").exists());
    }
}

fn slug(dir: &Path, out: &str, more: &[&str]) -> Output {
    let mut command = Command::new(cargo_bin("nepenthe"));
    command.env("XDG_CACHE_HOME", dir.join("cache")).args(["--json", "slug", "--model"]);
    command.arg(dir.join("model")).arg("--forget").arg(dir.join("forget.jsonl"));
    command.arg("--retain").arg(dir.join("retain.jsonl")).arg("--out").arg(dir.join(out));
    command.args(["--set", "run.micro_batch=2", "--set", "run.pack_tokens=64"]);
    command.args(more).output().unwrap()
}

/// SLUG: one matrix moves, within the budget, and what the summary says is what the written model does.
#[test]
fn slug_moves_one_matrix_along_its_gradient() {
    let dir = inputs();
    let dir = dir.path();
    let output = slug(dir, "slug", &["--budget", "0.05", "--evaluations", "6"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |at: &str, name: &str| summary[at][name].as_f64().unwrap();
    assert!(figure("after", "nll_forget") > figure("before", "nll_forget"), "{summary}");
    assert!(figure("after", "nll_retain") <= figure("before", "nll_retain") + 0.05, "{summary}");
    let front = summary["matrices"].as_array().unwrap().iter().filter(|m| m["front"] == true);
    let tried = front.count().min(4);
    assert_eq!(summary["trials"].as_array().unwrap().len(), 6 * tried);
    // Of the tensors of the matrix, and of no other, the step times the gradient was added.
    let matrix = summary["matrix"].as_str().unwrap();
    let layer = matrix.split(".layers.").nth(1).unwrap().split('.').next().unwrap();
    let [before, after] = ["model", "slug"].map(|m| Weights::open(&dir.join(m)).unwrap());
    let mut square = 0.0;
    for name in before.names() {
        let (before, after) = (before.read_f64(name).unwrap(), after.read_f64(name).unwrap());
        let moved: f64 = before.iter().zip(&after).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(moved == 0.0 || name.contains(&format!(".layers.{layer}.")), "{name}, {matrix}");
        square += moved;
    }
    let chosen = summary["matrices"].as_array().unwrap().iter().find(|m| m["name"] == *matrix);
    let importance = chosen.unwrap()["importance"].as_f64().unwrap();
    assert!(square > 0.0 && importance > 0.0, "{matrix}");
    // Enough is less than as much as the budget allows.
    let enough = figure("before", "nll_forget") + 0.01;
    let output = slug(dir, "less", &["--budget", "0.05", "--forget-nll", &enough.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let less: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(less["after"]["nll_forget"].as_f64().unwrap() >= enough, "{less}");
    assert!(
        less["after"]["nll_retain"].as_f64().unwrap() <= figure("after", "nll_retain") + 1e-9,
        "{less}"
    );
    for (more, code, wanted) in [
        (["--evaluations", "0"], 2, "--evaluations: wanted at least 1, got 0"),
        (["--budget", "NaN"], 2, "--budget: wanted 0 or more, got NaN"),
    ] {
        let output = slug(dir, "none", &more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(wanted), "{said}");
        assert!(!dir.join("none").exists());
    }
}

/// PGU: what a shield holds is in the summary, the run is another one, and a resumed run finds the same shield.
#[test]
fn a_shield_is_found_before_the_first_step_and_again_when_a_run_goes_on() {
    let dir = inputs();
    let mut sets = sets(dir.path(), "ll", "none", false);
    sets.extend(words(&["run.steps=4", "run.checkpoint_every=2"]));
    assert!(unlearn(dir.path(), "free", &sets).status.success());
    sets.extend(words(&["method.shield=0.9", "method.shield_rank=8"]));
    let output = unlearn(dir.path(), "shielded", &sets);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let share = summary["shielded"].as_f64().unwrap();
    assert!(share > 0.3 && share <= 1.0, "{share}");
    let (free, shielded) = (log(dir.path(), "free"), log(dir.path(), "shielded"));
    assert_eq!(free[0]["loss_tr"], shielded[0]["loss_tr"]);
    let norm = |line: &Value| line["grad_norm"].as_f64().unwrap();
    assert!(norm(&shielded[0]) < norm(&free[0]));
    // Half the steps, then the rest.
    let mut half = sets.clone();
    half.push("run.steps=2".into());
    assert!(unlearn(dir.path(), "parts", &half).status.success());
    let mut command = unlearning(dir.path(), "parts", &sets);
    let output = command.arg("--resume").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [whole, parts] = ["shielded", "parts"]
        .map(|run| std::fs::read(dir.path().join(run).join("model/model.safetensors")).unwrap());
    assert!(whole == parts);
}

/// Copies the model folder with every number changed by `change`.
fn changed(dir: &Path, name: &str, change: impl Fn(usize, f32) -> f32) {
    let (from, to) = (dir.join("model"), dir.join(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    rewrite(&from, &to.join("model.safetensors"), None, change);
}

fn task_vector(dir: &Path, finetuned: &str, out: &str, more: &[&str]) -> Output {
    let mut command = Command::new(cargo_bin("nepenthe"));
    command.args(["--json", "task-vector", "--model"]).arg(dir.join("model"));
    command.arg("--finetuned").arg(dir.join(finetuned)).arg("--out").arg(dir.join(out));
    command.args(more).output().unwrap()
}

#[test]
fn task_vector_is_taken_off_number_by_number() {
    let dir = inputs();
    let dir = dir.path();
    let tuning = |i: usize| (i % 5) as f32 * 0.25 - 0.5;
    changed(dir, "tuned", |i, x| x + tuning(i));
    let output = task_vector(dir, "tuned", "less", &["--factor", "2"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["formula"], "W - factor (W_ft - W_0)");
    let [own, tuned, less] =
        ["model", "tuned", "less"].map(|name| Weights::open(&dir.join(name)).unwrap());
    let (mut count, mut square) = (0, 0.0);
    for name in own.names() {
        count += 1;
        let [own, tuned, less] = [&own, &tuned, &less].map(|w| w.read_f64(name).unwrap());
        for ((w, tuned), less) in own.iter().zip(&tuned).zip(&less) {
            assert_eq!(*less as f32, (w - 2.0 * (tuned - w)) as f32, "{name}");
            square += (2.0 * (tuned - w)).powi(2);
        }
    }
    assert_eq!(summary["tensors"], count);
    assert_abs_diff_eq!(
        summary["vector_norm"].as_f64().unwrap(),
        square.sqrt(),
        epsilon = 1e-9 * square
    );
    // Off a finetuned start, and back: the start's own vector with the other sign.
    let start = dir.join("tuned");
    let output = task_vector(dir, "model", "more", &["--pretrained", start.to_str().unwrap()]);
    assert!(output.status.success());
    let more = Weights::open(&dir.join("more")).unwrap();
    for name in own.names() {
        let [own, tuned, more] = [&own, &tuned, &more].map(|w| w.read_f64(name).unwrap());
        for ((w, tuned), more) in own.iter().zip(&tuned).zip(&more) {
            assert_eq!(*more as f32, (w - (w - tuned)) as f32, "{name}");
        }
    }
}

/// A model in bf16, moved by less than its numbers can say: the mean has all of it, and `--f32` each number.
#[test]
fn a_task_vector_below_the_steps_of_16_bits_is_not_lost() {
    let dir = inputs_in_bf16();
    let dir = dir.path();
    // Away from zero by a thousandth, a quarter of the distance between two numbers of bf16 or less.
    convert(&dir.join("model"), &dir.join("tuned"), Dtype::F32, |x| x * 1.001);
    for (out, more, within) in [("mean", [].as_slice(), 0.02), ("whole", &["--f32"], 0.0)] {
        let output = task_vector(dir, "tuned", out, more);
        assert!(output.status.success(), "{}", String::from_utf8(output.stderr).unwrap());
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kept = summary["change_saved"].as_f64().unwrap();
        assert!(abs_diff_eq!(kept, 1.0, epsilon = within), "{out}: {kept}");
    }
    let mean = Weights::open(&dir.join("mean")).unwrap();
    assert!(mean.names().all(|name| mean.info(name).unwrap().dtype == Dtype::Bf16));
    let whole = Weights::open(&dir.join("whole")).unwrap();
    let own = Weights::open(&dir.join("model")).unwrap();
    for name in own.names() {
        assert_eq!(whole.info(name).unwrap().dtype, Dtype::F32);
        let [own, whole] = [&own, &whole].map(|w| w.read_f64(name).unwrap());
        let apart = |(w, less): (&f64, &f64)| (w - less) - 0.001 * w;
        assert!(
            own.iter().zip(&whole).all(|pair| apart(pair).abs() <= 2e-7 * pair.0.abs()),
            "{name}"
        );
    }
}

/// In fp32 a run's last figures are those of the folder it writes, to the bit. In 16 bits the mean of its steps is kept,
/// unless they are rounded to the nearest number.
#[test]
fn what_rounding_loses_of_a_run_is_said() {
    let dir = inputs_in_bf16();
    let dir = dir.path();
    let nearest = "model.save_rounding=nearest";
    for (form, set) in [("mean", "seed=3"), ("nearest", nearest), ("f32", "model.save_dtype=f32")] {
        let mut sets = sets(dir, "nlul", "kl", false);
        let more = ["optim.lr=0.3", "eval.every=2", "eval.documents=6", "eval.max_new_tokens=2"];
        sets.extend(more.map(str::to_owned));
        sets.push(set.to_owned());
        let output = unlearn(dir, form, &sets);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let record = std::fs::read(dir.join(form).join("model/unlearning.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let kept = summary["change_saved"].as_f64().unwrap();
        assert_eq!(record["change_saved"], kept);
        let measured = std::fs::read_to_string(dir.join(form).join("evaluations.jsonl")).unwrap();
        let last: Value = serde_json::from_str(measured.lines().last().unwrap()).unwrap();
        assert_eq!(last["global_step"], 2);
        let whole = last["nll_forget"] == summary["after"]["nll_forget"];
        assert_eq!((whole, kept == 1.0), (form == "f32", form == "f32"), "{form}: {kept}");
        assert_eq!((kept - 1.0).abs() < 0.1, form != "nearest", "{form}: {kept}");
        assert_eq!(said.contains("% of the change"), form == "nearest", "{form}: {said}");
    }
}

#[test]
fn task_vectors_of_nothing_and_of_other_models_are_refused() {
    let dir = inputs();
    let dir = dir.path();
    let output = task_vector(dir, "model", "none", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("so there is no task vector"), "{said}");
    assert!(!dir.join("none").exists());
    model::random("qwen2", 58, &dir.join("other"));
    let output = task_vector(dir, "other", "none", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("wanted shape"), "{said}");
}
