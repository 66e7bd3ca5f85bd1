//! Walks the manifest of recorded reference runs and runs every case.
//!
//! The folder is the one named by NEPENTHE_GOLDEN, else the copy in the repository. No case is known by name: its
//! kind says what is done with it, its tolerance how near it must come.

mod engine;
mod generation;
mod losses;
mod metrics;
mod models;
mod thinned;
mod tokenizers;
mod trajectories;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::{Check, json};
use nepenthe::model::ARCHITECTURES;
use serde_json::Value;

fn run(case: &Value, root: &Path) -> Check<String> {
    let id = case["id"].as_str().ok_or("no id")?;
    match case["kind"].as_str() {
        Some("forward" | "forward+gradient") => models::run(case, root),
        Some("loss+gradient") => losses::run(case, root),
        Some("trajectory") => trajectories::run(case, root),
        Some("tokenizer") => tokenizers::run(case, root),
        Some("metric") => {
            let file = root.join(id).with_extension("json");
            match file.file_stem().and_then(|s| s.to_str()) {
                Some("greedy_generation") => generation::greedy(&file, root),
                Some("nll_and_acc") => generation::nll_and_acc(&file, root),
                Some("clean_up_tokenization") => tokenizers::clean_up(&file),
                _ => metrics::run(&file, root).unwrap_or_else(|| Err("unknown metric".into())),
            }
        }
        kind => Err(format!("unknown kind {kind:?}")),
    }
}

/// Tells whether `root` holds all files of the case. The published package leaves some out; a repository leaves out none.
fn complete(case: &Value, root: &Path) -> bool {
    let files = case["files"].as_array().map_or(&[][..], Vec::as_slice);
    files.iter().all(|file| file.as_str().is_some_and(|file| root.join(file).is_file()))
}

/// Tells whether the logits of a model of this `model_type` are among the cases.
fn recorded(model_type: &str, cases: &[Value], root: &Path) -> bool {
    let logits = |case: &&Value| case["kind"].as_str().is_some_and(|k| k.starts_with("forward"));
    let configs = cases.iter().filter(logits).filter_map(|case| case["id"].as_str());
    configs
        .filter_map(|id| json(&root.join(id).join("config.json")).ok())
        .any(|config| config["model_type"] == model_type)
}

fn main() -> ExitCode {
    // With a harness of its own the counts are printed whether or not all went well.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    let root = std::env::var_os("NEPENTHE_GOLDEN").map_or(own.clone(), PathBuf::from);
    let manifest = match json(&root.join("manifest.json")) {
        Ok(manifest) => manifest,
        Err(why) => {
            eprintln!("golden: {why}");
            return ExitCode::FAILURE;
        }
    };
    let cases = manifest["cases"].as_array().map_or(&[][..], Vec::as_slice);
    // Cargo adds this file to packages.
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml.orig").is_file();
    let (mut ran, mut left_out, mut failed) = (0, 0, Vec::new());
    for case in cases {
        let id = case["id"].as_str().unwrap_or("?");
        if packaged && root == own && !complete(case, &root) {
            println!("left out {id}: not in the package");
            left_out += 1;
            continue;
        }
        match run(case, &root) {
            Ok(what) => {
                println!("run      {id}: {what}");
                ran += 1;
            }
            Err(why) => {
                println!("FAILED   {id}: {why}");
                failed.push(id.to_owned());
            }
        }
    }
    for family in ARCHITECTURES {
        if root == own && !packaged && !recorded(family.model_type, cases, &root) {
            println!("FAILED   {family}: no recorded model");
            failed.push(family.model_type.to_owned());
        }
    }
    println!("golden: {ran} run, {left_out} left out, {} failed", failed.len());
    println!("{ran} passed, {} failed", failed.len());
    if failed.is_empty() && ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
