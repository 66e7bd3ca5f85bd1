//! `eval --suite`: the figures of other people's code, the file of results, the layouts that are read.
//!
//! tests/golden/data/suites holds small files in the layouts of MUSE and TOFU, and what mt-unlearn's and
//! OpenUnlearning's own code say of the demo's models on them (tests/golden/generate/suites.py).

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use approx::{abs_diff_eq, relative_eq};
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use nepenthe::backend::cpu::Cpu;
use nepenthe::data::Tokenizer;
use nepenthe::eval::outcome::Outcome;
use nepenthe::eval::suite::docs::table;
use nepenthe::eval::suite::{Options, SUITES, Subject, Suite};
use nepenthe::folder::export::{Save, write_model};
use nepenthe::io::safetensors::Dtype;
use nepenthe::method::passes::Passes;
use nepenthe::model::Model;
use nepenthe::model::params::Keeping;
use nepenthe::ops::StateMode;
use serde_json::{Value, json};
use support::folder::{load, rewrite, trained};
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn suites() -> PathBuf {
    root().join("tests/golden/data/suites")
}

/// Lays the demo's model `name` out as a folder.
fn demo_model(dir: &Path, name: &str) -> PathBuf {
    let (from, to) = (root().join("assets/demo"), dir.join(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let weights = from.join(format!("{name}.safetensors"));
    std::fs::copy(weights, to.join("model.safetensors")).unwrap();
    to
}

/// Runs `eval --json` with words split at blanks; returns exit code, result and stderr.
fn eval(arguments: &str) -> (i32, Value, String) {
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    command.args(["eval", "--json", "--device", "cpu"]).args(arguments.split(' '));
    let output = command.output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), value, text)
}

