//! Text to token ids and back, as transformers does it from the files in a model folder.

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};

/// The end of a document that truncation and chunking start cutting from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The end of the text is cut away: the default.
    #[default]
    Right,
    /// The start of the text is cut away (`"truncation_side": "left"`).
    Left,
}

/// A tokenizer read from `tokenizer.json` and `tokenizer_config.json`.
///
/// Special tokens are kept as one prefix and one suffix around the plain ids. This holds for every
/// post-processor that transformers exports, and makes chunking and the config's overrides trivial.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    side: Side,
    clean_up: bool,
    vocab_size: usize,
    hash: u128,
    notices: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of the model folder `dir`.
    ///
    /// `tokenizer.json` must exist; `tokenizer_config.json` and, for token names it lacks,
    /// `special_tokens_map.json` are read where they exist. Which special tokens a text gets is for the post-processor of
    /// `tokenizer.json` alone: `add_bos_token` and `add_eos_token` are ignored, as transformers 5 does where that file
    /// exists; [`Tokenizer::notices`] says so where they ask for something else.
    ///
    /// Errors: `Kind::Model` for missing or malformed files, or a named token that is not in the vocabulary.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| {
            Error::model(format!("{}: cannot read the tokenizer: {e}", path.display())).with_source(e)
                .hint("a model folder needs tokenizer.json; save it with transformers' save_pretrained of a fast tokenizer")
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| {
            Error::model(format!("{}: not a tokenizer: {e}", path.display())).with_source(e)
        })?;
        // Stored truncation or padding would silently change ids; transformers switches both off too.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::model(format!("{}: {e}", path.display())).with_source(e))?;

        let config_path = dir.join("tokenizer_config.json");
        let config = read_object(&config_path)?;
        let map_path = dir.join("special_tokens_map.json");
        let map = read_object(&map_path)?;
        let token = |name: &str| -> Result<Option<u32>> {
            let (place, value) = match (config.get(name), map.get(name)) {
                (Some(v), _) if !v.is_null() => (&config_path, v),
                (_, Some(v)) => (&map_path, v),
                _ => return Ok(None),
            };
            special_token(&inner, name, value).map_err(|e| e.at(place.display()))
        };
        let (bos, eos, pad) = (token("bos_token")?, token("eos_token")?, token("pad_token")?);

        let (prefix, suffix) = affixes(&inner).map_err(|e| e.at(path.display()))?;
        let mut notices = Vec::new();
        for (name, token, affix) in
            [("add_bos_token", bos, &prefix), ("add_eos_token", eos, &suffix)]
        {
            let adds = token.is_some_and(|token| affix.contains(&token));
            if flag(&config, name, &config_path)?.is_some_and(|wanted| wanted != adds) {
                let does = if adds { "adds that token" } else { "does not add that token" };
                notices.push(format!(
                    "warning: {}: {name} is {} and is ignored, as by transformers 5: tokenizer.json decides, and {does}",
                    config_path.display(),
                    !adds
                ));
            }
        }
        let clean_up =
            flag(&config, "clean_up_tokenization_spaces", &config_path)?.unwrap_or(false);
        let side = match config.get("truncation_side").and_then(Value::as_str) {
            Some("left") => Side::Left,
            _ => Side::Right,
        };
        let vocab_size =
            inner.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);

        let mut hash = Xxh3::new();
        hash.update(&bytes);
        for affix in [&prefix, &suffix] {
            hash.update(&(affix.len() as u64).to_le_bytes());
            affix.iter().for_each(|id| hash.update(&id.to_le_bytes()));
        }
        hash.update(&[side as u8]);
        let hash = hash.digest128();
        Ok(Self { inner, prefix, suffix, bos, eos, pad, side, clean_up, vocab_size, hash, notices })
    }

    /// Encodes `text` with special tokens: `tokenizer(text).input_ids` of transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.encode_plain(text)?;
        Ok([self.prefix.as_slice(), &plain, &self.suffix].concat())
    }

    /// Encodes `text` without special tokens: `add_special_tokens=False`.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        plain_ids(&self.inner, text)
    }

    /// Encodes many texts with special tokens on all threads of the current rayon pool, in order.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// Decodes `ids`; with `skip_special`, special tokens leave no text.
    ///
    /// Spaces are not cleaned up: see [`clean_up_tokenization`]. Ids outside the vocabulary leave no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| {
            Error::model(format!("tokenizer: cannot decode {} ids: {e}", ids.len())).with_source(e)
        })
    }

    /// Returns a line for every setting of the folder's files that is ignored.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Returns whether the plain ids of a text begin with the last token of the prefix, or end with the first of the
    /// suffix, so that it stands there twice.
    pub fn doubles(&self, plain: &[u32]) -> bool {
        let same = |added: Option<&u32>, own: Option<&u32>| added.is_some() && added == own;
        same(self.prefix.last(), plain.first()) || same(self.suffix.first(), plain.last())
    }

    /// Returns the id of the token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the id of the token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the id of the padding token, if the model has one.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Returns the largest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the special ids that [`Tokenizer::encode`] puts before every text.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Returns the special ids that [`Tokenizer::encode`] puts after every text.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// Returns the side that truncation cuts.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Returns whether the config asks for `clean_up_tokenization_spaces`.
    pub fn wants_clean_up(&self) -> bool {
        self.clean_up
    }

    /// Returns the xxh3-128 hash of `tokenizer.json` and of every setting that changes ids.
    pub fn hash(&self) -> u128 {
        self.hash
    }
}

