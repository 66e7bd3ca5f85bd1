//! Quantised weights, and what names their method.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::safetensors::{Dtype, Weights};

/// Keys of config.json that describe a quantisation; transformers loads the folder as quantised where one is there.
pub(super) const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// Ends of the names of tensors that only quantised weights have, with their method.
const MARKS: [(&str, &str); 12] = [
    (".quant_state.bitsandbytes__nf4", "bitsandbytes nf4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes fp4"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes int8"),
    (".g_idx", "gptq"),
    (".qweight", "gptq or awq"),
    (".qzeros", "gptq or awq"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale", "fp8 or compressed-tensors"),
    (".input_scale", "fp8 or compressed-tensors"),
];

/// Returns the first key of config.json that describes a quantisation.
pub(super) fn key(config: &Value) -> Option<&'static str> {
    KEYS.into_iter().find(|key| config.get(key).is_some_and(|value| !value.is_null()))
}

/// Returns the method that config.json names, in its own words.
fn declared(config: &Value) -> Option<String> {
    let section = config.get(key(config)?)?;
    let on = |key: &str| section[key].as_bool() == Some(true);
    let method = match section["quant_method"].as_str() {
        Some(method) => method,
        // Older folders of bitsandbytes do not name it.
        None if on("load_in_8bit") || on("load_in_4bit") => "bitsandbytes",
        None => return None,
    };
    Some(match method {
        "bitsandbytes" if on("load_in_8bit") => "bitsandbytes int8".to_owned(),
        "bitsandbytes" if on("load_in_4bit") => {
            format!("bitsandbytes {}", section["bnb_4bit_quant_type"].as_str().unwrap_or("4-bit"))
        }
        other => other.to_owned(),
    })
}

/// Returns the method that the tensors themselves tell, and the first tensor that does.
fn found(weights: &Weights) -> Option<(&'static str, &str)> {
    let marked = MARKS.iter().find_map(|(end, method)| {
        let name = weights.names().find(|name| name.ends_with(end))?;
        Some((*method, name))
    });
    marked.or_else(|| {
        weights.names().find_map(|name| {
            let method = match weights.info(name)?.dtype {
                Dtype::F8E4m3 | Dtype::F8E5m2 => "fp8",
                Dtype::I8 => "int8",
                // Numbers of fewer bits, several in one.
                Dtype::U8 | Dtype::I32 if name.ends_with(".weight") => "a packed format",
                _ => return None,
            };
            Some((method, name))
        })
    })
}

/// Refuses quantised weights, naming the method.
///
/// Errors: [`crate::Kind::Model`].
pub(super) fn refuse(config: &Value, weights: &Weights) -> Result<()> {
    let Some((method, name)) = found(weights) else { return Ok(()) };
    let method = declared(config).unwrap_or_else(|| method.to_owned());
    Err(Error::model(format!(
        "the weights are quantised with {method} ({name}), wanted F32, F16 or BF16"
    ))
    .hint("start from the unquantised model: quantised weights cannot be trained"))
}

/// Describes the quantisation that config.json claims although the weights are plain.
pub(super) fn claim(config: &Value) -> Option<String> {
    let key = key(config)?;
    let method = declared(config).map(|method| format!(" ({method})")).unwrap_or_default();
    Some(format!("config.json: {key}{method}"))
}
