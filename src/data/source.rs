//! Source files of documents: .jsonl, .json, .txt, read as a stream, and .parquet.
//!
//! | file | holds |
//! |---|---|
//! | `.jsonl` | one object per line: `{"text"}`, `{"question", "answer"}` or `{"input_ids"}` |
//! | `.json` | one list of strings or of such objects, or such objects one after the other |
//! | `.txt` | one document: the whole file |
//! | `.parquet` | a row for each, with such columns (feature `parquet`) |
//!
//! A question and its answer become the text `Question: {question}\nAnswer: {answer}`, the form in which MUSE asks.
//! A record longer than [`LONGEST_RECORD`] or a text longer than [`LONGEST_TEXT`] is refused, so that a file of another
//! kind cannot fill the memory.
//! `input_ids` are used as they are: no special tokens, no truncation. Other keys of an object that would change what is
//! trained, such as `labels` or a loss mask, are refused; the rest is ignored and counted in the [`super::Report`].

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::document::Document;
use super::json::{kind, not_json};
use super::json_list::json_list;
use super::records::{LONGEST_RECORD, Records, Summary};
use crate::error::{Error, Result};

/// The longest .txt file, in bytes.
pub const LONGEST_TEXT: usize = 256 << 20;

/// The format of a source file, known by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// One JSON object per line.
    JsonLines,
    /// One JSON list.
    JsonList,
    /// One document of plain text.
    Text,
    /// Rows with named columns.
    Parquet,
}

impl Format {
    /// Returns the format of `path` by its extension, in either case.
    ///
    /// Errors: `Kind::Data` for any extension but jsonl, json, txt and parquet.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("jsonl") => Ok(Self::JsonLines),
            Some("json") => Ok(Self::JsonList),
            Some("txt") => Ok(Self::Text),
            Some("parquet") => Ok(Self::Parquet),
            Some(other) => Err(Error::data(format!(
                "{}: unknown extension {other:?}, wanted .jsonl, .json, .txt or .parquet",
                path.display()
            ))
            .hint("convert the file to .jsonl, one {\"text\": ...} per line")),
            None => Err(Error::data(format!(
                "{}: no extension, wanted .jsonl, .json, .txt or .parquet",
                path.display()
            ))
            .hint("rename the file to say what it holds")),
        }
    }
}

/// Opens a source file for [`read`], with the errors a user can act on.
///
/// Errors: `Kind::Data` for a missing file, a folder, or an unknown extension.
pub fn open(path: &Path) -> Result<(Format, File)> {
    let name = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::data(format!("{name}: no such file"))
            .hint("paths in a recipe are relative to the working directory"),
        _ => Error::data(format!("{name}: cannot read: {e}")).with_source(e),
    })?;
    if metadata.is_dir() {
        return Err(Error::data(format!(
            "{name}: is a folder, wanted a .jsonl, .json, .txt or .parquet file"
        ))
        .hint(
            "a datasets folder becomes one file by load_from_disk(folder).to_json(\"data.jsonl\")",
        ));
    }
    let format = Format::of(path)?;
    let file = File::open(path)
        .map_err(|e| Error::data(format!("{name}: cannot read: {e}")).with_source(e))?;
    Ok((format, file))
}

/// Reads every document of `reader` in order and gives it to `sink`; never holds more than one in memory.
///
/// `name` stands in messages as the file. `vocab_size` bounds `input_ids`.
///
/// Errors: `Kind::Data` with file and line for anything malformed, and whatever `sink` returns.
pub fn read(
    format: Format,
    name: &str,
    reader: impl Read,
    vocab_size: usize,
    sink: &mut dyn FnMut(Document) -> Result<()>,
) -> Result<Summary> {
    let tally = Rc::new(RefCell::new((Xxh3::new(), 0u64)));
    let hashing = Hashing { inner: reader, tally: Rc::clone(&tally) };
    let mut input = BufReader::with_capacity(1 << 18, hashing);
    let mut records = Records::new(name, vocab_size, sink);
    let failed = |e| Error::data(format!("{name}: cannot read: {e}")).with_source(e);
    if skip_byte_order_mark(&mut input).map_err(failed)? {
        records.report.byte_order_marks = 1;
    }
    match format {
        Format::JsonLines => json_lines(&mut input, &mut records)?,
        Format::JsonList => json_list(&mut input, &mut records)?,
        Format::Text => plain_text(&mut input, &mut records)?,
        // Its rows are found from the end of the file, so that it cannot be read as a stream.
        Format::Parquet => {
            return Err(Error::data(format!("{name}: a .parquet file is not a stream")));
        }
    }
    let (hash, bytes) = {
        let tally = tally.borrow();
        (tally.0.digest128(), tally.1)
    };
    records.finish(hash, bytes)
}

