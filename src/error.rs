//! The one error type: a kind that fixes the exit code, one line that says what is wrong, and a hint.

use std::fmt;

/// Kind of an error; each has its own process exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A recipe, flag or preset is wrong (exit code 2).
    Config,
    /// A corpus or token file is wrong (exit code 3).
    Data,
    /// A model folder, tensor or tokenizer is wrong (exit code 4).
    Model,
    /// The plan does not fit into memory, or an allocation failed (exit code 5).
    Memory,
    /// A device or driver is missing, too old, or failed (exit code 6).
    Device,
    /// A number is not finite where it must be (exit code 7).
    Numeric,
    /// The file system refused (exit code 8).
    Io,
    /// A signal ended the run after a checkpoint (exit code 9).
    Interrupted,
}

impl Kind {
    /// Returns the process exit code of this kind: 2 to 9, in the order of declaration.
    pub fn exit_code(self) -> i32 {
        self as i32 + 2
    }
}

/// An error with its kind, one line of text and an optional hint.
///
/// The line says what, where, and wanted against got; the hint says what to do. Lower case, no full stop.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Source>,
}

/// An error that another one was made from.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()), hint: None, source: None }
    }

    /// Makes a [`Kind::Config`] error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// Makes a [`Kind::Data`] error.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }

    /// Makes a [`Kind::Model`] error.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(Kind::Model, message)
    }

    /// Makes a [`Kind::Io`] error from a failed operation on `path`.
    pub fn io(action: &str, path: &std::path::Path, cause: std::io::Error) -> Self {
        Self::new(Kind::Io, format!("{}: cannot {action}: {cause}", path.display()))
            .with_source(cause)
    }

    /// Keeps the error that this one was made from, for [`std::error::Error::source`].
    ///
    /// The message already says what `source` says, so whoever prints the chain repeats it.
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts `place` and a colon before the message.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = one_line(format!("{place}: {}", self.message));
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the one line without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Keeps what a file says from breaking the line or filling the screen: control characters are escaped, the middle of
/// what is very long is left out.
fn one_line(text: String) -> String {
    const LONGEST: usize = 4000;
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if text.len() <= LONGEST && !text.contains(breaks) {
        return text;
    }
    let (mut head, mut tail) = (text.len(), text.len());
    if text.len() > LONGEST {
        (head, tail) = (LONGEST / 2, text.len() - LONGEST / 2);
        while !text.is_char_boundary(head) {
            head -= 1;
        }
        while !text.is_char_boundary(tail) {
            tail += 1;
        }
    }
    let mut line = String::with_capacity(LONGEST + 64);
    let add = |line: &mut String, part: &str| {
        for c in part.chars() {
            if breaks(c) { line.extend(c.escape_debug()) } else { line.push(c) }
        }
    };
    add(&mut line, &text[..head]);
    if tail > head {
        line.push_str(&format!(" ... {} bytes ... ", tail - head));
    }
    add(&mut line, &text[tail..]);
    line
}

/// Returns the candidate nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_survives_place_and_hint() {
        use std::error::Error as _;
        let missing = std::fs::read("no/such/file").unwrap_err();
        let e = Error::io("read", "no/such/file".as_ref(), missing).at("recipe").hint("look");
        let source = e.source().and_then(|s| s.downcast_ref::<std::io::Error>());
        assert_eq!(source.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
        assert!(Error::data("x").source().is_none());
    }

    #[test]
    fn message_when_it_quotes_a_file_stays_one_short_line() {
        let e = Error::model("name `a\nb\u{1b}[31m\u{2028}`: ä").at("x\ty");
        assert_eq!(e.message(), r"x\ty: name `a\nb\u{1b}[31m\u{2028}`: ä");
        let long = Error::data("ä".repeat(1 << 20)).at("file");
        assert!(long.message().len() < 4100, "{}", long.message().len());
        assert!(long.message().starts_with("file: ää") && long.message().ends_with("ää"));
        assert!(long.message().contains(" bytes ... "));
    }
}
