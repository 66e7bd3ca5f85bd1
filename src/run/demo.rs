//! The embedded demo: a small model that recites a book, its corpora, and the recipe that makes it forget them.

use std::path::Path;

use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::io::atomic::replace_dir;

macro_rules! asset {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo/", $name))
    };
}

/// Every file of the demo with its bytes; assets/demo/SOURCES.md says where they come from.
const FILES: [(&str, &[u8]); 15] = [
    ("target/config.json", asset!("config.json")),
    ("target/generation_config.json", asset!("generation_config.json")),
    ("target/tokenizer.json", asset!("tokenizer.json")),
    ("target/tokenizer_config.json", asset!("tokenizer_config.json")),
    ("target/model.safetensors", asset!("target.safetensors")),
    ("retrain/config.json", asset!("config.json")),
    ("retrain/generation_config.json", asset!("generation_config.json")),
    ("retrain/tokenizer.json", asset!("tokenizer.json")),
    ("retrain/tokenizer_config.json", asset!("tokenizer_config.json")),
    ("retrain/model.safetensors", asset!("retrain.safetensors")),
    ("data/forget.jsonl", asset!("forget.jsonl")),
    ("data/retain.jsonl", asset!("retain.jsonl")),
    ("data/holdout.jsonl", asset!("holdout.jsonl")),
    ("data/verbmem_forget.json", asset!("verbmem_forget.json")),
    ("data/verbmem_retain.json", asset!("verbmem_retain.json")),
];

/// Unpacks the demo into the folder `input` and returns the recipe that runs on it: the preset `demo` and `sets`.
pub fn unpack(input: &Path, seed: u64, sets: &[String]) -> Result<Recipe> {
    let mut recipe = Recipe::assemble(Some("demo"), None, sets)?;
    replace_dir(input, |dir| {
        for (name, bytes) in FILES {
            let path = dir.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|e| Error::io("make folder", folder, e))?;
            }
            std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(())
    })?;
    let data = input.join("data");
    recipe.seed = seed;
    recipe.model.path = input.join("target");
    recipe.data.forget = data.join("forget.jsonl");
    recipe.data.retain = data.join("retain.jsonl");
    recipe.data.cache = input.join("cache");
    recipe.eval.forget = recipe.data.forget.clone();
    recipe.eval.retain = recipe.data.retain.clone();
    recipe.eval.holdout = data.join("holdout.jsonl");
    recipe.eval.verbmem_forget = data.join("verbmem_forget.json");
    recipe.eval.verbmem_retain = data.join("verbmem_retain.json");
    recipe.eval.retrain = input.join("retrain");
    Ok(recipe)
}
