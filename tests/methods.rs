//! Every loss with every penalty, mean teacher on and off, through the command line: two steps on a recorded model.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use nepenthe::io::safetensors::{Entry, Weights, write_f32_as, write_file};
use nepenthe::method::{FORGET, PENALTIES};
use serde_json::Value;
use tempfile::TempDir;

/// A recorded model with a tokenizer, and corpora of token ids.
fn inputs() -> TempDir {
    let dir = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    std::fs::create_dir(dir.path().join("model")).unwrap();
    for (from, name) in [
        ("models/llama-gqa", "config.json"),
        ("models/llama-gqa", "model.safetensors"),
        ("tokenizer/bytelevel", "tokenizer.json"),
        ("tokenizer/bytelevel", "tokenizer_config.json"),
    ] {
        std::fs::copy(golden.join(from).join(name), dir.path().join("model").join(name)).unwrap();
    }
    for (name, count, step) in
        [("forget", 6, 7), ("retain", 6, 11), ("alternate", 6, 5), ("short", 3, 5)]
    {
        let row = |d: usize| {
            let ids = (0..9 + d).map(|t| ((t * step + d * 13) % 500 + 2).to_string());
            format!("{{\"input_ids\": [{}]}}\n", ids.collect::<Vec<_>>().join(","))
        };
        let text: String = (0..count).map(row).collect();
        std::fs::write(dir.path().join(format!("{name}.jsonl")), text).unwrap();
    }
    dir
}

fn unlearn(dir: &Path, out: &str, sets: &[String]) -> Output {
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
    ];
    for set in fixed.into_iter().map(str::to_owned).chain(sets.iter().cloned()) {
        command.args(["--set", &set]);
    }
    command.output().unwrap()
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
                ("min_norm", _) => assert!((own + other - 1.0).abs() < 1e-12, "{line}"),
                (_, cosine) if cosine < 0.0 => assert!(own == 1.0 && other > 1.0, "{line}"),
                _ => assert!(own == 1.0 && other == 1.0, "{line}"),
            }
        }
    }
}

/// Copies the model folder with every number changed by `change`.
fn changed(dir: &Path, name: &str, change: impl Fn(usize, f32) -> f32) {
    let (from, to) = (dir.join("model"), dir.join(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let weights = Weights::open(&from).unwrap();
    let entry = |name: &str| {
        let info = weights.info(name).unwrap();
        Entry { name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone() }
    };
    let entries: Vec<Entry> = weights.names().map(entry).collect();
    write_file(&to.join("model.safetensors"), &entries, &BTreeMap::new(), &mut |entry, out| {
        let values = weights.read_f64(&entry.name)?;
        let values = values.iter().enumerate().map(|(i, x)| change(i, *x as f32));
        let values: Vec<f32> = values.collect();
        write_f32_as(entry.dtype, &values, out).unwrap();
        Ok(())
    })
    .unwrap();
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
    assert!((summary["vector_norm"].as_f64().unwrap() - square.sqrt()).abs() < 1e-9 * square);
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

#[test]
fn task_vectors_of_nothing_and_of_other_models_are_refused() {
    let dir = inputs();
    let dir = dir.path();
    let output = task_vector(dir, "model", "none", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("so there is no task vector"), "{said}");
    assert!(!dir.join("none").exists());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data/models/qwen2");
    std::fs::create_dir(dir.join("other")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), dir.join("other").join(file)).unwrap();
    }
    let output = task_vector(dir, "other", "none", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("wanted shape"), "{said}");
}
