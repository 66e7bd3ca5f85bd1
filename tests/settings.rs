//! The table of settings says what the recipe's structs say, and docs/settings.md what the table says;
//! `NEPENTHE_BLESS=1 cargo test --release --test settings` regenerates the page.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use assert_cmd::Command;
use nepenthe::method::{FORGET, Knobs, PENALTIES};
use nepenthe::run::Recipe;
use nepenthe::run::recipe::page;
use nepenthe::run::recipe::presets::PRESETS;
use nepenthe::run::recipe::settings::{SETTINGS, Type};
use serde_json::Value as Json;
use toml::{Table, Value};

fn nepenthe(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("nepenthe").unwrap().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Every setting of the structs by its dotted key, with its default.
fn defaults() -> Vec<(String, Value)> {
    let table: Table = toml::to_string(&Recipe::default()).unwrap().parse().unwrap();
    let mut all = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(section) => {
                all.extend(section.into_iter().map(|(key, v)| (format!("{name}.{key}"), v)));
            }
            value => all.push((name, value)),
        }
    }
    all
}

#[test]
fn page_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    if std::env::var_os("NEPENTHE_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "docs/settings.md is old: write it with NEPENTHE_BLESS=1");
}

#[test]
fn table_and_structs_have_the_same_keys_defaults_and_types() {
    let structs = defaults();
    let known: BTreeSet<&str> = structs.iter().map(|(key, _)| key.as_str()).collect();
    let table: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(table, known);
    assert_eq!(SETTINGS.len(), structs.len());
    for (key, value) in structs {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
        let table: Table = format!("v = {}", setting.default).parse().unwrap();
        assert_eq!(table["v"], value, "{key}");
        let fits = match setting.kind {
            Type::Switch => value.is_bool(),
            Type::Count => value.is_integer(),
            Type::Number => value.is_float(),
            Type::Path | Type::Layers | Type::Word(_) => value.is_str(),
        };
        assert!(fits, "{key}: {:?} for {value}", setting.kind);
        assert!(setting.meaning.ends_with(['.', ')']) && setting.meaning.len() > 8, "{key}");
    }
}

#[test]
fn words_are_those_that_the_structs_read() {
    for setting in SETTINGS {
        let words = setting.kind.words();
        if words.is_empty() {
            continue;
        }
        let (section, name) = setting.place();
        let read = |word: &str| Recipe::from_toml(&format!("[{section}]\n{name} = \"{word}\"\n"));
        for word in &words {
            assert!(read(word).is_ok(), "{}: {word}", setting.key);
        }
        // serde names the variants of an enum; a setting that is text is looked up by the table's own source.
        if let Err(error) = read("no-such-word") {
            let text = error.message().to_owned();
            let mut named: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
            named.retain(|word| *word != "no-such-word" && !word.contains('='));
            assert_eq!(named, words, "{}: {text}", setting.key);
        }
        let (code, _, stderr) = nepenthe(&[
            "plan",
            "--params-preset",
            "tiny",
            "--set",
            &format!("{}=no-such-word", setting.key),
        ]);
        assert_eq!(code, 2, "{stderr}");
        let wanted = format!(
            "{}: `no-such-word` is unknown\nhint: known are {}",
            setting.key,
            words.join(", ")
        );
        assert!(stderr.contains(&wanted), "{stderr}");
    }
}

#[test]
fn a_number_of_a_loss_names_every_loss_that_reads_it() {
    let knobs = serde_json::to_value(Knobs::default()).unwrap();
    for knob in knobs.as_object().unwrap().keys() {
        let setting =
            SETTINGS.iter().find(|setting| setting.key == format!("method.{knob}")).unwrap();
        let words: Vec<&str> = setting.when.split([' ', ',', '=']).collect();
        for objective in FORGET.iter().chain(&PENALTIES) {
            let reads = objective.keys().contains(&knob.as_str());
            assert_eq!(reads, words.contains(&objective.name()), "{knob}: {}", objective.name());
        }
    }
}

#[test]
fn settings_lists_all_explains_one_and_leads_to_the_nearest() {
    let (code, stdout, _) = nepenthe(&["settings"]);
    assert_eq!(code, 0);
    for setting in SETTINGS {
        assert!(stdout.contains(&format!("{} = {}\n", setting.key, setting.default)), "{stdout}");
    }
    let (code, stdout, _) = nepenthe(&["settings", "--json"]);
    let all: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, all.as_array().unwrap().len()), (0, SETTINGS.len()));

    let (code, stdout, _) = nepenthe(&["settings", "optim.schedule"]);
    assert_eq!(code, 0);
    for part in ["constant, linear, cosine, paper", "npo-kl \"paper\"", "default     \"constant\""]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (_, stdout, _) = nepenthe(&["settings", "optim.b1", "--json"]);
    let one: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&one["default"], &one["type"]), (&0.9.into(), &"number".into()));
    assert_eq!(one["when"], "with optim.optimizer=adamw");

    let (code, stdout, _) = nepenthe(&["settings", "report"]);
    assert_eq!(code, 0);
    assert!(
        stdout.contains("report.tensorboard = false") && !stdout.contains("optim."),
        "{stdout}"
    );

    for (key, hint) in [
        ("lr", "did you mean `optim.lr`?"),
        ("learning_rate", "did you mean `optim.lr`?"),
        ("optim.momentun", "did you mean `optim.momentum`?"),
        ("qqq", "`nepenthe settings` lists all keys"),
    ] {
        let (code, stdout, stderr) = nepenthe(&["settings", key]);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert_eq!(stderr, format!("error: unknown key `{key}`\nhint: {hint}\n"));
    }
}

#[test]
fn presets_are_listed_with_their_schedule_and_source() {
    let (code, stdout, _) = nepenthe(&["settings", "--presets", "--json"]);
    let all: Json = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, all.as_array().unwrap().len()), (0, PRESETS.len()));
    for preset in all.as_array().unwrap() {
        assert_eq!(preset["schedule"], preset["settings"]["optim"]["schedule"], "{preset}");
    }
    let (_, stdout, _) = nepenthe(&["settings", "--presets"]);
    for preset in PRESETS {
        assert!(stdout.contains(&format!("{}: {}; schedule", preset.name, preset.method)));
    }
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/unlearn.md"));
    let page = page.unwrap();
    for preset in PRESETS {
        assert!(page.contains(&format!("`{}`", preset.name)), "docs/unlearn.md: {}", preset.name);
    }
}
