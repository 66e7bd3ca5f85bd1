//! Output for people: HTML, SVG, progress, notices, TensorBoard.

pub mod bars;
#[cfg(not(feature = "cli"))]
mod hidden_bar;
pub mod html;
pub mod notices;
pub mod progress;
pub mod svg;
pub mod tensorboard;
pub(crate) mod units;

/// Escapes text for HTML and SVG, in elements and in double-quoted attributes.
///
/// Control characters that XML forbids become the replacement character, so that no text, whatever a
/// model generates, can break the page.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod check {
    /// Panics unless every tag of `markup` is closed in order; attributes must be quoted and unbroken.
    pub fn balanced(markup: &str) {
        let mut open: Vec<&str> = vec![];
        let mut rest = markup;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "stray > in {:?}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("unclosed tag");
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            assert!(!tag.contains('<'), "< inside {tag:?}");
            assert_eq!(tag.matches('"').count() % 2, 0, "odd quotes in {tag:?}");
            let name = tag.trim_matches('/').split_whitespace().next().expect("empty tag");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag:?} closes the wrong element");
            } else if !tag.ends_with('/') && !tag.starts_with('!') && name != "meta" {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    /// Strings that break careless writers.
    pub const HOSTILE: [&str; 6] = [
        "</script><script>alert(1)</script>",
        "\" onload=\"x",
        "a & b < c > d 'e'",
        "\u{0}\u{8}\u{1b}[31m\u{ffff}",
        "]]><!-- </style> -->",
        "日本語 ﷽ \u{202e}abc",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_when_given_hostile_text_leaves_no_markup() {
        for text in check::HOSTILE {
            let safe = escape(text);
            assert!(!safe.contains(['<', '>', '"', '\'', '\0', '\u{1b}']), "{safe:?}");
        }
        assert_eq!(escape("a\tb\n&"), "a\tb\n&amp;");
    }
}
