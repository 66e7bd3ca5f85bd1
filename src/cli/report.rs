//! `report`.

use std::path::PathBuf;

use serde::Serialize;

use super::output::{Output, table};
use crate::error::Result;
use crate::io::atomic::write_file_atomic;
use crate::run::compare::{Comparison, RunResults};
use crate::run::recorded::Recorded;

/// Options of `report`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run folders; where `nepenthe eval --json` was written into one as eval.json, its results are shown too
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page that is written; one that is there is replaced
    #[arg(long, value_name = "FILE.html", default_value = "nepenthe-report.html")]
    out: PathBuf,
    /// Also write every chart as an .svg file into this folder
    #[arg(long, value_name = "DIR")]
    figures: Option<PathBuf>,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let comparison = Comparison::new(Recorded::read_all(&args.runs)?);
    write_file_atomic(&args.out, comparison.page().as_bytes())?;
    if let Some(dir) = &args.figures {
        comparison.write_figures(dir)?;
    }
    let groups = comparison.groups();
    let names = |group: &Comparison| group.names().into_iter().map(str::to_owned).collect();
    let results = Results {
        report: args.out.display().to_string(),
        runs: comparison.results(),
        groups: groups
            .iter()
            .map(|(label, group)| Group { of: label.clone(), runs: names(group) })
            .collect(),
    };
    out.result(&results, || {
        let plain = |row: Vec<(String, _)>| row.into_iter().map(|(text, _)| text).collect();
        let groups = groups.into_iter().map(|(label, group)| {
            let rows: Vec<Vec<String>> = group.figures().into_iter().map(plain).collect();
            let head = if label.is_empty() { label } else { format!("\n{label}\n") };
            head + &table(&rows)
        });
        let figures: String = groups.collect();
        let seeds = comparison.over_seeds();
        let gap = if seeds.is_empty() { "" } else { "\n" };
        format!("{figures}{gap}{}\nreport: {}\n", table(&seeds), args.out.display())
    })
}

/// Output of `report`.
#[derive(Debug, Serialize)]
struct Results {
    report: String,
    runs: Vec<RunResults>,
    groups: Vec<Group>,
}

/// Runs that are comparable.
#[derive(Debug, Serialize)]
struct Group {
    of: String,
    runs: Vec<String>,
}
