//! Looking inside the optimizer: Fisher products, damped natural gradients, token weights, and what a state mode costs.
//!
//! Everything reads a run folder, replays it from its recipe, and writes JSON lines and charts into a folder of its own;
//! the run folder's files stay as they are.

pub mod curvature;
pub mod fisher;
pub mod gradients;
pub mod lanczos;
pub mod ngd;
pub mod precision;
pub mod solve;

use std::path::{Path, PathBuf};

use super::recipe::Recipe;
use super::train::{Stream, load, stream};
use super::{Folder, recorded::Recorded};
use crate::error::Result;
use crate::method::{MeanTeacher, StepReport};
use crate::model::{Level, Saving};
use crate::ops::{Ops, StateMode};
use crate::report::progress::StepLine;

/// A run that is replayed in exact state: its recipe, its texts, and the model before the first step.
pub(super) struct Replay<O: Ops> {
    /// The run's name beside others.
    pub(super) name: String,
    /// Its recipe.
    pub(super) recipe: Recipe,
    /// The texts of its forget loss.
    pub(super) forget: Stream,
    /// The texts of its penalty, where it has one.
    pub(super) retain: Option<Stream>,
    /// Student, teacher and optimizer.
    pub(super) state: MeanTeacher<O>,
}

impl<O: Ops> Replay<O> {
    /// Opens a run folder, of which only config.resolved.toml is read.
    ///
    /// Errors: [`crate::Kind::Config`] where the folder holds no run; those of reading model and data.
    pub(super) fn open(ops: &O, run: &Path) -> Result<Self> {
        let name = Recorded::read(run)?.name;
        let recipe = Recipe::assemble(None, Some(&run.join("config.resolved.toml")), &[])?;
        let folder = Folder::open(&recipe.model.path)?;
        let tokenizer = folder.tokenizer()?;
        let forget = stream(&recipe, &folder, &tokenizer, true)?;
        let retain = recipe.reads_retain();
        let retain = retain.then(|| stream(&recipe, &folder, &tokenizer, false)).transpose()?;
        let longest = retain.iter().chain([&forget]).map(Stream::longest).max().unwrap_or(0);
        let tokens = recipe.run.pack_tokens.max(longest);
        let keep = recipe.keeping(StateMode::Exact);
        let state =
            load(ops, &recipe, &folder, &keep, tokens, Saving::same(Level::All), retain.as_ref())?;
        let retain = retain.filter(|_| state.method.penalty.is_some());
        Ok(Self { name, recipe, forget, retain, state })
    }

    /// Does the next step of the run.
    ///
    /// Errors: [`crate::Kind::Numeric`] where a gradient is not finite; those of reading the texts.
    pub(super) fn step(&mut self, ops: &O) -> Result<StepReport> {
        let step = self.state.step;
        let retained = self.retain.as_ref().map_or(Ok(Vec::new()), |from| from.draw(step))?;
        let report = self.state.step(ops, &self.forget.draw(step)?, &retained)?;
        if report.skipped {
            return Err(self.state.nonfinite(step));
        }
        Ok(report)
    }
}

/// Returns what progress shows of a step.
fn line_of(report: &StepReport) -> StepLine {
    StepLine {
        loss: report.loss_tr,
        penalty: report.loss_kl,
        norm: report.grad_norm,
        clip: report.clip_coef,
        tokens: report.tokens as u64,
    }
}

/// Returns the folder that a probe of `run` writes to where none is named.
pub fn default_out(run: &Path) -> PathBuf {
    run.join("probe")
}
