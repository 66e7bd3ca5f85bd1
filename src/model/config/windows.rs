//! Sliding windows of config.json, layer by layer.

use serde_json::Value;

use super::reader::Reader;
use crate::error::{Error, Result};

const WINDOW: &str = "sliding_window";
const SWITCH: &str = "use_sliding_window";
const TYPES: &str = "layer_types";
const SLIDING: &str = "sliding_attention";

/// The window of transformers 5 where config.json does not name one.
const OWN: usize = 4096;
/// The first layer with a window in Qwen2 and Qwen3, where config.json does not name one.
const OWN_FIRST: usize = 28;

/// Reads the sliding window of each layer as transformers 5 does for this `model_type`.
///
/// Errors: ill-typed keys, and kinds of layers that are neither full nor sliding attention.
pub(super) fn windows(
    json: &Reader<'_>,
    layers: usize,
    architecture: &str,
) -> Result<Vec<Option<usize>>> {
    let window = match json.root.get(WINDOW) {
        None => Some(OWN),
        Some(_) => json.optional_size(WINDOW)?,
    };
    match architecture {
        "mistral" => Ok(vec![window; layers]),
        "qwen2" | "qwen3" => {
            let on = json.flag(SWITCH, false)?;
            let first = json.optional_size_or_zero("max_window_layers")?.unwrap_or(OWN_FIRST);
            let Some(slides) = layer_types(json, layers)? else {
                return Ok((0..layers).map(|l| window.filter(|_| on && l >= first)).collect());
            };
            if slides.contains(&true) && !on {
                return Err(Error::model(format!(
                    "config.json: {TYPES}: names {SLIDING}, but {SWITCH} is not true"
                )));
            }
            Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
        }
        "gemma2" | "gemma3_text" => {
            let slides = match layer_types(json, layers)? {
                Some(slides) => slides,
                None => {
                    // Every so many layers one has no window.
                    let period = match architecture {
                        "gemma2" => 2,
                        _ => match json.optional_size("sliding_window_pattern")? {
                            Some(period) => period,
                            None => json.optional_size("_sliding_window_pattern")?.unwrap_or(6),
                        },
                    };
                    (1..=layers).map(|l| !l.is_multiple_of(period)).collect()
                }
            };
            Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
        }
        _ => Ok(vec![None; layers]),
    }
}

/// Tells whether config.json asks for windows at all; for families that have none.
pub(super) fn asked(json: &Reader<'_>) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if json.present(WINDOW).is_some() && json.root.get(SWITCH) != Some(&Value::Bool(false)) {
        keys.push(WINDOW);
    }
    if json
        .root
        .get(TYPES)
        .and_then(Value::as_array)
        .is_some_and(|types| types.iter().any(|kind| kind != "full_attention"))
    {
        keys.push(TYPES);
    }
    keys
}

/// Reads which layers have a window, where config.json lists them.
fn layer_types(json: &Reader<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = json.present(TYPES).and_then(Value::as_array) else { return Ok(None) };
    if types.len() != layers {
        return Err(Error::model(format!(
            "config.json: {TYPES}: {} entries, num_hidden_layers is {layers}",
            types.len()
        )));
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some(SLIDING) => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(Error::model(format!(
            "config.json: {TYPES}: {kind} is not supported, wanted full_attention or {SLIDING}"
        ))),
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}