fn done(arguments: &str) -> (Value, String) {
    let (code, value, text) = eval(arguments);
    assert_eq!(code, 0, "{text}");
    (value, text)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Texts, ranks and counts must be equal; what is made of fp32 log-probabilities may differ by their rounding.
fn tolerance(figure: &str) -> f64 {
    let counted = ["mem_", "ROUGE", "mmlu", "privleak", "auc", "quality", "strength"];
    if counted.iter().any(|part| figure.contains(part)) { 1e-12 } else { 1e-5 }
}

#[test]
fn figures_of_the_demo_models_are_those_of_the_reference() {
    let dir = TempDir::new().unwrap();
    let (target, retrain) = (demo_model(dir.path(), "target"), demo_model(dir.path(), "retrain"));
    let recorded = read(&suites().join("figures.json"));
    for suite in SUITES.map(|kind| kind.name) {
        let out = dir.path().join(suite);
        let (value, _) = done(&format!(
            "--suite {suite} --data {} --model {} --retrain {} --out {}",
            suites().join(suite).display(),
            target.display(),
            retrain.display(),
            out.display()
        ));
        for model in value["models"].as_array().unwrap() {
            let retrained = model["retrained"] == true;
            let name = if retrained { "retrain" } else { "target" };
            let wanted = recorded[name][suite]["figures"].as_object().unwrap();
            let measured = model["figures"].as_object().unwrap();
            for (figure, want) in wanted {
                let got = measured.get(figure).and_then(Value::as_f64);
                let want = want.as_f64().unwrap();
                let near = got.is_some_and(|got| {
                    (got - want).abs() <= tolerance(figure) * want.abs().max(1e-3)
                });
                assert!(near, "{name} {figure}: {got:?}, recorded {want}");
            }
            for figure in measured.keys() {
                assert!(value["good"][figure] != "-", "{figure} has no direction");
                // The area is recorded with all others, and the retrained model is compared with nothing but itself.
                let itself = retrained && ["privleak", "forget_quality"].contains(&figure.as_str());
                let area = figure == "auc_forget_holdout";
                assert!(wanted.contains_key(figure) || itself || area, "{figure} is not recorded");
            }
        }
    }
    // All areas under the ROC curve, not only the headline's; and what was generated, as no answer of MMLU is right.
    let entries = read(&dir.path().join("muse"))["entries"].clone();
    for entry in entries.as_array().unwrap() {
        let name = if entry["retrained"] == true { "retrain" } else { "target" };
        let areas = recorded[name]["muse"]["auc"].as_object().unwrap();
        assert_eq!(areas.len(), 90);
        let outputs = &entry["outcome"]["details"]["mmlu_val"]["outputs"];
        assert_eq!(outputs, &recorded[name]["muse"]["mmlu_outputs"], "{name}");
        for (area, want) in areas {
            let got = entry["outcome"]["details"]["auc"][area].as_f64().unwrap();
            assert!(
                abs_diff_eq!(got, want.as_f64().unwrap(), epsilon = 1e-12),
                "{name} {area}: {got}, {want}"
            );
        }
    }
}

/// `NEPENTHE_BLESS=1 cargo test --test suites` regenerates the tables.
#[test]
fn docs_list_the_metrics_that_the_code_declares() {
    let path = root().join("docs/evaluation.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let mut page = found.clone();
    for kind in SUITES {
        let begin = format!("<!-- {} -->\n", kind.name);
        let from = page.find(&begin).unwrap() + begin.len();
        let to = from + page[from..].find("<!-- end -->").unwrap();
        page.replace_range(from..to, &table(kind));
    }
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    } else {
        assert!(found == page, "docs/evaluation.md is old: write it with NEPENTHE_BLESS=1");
    }
}

#[test]
fn the_first_token_of_an_answer_is_scored_by_the_rule_that_is_named() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let (question, answer) = ("How tall did Alice grow?", "Nine feet high");
    let line = json!({"question": question, "answer": answer, "paraphrased_answer": answer,
        "perturbed_answer": ["Ten feet"]});
    std::fs::write(data.join("forget01_perturbed.json"), line.to_string()).unwrap();

    // The log-probabilities of the tokens of the whole text, by another command.
    let tokenizer = Tokenizer::open(&model).unwrap();
    let asked = tokenizer.encode(&format!("Question: {question}\nAnswer: ")).unwrap();
    let mut ids = tokenizer.encode(&format!("Question: {question}\nAnswer: {answer}")).unwrap();
    ids.extend(tokenizer.eos());
    let rows = dir.path().join("ids.jsonl");
    std::fs::write(&rows, json!({"input_ids": ids}).to_string()).unwrap();
    let mut score = Command::cargo_bin("nepenthe").unwrap();
    score.args(["score", "--json", "--device", "cpu", "--model"]).arg(&model);
    let output = score.arg("--data").arg(&rows).output().unwrap();
    let scored: Value = serde_json::from_slice(&output.stdout).unwrap();
    let logprobs: Vec<f64> = scored[0]["logprobs"].as_array().unwrap()[1..]
        .iter()
        .map(|value| value.as_f64().unwrap())
        .collect();

    // The blank after the colon is a token of the question alone, but a part of the answer's first token.
    let first = asked.iter().zip(&ids).take_while(|(a, b)| a == b).count();
    assert_eq!(asked.len(), first + 1);
    for (rule, start) in [("benchmark", first + 1), ("all", first)] {
        let out = dir.path().join(rule);
        let (value, text) = done(&format!(
            "--suite tofu --data {} --model {} --metric probability --answer-tokens {rule} --out {}",
            data.display(),
            model.display(),
            out.display()
        ));
        assert_eq!(value["settings"]["answer_tokens"], rule);
        let unscored = "3 of 3 answers have their first token unscored, as in the benchmark";
        assert_eq!(text.contains(unscored), rule == "benchmark", "{text}");
        let wanted = -logprobs[start - 1..].iter().sum::<f64>() / (ids.len() - start) as f64;
        let details = &read(&out)["entries"][0]["outcome"]["details"]["forget_probability"];
        let got = details["answer_nll"][0].as_f64().unwrap();
        assert!(relative_eq!(got, wanted, max_relative = 1e-6), "{rule}: {got}, wanted {wanted}");
        let probability = value["models"][0]["figures"]["forget_Q_A_Prob"].as_f64().unwrap();
        assert!(
            abs_diff_eq!(probability, (-wanted).exp(), epsilon = 1e-6),
            "{rule}: {probability}"
        );
    }
}

