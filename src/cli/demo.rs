//! `demo`.

use std::path::PathBuf;

use serde_json::Value;

use super::engine;
use super::folder::check_out;
use super::output::{Output, table};
use crate::error::Result;

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Root seed of the run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder to write: model, metrics, report; a new one beside the working directory's files where not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    if let Some(dir) = &args.out {
        check_out(dir, false)?;
    }
    let result = engine::demo(args.seed, args.out.as_deref())?;
    out.result(&result, || text(&result))
}

/// Lays the figures out as a table, with a sample where there is one.
fn text(result: &Value) -> String {
    const ROWS: [(&str, &str); 5] = [
        ("verbmem_forget", "verbatim ROUGE-L, forget"),
        ("verbmem_retain", "verbatim ROUGE-L, retain"),
        ("nll_forget", "NLL, forget (nats/token)"),
        ("nll_retain", "NLL, retain (nats/token)"),
        ("nll_holdout", "NLL, held out (nats/token)"),
    ];
    const STAGES: [&str; 3] = ["before", "after", "retrain"];
    let head = std::iter::once("").chain(STAGES).map(str::to_owned).collect();
    let mut rows: Vec<Vec<String>> = vec![head];
    for (key, label) in ROWS {
        let figure = |stage: &str| match result[stage][key].as_f64() {
            Some(value) => format!("{value:.3}"),
            None => "-".to_owned(),
        };
        rows.push(std::iter::once(label.to_owned()).chain(STAGES.map(figure)).collect());
    }
    let mut text = table(&rows);
    for (key, label) in
        [("sample_prompt", "prompt"), ("sample_before", "before"), ("sample_after", "after")]
    {
        if let Some(sample) = result[key].as_str() {
            text.push_str(&format!("\n{label}: {}\n", sample.trim()));
        }
    }
    let number = |key: &str| result[key].as_f64().unwrap_or(0.0);
    text.push_str(&format!("\n{} steps in {:.1} s", number("steps"), number("seconds")));
    if let Some(dir) = result["run_dir"].as_str() {
        text.push_str(&format!("; model and report.html in {dir}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_row_a_figure_and_a_dash_for_none() {
        let result = serde_json::json!({
            "before": {"verbmem_forget": 0.98}, "after": {"verbmem_forget": 0.2},
            "steps": 40, "seconds": 21.0, "run_dir": "x", "sample_after": " a b "
        });
        let text = text(&result);
        assert!(text.contains("verbatim ROUGE-L, forget     0.980  0.200        -"), "{text}");
        assert!(text.ends_with("after: a b\n\n40 steps in 21.0 s; model and report.html in x"));
    }
}
