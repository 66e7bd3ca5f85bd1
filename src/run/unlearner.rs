//! A run as a library call: a builder from paths and settings to a summary.

use std::fmt::Display;
use std::path::PathBuf;

use super::checks::{check_out, check_texts, wanted};
use super::engine::{Engine, Job, compute};
use super::plan::Plan;
use super::recipe::Recipe;
use super::summary::Summary;
use super::train::{self, Options};
use crate::backend::gpu::Precision;
use crate::error::Result;
use crate::folder;
use crate::method::StepReport;
use crate::model::{Level, Saving};
use crate::ops::Ops;
use crate::optim::CustomRule;

/// Called after every step.
type OnStep = Box<dyn FnMut(&StepReport) + Send>;

/// A run that has not started: recipe, run folder, and device.
pub struct Unlearner {
    recipe: Recipe,
    out: PathBuf,
    engine: Engine,
    resume: bool,
    rule: Option<Box<dyn CustomRule>>,
    on_step: Option<OnStep>,
}

impl Unlearner {
    /// Starts to describe a run on the model folder `model`.
    pub fn builder(model: impl Into<PathBuf>) -> Builder {
        Builder { model: model.into(), ..Builder::default() }
    }

    /// Makes the run of a whole recipe, which writes into `out`, on the CPU.
    pub fn new(recipe: Recipe, out: impl Into<PathBuf>) -> Self {
        let (engine, out) = (Engine::Cpu, out.into());
        Self { recipe, out, engine, resume: false, rule: None, on_step: None }
    }

    /// Goes on from the newest complete checkpoint of the run folder.
    pub fn resume(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// Returns the recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Runs, and writes the run folder; see [`train::run`].
    pub fn run(self) -> Result<Summary> {
        let engine = self.engine.clone();
        compute(&engine, self)
    }
}

impl Job for Unlearner {
    type Out = Summary;

    fn plan(&self, engine: &Engine) -> Result<Option<Plan>> {
        engine.plan(&folder::config(&self.recipe.model.path)?, &self.recipe)
    }

    fn run<O: Ops>(self, ops: O, plan: Option<&Plan>) -> Result<Summary> {
        let Self { recipe, out, resume, rule, mut on_step, .. } = self;
        // The CPU's memory is not counted: it keeps all where the recipe does not say.
        let named = Saving::same(recipe.run.save.level().unwrap_or(Level::All));
        let options = Options {
            saving: plan.map_or(named, |plan| plan.saving),
            resume,
            rule,
            on_step: on_step.as_mut().map(|on_step| &mut **on_step as &mut dyn FnMut(&StepReport)),
            ..Options::new(&out)
        };
        train::run(ops, &recipe, options)
    }
}

/// A description of a run. Settings of the recipe that have no method of their own are set by name
/// ([`Builder::set`]; `nepenthe settings` lists them).
#[derive(Default)]
pub struct Builder {
    model: PathBuf,
    forget: PathBuf,
    retain: PathBuf,
    out: PathBuf,
    preset: Option<String>,
    config: Option<PathBuf>,
    sets: Vec<String>,
    engine: Option<Engine>,
    resume: bool,
    rule: Option<Box<dyn CustomRule>>,
    on_step: Option<OnStep>,
}

impl Builder {
    /// Sets the file of texts to forget.
    pub fn forget(self, path: impl Into<PathBuf>) -> Self {
        Self { forget: path.into(), ..self }
    }

    /// Sets the file of texts to keep.
    pub fn retain(self, path: impl Into<PathBuf>) -> Self {
        Self { retain: path.into(), ..self }
    }

    /// Sets the run folder, which must be new or empty unless a run is resumed.
    pub fn out(self, path: impl Into<PathBuf>) -> Self {
        Self { out: path.into(), ..self }
    }

    /// Starts from the settings of a preset.
    pub fn preset(self, name: impl Into<String>) -> Self {
        Self { preset: Some(name.into()), ..self }
    }

    /// Applies a recipe file on top of the preset.
    pub fn config(self, path: impl Into<PathBuf>) -> Self {
        Self { config: Some(path.into()), ..self }
    }

