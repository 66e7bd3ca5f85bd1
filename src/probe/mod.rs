//! Looking inside the optimizer: Fisher products, damped natural gradients, token weights, and what a state mode costs.
//!
//! Everything reads a run folder, replays it from its recipe, and writes JSON lines and charts into a folder of its own;
//! the run folder's files stay as they are.
//!
//! The parts serve update rules of the caller's own ([`crate::optim::CustomRule`]) as well. How curved is a step of signSGD,
//! beside the gradient that it is made of?
//!
//! ```
//! use nepenthe::backend::cpu::Cpu;
//! use nepenthe::data::MicroBatch;
//! use nepenthe::method::passes::Passes;
//! use nepenthe::method::{FORGET, Knobs, MeanTeacher, Method, PENALTIES, Settings, WeightRule, find};
//! use nepenthe::model::params::Keeping;
//! use nepenthe::model::{Model, Train};
//! use nepenthe::ops::{StateMode, TeacherForm};
//! use nepenthe::optim::{CustomRule, TensorView, UpdateRule, UpdateScalars};
//! use nepenthe::optim::Schedule;
//! use nepenthe::folder::Folder;
//! use nepenthe::probe::fisher::{Fisher, Point, dot};
//!
//! struct SignSgd;
//!
//! impl CustomRule for SignSgd {
//!     fn name(&self) -> &str {
//!         "sign_sgd"
//!     }
//!     fn update(&mut self, tensor: &mut TensorView<'_>, numbers: &UpdateScalars) -> nepenthe::Result<()> {
//!         let lr = numbers.lr as f32;
//!         tensor.each(|gradient, _, _| if gradient == 0.0 { 0.0 } else { -lr * gradient.signum() });
//!         Ok(())
//!     }
//! }
//!
//! let ops = Cpu::<f32>::new();
//! let folder = Folder::open("tests/golden/data/models/llama-gqa".as_ref())?;
//! let keep = Keeping {
//!     train: Some(Train::Body),
//!     mode: StateMode::Exact,
//!     teacher: TeacherForm::Drift,
//!     rule: UpdateRule::custom(&SignSgd)?,
//!     seed: 1,
//! };
//! let model = Model::load(&ops, folder.config, &folder.weights, &keep)?;
//! let passes = Passes::new(&ops, &model, 64, true)?;
//! let (loss, penalty) = (find(&FORGET, "loss", "nlul")?, find(&PENALTIES, "penalty", "qkl")?);
//! let method = Method::new((loss, 1.0), [(penalty, WeightRule::Constant(1.0))], Knobs::default());
//! let settings = Settings {
//!     clip: f64::INFINITY,
//!     damping: 0.1,
//!     teacher_rate: 0.01,
//!     schedule: Schedule::constant(1e-3),
//! };
//! let mut run = MeanTeacher::new(model, None, passes, method, settings);
//! run.follow(Box::new(SignSgd));
//! let forget = [MicroBatch::new([vec![3, 14, 15, 92, 65, 35]])];
//! let retain = [MicroBatch::new([vec![27, 18, 28, 18, 28, 45]])];
//!
//! let start = Point::take(&ops, &run.model)?;
//! run.step(&ops, &forget, &retain)?;
//! let end = Point::take(&ops, &run.model)?;
//! let step: Vec<f64> = end.student().iter().zip(start.student()).map(|(b, a)| b - a).collect();
//!
//! let MeanTeacher { model, passes, .. } = &mut run;
//! let mut fisher = Fisher::new(&ops, model, passes, &end, start.student(), &retain);
//! let zeros = vec![0.0; end.len()];
//! let gradient = fisher.gradient(loss, &Knobs::default(), &zeros, Some(&forget))?;
//! fisher.calibrate(&step)?;
//! let mut curvature = |v: &[f64]| Ok::<_, nepenthe::Error>(dot(v, &fisher.product(v)?) / dot(v, v));
//! let (of_step, of_gradient) = (curvature(&step)?, curvature(&gradient)?);
//! assert!(0.0 < of_step && of_step < of_gradient, "{of_step} and {of_gradient}");
//! // The next step goes on from where the rule left the run.
//! end.restore(&ops, model)?;
//! # Ok::<(), nepenthe::Error>(())
//! ```

pub mod curvature;
pub mod fisher;
pub mod gradients;
pub mod lanczos;
pub mod ngd;
pub mod precision;
pub mod solve;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::folder::Folder;
use crate::method::{MeanTeacher, StepReport};
use crate::model::{Level, Saving};
use crate::ops::{Ops, StateMode};
use crate::report::notices;
use crate::run::recipe::Recipe;
use crate::run::recorded::Recorded;
use crate::run::setup::load;
use crate::run::stream::{Stream, stream};

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
    /// Notices about its model and texts, which were said.
    pub(super) notices: Vec<String>,
}

impl<O: Ops> Replay<O> {
    /// Opens a run folder, of which only config.resolved.toml is read.
    ///
    /// Errors: [`crate::Kind::Config`] where the folder holds no run; those of reading model and data.
    pub(super) fn open(ops: &O, run: &Path) -> Result<Self> {
        let name = Recorded::read(run)?.name;
        let recipe = recipe_of(run)?;
        let mut folder = Folder::open(&recipe.model.path)?;
        let tokenizer = folder.tokenizer()?;
        let forget = stream(&recipe, &mut folder, &tokenizer, true)?;
        let retain = recipe.reads_retain();
        let retain = retain.then(|| stream(&recipe, &mut folder, &tokenizer, false)).transpose()?;
        notices::say(&folder.notices);
        let longest = retain.iter().chain([&forget]).map(Stream::longest).max().unwrap_or(0);
        let tokens = recipe.run.pack_tokens.max(longest);
        let keep = recipe.keeping(StateMode::Exact);
        let state = load(
            ops,
            &recipe,
            &mut folder,
            &keep,
            tokens,
            Saving::same(Level::All),
            retain.as_ref(),
        )?;
        let retain = retain.filter(|_| state.method.penalty().is_some());
        Ok(Self { name, recipe, forget, retain, state, notices: folder.notices })
    }

    /// Does the next step of the run.
    ///
    /// Errors: [`crate::Kind::Numeric`] where a gradient is not finite; those of reading the texts.
    pub(super) fn step(&mut self, ops: &O) -> Result<StepReport> {
        let step = self.state.step;
        let retained = self.retain.as_ref().map_or(Ok(Vec::new()), |from| from.draw(step))?;
        let report = self.state.step(ops, &self.forget.draw(step)?, &retained)?;
        if report.skipped {
            return Err(self.state.nonfinite(ops, step));
        }
        Ok(report)
    }
}

/// Reads the recipe of a run folder with its paths as they are: [`Recorded`] shortens those inside the folder, so that
/// copies of a run compare equal.
///
/// Errors: [`crate::Kind::Config`] for a file that is no recipe.
fn recipe_of(run: &Path) -> Result<Recipe> {
    Recipe::assemble(None, Some(&run.join("config.resolved.toml")), &[])
}

/// Returns the folder that a probe of `run` writes to where none is named.
pub fn default_out(run: &Path) -> PathBuf {
    run.join("probe")
}