#[test]
fn figures_of_text_that_rouge_cannot_score_are_null() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let item = json!([{"prompt": "王様は今日も", "gt": "森の中を静かに歩いていました"}]);
    std::fs::write(data.join("verbmem_forget.json"), item.to_string()).unwrap();
    let (value, text) = done(&format!(
        "--suite muse --data {} --model {} --metric verbmem_f",
        data.display(),
        model.display()
    ));
    let figures = value["models"][0]["figures"].as_object().unwrap();
    assert!(figures.contains_key("verbmem_f") && figures["verbmem_f"].is_null(), "{value}");
    assert!(text.contains("warning: verbmem_f: undefined (null): ROUGE counts"), "{text}");
}

#[test]
fn results_are_used_again_only_for_equal_model_data_and_settings() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let questions = data.join("knowmem_forget_qa.jsonl");
    let write = |answer: &str| {
        let line = json!({"question": "How tall did Alice grow in the hall?", "answer": answer});
        std::fs::write(&questions, line.to_string()).unwrap();
    };
    write("Nine feet");
    let out = dir.path().join("results.json");
    let run = |more: &str| {
        let words = format!(
            "--suite muse --data {} --model {} --metric knowmem_f --shots 0 --out {}{more}",
            data.display(),
            model.display(),
            out.display()
        );
        let (value, text) = done(&words);
        (value["models"][0]["reused"] == true, text)
    };
    let (reused, text) = run("");
    assert!(!reused && !text.contains("results"), "{text}");
    let first = std::fs::read(&out).unwrap();
    let (reused, text) = run("");
    assert!(
        reused && text.contains("its figures are used again (--fresh measures anew)"),
        "{text}"
    );
    assert!(std::fs::read(&out).unwrap() == first, "nothing changed, so the file is the same");
    assert!(!run(" --fresh").0);

    let other = |run: (bool, String), part: &str| {
        let message = format!("measured anew, the file of results is of other {part}\n");
        assert!(!run.0 && run.1.contains(&message), "{part}: {}", run.1);
    };
    other(run(" --batch 3"), "settings");
    write("Ten feet");
    other(run(" --batch 3"), "data");
    std::fs::copy(root().join("assets/demo/retrain.safetensors"), model.join("model.safetensors"))
        .unwrap();
    other(run(" --batch 3"), "model");

    std::fs::write(&out, "{}").unwrap();
    let words = format!("--suite muse --data {} --model {}", data.display(), model.display());
    let (code, _, text) = eval(&format!("{words} --shots 0 --out {}", out.display()));
    assert!(code == 2 && text.contains("not a file of results"), "{code} {text}");
    assert_eq!(std::fs::read(&out).unwrap(), b"{}", "a file of something else is left alone");
}

#[test]
fn results_of_other_models_stay_and_lose_comparisons_that_no_longer_hold() {
    let dir = TempDir::new().unwrap();
    let (target, retrain) = (demo_model(dir.path(), "target"), demo_model(dir.path(), "retrain"));
    let out = dir.path().join("results.json");
    let words = format!(
        "--suite muse --data {} --metric privleak --limit 3 --out {} --model",
        suites().join("muse").display(),
        out.display()
    );
    let (first, _) = done(&format!("{words} {} --retrain-auc news", target.display()));
    assert_eq!(first["models"][0]["figures"]["privleak"], json!(-100.0));
    let (value, _) = done(&format!("{words} {}", retrain.display()));
    assert_eq!(value["models"].as_array().unwrap().len(), 1);
    let record = read(&out);
    let kept = &record["entries"][1];
    assert_eq!(kept["model"], target.display().to_string());
    assert!(kept["outcome"]["figures"].get("privleak").is_none());
    let (again, _) = done(&format!("{words} {}", target.display()));
    assert_eq!(again["models"][0]["reused"], true);
    assert!(again["models"][0]["figures"].get("privleak").is_none());
}

