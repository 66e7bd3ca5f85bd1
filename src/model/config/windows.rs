//! Sliding windows of config.json, layer by layer.

use serde_json::Value;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::model::family::{Architecture, SlidingLayers};

const WINDOW: &str = "sliding_window";
const SWITCH: &str = "use_sliding_window";
const TYPES: &str = "layer_types";
const SLIDING: &str = "sliding_attention";

/// Reads the sliding window of each layer as transformers 5 does for this family.
///
/// Errors: ill-typed keys, and kinds of layers that are neither full nor sliding attention.
pub(super) fn windows(
    json: &Reader<'_>,
    layers: usize,
    family: &Architecture,
) -> Result<Vec<Option<usize>>> {
    let own = family.windows.as_ref();
    let window = match json.root.get(WINDOW) {
        None => own.map(|windows| windows.default),
        Some(_) => json.optional_size(WINDOW)?,
    };
    let Some(windows) = own else { return Ok(vec![None; layers]) };
    let slides: Vec<bool> = match &windows.layers {
        SlidingLayers::All => vec![true; layers],
        SlidingLayers::Switched { first } => {
            let on = json.flag(SWITCH, false)?;
            let first = json.optional_size_or_zero("max_window_layers")?.unwrap_or(*first);
            match layer_types(json, layers)? {
                Some(slides) if slides.contains(&true) && !on => {
                    return Err(Error::model(format!(
                        "config.json: {TYPES}: names {SLIDING}, but {SWITCH} is not true"
                    )));
                }
                Some(slides) => slides,
                None => (0..layers).map(|l| on && l >= first).collect(),
            }
        }
        SlidingLayers::Periodic { keys, period } => match layer_types(json, layers)? {
            Some(slides) => slides,
            None => {
                let mut asked = keys.iter().map(|key| json.optional_size(key));
                let period = asked.find_map(Result::transpose).transpose()?.unwrap_or(*period);
                (1..=layers).map(|l| !l.is_multiple_of(period)).collect()
            }
        },
    };
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Names the keys that ask for windows which this family does not have.
pub(super) fn ignored(json: &Reader<'_>, family: &Architecture) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let windows = family.windows.as_ref().map(|windows| &windows.layers);
    if windows.is_none()
        && json.present(WINDOW).is_some()
        && json.root.get(SWITCH) != Some(&Value::Bool(false))
    {
        keys.push(WINDOW);
    }
    let full = |types: &Vec<Value>| types.iter().all(|kind| kind == "full_attention");
    if matches!(windows, None | Some(SlidingLayers::All))
        && json.root.get(TYPES).and_then(Value::as_array).is_some_and(|types| !full(types))
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
