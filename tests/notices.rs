//! Notices about data that is dropped, cut, ignored or doubled, and refusals of data that would change a run.

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use support::folder::{json_of, recorded};
use tempfile::TempDir;

/// Runs the binary; returns exit code, stdout as JSON where it is, and stderr.
fn nepenthe(arguments: &[&str]) -> (i32, Value, String) {
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    let output = command.args(arguments).output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), value, String::from_utf8(output.stderr).unwrap())
}

/// A recorded model, whose tokenizer has BOS and EOS, and files beside it.
struct Place {
    dir: TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let model = recorded(dir.path());
        Self { dir, model }
    }

    fn write(&self, name: &str, records: &[Value]) -> String {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        let path = self.dir.path().join(name);
        std::fs::write(&path, lines.join("\n")).unwrap();
        path.display().to_string()
    }

    fn model(&self) -> &str {
        self.model.to_str().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs two steps, or as many as `sets` say.
    fn unlearn(
        &self,
        forget: &str,
        retain: &str,
        out: &str,
        sets: &[&str],
    ) -> (i32, Value, String) {
        let (out, cache) = (self.path(out), format!("data.cache={:?}", self.path("cache")));
        let mut arguments = vec!["unlearn", "--json", "--device", "cpu", "--model", self.model()];
        arguments.extend(["--forget", forget, "--retain", retain, "--out", &out, "--set", &cache]);
        let common = ["run.steps=1", "run.micro_batch=1", "run.forget_accum_steps=1"];
        for set in common.iter().chain(sets) {
            arguments.extend(["--set", set]);
        }
        nepenthe(&arguments)
    }
}

fn text(text: &str) -> Value {
    json!({"text": text})
}

