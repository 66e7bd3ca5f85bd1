//! tokenizer.json and tokenizer_config.json from the keys of a GGUF file.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::config::Keys;
use crate::error::{Error, Result, nearest};
use crate::io::gguf::show;

/// The pre-tokenizers that can be imported: values of `tokenizer.ggml.pre`.
const PRE: [&str; 4] = ["smollm", "llama-bpe", "gpt-2", "qwen2"];

/// Patterns of the two regex pre-tokenizers; they differ in the number of digits kept together.
///
/// Source: the published tokenizer.json of Llama 3 and Qwen2.
fn pattern(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The kinds of tokens, numbered as in llama.cpp, that matter here; the others are plain vocabulary.
mod kind {
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const LAST: i64 = 6;
}

/// Both files, and the name of the pre-tokenizer.
pub(super) struct Tokenizer {
    pub(super) tokenizer: Value,
    pub(super) config: Value,
    pub(super) pre: &'static str,
    pub(super) size: usize,
}

fn missing(key: &str) -> Error {
    Error::model(format!("key {key} is missing"))
}

/// Makes the tokenizer; `vocab` is the number of rows of the embedding.
pub(super) fn build(keys: &Keys<'_>, vocab: usize, context: &Value) -> Result<Tokenizer> {
    let file = keys.file;
    match file.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        None => return Err(missing("tokenizer.ggml.model")),
        Some(model) => {
            let error = Error::model(format!(
                "key tokenizer.ggml.model: tokenizer `{}` is not supported, wanted `gpt2`",
                show(model)
            ));
            return Err(match model {
                "llama" => error.hint(
                    "`llama` is SentencePiece, of Llama 1 and 2 and early Mistral; start from the original model folder",
                ),
                _ => error.hint("only byte-level BPE is read; start from the original model folder"),
            });
        }
    }
    let pre = pre(keys)?;
    let tokens =
        file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if tokens.is_empty() || tokens.len() > vocab {
        return Err(Error::model(format!(
            "key tokenizer.ggml.tokens: {} tokens, token_embd.weight has {vocab} rows",
            tokens.len()
        )));
    }
    let (vocab, known) = vocabulary(&tokens)?;
    let added = added(keys, &tokens)?;
    let merges = merges(keys, &known)?;
    let token = |name: &str| -> Result<Option<(u64, &str)>> {
        let Some(id) = keys.token(name)? else { return Ok(None) };
        let content = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        content.map(|content| Some((id, *content))).ok_or_else(|| {
            Error::model(format!("{name} token id {id}: there are only {} tokens", tokens.len()))
        })
    };
    // llama.cpp puts this token before texts for Llama 3 even where the key is missing.
    let add_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pre == "llama-bpe");
    let add_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let affix = |name: &str, wanted: bool| match wanted {
        true => token(name)?
            .map(Some)
            .ok_or_else(|| missing(&format!("tokenizer.ggml.{name}_token_id"))),
        false => Ok(None),
    };
    let post = template(affix("bos", add_bos)?, affix("eos", add_eos)?);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(pre),
        "post_processor": post,
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre == "llama-bpe",
            "vocab": vocab,
            "merges": merges,
        },
    });
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    for name in ["bos", "eos", "pad", "unk"] {
        if let Some((_, content)) = token(name)? {
            config.insert(format!("{name}_token"), json!(content));
        }
    }
    // Only for its check: generation_config.json names it.
    token("eot")?;
    config.insert("model_max_length".into(), context.clone());
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("add_prefix_space".into(), json!(false));
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(Tokenizer { tokenizer, config: Value::Object(config), pre, size: tokens.len() })
}

