//! JSON in messages: types, keys and parse errors.

use serde_json::Value;

use crate::error::Error;

pub(super) fn shortened(key: &str) -> String {
    const LONGEST: usize = 40;
    match key.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &key[..at]),
        None => key.to_owned(),
    }
}

/// Names the JSON type of `value` with its article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn not_json(e: &serde_json::Error) -> Error {
    let text = e.to_string();
    // The line that serde_json names counts from where it began, which is not always the file's start.
    let what = text.split(" at line ").next().unwrap_or_default();
    Error::data(format!("not valid JSON at column {}: {what}", e.column()))
}
