//! Recipes as TOML: plain, and with what each setting means.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::assemble::one_line;
use super::settings::{SETTINGS, sections};
use super::{Recipe, settings};
use crate::error::{Error, Result};

/// The longest line of a comment, in characters.
const WIDTH: usize = 110;

impl Recipe {
    /// Reads back what [`Recipe::to_toml`] or [`Recipe::to_commented_toml`] wrote.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text)
            .map_err(|e| Error::config(format!("recipe: {}", one_line(&e.to_string()))))
    }

    /// Writes the recipe out in full.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::config(format!("recipe: {e}")))
    }

    /// Writes the recipe out in full, each setting after a comment that tells its meaning, unit and default.
    pub fn to_commented_toml(&self) -> Result<String> {
        let table = Table::try_from(self).map_err(|e| Error::config(format!("recipe: {e}")))?;
        let mut text = String::new();
        for section in sections() {
            let values = match section {
                "" => Some(&table),
                name => table.get(name).and_then(Value::as_table),
            };
            if !section.is_empty() {
                let _ = write!(text, "\n[{section}]\n");
            }
            for setting in SETTINGS.iter().filter(|setting| setting.place().0 == section) {
                let name = setting.place().1;
                let Some(value) = values.and_then(|values| values.get(name)) else { continue };
                let said = format!("{} Default: {}.", setting.describe(), setting.default);
                for line in wrapped(&said) {
                    let _ = writeln!(text, "# {line}");
                }
                let _ = writeln!(text, "{name} = {value}");
            }
        }
        Ok(text)
    }

    /// Returns the settings whose values differ from those of `other`, with both values, its own first.
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let read = |recipe: &Self| Table::try_from(recipe).unwrap_or_default();
        let (own, other) = (read(self), read(other));
        let value = |table: &Table, (section, name): (&str, &str)| {
            let values =
                if section.is_empty() { Some(table) } else { table.get(section)?.as_table() };
            Some(settings::shown(values?.get(name)?))
        };
        let differs = SETTINGS.iter().filter_map(|setting| {
            let [a, b] = [&own, &other].map(|t| value(t, setting.place()).unwrap_or_default());
            (a != b).then_some((setting.key, a, b))
        });
        differs.collect()
    }
}

/// Breaks a text into lines of at most [`WIDTH`] characters, where words allow.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() >= WIDTH {
            lines.push(word.to_owned());
            continue;
        }
        if !lines[last].is_empty() {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
    }
    lines
}