fn pre(keys: &Keys<'_>) -> Result<&'static str> {
    let key = "tokenizer.ggml.pre";
    let name = keys.file.text(key)?.ok_or_else(|| {
        missing(key).hint(
            "the file is of a converter that did not record how text is split; convert the model again",
        )
    })?;
    PRE.into_iter().find(|known| *known == name).ok_or_else(|| {
        let near = nearest(name, PRE).map(|n| format!("; nearest is {n}")).unwrap_or_default();
        let name = show(name);
        Error::model(format!("key {key}: pre-tokenizer `{name}` is not supported"))
            .hint(format!("known are {}{near}", PRE.join(", ")))
    })
}

fn vocabulary<'a>(tokens: &[&'a str]) -> Result<(Map<String, Value>, HashSet<&'a str>)> {
    let mut vocab = Map::with_capacity(tokens.len());
    let mut known = HashSet::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if !known.insert(*token) {
            let token = show(token);
            return Err(Error::model(format!(
                "key tokenizer.ggml.tokens: `{token}` is there twice, again as {id}"
            )));
        }
        vocab.insert((*token).to_owned(), json!(id));
    }
    Ok((vocab, known))
}

fn added(keys: &Keys<'_>, tokens: &[&str]) -> Result<Vec<Value>> {
    let key = "tokenizer.ggml.token_type";
    let kinds = keys.file.wholes(key)?.ok_or_else(|| missing(key))?;
    if kinds.len() != tokens.len() {
        return Err(Error::model(format!(
            "key {key}: {} types for {} tokens",
            kinds.len(),
            tokens.len()
        )));
    }
    let mut added = Vec::new();
    for (id, (kind, token)) in kinds.into_iter().zip(tokens).enumerate() {
        if !(1..=kind::LAST).contains(&kind) {
            return Err(Error::model(format!(
                "key {key}: type {kind} of token {id}, wanted 1 to {}",
                kind::LAST
            )));
        }
        let special = matches!(kind, kind::UNKNOWN | kind::CONTROL);
        if !special && kind != kind::USER_DEFINED {
            continue;
        }
        if token.is_empty() {
            return Err(Error::model(format!("key {key}: token {id} is special but empty")));
        }
        added.push(json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": special,
        }));
    }
    Ok(added)
}

fn merges(keys: &Keys<'_>, known: &HashSet<&str>) -> Result<Vec<Value>> {
    let key = "tokenizer.ggml.merges";
    let list = keys.file.texts(key)?.ok_or_else(|| missing(key))?;
    let mut merges = Vec::with_capacity(list.len());
    for (i, merge) in list.into_iter().enumerate() {
        // A byte-level token has no blank in it, so the only one parts the pair.
        let pair = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
        let (left, right) = pair.ok_or_else(|| {
            let merge = show(merge);
            Error::model(format!("key {key}: merge {i}: wanted two tokens, got `{merge}`"))
        })?;
        let whole = format!("{left}{right}");
        for part in [left, right, &whole] {
            if !known.contains(part) {
                let part = show(part);
                return Err(Error::model(format!("key {key}: merge {i}: no token is `{part}`")));
            }
        }
        merges.push(json!([left, right]));
    }
    Ok(merges)
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(pre: &str) -> Value {
    let sequence = |first: Value, regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(false, regex)]});
    let split = |digits| {
        let regex = pattern(digits);
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    };
    match pre {
        "smollm" => sequence(json!({"type": "Digits", "individual_digits": true}), true),
        "llama-bpe" => sequence(split("{1,3}"), false),
        "qwen2" => sequence(split(""), false),
        _ => byte_level(false, true),
    }
}

/// Returns the post-processor that puts these tokens around a text.
fn template(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |token: &str, part: u32| json!({"SpecialToken": {"id": token, "type_id": part}});
    let around = |part: u32| {
        let name = if part == 0 { "A" } else { "B" };
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        let before = bos.map(|(_, token)| special(token, part));
        let after = eos.map(|(_, token)| special(token, part));
        before.into_iter().chain([text]).chain(after).collect::<Vec<_>>()
    };
    let mut tokens = Map::new();
    for (id, token) in bos.into_iter().chain(eos) {
        tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    let pair = [around(0), around(1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around(0),
        "pair": pair,
        "special_tokens": tokens,
    })
}
