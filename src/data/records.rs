//! The records of a source file: checked, counted and handed on one by one.

use std::collections::HashSet;
use std::io::Read;

use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::document::Document;
use super::record::{self, Record, Shape};
use super::report::{MOST_KEYS, Report};
use crate::error::{Error, Result};

/// The longest record of a .jsonl or .json file, in bytes: far above a book, far below what fills a memory.
pub const LONGEST_RECORD: usize = 16 << 20;

/// Summary of reading a whole source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Records and oddities, as far as they show before tokenisation.
    pub report: Report,
    /// The xxh3-128 hash of the file's bytes.
    pub hash: u128,
    /// The file's length in bytes.
    pub bytes: u64,
}

/// Hashes a whole file: the hash of [`Summary`] without the parsing.
pub fn hash(mut reader: impl Read) -> std::io::Result<u128> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sink for records: checks, counts and hands on each of them.
pub(super) struct Records<'a> {
    pub name: &'a str,
    vocab_size: usize,
    sink: &'a mut dyn FnMut(Document) -> Result<()>,
    first: Option<(Shape, u64)>,
    /// Hashes of the documents so far.
    seen: HashSet<u64>,
    pub report: Report,
}

impl<'a> Records<'a> {
    pub(super) fn new(
        name: &'a str,
        vocab_size: usize,
        sink: &'a mut dyn FnMut(Document) -> Result<()>,
    ) -> Self {
        let (first, seen, report) = (None, HashSet::new(), Report::default());
        Self { name, vocab_size, sink, first, seen, report }
    }

    /// Ends the reading of a file of that hash and length.
    ///
    /// Errors: `Kind::Data` where there was no record.
    pub(super) fn finish(self, hash: u128, bytes: u64) -> Result<Summary> {
        if self.report.records == 0 {
            let what = if bytes == 0 { "the file is empty" } else { "no documents in the file" };
            return Err(Error::data(format!(
                "{}: {what}, wanted at least one document",
                self.name
            ))
            .hint("check that the export that wrote it finished"));
        }
        Ok(Summary { report: self.report, hash, bytes })
    }

    pub(super) fn add_value(&mut self, value: Value, line: u64) -> Result<()> {
        let Record { shape, document, ignored } =
            record::read(value, self.vocab_size).map_err(|e| self.place(e, line))?;
        for key in ignored {
            let keys = &mut self.report.ignored_keys;
            if keys.len() < MOST_KEYS || keys.contains_key(&key) {
                *keys.entry(key).or_default() += 1;
            }
        }
        match self.first {
            None => self.first = Some((shape, line)),
            Some((first, at)) if first != shape => {
                let e = Error::data(format!("record has {shape}, wanted {first} as in line {at}"))
                    .hint("keep one kind of record per file");
                return Err(self.place(e, line));
            }
            Some(_) => {}
        }
        self.add(document)
    }

    pub(super) fn add(&mut self, document: Document) -> Result<()> {
        self.report.records += 1;
        if matches!(&document, Document::Text(text) if text.is_empty()) {
            self.report.empty_texts += 1;
        } else {
            self.report.duplicates += u64::from(!self.seen.insert(document.hash()));
        }
        (self.sink)(document)
    }

    pub(super) fn place(&self, e: Error, line: u64) -> Error {
        e.at(format_args!("{}:{line}", self.name))
    }
}