#[test]
fn layouts_of_people_give_the_same_figures() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let source = suites().join("muse/knowmem");
    let figure = |data: &Path| {
        let words = format!(
            "--suite muse --data {} --model {} --metric knowmem_f",
            data.display(),
            model.display()
        );
        done(&words).0["models"][0]["figures"]["knowmem_f"].clone()
    };
    let want = figure(&suites().join("muse"));
    assert!(want.as_f64().unwrap() > 0.0);
    for place in ["eval/knowmem_forget_qa", "knowmem_forget_qa"] {
        let data = dir.path().join(place.replace('/', "_"));
        for tail in ["", "_icl"] {
            let to = data.join(format!("{place}{tail}.jsonl"));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            let records = read(&source.join(format!("forget_qa{tail}.json")));
            let lines: Vec<String> =
                records.as_array().unwrap().iter().map(Value::to_string).collect();
            std::fs::write(to, lines.join("\n")).unwrap();
        }
        assert_eq!(figure(&data), want, "{place}");
    }
    #[cfg(feature = "parquet")]
    assert_eq!(figure(&suites().join("parquet")), want);
}

#[cfg(feature = "parquet")]
#[test]
fn lists_in_parquet_files_are_read() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let figures = |folder: &str| {
        let words = format!(
            "--suite tofu --data {} --model {} --metric probability --limit 4",
            suites().join(folder).display(),
            model.display()
        );
        done(&words).0["models"][0]["figures"]["forget_Truth_Ratio"].clone()
    };
    assert_eq!(figures("parquet"), figures("tofu"));
}

