//! One HTML file that opens anywhere: no script, no external reference, light and dark.

use std::fmt::Write;

use super::escape;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5c636b;--line:#dfe2e6;--paper:#fff;--card:#f7f8f9;--mark:#fff1c9}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6e9;--soft:#a0a7af;--line:#353a40;--paper:#15171a;--card:#1d2024;--mark:#4a3d12}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 4rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 1.25rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.5rem 0 .75rem;padding-bottom:.35rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{max-width:44rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.5rem;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .75rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);font-weight:600;font-size:.9rem}
tbody th{font-weight:500}
figure{margin:1.25rem 0;padding:1rem;background:var(--card);border:1px solid var(--line);border-radius:8px}
figure svg{display:block;width:100%;height:auto}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:.75rem}
.samples section{padding:.75rem 1rem;background:var(--card);border:1px solid var(--line);border-radius:8px}
.samples h4{margin:0 0 .4rem;font-size:.85rem;color:var(--soft);font-weight:600}
.samples p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-family:Georgia,'Times New Roman',serif}
pre{margin:.5rem 0;padding:1rem;overflow-x:auto;background:var(--card);border:1px solid var(--line);
border-radius:8px;font:13px/1.5 ui-monospace,'Cascadia Mono',Menlo,Consolas,monospace}
summary{cursor:pointer;font-weight:600}
details{margin:2rem 0}
td.differs{background:var(--mark);font-weight:600;print-color-adjust:exact;-webkit-print-color-adjust:exact}
td.best{font-weight:700;text-decoration:underline;text-underline-offset:.2em}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--card:#fff;--mark:#ffe9b0}
body{max-width:none;padding:0;font-size:11pt}figure,pre,.samples section,tr{break-inside:avoid}.wide{overflow:visible}}
";

/// Highlight of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The cells of its row are not all alike.
    Differs,
    /// No cell of its row is better.
    Best,
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Self::Differs => "differs",
            Self::Best => "best",
        }
    }
}

/// The text of a cell, and what sets it apart.
pub type Cell = (String, Option<Mark>);