/// Joins punctuation to the word before it, as transformers' `clean_up_tokenization` did when decoding.
///
/// Source: transformers, `PreTrainedTokenizerBase.clean_up_tokenization`; the order of the steps matters.
pub fn clean_up_tokenization(text: &str) -> String {
    const STEPS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    STEPS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn plain_ids(inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = inner.encode_fast(text, false).map_err(|e| {
        Error::model(format!("tokenizer: cannot encode a text of {} bytes: {e}", text.len()))
            .with_source(e)
    })?;
    Ok(encoding.get_ids().to_vec())
}

/// Finds the ids that the post-processor puts around a text.
fn affixes(inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let plain = plain_ids(inner, "a")?;
    let full = inner.encode_fast("a", true).map_err(|e| {
        Error::model(format!("cannot encode with special tokens: {e}")).with_source(e)
    })?;
    let full = full.get_ids();
    // A tokenizer that knows no letter gives no plain ids; all special tokens then count as prefix.
    let at = if plain.is_empty() {
        Some(full.len())
    } else {
        full.windows(plain.len()).position(|window| window == plain)
    };
    match at {
        Some(at) => Ok((full[..at].to_vec(), full[at + plain.len()..].to_vec())),
        None => Err(Error::model(format!(
            "the post-processor turns the ids {plain:?} into {full:?}, wanted special tokens around them"
        ))),
    }
}

fn read_object(path: &Path) -> Result<serde_json::Map<String, Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(e) => {
            return Err(
                Error::model(format!("{}: cannot read: {e}", path.display())).with_source(e)
            );
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::model(format!("{}: wanted a JSON object", path.display()))),
        Err(e) => {
            Err(Error::model(format!("{}: not valid JSON: {e}", path.display())).with_source(e))
        }
    }
}

fn flag(config: &serde_json::Map<String, Value>, name: &str, path: &Path) -> Result<Option<bool>> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(Error::model(format!(
            "{}: {name} is {other}, wanted true or false",
            path.display()
        ))),
    }
}

