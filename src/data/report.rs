//! Counts of what was read from a source, and of everything that was dropped, cut or odd in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The most names of ignored keys that a [`Report`] keeps.
pub(super) const MOST_KEYS: usize = 100;

/// Counts of records read and of anything unusual in them; normally all are zero but `records`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Documents in the source.
    pub records: u64,
    /// Blank lines between records, skipped.
    pub blank_lines: u64,
    /// Documents whose text is empty; they keep only their special tokens.
    pub empty_texts: u64,
    /// Documents without any token, skipped.
    pub without_tokens: u64,
    /// Rows of one token; nothing can be predicted in them, but they are drawn like others.
    pub single_token: u64,
    /// Documents that lost tokens to truncation.
    pub truncated: u64,
    /// Documents that lost a row shorter than the context.
    pub dropped_short: u64,
    /// Carriage returns before line ends in a .txt document; they are part of the text.
    pub carriage_returns: u64,
    /// Byte order marks, skipped.
    pub byte_order_marks: u64,
    /// Tokens beyond the context that truncation cut away, of all documents.
    pub cut_tokens: u64,
    /// Documents of given ids that are longer than the context, which are not cut.
    pub long_ids: u64,
    /// Documents that equal an earlier one.
    pub duplicates: u64,
    /// Texts that begin or end with a special token that the tokenizer adds there too.
    pub doubled_special: u64,
    /// Keys that were not read, with the number of records that have them; at most 100 of them.
    pub ignored_keys: BTreeMap<String, u64>,
    /// True if the rows came from the cache.
    #[serde(skip)]
    pub from_cache: bool,
    /// Why a cache that existed was not used.
    #[serde(skip)]
    pub note: Option<String>,
}

impl Report {
    /// Returns a line for everything that was dropped, cut or odd in the file `name`; what changes results is a warning.
    ///
    /// `context` is the longest row, in tokens.
    pub fn notices(&self, name: &str, context: usize) -> Vec<String> {
        let of = self.records;
        let lines = [
            (
                self.truncated,
                format!(
                    "warning: {name}: {} of {of} documents truncated to the context of {context} tokens; {} not used",
                    self.truncated,
                    counted(self.cut_tokens, "token")
                ),
            ),
            (
                self.long_ids,
                format!(
                    "warning: {name}: {} of {of} records of input_ids are longer than the context of {context} tokens; \
                     they are not cut",
                    self.long_ids
                ),
            ),
            (
                self.doubled_special,
                format!(
                    "warning: {name}: {} of {of} texts begin or end with a special token that the tokenizer adds too, so \
                     that it stands there twice; remove it from the text",
                    self.doubled_special
                ),
            ),
            (
                self.duplicates,
                format!(
                    "warning: {name}: {} of {of} documents repeat an earlier one",
                    self.duplicates
                ),
            ),
            (
                self.dropped_short,
                format!(
                    "warning: {name}: the last row of {} of {of} documents is shorter than the context of {context} \
                     tokens and was dropped",
                    self.dropped_short
                ),
            ),
            (
                self.without_tokens,
                format!(
                    "warning: {name}: {} of {of} documents have no tokens and were skipped",
                    self.without_tokens
                ),
            ),
            (
                self.single_token,
                format!(
                    "{name}: {} with a single token, in which nothing is predicted",
                    counted(self.single_token, "row")
                ),
            ),
            (
                self.empty_texts,
                format!("{name}: {} with an empty text", counted(self.empty_texts, "document")),
            ),
            (
                self.blank_lines,
                format!("{name}: {} skipped", counted(self.blank_lines, "blank line")),
            ),
            (
                self.carriage_returns,
                format!(
                    "{name}: {} kept in the text",
                    counted(self.carriage_returns, "carriage return")
                ),
            ),
            (self.byte_order_marks, format!("{name}: byte order mark skipped")),
        ];
        let lines = lines.into_iter().filter(|(n, _)| *n > 0).map(|(_, line)| line);
        let keys: Vec<String> =
            self.ignored_keys.iter().map(|(k, n)| format!("{k:?} ({n})")).collect();
        let keys = (!keys.is_empty()).then(|| {
            format!("{name}: keys not read, with the number of records: {}", keys.join(", "))
        });
        lines.chain(keys).chain(self.note.clone()).collect()
    }
}

/// Writes a count with its noun, in the plural where it is not 1.
fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
