//! Keys of config.json that other families compute with, and this one does not.

use super::family::{Family, PARTIAL};
use super::reader::Reader;
use super::{rotary, windows};

/// Names the keys that ask for a computation which transformers 5 leaves out of models of this `model_type`.
pub(super) fn keys(json: &Reader<'_>) -> Vec<String> {
    let architecture = json.text("model_type").unwrap_or_default();
    let Ok(family) = Family::of(&architecture) else { return Vec::new() };
    let mut keys: Vec<&str> = Vec::new();
    let rotates = !matches!(family, Family::Gpt2 | Family::Opt);
    if rotates && !family.rotates_parts() {
        let part = rotary::part(json, family).ok().flatten();
        keys.extend(part.filter(|part| *part != 1.0).map(|_| PARTIAL));
    }
    if !rotates {
        keys.extend(rotary::SECTIONS.into_iter().filter(|key| json.present(key).is_some()));
    }
    match architecture.as_str() {
        "qwen2" | "qwen3" | "gemma2" | "gemma3_text" => {}
        "mistral" => {
            keys.extend(windows::asked(json).into_iter().filter(|key| *key == "layer_types"))
        }
        _ => keys.extend(windows::asked(json)),
    }
    let on = |key: &str| json.flag(key, false).unwrap_or(false);
    let biases: &[&str] = match architecture.as_str() {
        "mistral" | "qwen2" => &["attention_bias", "mlp_bias"],
        "qwen3" | "gemma2" | "gemma3_text" => &["mlp_bias"],
        _ => &[],
    };
    keys.extend(biases.iter().filter(|key| on(key)));
    keys.into_iter().map(str::to_owned).collect()
}
