//! One JSON record: the document that its keys make, and what is done with its other keys ([`super::other_keys`]).

use std::fmt;

use serde_json::Value;

use super::document::Document;
use super::json::{kind, shortened};
use super::other_keys;
use crate::error::{Error, Result};

/// Kind of a record by its keys; a file must not mix kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Question,
    Ids,
}

impl Shape {
    /// Returns the keys that make the document.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::Question => &["question", "answer"],
            Self::Ids => &["input_ids"],
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "\"text\"",
            Self::Question => "\"question\" and \"answer\"",
            Self::Ids => "\"input_ids\"",
        })
    }
}

/// A record, read.
#[derive(Debug)]
pub(super) struct Record {
    pub shape: Shape,
    pub document: Document,
    /// Keys that were not read.
    pub ignored: Vec<String>,
}

/// Reads one record; `vocab_size` bounds its ids.
///
/// Errors: [`crate::Kind::Data`] for a malformed record, and for a key that would change what is trained and is not
/// supported.
pub(super) fn read(value: Value, vocab_size: usize) -> Result<Record> {
    let mut map = match value {
        Value::String(text) => {
            let (shape, document, ignored) = (Shape::Text, Document::Text(text), Vec::new());
            return Ok(Record { shape, document, ignored });
        }
        Value::Object(map) => map,
        other => {
            return Err(Error::data(format!(
                "the record is {}, wanted a string or an object",
                kind(&other)
            )));
        }
    };
    let (text, ids) = (map.contains_key("text"), map.contains_key("input_ids"));
    let (question, answer) = (map.contains_key("question"), map.contains_key("answer"));
    let shapes = [(text, Shape::Text), (question && answer, Shape::Question), (ids, Shape::Ids)];
    let mut present = shapes.into_iter().filter_map(|(there, shape)| there.then_some(shape));
    let shape = match (present.next(), present.next()) {
        (Some(a), Some(b)) => {
            return Err(Error::data(format!("record has both {a} and {b}, wanted one of them"))
                .hint("keep the key to train on and remove or rename the other"));
        }
        (None, _) if question => {
            return Err(Error::data("record has \"question\" but no \"answer\", wanted both"));
        }
        (None, _) if answer => {
            return Err(Error::data("record has \"answer\" but no \"question\", wanted both"));
        }
        (None, _) => return Err(missing_keys(&map)),
        (Some(shape), _) => shape,
    };
    let document = match shape {
        Shape::Text => Document::Text(string(&mut map, "text")?),
        Shape::Question => Document::Question {
            question: string(&mut map, "question")?,
            answer: string(&mut map, "answer")?,
        },
        Shape::Ids => Document::Ids(input_ids(map.get("input_ids"), vocab_size)?),
    };
    let ids = match &document {
        Document::Ids(ids) => Some(ids.as_slice()),
        _ => None,
    };
    let mut ignored = Vec::new();
    for (key, value) in &map {
        if !shape.keys().contains(&key.as_str()) && !other_keys::check(key, value, ids)? {
            ignored.push(shortened(key));
        }
    }
    Ok(Record { shape, document, ignored })
}

fn missing_keys(map: &serde_json::Map<String, Value>) -> Error {
    const WANTED: [&str; 4] = ["text", "question", "answer", "input_ids"];
    let mut keys: Vec<String> =
        map.keys().take(5).map(|key| format!("{:?}", shortened(key))).collect();
    if map.len() > keys.len() {
        keys.push(format!("{} more", map.len() - keys.len()));
    }
    let got = if keys.is_empty() { "no keys".into() } else { format!("keys {}", keys.join(", ")) };
    let e = Error::data(format!(
        "record has {got}, wanted \"text\", or \"question\" and \"answer\", or \"input_ids\""
    ));
    let near = map.keys().find_map(|key| {
        crate::error::nearest(&key.to_lowercase(), WANTED).map(|wanted| (key, wanted))
    });
    match near {
        Some((key, wanted)) => e.hint(format!("rename {:?} to {wanted:?}", shortened(key))),
        None => e.hint("rename the key that holds the document to \"text\""),
    }
}

fn string(map: &mut serde_json::Map<String, Value>, key: &str) -> Result<String> {
    match map.get_mut(key).map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        other => {
            let got = other.as_ref().map_or("missing", kind);
            Err(Error::data(format!("\"{key}\" is {got}, wanted a string")))
        }
    }
}

fn input_ids(value: Option<&Value>, vocab_size: usize) -> Result<Vec<u32>> {
    let Some(Value::Array(list)) = value else {
        let got = value.map_or("missing", kind);
        return Err(Error::data(format!("\"input_ids\" is {got}, wanted a list of ids")));
    };
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        match id {
            Some(id) if (id as usize) < vocab_size => Ok(id),
            _ => {
                let got = if value.is_number() { value.to_string() } else { kind(value).into() };
                Err(Error::data(format!(
                    "\"input_ids\"[{i}] is {got}, wanted an id from 0 to {}",
                    vocab_size.saturating_sub(1)
                ))
                .hint("the ids must come from the tokenizer of this model"))
            }
        }
    };
    list.iter().enumerate().map(id).collect()
}
