//! `settings`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::output::Output;
use crate::error::Result;
use crate::run::recipe::presets::{self, PRESETS, Preset};
use crate::run::recipe::settings::{SETTINGS, Setting, find, section};

/// Options of `settings`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A setting to explain, as optim.lr, or a section to list, as optim [default: list all]
    #[arg(value_name = "KEY")]
    key: Option<String>,
    /// List the presets instead
    #[arg(long, conflicts_with = "key")]
    presets: bool,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    if args.presets {
        let all: Vec<Value> = PRESETS.iter().map(preset).collect();
        return out.result(&json!(all), || PRESETS.iter().map(preset_text).collect());
    }
    let Some(key) = &args.key else { return list(SETTINGS.iter().collect(), out) };
    let inside = section(key);
    if !inside.is_empty() {
        return list(inside, out);
    }
    let setting = find(key)?;
    let set = in_presets(setting)?;
    let mut value = object(setting);
    value["presets"] = set.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    out.result(&value, || detail(setting, &set))
}

fn list(settings: Vec<&'static Setting>, out: &Output) -> Result<()> {
    let values: Vec<Value> = settings.iter().map(|setting| object(setting)).collect();
    out.result(&json!(values), || {
        let mut text = String::new();
        for setting in &settings {
            let meaning =
                setting.meaning.split_once(". ").map_or(setting.meaning, |(first, _)| first);
            let _ = writeln!(
                text,
                "{} = {}\n    {}",
                setting.key,
                setting.default,
                meaning.trim_end_matches('.')
            );
        }
        text + "\n`nepenthe settings KEY` explains one of them\n"
    })
}

fn object(setting: &Setting) -> Value {
    let default: Option<toml::Table> = format!("v = {}", setting.default).parse().ok();
    let default = default.and_then(|table| serde_json::to_value(&table["v"]).ok());
    json!({
        "key": setting.key, "type": setting.kind.name(), "values": setting.kind.words(),
        "default": default, "unit": setting.unit, "meaning": setting.meaning, "when": setting.when,
    })
}

fn detail(setting: &Setting, presets: &[(&str, String)]) -> String {
    let mut rows = vec![["type", setting.kind.name()].map(str::to_owned).to_vec()];
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("values", setting.kind.words().join(", "));
    row("default", setting.default.to_owned());
    row("unit", setting.unit.to_owned());
    row(
        "matters",
        if setting.when.is_empty() { String::new() } else { format!("only {}", setting.when) },
    );
    let presets: Vec<String> =
        presets.iter().map(|(name, value)| format!("{name} {value}")).collect();
    row("in presets", presets.join(", "));
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    let lines = rows.iter().map(|row| format!("{:<width$}  {}\n", row[0], row[1]));
    format!("{}\n{}\n\n{}", setting.key, setting.meaning, lines.collect::<String>())
}

/// Returns the presets that have a setting, with their values.
fn in_presets(setting: &Setting) -> Result<Vec<(&'static str, String)>> {
    let (section, name) = setting.place();
    let mut found = Vec::new();
    for preset in &PRESETS {
        let table = presets::find(preset.name)?;
        let values = if section.is_empty() {
            Some(&table)
        } else {
            table.get(section).and_then(|s| s.as_table())
        };
        if let Some(value) = values.and_then(|values| values.get(name)) {
            found.push((preset.name, value.to_string()));
        }
    }
    Ok(found)
}

fn preset(preset: &Preset) -> Value {
    json!({
        "name": preset.name, "method": preset.method, "schedule": preset.schedule, "notes": preset.notes,
        "settings": presets::find(preset.name).ok(),
    })
}

fn preset_text(preset: &Preset) -> String {
    format!(
        "{}: {}; schedule {}\n    {}\n",
        preset.name, preset.method, preset.schedule, preset.notes
    )
}
