//! Keys of config.json that other families compute with and this one ignores.

use super::reader::Reader;
use super::{rotary, windows};
use crate::model::family::{self, PARTIAL, Positions};

/// Names the keys that ask for a computation which transformers 5 leaves out of models of this `model_type`.
pub(super) fn keys(json: &Reader<'_>) -> Vec<String> {
    let model_type = json.text("model_type").unwrap_or_default();
    let Ok(family) = family::find(&model_type) else { return Vec::new() };
    let mut keys: Vec<&str> = Vec::new();
    match &family.positions {
        Positions::Rotary(rotary) if !rotary.partial => {
            let part = rotary::part(json, rotary).ok().flatten();
            keys.extend(part.filter(|part| *part != 1.0).map(|_| PARTIAL));
        }
        Positions::Rotary(_) => {}
        Positions::Learned { .. } => {
            keys.extend(rotary::SECTIONS.into_iter().filter(|key| json.present(key).is_some()));
        }
    }
    keys.extend(windows::ignored(json, family));
    let on = |key: &str| json.flag(key, false).unwrap_or(false);
    keys.extend(family.ignored.iter().filter(|key| on(key)));
    keys.into_iter().map(str::to_owned).collect()
}