/// Reads every document of a file that [`open`] opened, as [`read`] does, .parquet files too.
pub fn read_file(
    format: Format,
    name: &str,
    file: File,
    vocab_size: usize,
    sink: &mut dyn FnMut(Document) -> Result<()>,
) -> Result<Summary> {
    match format {
        Format::Parquet => {
            super::parquet::documents(name, &file, Records::new(name, vocab_size, sink))
        }
        _ => read(format, name, file, vocab_size, sink),
    }
}

/// Hashes and counts what is read through it, so that the hash is that of the very bytes that were parsed.
struct Hashing<R> {
    inner: R,
    tally: Rc<RefCell<(Xxh3, u64)>>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut tally = self.tally.borrow_mut();
        tally.0.update(&buffer[..n]);
        tally.1 += n as u64;
        Ok(n)
    }
}

fn skip_byte_order_mark(input: &mut impl BufRead) -> std::io::Result<bool> {
    const MARK: &[u8] = b"\xEF\xBB\xBF";
    // A short first read hides the mark only for exotic readers; files fill the buffer.
    let found = input.fill_buf()?.starts_with(MARK);
    if found {
        input.consume(MARK.len());
    }
    Ok(found)
}

fn json_lines(input: &mut impl BufRead, records: &mut Records<'_>) -> Result<()> {
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read =
            (&mut *input).take(LONGEST_RECORD as u64 + 1).read_until(b'\n', &mut line).map_err(
                |e| records.place(Error::data(format!("cannot read: {e}")).with_source(e), number),
            )?;
        if read == 0 {
            break;
        }
        if read > LONGEST_RECORD {
            let e = Error::data(format!(
                "the line is longer than {} MiB, wanted one document per line",
                LONGEST_RECORD >> 20
            ));
            let hint = "split the document into several, or name the file .txt if it is one text";
            return Err(records.place(e.hint(hint), number));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            records.report.blank_lines += 1;
            continue;
        }
        // Without its end, a string that was never closed is reported where it stops.
        let text = std::str::from_utf8(line.trim_ascii_end())
            .map_err(|e| records.place(not_utf8(e.valid_up_to() + 1).with_source(e), number))?;
        let value: Value = serde_json::from_str(text).map_err(|e| {
            let hint = "every line of a .jsonl file is one whole JSON object";
            records.place(not_json(&e).hint(hint).with_source(e), number)
        })?;
        if !value.is_object() {
            let e = Error::data(format!("the line is {}, wanted an object", kind(&value)))
                .hint("write {\"text\": ...}; a file that is one JSON list is named .json");
            return Err(records.place(e, number));
        }
        records.add_value(value, number)?;
    }
    Ok(())
}

fn plain_text(input: &mut impl BufRead, records: &mut Records<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    (&mut *input)
        .take(LONGEST_TEXT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::data(format!("{}: cannot read: {e}", records.name)).with_source(e))?;
    if bytes.len() > LONGEST_TEXT {
        return Err(Error::data(format!(
            "{}: longer than {} MiB, but a .txt file is one document",
            records.name,
            LONGEST_TEXT >> 20
        ))
        .hint("write a .jsonl file with one {\"text\": ...} per document"));
    }
    if bytes.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = good.iter().filter(|&&b| b == b'\n').count() as u64 + 1;
        let start = good.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        records.place(not_utf8(good.len() - start + 1).with_source(e.utf8_error()), line)
    })?;
    records.report.carriage_returns = text.matches("\r\n").count() as u64;
    records.add(Document::Text(text))
}