/// Looks up a special token given as a string or as an object with `content`.
fn special_token(inner: &tokenizers::Tokenizer, name: &str, value: &Value) -> Result<Option<u32>> {
    if value.is_null() {
        return Ok(None);
    }
    let content = value
        .as_str()
        .or_else(|| value.get("content").and_then(Value::as_str))
        .ok_or_else(|| {
            Error::model(format!(
                "{name} is {value}, wanted a string or an object with \"content\""
            ))
        })?;
    match inner.token_to_id(content) {
        Some(id) => Ok(Some(id)),
        None => Err(Error::model(format!(
            "{name} is {content:?}, which is not in the vocabulary of tokenizer.json"
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A word-level tokenizer: `<s>` 0, `</s>` 1, `<unk>` 2, then a to z as 3 to 28; BOS is prepended.
    pub(crate) fn write_tokenizer(dir: &Path, config: &str) {
        let mut vocab =
            vec![("<s>".to_owned(), 0), ("</s>".to_owned(), 1), ("<unk>".to_owned(), 2)];
        vocab.extend(('a'..='z').zip(3..).map(|(c, id)| (c.to_string(), id)));
        let vocab: serde_json::Map<String, Value> =
            vocab.into_iter().map(|(word, id)| (word, Value::from(id))).collect();
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(dir.join("tokenizer_config.json"), config).unwrap();
    }

    pub(crate) fn tokenizer(config: &str) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path(), config);
        Tokenizer::open(dir.path())
    }

    pub(crate) const CONFIG: &str =
        r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null}"#;

    #[test]
    fn special_tokens_are_read_as_strings_and_objects() {
        let t = tokenizer(CONFIG).unwrap();
        assert_eq!((t.bos(), t.eos(), t.pad()), (Some(0), Some(1), None));
        assert_eq!(t.encode("a b").unwrap(), [0, 3, 4]);
        assert_eq!(t.encode("").unwrap(), [0]);
        assert_eq!(t.encode_plain("a b").unwrap(), [3, 4]);
        assert_eq!(t.vocab_size(), 29);
        assert_eq!(t.encode_batch(&["a", "b"]).unwrap(), [[0, 3], [0, 4]]);
        assert_eq!(t.decode(&[0, 3, 4], true).unwrap(), "a b");
        assert_eq!((t.side(), t.wants_clean_up()), (Side::Right, false));
    }

    #[test]
    fn bos_and_eos_settings_are_ignored_with_a_notice_where_they_disagree() {
        let settings = |bos: &str, eos: &str| {
            tokenizer(&format!(
                r#"{{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": {bos}, "add_eos_token": {eos}}}"#
            ))
            .unwrap()
        };
        for (bos, eos, ignored) in [
            ("null", "null", &[][..]),
            ("true", "false", &[]),
            ("false", "null", &["add_bos_token is false"]),
            ("true", "true", &["add_eos_token is true"]),
            ("false", "true", &["add_bos_token is false", "add_eos_token is true"]),
        ] {
            let tokenizer = settings(bos, eos);
            assert_eq!(tokenizer.encode("a").unwrap(), [0, 3], "{bos} {eos}");
            assert_eq!(tokenizer.notices().len(), ignored.len(), "{:?}", tokenizer.notices());
            for (notice, text) in tokenizer.notices().iter().zip(ignored) {
                assert!(notice.contains(text), "{notice}");
            }
        }
    }

    #[test]
    fn doubled_special_tokens_are_found() {
        let tokenizer = tokenizer(CONFIG).unwrap();
        let doubles = |text: &str| tokenizer.doubles(&tokenizer.encode_plain(text).unwrap());
        assert!(doubles("<s> a") && !doubles("a <s>") && !doubles("a") && !doubles(""));
    }

    #[test]
    fn broken_config_is_refused_with_the_place() {
        let message = |config: &str| {
            let e = tokenizer(config).unwrap_err();
            e.message().split_once("tokenizer_config.json: ").unwrap().1.to_owned()
        };
        assert_eq!(
            message(r#"{"bos_token": "<bos>"}"#),
            "bos_token is \"<bos>\", which is not in the vocabulary of tokenizer.json"
        );
        assert_eq!(
            message(r#"{"bos_token": 3}"#),
            "bos_token is 3, wanted a string or an object with \"content\""
        );
        assert_eq!(
            message(r#"{"add_bos_token": "yes"}"#),
            "add_bos_token is \"yes\", wanted true or false"
        );
        assert_eq!(message("[]"), "wanted a JSON object");
    }

    #[test]
    fn clean_up_joins_in_the_order_of_transformers() {
        assert_eq!(
            clean_up_tokenization("A . B , C ! D ? do n't ' m 's 're"),
            "A. B, C! D? don't'm's're"
        );
        assert_eq!(clean_up_tokenization("wait ..."), "wait...");
    }

    fn golden(file: &str) -> Option<(PathBuf, Vec<Value>)> {
        let Some(root) = std::env::var_os("NEPENTHE_GOLDEN") else {
            println!("skipped: NEPENTHE_GOLDEN names no folder of recorded reference runs");
            return None;
        };
        let path = PathBuf::from(root).join(file);
        let cases = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        Some((path, cases))
    }

    #[test]
    fn clean_up_matches_the_recorded_texts() {
        let Some((_, cases)) = golden("metrics/clean_up_tokenization.json") else { return };
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(clean_up_tokenization(text), case["cleaned"].as_str().unwrap());
        }
    }

    #[test]
    fn ids_and_texts_match_the_recorded_tokenizers() {
        for family in ["llama2style", "bytelevel"] {
            let Some((path, cases)) = golden(&format!("tokenizer/{family}_goldens.json")) else {
                return;
            };
            let t = Tokenizer::open(&path.with_file_name(family)).unwrap();
            assert!(!cases.is_empty());
            for case in &cases {
                let ids = |key: &str| -> Vec<u32> {
                    case[key]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|v| v.as_u64().unwrap() as u32)
                        .collect()
                };
                let text = case["text"].as_str().unwrap();
                assert_eq!(t.encode(text).unwrap(), ids("ids"), "{text}");
                assert_eq!(t.encode_plain(text).unwrap(), ids("ids_no_special"), "{text}");
                let decoded = |skip| t.decode(&ids("ids"), skip).unwrap();
                assert_eq!(decoded(true), case["decode_skip_special"], "{text}");
                assert_eq!(decoded(false), case["decode_keep_special"], "{text}");
            }
            println!("{family}: {} texts", cases.len());
        }
    }
}
