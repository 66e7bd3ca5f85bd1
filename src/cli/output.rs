//! Where results and errors go.

use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// stdout, for people or for programs.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints the one result of a command: `value` under `--json`, else `text`.
    pub(super) fn result(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if !self.json {
            return print(text());
        }
        let json = serde_json::to_string(value);
        print(json.map_err(|e| Error::data(format!("the result is no JSON: {e}")))?)
    }

    /// Prints one of many results under `--json`, as soon as it is there.
    pub(super) fn line(&self, value: impl FnOnce() -> Value) -> Result<()> {
        if self.json { print(value().to_string()) } else { Ok(()) }
    }

    /// Prints what people read of many results.
    pub(super) fn text(&self, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { Ok(()) } else { print(text()) }
    }
}

/// Prints a line, or several, to stdout.
fn print(mut line: String) -> Result<()> {
    if !line.ends_with('\n') {
        line.push('\n');
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever read this has seen enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::io("write", Path::new("stdout"), e)),
        Ok(()) => Ok(()),
    }
}

/// Prints an error and its hint to stderr.
pub(super) fn complain(error: &Error) {
    note(&format!("error: {error}"));
}

/// Prints a line of progress to stderr.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Warns where the written folder holds clearly less than the whole change: `kept`, a fraction of it.
pub(super) fn warn_rounded(kept: Option<f64>) {
    if let Some(kept) = kept.filter(|kept| *kept < 0.9) {
        note(&format!(
            "warning: the written model holds {:.0} % of the change: its 16-bit numbers are too coarse for the rest. --set \
             model.save_dtype=f32 writes all of it",
            100.0 * kept
        ));
    }
}

/// Lays `rows` out in columns: the first left, the others right aligned.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| match c {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_numbers_right() {
        let rows = [vec!["a".into(), "1".into()], vec!["bcd".into(), "10".into()]];
        assert_eq!(table(&rows), "a     1\nbcd  10\n");
    }
}
