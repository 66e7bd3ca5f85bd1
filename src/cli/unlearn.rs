//! `unlearn`.

use std::path::PathBuf;

use serde_json::json;

use super::engine::{self, DeviceArgs};
use super::output::{Output, note, table, warn_rounded};
use crate::error::{Error, Result};
use crate::run::checks::{self, check_out, check_texts};
use crate::run::recipe::StateKey;
use crate::run::train::RESOLVED;
use crate::run::{Recipe, Summary, Unlearner};

/// Options of `unlearn`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    run: RunArgs,
    /// Settings to start from, such as muse-news, npo, simnpo; `nepenthe settings --presets` lists them
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

/// Model, forget set and retain set.
#[derive(Debug, clap::Args)]
pub(super) struct Sources {
    /// The model folder to start from
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The text to forget: .jsonl, .json or .txt
    #[arg(long, value_name = "FILE")]
    forget: Option<PathBuf>,
    /// The text to keep: .jsonl, .json or .txt
    #[arg(long, value_name = "FILE")]
    retain: Option<PathBuf>,
}

impl Sources {
    /// Puts the paths over those of `recipe`.
    ///
    /// Errors: [`crate::Kind::Config`] where one is missing; retain documents only where `retains`.
    pub(super) fn lay(&self, recipe: &mut Recipe, retains: bool) -> Result<()> {
        lay(&mut recipe.model.path, &self.model);
        lay(&mut recipe.data.forget, &self.forget);
        lay(&mut recipe.data.retain, &self.retain);
        wanted("--model", "model.path", &recipe.model.path)?;
        wanted("--forget", "data.forget", &recipe.data.forget)?;
        if retains {
            wanted("--retain", "data.retain", &recipe.data.retain)?;
        }
        Ok(())
    }
}

/// Options of every training run.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The folder that the run writes: model, metrics, checkpoints, report
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A recipe, applied on top of the preset
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// One setting, applied on top of preset and recipe, as in --set optim.lr=5e-4; can be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue the run in --out from its last checkpoint; with neither --preset nor --config with its own recipe
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let mut recipe = args.run.recipe(args.preset.as_deref(), None)?;
    let retains = recipe.reads_retain();
    args.sources.lay(&mut recipe, retains).map_err(|e| args.run.nothing_to_resume(e))?;
    args.run.start(recipe, out)
}

/// Puts the path of a flag over that of the recipe.
pub(super) fn lay(setting: &mut PathBuf, flag: &Option<PathBuf>) {
    if let Some(path) = flag {
        setting.clone_from(path);
    }
}

/// Fails where neither flag nor recipe names a path.
pub(super) fn wanted(flag: &str, key: &str, path: &std::path::Path) -> Result<()> {
    checks::wanted(key, path).map_err(|e| e.hint(format!("give {flag}, or {key} in a recipe")))
}

impl RunArgs {
    /// Assembles the recipe: a resumed run without preset and recipe file starts from its own, any other without a preset
    /// from that of `usual`.
    pub(super) fn recipe(&self, preset: Option<&str>, usual: Option<&str>) -> Result<Recipe> {
        let own = self.out.join(RESOLVED);
        if self.resume && preset.is_none() && self.config.is_none() && own.is_file() {
            note(&format!("resuming with the recipe of the run, {}", own.display()));
            return Recipe::assemble(None, Some(&own), &self.set);
        }
        Recipe::assemble(preset.or(usual), self.config.as_deref(), &self.set)
    }

    /// Adds to an error about a missing path that there is no run whose recipe could name it.
    pub(super) fn nothing_to_resume(&self, error: Error) -> Error {
        if !self.resume || self.out.join(RESOLVED).is_file() {
            return error;
        }
        let hint = error.hint_text().unwrap_or_default().to_owned();
        error.hint(format!("--out {} has no {RESOLVED} to go on with: {hint}", self.out.display()))
    }

    /// Checks all that can be checked cheaply, runs, and prints the summary.
    pub(super) fn start(&self, recipe: Recipe, out: &Output) -> Result<()> {
        let engine = self.device.open()?;
        check_out("--out", &self.out, self.resume)?;
        if recipe.model.state == StateKey::Approx {
            note(
                "warning: approx state rounds the weights to bf16 at every step: most of a small step is lost in noise. \
                 compact state keeps it for 2 bytes a parameter more",
            );
        }
        check_texts(&recipe)?;
        let run = Unlearner::new(recipe, &self.out).resume(self.resume);
        let summary = engine::compute(&engine, run)?;
        warn_rounded(summary.change_saved);
        out.result(&summary, || lines(&summary))
    }
}

/// Writes the metrics of a summary as a table, then its other entries, one per line.
fn lines(summary: &Summary) -> String {
    let mut text = table(&summary.rows());
    if !text.is_empty() {
        text.push('\n');
    }
    // Notices went to stderr when they came up.
    let tabled = ["before", "after", "retrain", "samples", "last", "notices"];
    let value = json!(summary);
    let entries = value.as_object().into_iter().flatten();
    for (key, value) in entries.filter(|(key, _)| !tabled.contains(&key.as_str())) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("{key}: {value}\n"));
    }
    text
}
