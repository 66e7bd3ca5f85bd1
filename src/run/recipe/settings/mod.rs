//! Every setting of a recipe, in one table: docs/settings.md, `nepenthe settings`, the comments of config.resolved.toml, the
//! types that are accepted and the hints of errors all follow from it.
//!
//! `tests/settings.rs` compares keys, defaults and types with the structs that recipes are read into.

pub(super) mod hint;
mod table;

use toml::Value;

use crate::error::{Error, Result, nearest};
use crate::eval::metric::muse;
use crate::eval::monitored;
use crate::method::{Combination, FORGET, PENALTIES};

pub use table::SETTINGS;

/// The values of a setting.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// true or false.
    Switch,
    /// A whole number, 0 or more.
    Count,
    /// A number, whole numbers included; `inf` where a bound may be switched off.
    Number,
    /// A path; empty where nothing is named.
    Path,
    /// A layer or a range of layers; empty for all.
    Layers,
    /// One of several words.
    Word(fn() -> Vec<&'static str>),
}

impl Type {
    /// Returns its name as users read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Count => "whole number",
            Self::Number => "number",
            Self::Path => "path",
            Self::Layers => "layer or range",
            Self::Word(_) => "word",
        }
    }

    /// Returns the words that it takes, if it takes words.
    pub fn words(self) -> Vec<&'static str> {
        match self {
            Self::Word(words) => words(),
            _ => Vec::new(),
        }
    }

    /// Tells whether values are text, so that `--set key=7` means the text "7".
    pub fn is_text(self) -> bool {
        matches!(self, Self::Path | Self::Layers | Self::Word(_))
    }

    /// Returns what a value must be, for messages.
    fn wanted(self) -> String {
        match self {
            Self::Switch => "true or false".into(),
            Self::Count => "a whole number, 0 or more".into(),
            Self::Number => "a number".into(),
            Self::Path => "a path".into(),
            Self::Layers => "a layer or a range of layers, such as 5 or \"5-7\"".into(),
            Self::Word(words) => format!("one of {}", words().join(", ")),
        }
    }
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its dotted key.
    pub key: &'static str,
    /// Its values.
    pub kind: Type,
    /// Its default, as TOML.
    pub default: &'static str,
    /// The unit of its value; empty for none.
    pub unit: &'static str,
    /// Its effect.
    pub meaning: &'static str,
    /// When it matters; empty for always.
    pub when: &'static str,
}

impl Setting {
    /// Returns its section, empty for the top level, and its name there.
    pub fn place(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }

    /// Returns meaning, unit, words and condition as one text.
    pub fn describe(&self) -> String {
        let mut text = self.meaning.to_owned();
        let words = self.kind.words();
        if !words.is_empty()
            && words.iter().any(|word| !self.meaning.contains(&format!("`{word}`")))
        {
            text += &format!(" One of {}.", words.join(", "));
        }
        if !self.unit.is_empty() {
            text += &format!(" Unit: {}.", self.unit);
        }
        if !self.when.is_empty() {
            text += &format!(" Only {}.", self.when);
        }
        text
    }

    /// Returns `value` in the form that the recipe's structs read, where the setting takes it.
    ///
    /// Errors: [`crate::Kind::Config`] with what is wanted.
    pub fn accept(&self, value: Value) -> Result<Value> {
        let wrong = |shown: String| {
            Err(Error::config(format!("{}: wanted {}, got {shown}", self.key, self.kind.wanted())))
        };
        match (self.kind, value) {
            (Type::Switch, value @ Value::Boolean(_))
            | (Type::Number, value @ Value::Float(_))
            | (Type::Path | Type::Layers, value @ Value::String(_)) => Ok(value),
            (Type::Count, Value::Integer(n)) if n >= 0 => Ok(Value::Integer(n)),
            (Type::Number, Value::Integer(n)) => Ok(Value::Float(n as f64)),
            // One layer is a number as well as a text.
            (Type::Layers, Value::Integer(n)) => Ok(Value::String(n.to_string())),
            (Type::Word(words), Value::String(word)) => {
                let known = words();
                if known.contains(&word.as_str()) || word == self.default.trim_matches('"') {
                    return Ok(Value::String(word));
                }
                let near = nearest(&word.to_lowercase(), known.iter().copied());
                let near = near.map_or(String::new(), |near| format!("; nearest is {near}"));
                Err(Error::config(format!("{}: `{word}` is unknown", self.key))
                    .hint(format!("known are {}{near}", known.join(", "))))
            }
            (_, Value::Table(_)) => wrong("a section".into()),
            (_, value) => wrong(format!("`{}`", shown(&value))),
        }
    }
}

/// Returns a value as `--set` takes it: text without quotation marks.
pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Finds a setting by its key.
///
/// Errors: [`crate::Kind::Config`] with the keys that may be meant.
pub fn find(key: &str) -> Result<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key).ok_or_else(|| hint::unknown(key, None))
}

/// Returns the settings of a section, none where there is no such section.
pub fn section(name: &str) -> Vec<&'static Setting> {
    SETTINGS.iter().filter(|s| !name.is_empty() && s.place().0 == name).collect()
}

/// Returns the sections in the order of the table, the top level first, as the empty name.
pub fn sections() -> Vec<&'static str> {
    let mut names = Vec::new();
    for (section, _) in SETTINGS.iter().map(Setting::place) {
        if !names.contains(&section) {
            names.push(section);
        }
    }
    names
}

fn losses() -> Vec<&'static str> {
    FORGET.iter().map(|objective| objective.name()).collect()
}

fn penalties() -> Vec<&'static str> {
    PENALTIES.iter().map(|objective| objective.name()).chain(["none"]).collect()
}

fn combinations() -> Vec<&'static str> {
    Combination::ALL.iter().map(|combination| combination.name()).collect()
}

fn metrics() -> Vec<&'static str> {
    monitored::keys().to_vec()
}

/// The table has this as text.
const _: () = assert!(muse::VERBMEM_NEW_TOKENS == 128);
