//! The file of results: what was measured of which model, on which data, with which settings.
//!
//! Figures are used again only where the hashes of model and data and all settings are equal; who uses them says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::Outcome;
use crate::data::records;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::io::atomic::write_file_atomic;

/// Everything that decides the figures of an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Hash of the model folder: configuration, tokenizer and weights.
    pub model: String,
    /// Hashes of the data files, by their paths within the data folder.
    pub data: BTreeMap<String, String>,
    /// The suite's settings, the device and its precision, and this program's version.
    pub settings: Value,
}

impl Key {
    /// Names the parts in which `other` differs; empty where both stand for the same figures.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let parts = [
            ("model", self.model != other.model),
            ("data", self.data != other.data),
            ("settings", self.settings != other.settings),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// Results of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its folder, as it was named.
    pub model: String,
    /// True for the model that others are compared with: one that never saw the forget set.
    pub retrained: bool,
    /// Model, data and settings of the results.
    pub key: Key,
    /// Figures and what is behind them.
    pub outcome: Outcome,
}

/// A file of results.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `eval`, so that another file is not taken for one.
    pub nepenthe: String,
    /// The models, in the order in which they were named.
    pub entries: Vec<Entry>,
}

/// Answer of a record to a key.
#[derive(Debug, PartialEq)]
pub enum Found<'a> {
    /// It holds figures for all of it.
    Same(&'a Outcome),
    /// It names a model of that folder, but these parts differ.
    Other(Vec<&'static str>),
    /// It does not name a model of that folder.
    Nothing,
}

const NAME: &str = "eval";

impl Record {
    /// Makes a record of `entries`.
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { nepenthe: NAME.to_owned(), entries }
    }

    /// Reads the file `path`; without one, an empty record.
    ///
    /// Errors: [`crate::Kind::Config`] where the file is there but not one of results, so that it is not written over.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |what: String| {
            Error::config(format!("{}: {what}", path.display()))
                .hint("--out names a file of results that eval wrote, or one that is not there yet")
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(Vec::new())),
            Err(e) => return Err(wrong(format!("cannot read: {e}")).with_source(e)),
        };
        let record: Self = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("not a file of results: {e}")).with_source(e))?;
        if record.nepenthe != NAME {
            return Err(wrong(format!("is of {:?}, wanted a file of results", record.nepenthe)));
        }
        Ok(record)
    }

    /// Looks for figures of exactly `key`; `model` is the folder that the hash is of.
    pub fn find(&self, model: &str, key: &Key) -> Found<'_> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.key == *key) {
            return Found::Same(&entry.outcome);
        }
        match self.entries.iter().find(|entry| entry.model == model) {
            Some(entry) => Found::Other(entry.key.differences(key)),
            None => Found::Nothing,
        }
    }

    /// Writes it to `path`, which then holds the old content or the new.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::data(format!("{}: {e}", path.display())).with_source(e))?;
        write_file_atomic(path, (text + "\n").as_bytes())
    }
}

/// Hashes what a model folder is read from: config.json, generation_config.json, the tokenizer's files, the weights.
///
/// Errors: [`crate::Kind::Model`] where one cannot be read.
pub fn model_hash(folder: &Folder) -> Result<String> {
    const SETTINGS: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ];
    let mut hash = Xxh3::new();
    let shards = folder.weights.shards().map(|(file, ..)| file);
    for name in SETTINGS.into_iter().chain(shards) {
        let path = folder.dir.join(name);
        let one = match File::open(&path).and_then(records::hash) {
            Ok(one) => one,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && SETTINGS.contains(&name) => {
                continue;
            }
            Err(e) => {
                return Err(
                    Error::model(format!("{}: cannot read: {e}", path.display())).with_source(e)
                );
            }
        };
        hash.update(name.as_bytes());
        hash.update(&one.to_le_bytes());
    }
    Ok(format!("{:032x}", hash.digest128()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(model: &str, hash: &str, limit: u64) -> Entry {
        let data = BTreeMap::from([("verbmem/forget.json".to_owned(), "ab".to_owned())]);
        let key = Key { model: hash.to_owned(), data, settings: json!({"limit": limit}) };
        let mut outcome = Outcome::default();
        outcome.set("verbmem_f", 1.0 / 3.0);
        outcome.set("ppl_forget", f64::NAN);
        Entry { model: model.to_owned(), retrained: false, key, outcome }
    }

    #[test]
    fn figures_are_found_only_for_equal_model_data_and_settings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        assert_eq!(Record::open(&path).unwrap().entries, []);
        Record::new(vec![entry("a", "1", 3)]).write(&path).unwrap();
        let record = Record::open(&path).unwrap();
        assert_eq!(record.entries, [entry("a", "1", 3)], "numbers survive the file to the bit");
        let find = |model: &str, wanted: Entry| format!("{:?}", record.find(model, &wanted.key));
        assert!(find("moved", entry("moved", "1", 3)).starts_with("Same"));
        assert_eq!(find("a", entry("a", "2", 3)), r#"Other(["model"])"#);
        assert_eq!(find("a", entry("a", "2", 4)), r#"Other(["model", "settings"])"#);
        let mut other = entry("a", "1", 3);
        other.key.data.insert("privleak/forget.json".to_owned(), "cd".to_owned());
        assert_eq!(find("a", other), r#"Other(["data"])"#);
        assert_eq!(find("b", entry("b", "1", 4)), "Nothing");
    }

    #[test]
    fn another_file_is_not_taken_for_results() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for text in ["{}", "[1]", r#"{"nepenthe": "plan", "entries": []}"#] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Record::open(&path).unwrap_err().kind(), crate::Kind::Config, "{text}");
        }
    }
}
