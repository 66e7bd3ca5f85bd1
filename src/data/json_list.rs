//! .json files: one list of records, or records one after the other (TOFU's files are lines with that ending).

use std::cell::Cell;
use std::fmt;
use std::io::{BufRead, Read};

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::Value;

use super::json::not_json;
use super::records::{LONGEST_RECORD, Records};
use crate::error::{Error, Result};

/// Hands the records of a .json file on one by one.
pub(super) fn json_list(input: &mut impl BufRead, records: &mut Records<'_>) -> Result<()> {
    let line = Cell::new(1);
    let left = Cell::new(LONGEST_RECORD);
    let mut input = Lines { inner: input, line: &line, left: &left };
    match first_byte(&mut input).map_err(|e| {
        records.place(Error::data(format!("cannot read: {e}")).with_source(e), line.get())
    })? {
        None => return Ok(()),
        Some(b'{') => return objects(input, records),
        Some(_) => {}
    }
    let mut failure = None;
    let mut json = serde_json::Deserializer::from_reader(&mut input);
    let elements =
        Elements { records: &mut *records, line: &line, left: &left, failure: &mut failure };
    let outcome = json.deserialize_seq(elements).and_then(|()| json.end());
    match (failure, outcome) {
        (Some(e), _) => Err(e),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) if e.is_io() && left.get() == 0 => Err(too_long(records, line.get())),
        (None, Err(e)) if e.is_data() => {
            let e = Error::data("the file is not a list, wanted a list of strings or objects");
            Err(records.place(e, line.get()))
        }
        (None, Err(e)) => Err(records.place(not_json(&e).with_source(e), line.get())),
    }
}

fn too_long(records: &Records<'_>, line: u64) -> Error {
    let e = Error::data(format!(
        "one document is longer than {} MiB, wanted a list of documents",
        LONGEST_RECORD >> 20
    ));
    records.place(e.hint("split the document into several"), line)
}

/// Reads objects one after the other.
fn objects<R: BufRead>(mut input: Lines<'_, R>, records: &mut Records<'_>) -> Result<()> {
    let (line, left) = (input.line, input.left);
    let mut values = serde_json::Deserializer::from_reader(&mut input).into_iter::<Value>();
    loop {
        left.set(LONGEST_RECORD);
        match values.next() {
            None => return Ok(()),
            Some(Ok(value)) => records.add_value(value, line.get())?,
            Some(Err(e)) if e.is_io() && left.get() == 0 => {
                return Err(too_long(records, line.get()));
            }
            Some(Err(e)) => return Err(records.place(not_json(&e).with_source(e), line.get())),
        }
    }
}

/// Counts the lines that were read; serde_json reads byte by byte, so the count is that of the current byte.
struct Lines<'a, R> {
    inner: &'a mut R,
    line: &'a Cell<u64>,
    /// Bytes that the current record may still have.
    left: &'a Cell<usize>,
}

impl<R: BufRead> Read for Lines<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let allowed = buffer.len().min(self.left.get());
        if allowed == 0 && !buffer.is_empty() {
            return Err(std::io::Error::other("the record is too long"));
        }
        let n = self.inner.read(&mut buffer[..allowed])?;
        self.left.set(self.left.get() - n);
        let newlines = buffer[..n].iter().filter(|&&b| b == b'\n').count();
        self.line.set(self.line.get() + newlines as u64);
        Ok(n)
    }
}

/// Skips white space and returns the byte after it without reading it.
fn first_byte<R: BufRead>(input: &mut Lines<'_, R>) -> std::io::Result<Option<u8>> {
    loop {
        let byte = match input.inner.fill_buf() {
            Ok(buffer) => buffer.first().copied(),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        match byte {
            Some(byte) if byte.is_ascii_whitespace() => input.read_exact(&mut [0])?,
            other => return Ok(other),
        }
    }
}

/// Hands the elements of a JSON list on one by one, so that the list is never in memory.
struct Elements<'a, 'b> {
    records: &'a mut Records<'b>,
    line: &'a Cell<u64>,
    left: &'a Cell<usize>,
    failure: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        let value = std::marker::PhantomData::<Value>;
        while let Some(value) = list.next_element_seed(value)? {
            let line = self.line.get();
            self.left.set(LONGEST_RECORD);
            if let Err(e) = self.records.add_value(value, line) {
                // serde carries strings only; the real error goes round it.
                *self.failure = Some(e);
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