fn not_utf8(column: usize) -> Error {
    Error::data(format!("byte {column} of the line is not valid UTF-8"))
        .hint("convert the file to UTF-8, for example with iconv -t utf-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(format: Format, bytes: &[u8]) -> Result<(Vec<Document>, Summary)> {
        let mut documents = Vec::new();
        let summary = read(format, "x", bytes, 10, &mut |document| {
            documents.push(document);
            Ok(())
        })?;
        assert_eq!(summary.report.records, documents.len() as u64);
        assert_eq!(summary.bytes, bytes.len() as u64);
        assert_eq!(summary.hash, crate::data::records::hash(bytes).unwrap());
        Ok((documents, summary))
    }

    fn texts(texts: &[&str]) -> Vec<Document> {
        texts.iter().map(|text| Document::Text((*text).to_owned())).collect()
    }

    #[test]
    fn json_lines_survive_marks_blank_lines_and_carriage_returns() {
        let bytes = b"\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n{\"text\": \"\", \"n\": 1}\n{\"text\":\"\xC3\xA4\"}";
        let (documents, summary) = read_all(Format::JsonLines, bytes).unwrap();
        assert_eq!(documents, texts(&["a", "", "ä"]));
        assert_eq!(
            summary.report.notices("x", 8),
            [
                "x: 1 document with an empty text",
                "x: 1 blank line skipped",
                "x: byte order mark skipped",
                "x: keys not read, with the number of records: \"n\" (1)"
            ]
        );
    }

    #[test]
    fn questions_and_ids_become_documents() {
        let (documents, _) =
            read_all(Format::JsonLines, b"{\"question\": \"Who?\", \"answer\": \"Alice\"}")
                .unwrap();
        assert_eq!(documents[0].text().unwrap(), "Question: Who?\nAnswer: Alice");
        assert_eq!(documents[0].prompt().unwrap(), "Question: Who?\nAnswer:");
        let (documents, _) =
            read_all(Format::JsonLines, b"{\"input_ids\": [0, 9], \"attention_mask\": [1, 1]}")
                .unwrap();
        assert_eq!(documents, [Document::Ids(vec![0, 9])]);
    }

    #[test]
    fn json_lists_hold_strings_and_objects() {
        let (documents, _) =
            read_all(Format::JsonList, b"\n [\"a\", {\"text\": \"b\"},\n\"\\ud83d\\ude00\"]\n ")
                .unwrap();
        assert_eq!(documents, texts(&["a", "b", "😀"]));
    }

    #[test]
    fn text_file_is_one_document() {
        let (documents, summary) = read_all(Format::Text, b"a\r\n\r\nb\n").unwrap();
        assert_eq!(documents, texts(&["a\r\n\r\nb\n"]));
        assert_eq!(summary.report.notices("x", 8), ["x: 2 carriage returns kept in the text"]);
    }

    #[test]
    fn error_of_the_sink_comes_back_unchanged() {
        for (format, bytes) in [(Format::JsonList, &b"[\"a\"]"[..]), (Format::Text, b"a")] {
            let e = read(format, "x", bytes, 1, &mut |_| Err(Error::model("full"))).unwrap_err();
            assert_eq!((e.kind(), e.message()), (crate::Kind::Model, "full"));
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "[".repeat(100_000);
        assert!(read_all(Format::JsonList, deep.as_bytes()).is_err());
        assert!(read_all(Format::JsonLines, deep.as_bytes()).is_err());
    }

    #[test]
    fn record_without_an_end_is_refused_before_it_fills_the_memory() {
        let endless = |start: &'static [u8]| start.chain(std::io::repeat(b'a'));
        let refused = |format, start| {
            let reader = BufReader::new(endless(start)).take(1 << 40);
            read(format, "x", reader, 1, &mut |_| Ok(())).unwrap_err().message().to_owned()
        };
        assert_eq!(
            refused(Format::JsonLines, b"{\"text\": \"a\"}\n{\"text\": \""),
            "x:2: the line is longer than 16 MiB, wanted one document per line"
        );
        assert_eq!(
            refused(Format::JsonList, b"[\"a\",\n\n\""),
            "x:3: one document is longer than 16 MiB, wanted a list of documents"
        );
        assert_eq!(
            refused(Format::Text, b""),
            "x: longer than 256 MiB, but a .txt file is one document"
        );
        let long = format!("{{\"text\": \"{}\"}}\n", "a".repeat(LONGEST_RECORD - 13));
        assert_eq!(long.len(), LONGEST_RECORD);
        read(Format::JsonLines, "x", long.repeat(2).as_bytes(), 1, &mut |_| Ok(())).unwrap();
        let list = format!("[{}\"b\"]", "\"a\",".repeat(6_000_000));
        assert!(list.len() > LONGEST_RECORD);
        read(Format::JsonList, "x", list.as_bytes(), 1, &mut |_| Ok(())).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in [Format::JsonLines, Format::JsonList, Format::Text] {
                let _ = read_all(format, &bytes);
            }
        }

        #[test]
        fn near_json_is_read_or_refused(
            parts in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\n", "\r\n", "\"text\"", "\"input_ids\"", "\"question\"",
                "\"answer\"", "\"attention_mask\"", "1", "-1", "1e9", "null", "\"\\ud800\"", "\u{feff}", "{\"text\":\"a\"}",
                "\"a", " ", "{\"input_ids\":[1]}",
            ]), 0..12)
        ) {
            let text = parts.concat();
            for format in [Format::JsonLines, Format::JsonList, Format::Text] {
                let _ = read_all(format, text.as_bytes());
            }
        }
    }
}
