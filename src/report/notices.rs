//! Notices: one line for everything that was dropped, cut, folded or guessed while models and data were read.
//!
//! Loaders return notices as text that names the file and gives counts; [`crate::folder::Folder`] gathers those of a run. A run or
//! a command prints each of them once ([`say`]) and stores them under the key `notices` of its summary. A text that begins
//! with [`WARNING`] tells of something that changes results.

/// The beginning of a notice about something that changes results.
pub const WARNING: &str = "warning: ";

/// Adds the notices of `more` that are not in `notices` yet.
pub fn add(notices: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    for text in more {
        if !notices.contains(&text) {
            notices.push(text);
        }
    }
}

/// Prints every notice to stderr, one a line: warnings as they are, others after `note: `.
pub fn say(notices: &[String]) {
    for text in notices {
        let kind = if text.starts_with(WARNING) { "" } else { "note: " };
        eprintln!("{kind}{text}");
    }
}

/// Adds the notices of `more` that are not in `notices` yet, and prints them.
pub fn say_more(notices: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    let before = notices.len();
    add(notices, more);
    say(&notices[before..]);
}
