//! The tables of metrics in docs/evaluation.md.

use std::fmt::Write;

use super::Kind;
use crate::eval::metric::Metric;

/// Returns the table of everything that the suite measures, in Markdown.
pub fn table(kind: &Kind) -> String {
    let mut text = "| metric | unit | definition | good |\n|---|---|---|---|\n".to_owned();
    for (metric, texts) in kind.measures() {
        let keys: Vec<String> = match texts {
            [] => vec![format!("`{}`", metric.name)],
            texts => texts.iter().map(|texts| format!("`{}`", metric.key(texts))).collect(),
        };
        let Metric { unit, definition, .. } = metric;
        let good = good(metric, texts);
        // A String takes whatever is written to it.
        let _ = writeln!(text, "| {} | {unit} | {definition} | {good} |", keys.join(", "));
    }
    text
}

/// Returns the direction in which a metric is good, on the forget set and on other texts.
fn good(metric: &Metric, texts: &[&str]) -> String {
    let other = metric.direction.label();
    let differing = texts.iter().find(|texts| metric.direction_on(texts) != metric.direction);
    match differing {
        Some(forget) => {
            format!("{} for `{forget}`, otherwise {other}", metric.direction_on(forget).label())
        }
        None => other.to_owned(),
    }
}
