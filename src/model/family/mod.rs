//! Model families: one file each, with all that distinguishes it from the others.
//!
//! A family that needs no new op is a file here, a place in [`ARCHITECTURES`] and a recorded model in tests/golden/data.

mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod opt;
mod phi;
mod qwen2;
mod qwen3;
mod record;

pub use record::{Architecture, Residual};
pub(super) use record::{
    Bias, EmbedScale, Names, PARTIAL, Positions, ResidualRule, Rotary, Size, SlidingLayers, Storage,
};

use crate::error::{Error, Result};

/// The supported families.
pub static ARCHITECTURES: [&Architecture; 10] = [
    &llama::ARCHITECTURE,
    &mistral::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen3::ARCHITECTURE,
    &gpt2::ARCHITECTURE,
    &gpt_neox::ARCHITECTURE,
    &opt::ARCHITECTURE,
    &phi::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
];

/// Returns the `model_type`s of [`ARCHITECTURES`], separated by commas.
pub fn supported() -> String {
    ARCHITECTURES.map(|architecture| architecture.model_type).join(", ")
}

/// Returns the family of a `model_type`.
///
/// Errors: [`crate::Kind::Model`] with the list of supported ones.
pub fn find(model_type: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.into_iter().find(|known| known.model_type == model_type).ok_or_else(|| {
        // No nearest name: a model_type is never mistyped, and a similar name is another computation.
        Error::model(format!(
            "config.json: model_type: architecture `{model_type}` is not supported"
        ))
        .hint(format!("supported are {}", supported()))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ops::NormKind;

    #[test]
    fn records_agree_with_themselves() {
        let types: BTreeSet<&str> = ARCHITECTURES.map(|family| family.model_type).into();
        assert_eq!(types.len(), ARCHITECTURES.len());
        for family in ARCHITECTURES {
            let names = &family.names;
            let shared = matches!(family.residual, ResidualRule::Always(Residual::Shared));
            assert_eq!(names.norm2.is_none(), shared, "{family}: the norm before the MLP");
            let learned = matches!(family.positions, Positions::Learned { .. });
            assert_eq!(names.positions.is_some(), learned, "{family}: the table of positions");
            assert_eq!(names.up.len(), 1 + usize::from(family.gated), "{family}: gate and up");
            assert!([1, 3].contains(&names.qkv.len()), "{family}: query, key and value");
            let by_head = names.storage == Storage::ByHead;
            assert!(!by_head || names.qkv.len() == 1, "{family}: query, key and value by head");
            assert!(!family.activations.is_empty(), "{family}: activations");
            // The ops have no LayerNorm of heads, and none with a residual.
            let rms = family.norm == NormKind::Rms;
            assert!(rms || names.qk_norm.is_none() && names.post.is_none(), "{family}: norms");
        }
    }
}