fn notices(value: &Value) -> Vec<String> {
    value["notices"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_a_loader_cuts_and_drops_is_said_once_and_kept_in_summary_and_report() {
    let place = Place::new();
    let forget = place.write(
        "forget.jsonl",
        &[
            text(&"a b c d ".repeat(100)),
            json!({"text": "the same", "id": 1, "source": "x"}),
            json!({"text": "the same", "id": 2}),
        ],
    );
    let retain = place.write("retain.jsonl", &[text("something else"), text("the same")]);
    let sets = ["data.forget_context=16", "eval.documents=0"];
    let (code, value, stderr) = place.unlearn(&forget, &retain, "run", &sets);
    assert_eq!(code, 0, "{stderr}");
    let all = notices(&value);
    let cut = all.iter().find(|n| n.contains("truncated")).unwrap();
    let start =
        format!("warning: {forget}: 1 of 3 documents truncated to the context of 16 tokens; ");
    assert!(cut.starts_with(&start) && cut.ends_with(" tokens not used"), "{cut}");
    for wanted in [
        format!("warning: {forget}: 1 of 3 documents repeat an earlier one"),
        format!("{forget}: keys not read, with the number of records: \"id\" (2), \"source\" (1)"),
        format!(
            "warning: {forget} and {retain}: 2 of 3 rows to be forgotten are in the retain set too: the run would keep \
             what it is to forget"
        ),
    ] {
        assert!(all.contains(&wanted), "{wanted} is not in {all:#?}");
    }
    for notice in &all {
        assert_eq!(stderr.matches(notice.as_str()).count(), 1, "{notice}\n{stderr}");
    }
    let run = place.dir.path().join("run");
    assert_eq!(json_of(&run.join("summary.json"))["notices"], value["notices"]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("1 of 3 documents truncated to the context of 16 tokens"));

    // The same from the cache, and of another command.
    let (_, again, stderr) = place.unlearn(&forget, &retain, "again", &sets);
    assert_eq!(again["notices"], value["notices"], "{stderr}");
    let arguments =
        ["eval", "--json", "--model", place.model(), "--nll", &forget, "--context", "16"];
    let (code, value, stderr) = nepenthe(&arguments);
    assert_eq!(code, 0, "{stderr}");
    assert!(notices(&value).contains(cut) && stderr.contains(cut.as_str()), "{stderr}");
}

#[test]
fn a_row_beyond_the_positions_of_the_model_is_said_with_the_key_that_shortens_it() {
    let place = Place::new();
    let mut config = json_of(&place.model.join("config.json"));
    config["max_position_embeddings"] = 32.into();
    std::fs::write(place.model.join("config.json"), config.to_string()).unwrap();
    let forget = place.write("forget.jsonl", &[text(&"a b c d ".repeat(20))]);
    let retain = place.write("retain.jsonl", &[text(&"e f g h ".repeat(20))]);
    let (code, value, stderr) = place.unlearn(&forget, &retain, "run", &["eval.documents=1"]);
    assert_eq!(code, 0, "{stderr}");
    let all = notices(&value);
    for (file, key) in [
        (&forget, "data.forget_context"),
        (&retain, "data.retain_context"),
        (&forget, "eval.context"),
    ] {
        let found = all.iter().any(|n| {
            n.starts_with(&format!("warning: {file}: up to "))
                && n.ends_with(&format!(
                    "made for 32 (max_position_embeddings); lower {key} to at most 32"
                ))
        });
        assert!(found, "{key} {all:#?}");
    }
    let (_, value, _) = nepenthe(&["eval", "--json", "--model", place.model(), "--nll", &forget]);
    assert!(
        notices(&value).iter().any(|n| n.ends_with("lower --context to at most 32")),
        "{value}"
    );
}

#[test]
fn keys_that_would_change_what_is_trained_are_refused_and_those_that_do_not_are_read() {
    let place = Place::new();
    let outcome = |more: Value| {
        let mut record = json!({"input_ids": [5, 6, 7]});
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let file = place.write("a.jsonl", &[record]);
        let retain = place.write("retain.jsonl", &[json!({"input_ids": [8, 9]})]);
        let run = place.unlearn(&file, &retain, "refused", &["run.steps=0", "eval.documents=0"]);
        let eval = nepenthe(&["eval", "--json", "--model", place.model(), "--nll", &file]);
        std::fs::remove_dir_all(place.dir.path().join("refused")).ok();
        assert_eq!(run.0, eval.0, "{}\n{}", run.2, eval.2);
        (eval.0, eval.2.replace(&format!("{file}:1: "), ""), eval.1)
    };
    for (more, wanted) in [
        (
            json!({"labels": [-100, 6, 7]}),
            "\"labels\"[0] is -100, wanted the id 5 as in \"input_ids\"",
        ),
        (json!({"labels": [5, 6, 8]}), "\"labels\"[2] is 8, wanted the id 7 as in \"input_ids\""),
        (json!({"labels": [5, 6]}), "\"labels\" has 2 values, wanted 3 as \"input_ids\""),
        (json!({"attention_mask": [1, 0, 1]}), "\"attention_mask\"[1] is 0, wanted 1 throughout"),
        (json!({"loss_mask": [0, 1, 1]}), "\"loss_mask\"[0] is 0, wanted 1 throughout"),
        (json!({"completion_mask": [0, 1, 1]}), "\"completion_mask\"[0] is 0, wanted 1 throughout"),
        (
            json!({"assistant_masks": [true, false, true]}),
            "\"assistant_masks\"[1] is false, wanted 1 throughout",
        ),
        (json!({"position_ids": [0, 1, 0]}), "\"position_ids\"[2] is 0, wanted 2"),
        (json!({"token_type_ids": [0, 0, 1]}), "\"token_type_ids\"[2] is 1, wanted 0 throughout"),
        (json!({"weight": 0.5}), "\"weight\"[0] is 0.5, wanted 1 throughout"),
        (json!({"messages": []}), "\"messages\" is not supported beside a document"),
        (json!({"Segment_IDs": [0, 0, 1]}), "\"Segment_IDs\" is not supported beside a document"),
    ] {
        let (code, stderr, _) = outcome(more);
        let (line, hint) = stderr.split_once('\n').unwrap();
        assert_eq!((code, line), (3, format!("error: {wanted}").as_str()));
        assert!(hint.starts_with("hint: ") || wanted.contains("values"), "{stderr}");
    }
    let (code, stderr, value) = outcome(json!({
        "labels": [5, 6, 7], "attention_mask": [1, 1, 1], "position_ids": [0, 1, 2], "token_type_ids": [0, 0, 0],
        "loss_mask": [1, 1, 1], "weight": 1.0, "weights": null, "special_tokens_mask": [1, 0, 0], "id": 7,
    }));
    assert_eq!(code, 0, "{stderr}");
    let notices = notices(&value);
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].ends_with("number of records: \"id\" (1), \"special_tokens_mask\" (1)"));
    // A class beside a text is no label of tokens.
    let file = place.write("class.jsonl", &[json!({"text": "a", "labels": 3, "label": 1})]);
    let (code, value, stderr) =
        nepenthe(&["eval", "--json", "--model", place.model(), "--nll", &file]);
    assert_eq!(code, 0, "{stderr} {value}");
}

