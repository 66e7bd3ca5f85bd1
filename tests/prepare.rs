//! `prepare mini-muse` on a small folder of MUSE's form made here, against what its rules say by hand.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Sentences that no two texts share: words `NAME.FIRST` to `NAME.(FIRST + n - 1)`.
fn words(name: &str, n: usize) -> String {
    (0..n).map(|i| format!("{name}.{i}")).collect::<Vec<_>>().join(" ")
}

fn texts(all: &[String]) -> Value {
    all.iter().map(|text| json!({"text": text})).collect()
}

fn write(root: &Path, name: &str, value: &Value) {
    let path = root.join("news").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// Twelve words and more that stand in many texts.
const BOILERPLATE: &str =
    "to play this video you need to enable javascript in your browser please do so";

struct Muse {
    verbmem: Value,
    forget: Vec<String>,
    retain: Vec<String>,
    holdout: Vec<String>,
}

fn muse(root: &Path) -> Muse {
    let verbmem = json!([
        {"prompt": words("v0", 40), "gt": format!(" {}", words("v0t", 20)), "id": 7},
        // A window of the first forget text.
        {"prompt": words("f0", 40), "gt": " é \u{7f} \"quoted\" \n", "id": 8},
    ]);
    let forget: Vec<String> = (0..3).map(|i| words(&format!("f{i}"), 700)).collect();
    let mut retain: Vec<String> =
        (0..11).map(|i| format!("{} {BOILERPLATE}", words(&format!("r{i}"), 100))).collect();
    // 13 words of a forget text make 2 shared 12-grams of about 150: above 1 %.
    retain[4] = format!("{} {}", words("r4", 100), words("f1", 13));
    let mut holdout: Vec<String> = (0..4).map(|i| words(&format!("h{i}"), 900)).collect();
    // 2 shared 12-grams of about 900 stay below 1 %.
    holdout[1] = format!("{} {}", words("f2", 13), words("h1", 900));
    holdout[2] = format!("{} {}", words("f2", 60), words("h2", 900));
    write(root, "verbmem/forget.json", &verbmem);
    write(root, "privleak/forget.json", &texts(&forget));
    write(root, "privleak/retain.json", &texts(&retain));
    write(root, "privleak/holdout.json", &texts(&holdout));
    let qa = |names: &[&str]| -> Value {
        names.iter().map(|name| json!({"question": name, "answer": "a"})).collect()
    };
    write(root, "knowmem/forget_qa.json", &qa(&["q1", "q2"]));
    write(root, "knowmem/forget_qa_icl.json", &qa(&["q3"]));
    write(root, "knowmem/retain_qa.json", &qa(&["q4", "q5"]));
    write(root, "knowmem/retain_qa_icl.json", &qa(&["q5"]));
    Muse { verbmem, forget, retain, holdout }
}

fn prepare(root: &Path, out: &Path) -> std::process::Output {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let mut command = Command::cargo_bin("nepenthe").unwrap();
    command.args(["--json", "prepare", "mini-muse", "--muse"]).arg(root);
    command.arg("--tokenizer").arg(tokenizer).arg("--out").arg(out).output().unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    let content = fs::read_to_string(path).unwrap();
    assert!(content.ends_with('\n'), "{}", path.display());
    let text = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        value["text"].as_str().unwrap().to_owned()
    };
    content.lines().map(text).collect()
}

#[test]
fn splits_are_those_that_the_rules_name() {
    let root = TempDir::new().unwrap();
    let Muse { verbmem, forget, retain, holdout } = muse(root.path());
    let out = root.path().join("out");
    let output = prepare(root.path(), &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let built = &value["corpora"][0];
    assert_eq!((&built["dropped_retain"], &built["dropped_holdout"]), (&json!(1), &json!(1)));
    assert_eq!(built["dropped_questions"], json!([0, 1]));
    let news = out.join("news");
    let whole: Vec<String> = verbmem
        .as_array()
        .unwrap()
        .iter()
        .map(|v| format!("{}{}", v["prompt"].as_str().unwrap(), v["gt"].as_str().unwrap()))
        .collect();
    assert_eq!(lines(&news.join("forget.jsonl")), [whole, forget.clone()].concat());
    // Ten are left; the first seven train.
    let kept: Vec<String> =
        retain.iter().enumerate().filter(|(i, _)| *i != 4).map(|(_, text)| text.clone()).collect();
    assert_eq!(lines(&news.join("retain1.jsonl")), kept[..7]);
    assert_eq!(lines(&news.join("retain2.jsonl")), kept[7..]);
    // Whole words within the first 4,000 characters, the last one left out.
    let held = lines(&news.join("holdout.jsonl"));
    assert_eq!(held.len(), 3);
    for (got, whole) in held.iter().zip([&holdout[0], &holdout[1], &holdout[3]]) {
        assert!(whole.starts_with(got) && (3990..4000).contains(&got.len()), "{}", got.len());
        assert_eq!(&whole[got.len()..=got.len()], " ");
    }
    let raw = fs::read_to_string(news.join("eval/verbmem_forget.json")).unwrap();
    assert!(raw.ends_with("\"gt\": \" é \u{7f} \\\"quoted\\\" \\n\", \"id\": 8}]"), "{raw}");
    assert_eq!(serde_json::from_str::<Value>(&raw).unwrap(), verbmem);
    let questions = fs::read_to_string(news.join("eval/knowmem_retain_qa.json")).unwrap();
    assert_eq!(questions, "[{\"question\": \"q4\", \"answer\": \"a\"}]");
    let small: Value = serde_json::from_str(
        &fs::read_to_string(news.join("small/eval/verbmem_forget.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(small.as_array().unwrap().len(), 2);
    assert!(small[0].get("id").is_none());
}

#[test]
fn overlaps_are_counted_in_shares_of_12_grams() {
    let root = TempDir::new().unwrap();
    muse(root.path());
    let output = prepare(root.path(), &root.path().join("out"));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = &value["corpora"][0]["verbmem_in_forget"];
    // 40 words of the second text are 29 windows; é, DEL (no blank) and the quoted word make 3 more. The first text
    // has 40 + 20 words in one row: 49 windows.
    assert_eq!(of["share"].as_f64().unwrap(), 29.0 / (29.0 + 3.0 + 49.0));
    assert_eq!(
        (&of["documents"], &of["touching"], &of["mostly"]),
        (&json!(2), &json!(1), &json!(1))
    );
    let retain = &value["corpora"][0]["retain_in_forget"];
    assert_eq!((&retain["touching"], &retain["mostly"]), (&json!(1), &json!(0)));
}

#[test]
fn files_of_another_form_are_refused_and_nothing_is_left() {
    let root = TempDir::new().unwrap();
    muse(root.path());
    let out = root.path().join("out");
    write(root.path(), "privleak/retain.json", &json!([{"text": "a"}, {"txt": "b"}]));
    let output = prepare(root.path(), &out);
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("retain.json: item 1: \"text\" is missing, wanted a string\nhint: "),
        "{error}"
    );
    assert!(!out.exists());
    let empty = TempDir::new().unwrap();
    let output = prepare(empty.path(), &out);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stderr).unwrap().contains("holds neither news/ nor books/"));
}
