//! Settings of config.json by key and type.

use serde_json::Value;

use crate::error::{Error, Result};

/// Typed access to a JSON object, with errors that name the key.
pub(super) struct Reader<'a> {
    pub(super) root: &'a Value,
}

impl Reader<'_> {
    fn wrong(key: &str, wanted: &str, got: &Value) -> Error {
        let mut got = got.to_string();
        if let Some((at, _)) = got.char_indices().nth(100) {
            got.truncate(at);
            got.push_str("...");
        }
        Error::model(format!("config.json: {key}: wanted {wanted}, got {got}"))
    }

    fn missing(key: &str) -> Error {
        Error::model(format!("config.json: {key} is missing"))
    }

    pub(super) fn present(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        let value = self.present(key).ok_or_else(|| Self::missing(key))?;
        value.as_str().map(str::to_owned).ok_or_else(|| Self::wrong(key, "a string", value))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        // 2^31 bounds every dimension: products of two then fit 64 bits, and no real model comes near.
        match value.as_u64() {
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            _ => Err(Self::wrong(key, "a whole number from 1 to 2^31", value)),
        }
    }

    /// As [`Reader::optional_size`], where 0 is allowed.
    pub(super) fn optional_size_or_zero(&self, key: &str) -> Result<Option<usize>> {
        match self.present(key).and_then(Value::as_u64) {
            Some(0) => Ok(Some(0)),
            _ => self.optional_size(key),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Self::missing(key))
    }

    pub(super) fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.present(key), default) {
            (Some(value), _) => value
                .as_f64()
                .filter(|x| x.is_finite())
                .ok_or_else(|| Self::wrong(key, "a number", value)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Self::missing(key)),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.present(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| Self::wrong(key, "true or false", value)),
        }
    }
}
