//! From preset, recipe file and `--set` to a recipe: each is a layer over the ones before.

use std::path::Path;

use toml::{Table, Value};

use super::settings::hint;
use super::{Recipe, presets, settings};
use crate::error::{Error, Result};

impl Recipe {
    /// Puts together preset, recipe file and `key=value` settings, later ones winning, and checks the result.
    ///
    /// The length of a run counts as one setting: a layer with `run.epochs` replaces the `run.steps` of earlier layers, and
    /// the other way round.
    ///
    /// Errors: [`crate::Kind::Config`] for unknown keys, values that settings do not take, and recipes that make no sense;
    /// [`crate::Kind::Io`] where `file` cannot be read.
    pub fn assemble(preset: Option<&str>, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let mut table = Table::new();
        if let Some(name) = preset {
            lay(&mut table, presets::find(name)?)?;
        }
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|e| Error::io("read recipe", path, e))?;
            let read = text.parse::<Table>().map_err(|e| {
                Error::config(format!("{}: {}", path.display(), one_line(&e.to_string())))
            })?;
            let layer = accepted(read).and_then(|read| lay(&mut table, read));
            layer.map_err(|e| e.at(path.display()))?;
        }
        let mut layer = Table::new();
        for set in sets {
            merge(&mut layer, parse_set(set)?);
        }
        lay(&mut table, layer)?;
        let recipe: Self = table.try_into().map_err(|e: toml::de::Error| {
            Error::config(format!("recipe: {}", one_line(&e.to_string())))
        })?;
        recipe.check()?;
        Ok(recipe)
    }
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Reads `a.b=c`; c is TOML, or plain text where it is none or where the setting takes text.
fn parse_set(set: &str) -> Result<Table> {
    let (key, text) = set.split_once('=').ok_or_else(|| {
        Error::config(format!("--set {set}: wanted key=value"))
            .hint("for example --set optim.lr=5e-4")
    })?;
    let (key, text) = (key.trim(), text.trim());
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    let is_text = settings::find(key).is_ok_and(|setting| setting.kind.is_text());
    let value = match value {
        Some(value) if !is_text || value.is_str() => value,
        _ => Value::String(text.to_owned()),
    };
    let setting = settings::SETTINGS.iter().find(|setting| setting.key == key);
    let setting =
        setting.ok_or_else(|| hint::unknown(key, Some(&value)).at(format!("--set {set}")))?;
    let value = setting.accept(value)?;
    let (section, name) = setting.place();
    let inner = Table::from_iter([(name.to_owned(), value)]);
    Ok(match section {
        "" => inner,
        section => Table::from_iter([(section.to_owned(), Value::Table(inner))]),
    })
}

/// Checks keys and values of a recipe against the table of settings.
fn accepted(table: Table) -> Result<Table> {
    let one = |key: String, value: Value| match settings::find(&key) {
        Ok(setting) => setting.accept(value),
        Err(_) => Err(hint::unknown(&key, Some(&value))),
    };
    let mut out = Table::new();
    for (name, value) in table {
        let value = match value {
            Value::Table(inner) if !settings::section(&name).is_empty() => {
                let mut section = Table::new();
                for (key, value) in inner {
                    let value = one(format!("{name}.{key}"), value)?;
                    section.insert(key, value);
                }
                Value::Table(section)
            }
            value => one(name.clone(), value)?,
        };
        out.insert(name, value);
    }
    Ok(out)
}

/// Lays `over` on `table`; whichever of run.steps and run.epochs it has replaces the other one.
fn lay(table: &mut Table, over: Table) -> Result<()> {
    let of = |table: &Table, key: &str| table.get("run").and_then(|run| run.get(key)).cloned();
    let epochs = of(&over, "epochs").and_then(|n| n.as_integer()).filter(|n| *n > 0);
    let steps = of(&over, "steps");
    if let (Some(epochs), Some(steps)) = (epochs, &steps) {
        return Err(Error::config(format!(
            "run.epochs: is {epochs}, but run.steps is {steps}; both set the length of the run"
        ))
        .hint("leave one of them out"));
    }
    if let Some(run) = table.get_mut("run").and_then(Value::as_table_mut) {
        if epochs.is_some() {
            run.remove("steps");
        }
        if steps.is_some() {
            run.remove("epochs");
        }
    }
    merge(table, over);
    Ok(())
}

/// Puts the entries of `over` into `table`, one level deep.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => old.extend(new),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(sets: &[&str]) -> Result<Recipe> {
        Recipe::assemble(None, None, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn text_settings_take_what_looks_like_numbers_dates_and_switches() {
        let recipe = recipe(&[
            "data.forget=2024-01-01",
            "data.retain=7",
            "data.cache=true",
            "model.path=\"quoted\"",
            "model.train_layers=1",
        ]);
        let recipe = recipe.unwrap();
        assert_eq!(recipe.data.forget.to_str(), Some("2024-01-01"));
        assert_eq!(recipe.data.retain.to_str(), Some("7"));
        assert_eq!(recipe.data.cache.to_str(), Some("true"));
        assert_eq!(recipe.model.path.to_str(), Some("quoted"));
        assert_eq!(recipe.model.train_layers, "1");
    }

    #[test]
    fn wrong_types_say_what_is_wanted() {
        for (set, message) in [
            ("optim.lr=high", "optim.lr: wanted a number, got `high`"),
            ("run.steps=-1", "run.steps: wanted a whole number, 0 or more, got `-1`"),
            ("run.steps=1.5", "run.steps: wanted a whole number, 0 or more, got `1.5`"),
            ("data.forget_chunking=1", "data.forget_chunking: wanted true or false, got `1`"),
            ("model.train=some", "model.train: `some` is unknown"),
        ] {
            assert_eq!(recipe(&[set]).unwrap_err().message(), message);
        }
    }

    #[test]
    fn a_later_layer_sets_the_length_and_one_layer_sets_it_once() {
        let of = |preset, sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            Recipe::assemble(preset, None, &sets)
        };
        let run = of(Some("muse-news"), &["run.epochs=3"]).unwrap().run;
        assert_eq!(run.epochs, 3);
        let run = of(Some("npo"), &["run.steps=5"]).unwrap().run;
        assert_eq!((run.steps, run.epochs), (5, 0));
        let error = of(None, &["run.steps=3", "run.epochs=2"]).unwrap_err();
        assert_eq!(
            error.message(),
            "run.epochs: is 2, but run.steps is 3; both set the length of the run"
        );
    }
}