#[cfg(feature = "parquet")]
#[test]
fn a_corpus_in_a_parquet_file_has_the_rows_of_its_json_file() {
    use nepenthe::data::{Corpus, CorpusOptions};
    let dir = TempDir::new().unwrap();
    let tokenizer = Tokenizer::open(&root().join("assets/demo")).unwrap();
    let cache = Some(dir.path().to_owned());
    let options = CorpusOptions { cache_dir: cache, ..CorpusOptions::default() };
    let open = |file: &str| Corpus::open(&suites().join(file), &tokenizer, &options);
    let rows = open("parquet/forget-00000-of-00001.parquet").unwrap();
    assert_eq!((rows.len(), rows.hash()), (10, open("muse/privleak/forget.json").unwrap().hash()));
    let broken = dir.path().join("broken.parquet");
    std::fs::write(&broken, b"PAR1 no rows").unwrap();
    let error = Corpus::open(&broken, &tokenizer, &options).unwrap_err();
    assert!(error.to_string().contains("broken.parquet: not a .parquet file"), "{error}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_how_to_go_on() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let data = suites().join("parquet");
    let words = format!("--suite tofu --data {} --model {}", data.display(), model.display());
    let (code, _, text) = eval(&words);
    let wanted = "this build reads no .parquet files\nhint: build with --features parquet";
    assert!(code == 3 && text.contains(wanted), "{code} {text}");
}

#[test]
fn a_sequence_of_requests_wants_a_model_for_each() {
    let dir = TempDir::new().unwrap();
    let models = [demo_model(dir.path(), "target"), demo_model(dir.path(), "retrain")];
    let texts = read(&suites().join("muse/privleak/forget.json"));
    let texts = texts.as_array().unwrap();
    for (k, rows) in [&texts[..2], &texts[2..5]].into_iter().enumerate() {
        let path = dir.path().join(format!("data/sust/forget_{}.json", k + 1));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let rows: Vec<&Value> = rows.iter().map(|row| &row["text"]).collect();
        std::fs::write(path, json!(rows).to_string()).unwrap();
    }
    let words = |models: &[PathBuf]| {
        let models: Vec<String> =
            models.iter().map(|model| format!(" --model {}", model.display())).collect();
        format!(
            "--suite muse --data {} --series sust{}",
            dir.path().join("data").display(),
            models.concat()
        )
    };
    let (value, _) = done(&words(&models));
    let figure = |m: usize, name: &str| value["models"][m]["figures"][name].as_f64().unwrap();
    for name in ["ppl_sust_1", "ppl_sust_2"] {
        assert!(figure(0, name) < 1.5 && figure(1, name) > 20.0, "{name}");
    }
    let (code, _, text) = eval(&words(&models[..1]));
    assert!(code == 2 && text.contains("--series: 1 models for 2 requests"), "{code} {text}");
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let model = demo_model(dir.path(), "target");
    let (muse, tofu) = (suites().join("muse"), suites().join("tofu"));
    let (muse, tofu) = (muse.display(), tofu.display());
    for (words, code, message) in [
        (format!("--suite muse --data {muse}/none"), 3, "none: no such folder"),
        (format!("--suite muse --data {tofu}"), 3, "tofu: holds no file of MUSE"),
        (format!("--suite tofu --data {muse}"), 3, "muse: holds no forget10_perturbed.json"),
        (
            format!("--suite muse --data {muse} --metric verbmem"),
            2,
            "--metric: `verbmem` is unknown\nhint: known are verbmem_f,",
        ),
        (
            // MMLU's questions are found beside the corpus, the others are not looked for there.
            format!("--suite muse --data {muse}/knowmem --metric mmlu_val --metric privleak"),
            3,
            "privleak needs privleak/forget.json, which is not there",
        ),
        (format!("--suite tofu --data {tofu} --shots 1"), 2, "--shots: is of --suite muse"),
        (format!("--suite tofu --data {tofu} --template ask"), 2, "has no {question} in it"),
        (format!("--suite muse --data {muse} --retrain-auc 0"), 2, "wanted news, books, or"),
        (format!("--data {muse}"), 2, "--suite"),
    ] {
        let (got, _, text) = eval(&format!("{words} --model {}", model.display()));
        assert!(got == code && text.contains(message), "{words}: {got} {text}");
    }
}

/// Writes the demo's target as the folder `to` with values between those of bf16, in `dtype`.
fn between(dir: &Path, to: &str, dtype: Dtype) -> PathBuf {
    let folder = dir.join(to);
    std::fs::rename(demo_model(dir, "target"), &folder).unwrap();
    let path = folder.join("new");
    rewrite(&folder, &path, Some(dtype), |_, x| x * 1.001);
    std::fs::rename(path, folder.join("model.safetensors")).unwrap();
    folder
}

fn measure(
    ops: &Cpu<f32>,
    model: &mut Model<Cpu<f32>>,
    suite: &dyn Suite,
    training: bool,
    batch: usize,
) -> Outcome {
    let tokenizer = Tokenizer::open(&root().join("assets/demo")).unwrap();
    let prepared = suite.prepare(&tokenizer).unwrap();
    let mut passes = Passes::new(ops, model, prepared.longest().max(700), training).unwrap();
    let mut subject =
        Subject { ops, model, passes: &mut passes, tokenizer: &tokenizer, end_tokens: &[0], batch };
    prepared.measure(&mut subject, &mut |_| {}).unwrap()
}

#[test]
fn figures_before_saving_and_after_loading_are_equal_bits_at_any_batch_size() {
    let dir = TempDir::new().unwrap();
    let ops = Cpu::<f32>::new();
    let all = SUITES.map(|kind| {
        let limit = Some(if kind.name == "muse" { 3 } else { 2 });
        (kind.open)(&suites().join(kind.name), Options { limit, ..Options::default() }).unwrap()
    });
    let exact = between(dir.path(), "f32", Dtype::F32);
    for (source, mode) in [
        (exact.clone(), StateMode::Exact),
        (between(dir.path(), "bf16", Dtype::Bf16), StateMode::Compact),
    ] {
        let keep = trained(mode);
        let mut student = load(&ops, &exact, &keep);
        let out = dir.path().join(format!("{mode:?}"));
        write_model(&ops, &student, &source, &out, Save::default(), &json!({})).unwrap();
        let mut saved = load(&ops, &out, &Keeping::inference());
        for suite in &all {
            let before = measure(&ops, &mut student, suite.as_ref(), true, 5);
            let after = measure(&ops, &mut saved, suite.as_ref(), false, 2);
            assert!(before.figures.len() > 9, "{:?}", before.figures);
            // Details hold every log-probability that the figures are made of, and every generated text.
            assert!(before == after, "{mode:?}: {:?} {:?}", before.figures, after.figures);
        }
    }
}