/// A page under construction; parts appear in the order of the calls, and all text is escaped.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// Starts a page with its title, which is also its first heading.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: String::new() }
    }

    fn add(mut self, part: std::fmt::Arguments<'_>) -> Self {
        // Writing into a String cannot fail.
        let _ = self.body.write_fmt(part);
        self.body.push('\n');
        self
    }

    /// Adds a heading.
    pub fn heading(self, text: &str) -> Self {
        self.add(format_args!("<h2>{}</h2>", escape(text)))
    }

    /// Adds a paragraph.
    pub fn paragraph(self, text: &str) -> Self {
        self.add(format_args!("<p>{}</p>", escape(text)))
    }

    /// Adds names with their values.
    pub fn facts<K: AsRef<str>, V: AsRef<str>>(self, facts: &[(K, V)]) -> Self {
        let mut list = String::new();
        for (key, value) in facts {
            let (key, value) = (escape(key.as_ref()), escape(value.as_ref()));
            let _ = write!(list, "<dt>{key}</dt><dd>{value}</dd>");
        }
        self.add(format_args!("<dl>{list}</dl>"))
    }

    /// Adds a table whose first column names the rows; short rows are filled up, longer ones kept.
    pub fn table<H: AsRef<str>, C: AsRef<str>>(self, headers: &[H], rows: &[Vec<C>]) -> Self {
        let plain = |row: &Vec<C>| row.iter().map(|c| (c.as_ref().to_owned(), None)).collect();
        self.marked_table(headers, &rows.iter().map(plain).collect::<Vec<Vec<Cell>>>())
    }

    /// Adds a table like [`Page::table`], with cells that may stand out.
    pub fn marked_table<H: AsRef<str>>(self, headers: &[H], rows: &[Vec<Cell>]) -> Self {
        let mut table = String::from("<thead><tr>");
        for header in headers {
            let _ = write!(table, "<th scope=\"col\">{}</th>", escape(header.as_ref()));
        }
        table.push_str("</tr></thead><tbody>");
        for row in rows {
            table.push_str("<tr>");
            for column in 0..row.len().max(headers.len()) {
                let (text, mark) = row.get(column).map_or(("", None), |(t, m)| (t.as_str(), *m));
                let cell = escape(text);
                let _ = match (column, mark) {
                    (0, _) => write!(table, "<th scope=\"row\">{cell}</th>"),
                    (_, None) => write!(table, "<td>{cell}</td>"),
                    (_, Some(mark)) => {
                        write!(table, "<td class=\"{}\">{cell}</td>", mark.class())
                    }
                };
            }
            table.push_str("</tr>");
        }
        table.push_str("</tbody>");
        self.add(format_args!("<div class=\"wide\"><table>{table}</table></div>"))
    }

    /// Adds a chart.
    pub fn chart(self, chart: &super::svg::Chart) -> Self {
        self.add(format_args!("<figure>{}</figure>", chart.render()))
    }

    /// Adds bars.
    pub fn bars(self, bars: &super::bars::Bars) -> Self {
        self.add(format_args!("<figure>{}</figure>", bars.render()))
    }

    /// Adds texts side by side, each under its name, all under `prompt` (left out if empty).
    pub fn samples<N: AsRef<str>, T: AsRef<str>>(self, prompt: &str, texts: &[(N, T)]) -> Self {
        let mut parts = String::new();
        for (name, text) in texts {
            let (name, text) = (escape(name.as_ref()), escape(text.as_ref()));
            let _ = write!(parts, "<section><h4>{name}</h4><p>{text}</p></section>");
        }
        let page = match prompt {
            "" => self,
            _ => self.add(format_args!("<h3>{}</h3>", escape(prompt))),
        };
        page.add(format_args!("<div class=\"samples\">{parts}</div>"))
    }

    /// Adds a formula or other text whose line breaks and columns matter.
    pub fn formula(self, text: &str) -> Self {
        self.add(format_args!("<pre>{}</pre>", escape(text)))
    }

    /// Adds a text that unfolds on a click, such as the recipe.
    pub fn folded(self, summary: &str, text: &str) -> Self {
        let (summary, text) = (escape(summary), escape(text));
        self.add(format_args!("<details><summary>{summary}</summary><pre>{text}</pre></details>"))
    }

    /// Returns the whole file.
    pub fn finish(self) -> String {
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n{}</main>\n</body>\n</html>\n",
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::check::{HOSTILE, balanced};
    use crate::report::svg::Chart;

    #[test]
    fn finish_of_hostile_parts_is_balanced_and_offline() {
        for text in HOSTILE {
            let page = Page::new(text)
                .heading(text)
                .paragraph(text)
                .facts(&[(text, text)])
                .table(&[text, text], &[vec![text], vec![text, text, text]])
                .chart(&Chart::new(text, text, text).series(text, [(0.0, 1.0)]))
                .samples(text, &[(text, text), (text, text)])
                .formula(text)
                .folded(text, text)
                .finish();
            balanced(&page);
            assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="));
            // The one address is the name of SVG's namespace, which nothing fetches.
            assert_eq!(page.matches("://").count(), 1);
        }
    }

    #[test]
    fn table_when_a_row_is_short_fills_it_up() {
        let page = Page::new("t").table(&["", "before", "after"], &[vec!["NLL"]]).finish();
        assert_eq!(page.matches("<td></td>").count(), 2);
    }

    #[test]
    fn marked_table_names_what_stands_out() {
        let row = vec![
            ("lr".into(), None),
            ("1".into(), Some(Mark::Differs)),
            ("2".into(), Some(Mark::Best)),
        ];
        let page = Page::new("t").marked_table(&["", "a", "b"], &[row]).finish();
        balanced(&page);
        assert!(page.contains("<td class=\"differs\">1</td><td class=\"best\">2</td>"));
    }

    /// NEPENTHE_REPORT=FILE writes the page, to be looked at.
    #[test]
    fn page_of_a_run_is_written() {
        let curve = |f: fn(f64) -> f64| (0..120).map(move |i| (f64::from(i), f(f64::from(i))));
        let loss = |i: f64| 0.4 + 4.2 / (1.0 + (-(i - 60.0) / 9.0).exp()) + 0.15 * (i * 1.7).sin();
        let page = Page::new("Unlearning of the forget chapters")
            .facts(&[
                ("model", "tiny-llama, 4 layers, 3.2 M parameters"),
                ("method", "mean teacher, nlul + qkl, SGD 0.05, momentum 0.9"),
                ("steps", "120 in 47 s on 2 CPU cores"),
                ("seed", "1"),
            ])
            .heading("Result")
            .table(
                &["", "before", "after", "retrain"],
                &[
                    vec!["verbatim ROUGE-L, forget", "0.98", "0.17", "0.15"],
                    vec!["verbatim ROUGE-L, retain", "0.97", "0.95", "0.97"],
                    vec!["NLL forget (nats per token)", "0.041", "4.512", "3.904"],
                    vec!["NLL retain (nats per token)", "0.038", "0.052", "0.039"],
                ],
            )
            .heading("Curves")
            .chart(
                &Chart::new("Negative log-likelihood", "step", "nats per token")
                    .series("forget", curve(loss))
                    .series("retain", curve(|i| 0.04 + i * 1e-4))
                    .mark_y(3.904, "retrained, forget")
                    .mark_x(100.0, "best"),
            )
            .chart(
                &Chart::new("Penalty and gradient norm", "step", "penalty (nats), norm")
                    .log_y()
                    .series("penalty (qkl)", curve(|i| 1e-6 * (i / 9.0).exp()))
                    .series("norm before clipping", curve(|i| 0.2 + 3.0 * (i / 50.0).sin().powi(8)))
                    .mark_y(1.0, "clip"),
            )
            .heading("Samples")
            .samples(
                "Alice was beginning to get very tired",
                &[
                    ("before", "of sitting by her sister on the bank, and of having nothing to do"),
                    ("after", "and the King said, \"I don't know what you mean\" <&>"),
                    ("true text", "of sitting by her sister on the bank, and of having nothing"),
                ],
            )
            .heading("What was minimised")
            .formula(
                "alpha * mean over tokens of -log(1 + tol - p_y)\n  + beta * Var_q(z - z_ref) / 2",
            )
            .folded("Recipe", "[method]\nloss = \"nlul\"\npenalty = \"qkl\"\n")
            .finish();
        balanced(&page);
        if let Some(path) = std::env::var_os("NEPENTHE_REPORT") {
            std::fs::write(path, page).unwrap();
        }
    }
}
