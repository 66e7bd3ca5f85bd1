//! `demo`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::engine::{self, DeviceArgs};
use super::output::{Output, note, table};
use crate::error::Result;
use crate::run::checks::check_out;
use crate::run::{Summary, Unlearner, demo};

/// The run folder where none is named; a number is added while it is taken.
const OUT: &str = "nepenthe-demo";

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run folder [default: nepenthe-demo, or the first free nepenthe-demo-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Root seed of sampling and rounding
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One setting, applied on top of the preset `demo`, as in --set optim.lr=0.01; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let dir = args.out.clone().unwrap_or_else(|| free(Path::new(OUT)));
    check_out("--out", &dir, false)?;
    let recipe = demo::unpack(&dir.join("input"), args.seed, &args.set)?;
    note(&format!(
        "a Llama of 1.1 million parameters recites 40 passages of Alice's Adventures in Wonderland; \
         it is to forget them and keep the rest\nrun folder: {}",
        dir.display()
    ));
    let backend = engine.name();
    let summary = engine::compute(&engine, Unlearner::new(recipe, &dir))?;
    let value = json!({
        "before": summary.before, "after": summary.after, "retrain": summary.retrain,
        "steps": summary.steps, "seconds": summary.seconds, "backend": backend,
        "run_dir": dir.display().to_string(),
    });
    out.result(&value, || text(&summary, &dir))
}

/// Returns `base`, or the first of base-2, base-3, ... that does not exist.
fn free(base: &Path) -> PathBuf {
    let numbered = (2..).map(|n| PathBuf::from(format!("{}-{n}", base.display())));
    std::iter::once(base.to_owned())
        .chain(numbered)
        .find(|path| !path.exists())
        .unwrap_or_else(|| base.to_owned())
}

fn text(summary: &Summary, dir: &Path) -> String {
    let mut text = table(&summary.rows());
    if let Some(sample) = summary.samples.first() {
        for (name, shown) in [
            ("prompt", sample.prompt.as_str()),
            ("true text", &sample.gt),
            ("before", &sample.before),
            ("after", &sample.after),
            ("retrained without it", sample.retrain.as_deref().unwrap_or_default()),
        ] {
            let shown: Vec<&str> = shown.split_whitespace().collect();
            let _ = write!(text, "\n{name}: {}", shown.join(" "));
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "\n{} steps in {:.1} s; clipping active in {} of them\n\
         distance from start (L2): student {:.3}, teacher {:.3}; between them {:.3}\n\
         model: {}\nreport: {}\n",
        summary.steps,
        summary.seconds,
        summary.clipped_steps,
        summary.student_from_start,
        summary.teacher_from_start,
        summary.student_from_teacher,
        dir.join("model").display(),
        dir.join("report.html").display(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_counts_up_from_a_name_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("demo");
        assert_eq!(free(&base), base);
        std::fs::create_dir(&base).unwrap();
        assert_eq!(free(&base), dir.path().join("demo-2"));
    }
}