#[test]
fn verbatim_memory_that_rouge_cannot_score_is_undefined_and_stops_no_run() {
    let place = Place::new();
    let japanese = "王様は今日も森の中を静かに歩いていました。月が出ていました。";
    let forget = place.write("forget.jsonl", &[text(japanese)]);
    let retain = place.write("retain.jsonl", &[text("something else, in a language of a to z")]);
    let stop = [
        "eval.documents=1",
        "eval.every=1",
        "eval.stop_metric=verbmem_forget",
        "eval.stop_val=0.5",
    ];
    let (code, _, stderr) = place.unlearn(&forget, &retain, "stop", &stop);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.starts_with("error: eval.stop_metric: verbmem_forget is undefined: ROUGE"),
        "{stderr}"
    );
    assert!(stderr.contains("hint: stop on nll_forget"), "{stderr}");
    let other =
        ["eval.documents=1", "eval.every=1", "eval.stop_metric=nll_forget", "eval.stop_val=100"];
    let (code, value, stderr) = place.unlearn(&forget, &retain, "other", &other);
    assert_eq!((code, &value["steps"]), (0, &1.into()), "{stderr}");
    assert!(
        value["before"].get("verbmem_forget").is_none() && value["before"]["nll_forget"].is_f64()
    );
    assert!(value["before"]["verbmem_retain"].is_f64(), "{value}");
    assert!(notices(&value).iter().any(|n| n.contains("1 of 1 prompts is undefined")), "{value}");

    let prompts = place.path("verbmem.json");
    std::fs::write(&prompts, json!([{"prompt": "王様", "gt": japanese}]).to_string()).unwrap();
    let arguments = ["eval", "--json", "--model", place.model(), "--verbmem", &prompts];
    let (code, value, stderr) = nepenthe(&[&arguments[..], &["--max-new-tokens", "8"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(value["verbmem"][0]["rouge_l_f1"].is_null(), "{value}");
    assert!(value["verbmem"][0]["items"][0]["rouge_l_f1"].is_null(), "{value}");
}

#[test]
fn generate_asks_the_question_alone_and_echoes_special_tokens() {
    let place = Place::new();
    let questions = place.write("qa.jsonl", &[json!({"question": "Who?", "answer": "Alice"})]);
    let common = ["generate", "--json", "--model", place.model(), "--max-new-tokens", "1"];
    let (code, value, stderr) = nepenthe(&[&common[..], &["--prompts", &questions]].concat());
    assert_eq!(
        (code, value[0]["prompt"].as_str()),
        (0, Some("Question: Who?\nAnswer:")),
        "{stderr}"
    );
    let bos = special(&place.model);
    let given = format!("{bos}Who");
    let (code, value, stderr) = nepenthe(&[&common[..], &["--prompt", &given]].concat());
    assert_eq!((code, value[0]["prompt"].as_str()), (0, Some(given.as_str())), "{stderr}");
    let ids = value[0]["prompt_ids"].as_array().unwrap();
    assert_eq!(ids[0], ids[1], "{value}");
    assert!(
        stderr.contains("warning: texts: 1 of 1 texts begin or end with a special token"),
        "{stderr}"
    );
    let (_, _, stderr) = nepenthe(&["score", "--model", place.model(), "--text", &given]);
    assert!(
        stderr.contains("warning: texts: 1 of 1 texts begin or end with a special token"),
        "{stderr}"
    );
    let doubled = place.write("doubled.jsonl", &[text(&given), text("Who")]);
    let (_, value, _) = nepenthe(&["eval", "--json", "--model", place.model(), "--nll", &doubled]);
    assert!(notices(&value)[0].contains("1 of 2 texts begin or end"), "{value}");
}

/// Returns the token that the tokenizer of `model` puts before a text.
fn special(model: &Path) -> String {
    let config = json_of(&model.join("tokenizer_config.json"));
    let token = &config["bos_token"];
    token.as_str().or_else(|| token["content"].as_str()).unwrap().to_owned()
}

#[test]
fn a_text_of_one_token_scores_a_zero_without_a_sign() {
    let place = Place::new();
    let one = place.write("one.jsonl", &[json!({"input_ids": [5]})]);
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    let output =
        command.args(["score", "--model", place.model(), "--data", &one]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.trim_end().ends_with("  0.0000") && !table.contains("-0.0000"), "{table}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("note: 1 of 1 texts have a single token"), "{stderr}");
}

#[test]
fn settings_of_special_tokens_beside_tokenizer_json_are_ignored_as_in_transformers_5() {
    let place = Place::new();
    let ids = || {
        let (code, value, stderr) =
            nepenthe(&["score", "--json", "--model", place.model(), "--text", "Who"]);
        assert_eq!(code, 0, "{stderr}");
        (value[0]["ids"].clone(), stderr)
    };
    let (plain, _) = ids();
    let path = place.model.join("tokenizer_config.json");
    let mut config = json_of(&path);
    config["add_bos_token"] = false.into();
    config["add_eos_token"] = true.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let (ignored, stderr) = ids();
    assert_eq!(ignored, plain);
    assert_eq!(stderr.matches("is ignored, as by transformers 5").count(), 2, "{stderr}");
}
