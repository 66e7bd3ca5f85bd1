//! Evaluation files as they come: records of named fields from .json, .jsonl and, with the feature `parquet`, .parquet.
//!
//! A `.json` file is one list of records or of strings, or records one after the other (TOFU's `.json` files are lines).
//! A string counts as a record with the field `text`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_128;

use super::json::kind;
use crate::error::{Error, Result};

/// The endings of files that can be read, in the order in which [`Table::find`] looks for them.
pub const ENDINGS: [&str; 3] = ["json", "jsonl", "parquet"];

/// The largest file, in bytes: evaluation files are held in memory.
const LARGEST: u64 = 1 << 30;

/// The records of one file.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    records: Vec<Map<String, Value>>,
    hash: u128,
}

impl Table {
    /// Reads the file `path`.
    ///
    /// Errors: [`crate::Kind::Data`] where it is missing, broken, empty, or .parquet in a build that cannot read it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path).map_err(|e| e.at(path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let cannot = |e: std::io::Error| Error::data(format!("cannot read: {e}")).with_source(e);
        let size = std::fs::metadata(path).map_err(cannot)?.len();
        if size > LARGEST {
            return Err(Error::data(format!(
                "has {} MiB, wanted an evaluation file of at most {} MiB",
                size >> 20,
                LARGEST >> 20
            )));
        }
        let bytes = std::fs::read(path).map_err(cannot)?;
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let values = match ending.as_deref() {
            Some("json" | "jsonl") => json(&bytes)?,
            Some("parquet") => {
                let file = std::fs::File::open(path).map_err(cannot)?;
                let mut rows = Vec::new();
                super::parquet::rows(&file, &mut |row| {
                    rows.push(row);
                    Ok(())
                })?;
                rows
            }
            _ => {
                return Err(Error::data("unknown extension, wanted .json, .jsonl or .parquet"));
            }
        };
        let mut records = Vec::with_capacity(values.len());
        for (i, value) in values.into_iter().enumerate() {
            records.push(match value {
                Value::Object(map) => map,
                Value::String(text) => Map::from_iter([("text".to_owned(), Value::String(text))]),
                other => {
                    return Err(Error::data(format!(
                        "record {i} is {}, wanted an object or a string",
                        kind(&other)
                    )));
                }
            });
        }
        if records.is_empty() {
            return Err(Error::data("holds no records, wanted at least one"));
        }
        Ok(Self { path: path.to_owned(), records, hash: xxh3_128(&bytes) })
    }

    /// Finds the first file `dir/stem.ENDING`, or the shards `dir/stem-00000-of-*.parquet` of a downloaded data set.
    pub fn find(dir: &Path, stem: &str) -> Option<PathBuf> {
        let plain = ENDINGS.iter().map(|ending| dir.join(format!("{stem}.{ending}")));
        plain.into_iter().find(|path| path.is_file()).or_else(|| {
            let path = dir.join(stem);
            let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
            let first = format!("{name}-00000-of-00001.parquet");
            Some(folder.join(first)).filter(|path| path.is_file())
        })
    }

    /// Keeps the first `n` records.
    pub fn truncate(&mut self, n: usize) {
        self.records.truncate(n);
    }

    /// Returns where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of records; never 0 as read.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the xxh3-128 hash of the file's bytes.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Returns whether the first record has the field `key`.
    pub fn has(&self, key: &str) -> bool {
        self.records.first().is_some_and(|record| record.contains_key(key))
    }

    /// Returns the text of the field `key` of every record.
    ///
    /// Errors: [`crate::Kind::Data`] with file, record and field where it is not there or not a text.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        self.each(key, "a string", |value| value.as_str())
    }

    /// Returns the list of texts of the field `key` of every record; a single text counts as a list of one.
    ///
    /// Errors: as for [`Table::texts`].
    pub fn lists(&self, key: &str) -> Result<Vec<Vec<&str>>> {
        self.each(key, "a list of strings", |value| match value {
            Value::String(text) => Some(vec![text.as_str()]),
            Value::Array(items) => items.iter().map(Value::as_str).collect(),
            _ => None,
        })
    }

    /// Returns the number in the field `key` of every record, from 0 to `most`; MMLU's answers are such.
    ///
    /// Errors: as for [`Table::texts`].
    pub fn indices(&self, key: &str, most: usize) -> Result<Vec<usize>> {
        self.each(key, &format!("a number from 0 to {most}"), |value| {
            let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
            number.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= most)
        })
    }

    fn each<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<T>> {
        let one = |(i, record): (usize, &'a Map<String, Value>)| {
            let value = record.get(key);
            value.and_then(&get).ok_or_else(|| {
                let got = value.map_or("missing", kind);
                Error::data(format!(
                    "{}: record {i}: \"{key}\" is {got}, wanted {wanted}",
                    self.path.display()
                ))
            })
        };
        self.records.iter().enumerate().map(one).collect()
    }
}

/// Reads one list, or values one after the other.
fn json(bytes: &[u8]) -> Result<Vec<Value>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let value =
            value.map_err(|e| Error::data(format!("not valid JSON: {e}")).with_source(e))?;
        values.push(value);
    }
    match values.as_mut_slice() {
        [Value::Array(list)] => Ok(std::mem::take(list)),
        _ => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, text: &str) -> Result<Table> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Table::open(&path).map_err(|e| {
            let place = format!("{}/", dir.path().display());
            Error::data(e.message().replace(&place, ""))
        })
    }

    #[test]
    fn lists_lines_strings_and_single_objects_are_records() {
        for (name, text) in [
            ("a.json", r#"[{"text": "a"}, {"text": "b"}]"#),
            ("a.json", r#"["a", "b"]"#),
            ("a.json", "\u{feff}{\"text\": \"a\"}\n{\"text\": \"b\"}\n"),
            ("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}"),
        ] {
            assert_eq!(table(name, text).unwrap().texts("text").unwrap(), ["a", "b"], "{text}");
        }
        assert_eq!(table("a.json", r#"{"text": "a"}"#).unwrap().len(), 1);
        let table =
            table("a.json", r#"[{"c": ["x", "y"], "n": 3}, {"c": "z", "n": "1"}]"#).unwrap();
        assert_eq!(table.lists("c").unwrap(), [vec!["x", "y"], vec!["z"]]);
        assert_eq!(table.indices("n", 3).unwrap(), [3, 1]);
    }

    #[test]
    fn errors_name_file_record_and_field() {
        let message = |e: Error| e.message().to_owned();
        for (name, text, wanted) in [
            ("a.json", "[]", "a.json: holds no records, wanted at least one"),
            ("a.json", "[1]", "a.json: record 0 is a number, wanted an object or a string"),
            ("a.csv", "x", "a.csv: unknown extension, wanted .json, .jsonl or .parquet"),
            (
                "a.jsonl",
                "{}\n{",
                "a.jsonl: not valid JSON: EOF while parsing an object at line 2 column 1",
            ),
        ] {
            assert_eq!(message(table(name, text).unwrap_err()), wanted);
        }
        let table = table("a.json", r#"[{"gt": "a"}, {"gt": 1}]"#).unwrap();
        let wrong = message(table.texts("gt").unwrap_err());
        assert!(
            wrong.ends_with("a.json: record 1: \"gt\" is a number, wanted a string"),
            "{wrong}"
        );
        let wrong = message(table.indices("answer", 3).unwrap_err());
        assert!(wrong.ends_with("\"answer\" is missing, wanted a number from 0 to 3"), "{wrong}");
    }
}