    /// Sets one setting of the recipe, on top of preset and recipe file.
    pub fn set(mut self, key: &str, value: impl Display) -> Self {
        self.sets.push(format!("{key}={value}"));
        self
    }

    /// Sets the forget loss.
    pub fn loss(self, name: &str) -> Self {
        self.set("method.loss", name)
    }

    /// Sets the penalty on the texts to keep.
    pub fn penalty(self, name: &str) -> Self {
        self.set("method.penalty", name)
    }

    /// Sets the number of steps.
    pub fn steps(self, steps: u64) -> Self {
        self.set("run.steps", steps)
    }

    /// Sets the root seed of sampling and rounding.
    pub fn seed(self, seed: u64) -> Self {
        self.set("seed", seed)
    }

    /// Computes on this device instead of a GPU if there is one, else the CPU.
    pub fn engine(self, engine: Engine) -> Self {
        Self { engine: Some(engine), ..self }
    }

    /// Goes on from the newest complete checkpoint of the run folder.
    pub fn resume(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// Moves the parameters by a rule in place of the built-in optimizers.
    pub fn rule(self, rule: impl CustomRule + 'static) -> Self {
        Self { rule: Some(Box::new(rule)), ..self }
    }

    /// Calls `on_step` after every step.
    pub fn on_step(self, on_step: impl FnMut(&StepReport) + Send + 'static) -> Self {
        Self { on_step: Some(Box::new(on_step)), ..self }
    }

    /// Assembles and checks the recipe.
    ///
    /// Errors: [`crate::Kind::Config`] for settings that are unknown or without meaning, for missing paths, and for a
    /// run folder that is not empty; [`crate::Kind::Data`] for files that cannot be read.
    pub fn build(self) -> Result<Unlearner> {
        let Self {
            model,
            forget,
            retain,
            out,
            preset,
            config,
            sets,
            engine,
            resume,
            rule,
            on_step,
        } = self;
        let mut recipe = Recipe::assemble(preset.as_deref(), config.as_deref(), &sets)?;
        let paths = [
            (model, &mut recipe.model.path),
            (forget, &mut recipe.data.forget),
            (retain, &mut recipe.data.retain),
        ];
        for (path, setting) in paths.into_iter().filter(|(path, _)| !path.as_os_str().is_empty()) {
            *setting = path;
        }
        wanted("model.path", &recipe.model.path)?;
        wanted("data.forget", &recipe.data.forget)?;
        if recipe.reads_retain() {
            wanted("data.retain", &recipe.data.retain)?;
        }
        wanted("out", &out)?;
        check_out("out", &out, resume)?;
        check_texts(&recipe)?;
        let engine = engine.unwrap_or_else(|| Engine::auto(Precision::Bf16).0);
        Ok(Unlearner { recipe, out, engine, resume, rule, on_step })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn build_refuses_what_a_run_could_not_use() {
        let dir = tempfile::tempdir().unwrap();
        let texts = dir.path().join("texts.jsonl");
        std::fs::write(&texts, "{\"text\": \"a\"}\n").unwrap();
        let builder = || {
            let new = Unlearner::builder("model").forget(&texts).retain(&texts);
            new.engine(Engine::Cpu).out(dir.path().join("run"))
        };
        let run = builder().loss("npo").steps(7).seed(3).build().unwrap();
        let recipe = run.recipe();
        assert_eq!((recipe.method.loss.as_str(), recipe.run.steps, recipe.seed), ("npo", 7, 3));
        assert_eq!(recipe.model.path, Path::new("model"));
        let refused = |builder: Builder| {
            let error = builder.build().err().unwrap();
            (error.kind(), error.message().to_owned())
        };
        let config = |text: &str| (Kind::Config, text.to_owned());
        assert_eq!(refused(builder().forget("")), config("data.forget: is not set"));
        assert_eq!(refused(builder().out("")), config("out: is not set"));
        let full = format!("out {}: exists and is not empty", dir.path().display());
        assert_eq!(refused(builder().out(dir.path())), config(&full));
        assert_eq!(refused(builder().loss("nlu")).0, Kind::Config);
        assert_eq!(refused(builder().retain(dir.path().join("none"))).0, Kind::Data);
        assert!(builder().out(dir.path()).resume(true).build().is_ok());
    }
}
