//! Recorded tokenizers: ids with and without special tokens, decoded text.

use std::path::Path;

use nepenthe::data::{Tokenizer, clean_up_tokenization};
use serde_json::Value;

use crate::engine::*;

/// Runs a case of kind `tokenizer`.
pub fn run(case: &Value, root: &Path) -> Check<String> {
    let folder = root.join(case["id"].as_str().ok_or("no id")?);
    let name = folder.file_name().and_then(|n| n.to_str()).ok_or("no name")?;
    let tokenizer = Tokenizer::open(&folder).map_err(|e| e.to_string())?;
    let recorded = json(&folder.with_file_name(format!("{name}_goldens.json")))?;
    let items = recorded.as_array().ok_or("no list")?;
    for item in items {
        let text = item["text"].as_str().ok_or("no text")?;
        let ids = |key: &str| -> Vec<u32> {
            let list = item[key].as_array().into_iter().flatten();
            list.filter_map(|id| id.as_u64().map(|id| id as u32)).collect()
        };
        let (with, without) = (ids("ids"), ids("ids_no_special"));
        let error = |e: nepenthe::Error| e.to_string();
        same(text, "ids", tokenizer.encode(text).map_err(error)?, with.clone())?;
        same(text, "ids_no_special", tokenizer.encode_plain(text).map_err(error)?, without)?;
        for (key, skip) in [("decode_skip_special", true), ("decode_keep_special", false)] {
            let want = item[key].as_str().unwrap_or_default().to_owned();
            same(text, key, tokenizer.decode(&with, skip).map_err(error)?, want)?;
        }
    }
    Ok(format!("{} texts", items.len()))
}

/// Runs `clean_up_tokenization.json`.
pub fn clean_up(file: &Path) -> Check<String> {
    let recorded = json(file)?;
    let items = recorded.as_array().ok_or("no list")?;
    for item in items {
        let text = item["text"].as_str().ok_or("no text")?;
        let want = item["cleaned"].as_str().ok_or("no cleaned text")?.to_owned();
        same(text, "cleaned", clean_up_tokenization(text), want)?;
    }
    Ok(format!("{} texts", items.len()))
}

fn same<T: PartialEq + std::fmt::Debug>(text: &str, what: &str, got: T, want: T) -> Check {
    if got == want {
        Ok(())
    } else {
        Err(format!("{text:?}: {what}: got {got:?}, recorded {want:?}"))
    }
}
