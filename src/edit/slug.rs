//! SLUG: one matrix, one step along the gradient of what is to be forgotten, its length found by bisection.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::eval::likelihood::NLL;
use crate::eval::monitored::{FORGET, RETAIN};
use crate::eval::outcome::Named;
use crate::folder::Folder;
use crate::folder::export::{check_target, write_model};
use crate::method::combine::{Combination, Separate};
use crate::method::passes::{Step, Task};
use crate::method::{MeanTeacher, Nll};
use crate::model::{Layout, Level, Model, Saving};
use crate::ops::{Ops, Role, StateMode};
use crate::optim::UpdateScalars;
use crate::report::notices;
use crate::run::recipe::Recipe;
use crate::run::setup::load;
use crate::run::stream::{Stream, overlap, stream};

/// The share of |W|/|g| that the first step of a matrix is long.
const FIRST: f64 = 0.1;

/// A search; model, texts and batches are those of the recipe.
#[derive(Debug, Clone)]
pub struct Slug {
    /// The recipe; its method is not read.
    pub recipe: Recipe,
    /// Allowed rise of the NLL of retain documents, nats per token.
    pub budget: f64,
    /// The NLL of forget documents that is enough, nats per token; infinite for as much as the budget allows.
    pub forget_nll: f64,
    /// Steps tried for each matrix.
    pub evaluations: usize,
    /// Matrices of the front that are tried, the most important first.
    pub candidates: usize,
    /// Documents of each corpus, the first ones, for gradients and metrics.
    pub documents: usize,
}

/// A matrix and what the gradients say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Matrix {
    /// Its name.
    pub name: String,
    /// |g_forget|/|W|.
    pub importance: f64,
    /// |cos(g_forget, g_retain)|.
    pub alignment: f64,
    /// True if no other is at least as important and as little aligned, and more so in one of both.
    pub front: bool,
    #[serde(skip)]
    block: usize,
    /// |W|/|g_forget|.
    #[serde(skip)]
    ratio: f64,
}

/// A step that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// The matrix.
    pub matrix: String,
    /// lambda of W + lambda g_forget.
    pub step: f64,
    /// NLL of forget documents, nats per token.
    pub forget_nll: f64,
    /// NLL of retain documents, nats per token.
    pub retain_nll: f64,
}

/// The result of a search, and the record in the written folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlugSummary {
    /// `nepenthe`.
    pub program: &'static str,
    /// The version that wrote the folder.
    pub version: &'static str,
    /// `slug`.
    pub method: &'static str,
    /// [`Slug::FORMULA`].
    pub formula: &'static str,
    /// The matrix that was changed.
    pub matrix: String,
    /// Its step.
    pub step: f64,
    /// NLL of forget and retain documents before.
    pub before: Named<f64>,
    /// NLL of forget and retain documents after.
    pub after: Named<f64>,
    /// Allowed rise of the retain NLL, nats per token.
    pub budget: f64,
    /// Importance and alignment of every matrix.
    pub matrices: Vec<Matrix>,
    /// Every step that was tried.
    pub trials: Vec<Trial>,
    /// Notices about model and data.
    pub notices: Vec<String>,
    /// Fraction of the change that rounding left in the written folder; not in its own record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_saved: Option<f64>,
    /// The written folder; not in its own record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
}

impl Slug {
    /// The formula, as reports print it.
    pub const FORMULA: &'static str =
        "W + step g, of one matrix, g the gradient of the NLL of forget documents";

    /// Finds matrix and step and writes the model folder `out`; returns the matrices, the trials, and the figures before
    /// and after.
    ///
    /// Two gradients are made once, of the forget and of the retain documents' NLL. Of the matrices that none beats in both
    /// importance and alignment, each is tried: its step starts at a tenth of |W|/|g|, doubles while the retain NLL stays
    /// within the budget and less than enough is forgotten, and is halved in after that. The trial that forgets most
    /// within the budget, up to what is enough, is written; of equals the one that costs least.
    ///
    /// Source: SLUG, arXiv 2407.11867, algorithm 1, and `unlearn_slug.py`, whose figures are accuracies of images.
    ///
    /// Errors: [`Kind::Config`] for numbers without meaning or a target that is not to be replaced; [`Kind::Numeric`] where
    /// no step within the budget forgets anything; those of reading model and data.
    pub fn write<O: Ops>(&self, ops: &O, out: &Path) -> Result<SlugSummary> {
        self.check()?;
        let recipe = self.plain();
        check_target(&recipe.model.path, out)?;
        let mut folder = Folder::open(&recipe.model.path)?;
        let tokenizer = folder.tokenizer()?;
        let corpora = [
            stream(&recipe, &mut folder, &tokenizer, true)?,
            stream(&recipe, &mut folder, &tokenizer, false)?,
        ];
        notices::add(&mut folder.notices, overlap(&recipe, &corpora[0], &corpora[1]));
        notices::say(&folder.notices);
        let longest = corpora.iter().map(Stream::longest).max().unwrap_or(0);
        let keep = recipe.keeping(self.mode(&folder.config));
        let tokens = recipe.run.pack_tokens.max(longest);
        let saving = Saving::same(recipe.run.save.level().unwrap_or(Level::All));
        let mut state = load(ops, &recipe, &mut folder, &keep, tokens, saving, None)?;
        let [forget, retain] =
            [corpora[0].first(self.documents)?, corpora[1].first(self.documents)?];
        let mut bench = Bench { ops, state: &mut state, forget, retain };
        let model = &bench.state.model;
        let both = Separate::new(ops, Combination::Sum, model, &keep, 2)?;
        let (matrices, own) = bench.matrices(both)?;
        let before = bench.figures()?;
        let mut trials: Vec<Trial> = Vec::new();
        let mut front: Vec<&Matrix> = matrices.iter().filter(|matrix| matrix.front).collect();
        front.sort_by(|a, b| b.importance.total_cmp(&a.importance));
        for matrix in front.into_iter().take(self.candidates) {
            self.bisect(&mut bench, matrix, &own, before, &mut trials)?;
        }
        let within = |trial: &&Trial| trial.retain_nll - before[1] <= self.budget;
        let reached = |trial: &Trial| trial.forget_nll.min(self.forget_nll);
        let best = trials.iter().filter(within).max_by(|a, b| {
            reached(a).total_cmp(&reached(b)).then(b.retain_nll.total_cmp(&a.retain_nll))
        });
        let Some(best) = best.filter(|best| best.forget_nll > before[0]).cloned() else {
            return Err(Error::new(
                Kind::Numeric,
                format!(
                    "no step of {} tried forgets anything while the retain NLL rises by at most {}",
                    trials.len(),
                    self.budget
                ),
            )
            .hint("raise --budget, --evaluations or --candidates"));
        };
        let chosen = matrices.iter().find(|matrix| matrix.name == best.matrix);
        if let Some(matrix) = chosen {
            bench.add(matrix, &own, best.step);
        }
        let keys = [FORGET, RETAIN].map(|texts| NLL.key(texts.key));
        let figures = |values: [f64; 2]| keys.iter().zip(values).collect::<Named<f64>>();
        let mut summary = SlugSummary {
            program: "nepenthe",
            version: env!("CARGO_PKG_VERSION"),
            method: "slug",
            formula: Self::FORMULA,
            matrix: best.matrix,
            step: best.step,
            before: figures(before),
            after: figures([best.forget_nll, best.retain_nll]),
            budget: self.budget,
            matrices,
            trials,
            notices: folder.notices,
            change_saved: None,
            model: None,
        };
        let (save, record) = (recipe.save(), json!(summary));
        let kept = write_model(ops, &state.model, &folder.dir, out, save, &record)?;
        summary.change_saved = Some(kept.share());
        summary.model = Some(out.to_owned());
        Ok(summary)
    }

    fn check(&self) -> Result<()> {
        let counts = [
            ("--evaluations", self.evaluations),
            ("--candidates", self.candidates),
            ("--documents", self.documents),
        ];
        for (flag, count) in counts {
            if count == 0 {
                return Err(Error::config(format!("{flag}: wanted at least 1, got 0")));
            }
        }
        if self.budget.is_nan() || self.budget < 0.0 {
            return Err(Error::config(format!("--budget: wanted 0 or more, got {}", self.budget)));
        }
        if self.forget_nll.is_nan() {
            return Err(Error::config("--forget-nll: wanted a number, got NaN"));
        }
        Ok(())
    }

    /// Returns the recipe of a model that is moved by plain gradients.
    pub fn plain(&self) -> Recipe {
        let mut recipe = self.recipe.clone();
        recipe.method = Default::default();
        recipe.method.loss = "nll".into();
        recipe.method.penalty = "none".into();
        (recipe.method.damping, recipe.method.teacher_rate) = (0.0, 0.0);
        recipe.optim = Default::default();
        recipe.optim.momentum = 0.0;
        recipe
    }

    fn mode(&self, config: &crate::model::ModelConfig) -> StateMode {
        self.recipe.state_mode(Layout::new(config, self.recipe.train()).trainable())
    }

    /// Tries steps of one matrix.
    fn bisect<O: Ops>(
        &self,
        bench: &mut Bench<'_, O>,
        matrix: &Matrix,
        own: &[Option<O::Grad>],
        before: [f64; 2],
        trials: &mut Vec<Trial>,
    ) -> Result<()> {
        let (mut step, mut low, mut high) = (FIRST * matrix.ratio, 0.0, f64::INFINITY);
        for _ in 0..self.evaluations {
            let saved = bench.save(matrix)?;
            bench.add(matrix, own, step);
            let [forget_nll, retain_nll] = bench.figures()?;
            bench.restore(matrix, &saved)?;
            trials.push(Trial { matrix: matrix.name.clone(), step, forget_nll, retain_nll });
            // What is not a number is too far.
            if retain_nll - before[1] <= self.budget && forget_nll < self.forget_nll {
                low = step;
            } else {
                high = step;
            }
            step = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * step };
        }
        Ok(())
    }
}

/// The saved bytes of one matrix, by the names of its buffers.
type Saved = Vec<(String, Vec<u8>)>;

/// A model on which steps are tried.
struct Bench<'a, O: Ops> {
    ops: &'a O,
    state: &'a mut MeanTeacher<O>,
    forget: Vec<MicroBatch>,
    retain: Vec<MicroBatch>,
}

impl<O: Ops> Bench<'_, O> {
    /// Makes both gradients and says of every matrix that trains what they say of it; returns the forget gradients too.
    #[allow(clippy::type_complexity)]
    fn matrices(&mut self, mut both: Separate<O>) -> Result<(Vec<Matrix>, Vec<Option<O::Grad>>)> {
        let Self { ops, state, forget, retain } = self;
        let MeanTeacher { model, passes, method, .. } = &mut **state;
        let task = |batches| Task { objective: &Nll, batches, weight: Some(1.0), hooked: false };
        let tasks = [task(&forget[..]), task(&retain[..])];
        model.clear_grads(*ops);
        let step = Step { tasks: &tasks, knobs: &method.knobs, combine: &mut both, hook: None };
        passes.start_step(*ops, model, None, step)?;
        let other = both.grads.remove(0);
        let Model { layout, params, grads, .. } = model;
        let mut matrices = Vec::new();
        let mut values = Vec::new();
        for (b, block) in layout.blocks.iter().enumerate() {
            let (Some(own), Some(other)) = (&grads[b], &other[b]) else { continue };
            if block.parts.iter().any(|part| part.shape.len() < 2) {
                continue;
            }
            values.resize(block.len(), 0f32);
            ops.read_param(&params[b], Role::Evaluated, &mut values);
            ops.sync()?;
            let weight = values.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            let (ff, fr, rr) =
                (ops.grad_dot(own, own), ops.grad_dot(own, other), ops.grad_dot(other, other));
            if !(ff > 0.0 && ff.is_finite() && weight > 0.0) {
                continue;
            }
            let alignment = if rr > 0.0 { (fr / (ff * rr).sqrt()).abs() } else { 0.0 };
            matrices.push(Matrix {
                name: block.name.clone(),
                importance: ff.sqrt() / weight,
                alignment,
                front: false,
                block: b,
                ratio: weight / ff.sqrt(),
            });
        }
        if matrices.is_empty() {
            return Err(Error::new(
                Kind::Numeric,
                "the forget documents give no matrix a gradient",
            )
            .hint("check the model and the forget set"));
        }
        mark_front(&mut matrices);
        let own = std::mem::replace(grads, other);
        Ok((matrices, own))
    }

    /// Returns the NLL of forget and retain documents.
    fn figures(&mut self) -> Result<[f64; 2]> {
        let Self { ops, state, forget, retain } = self;
        let MeanTeacher { model, passes, method, .. } = &mut **state;
        let mut nll = |batches: &[MicroBatch]| -> Result<f64> {
            Ok(passes.sweep(*ops, model, None, &method.knobs, Task::new(&Nll, batches, None))?.nll)
        };
        Ok([nll(forget)?, nll(retain)?])
    }

    /// Adds `step` times its forget gradient to a matrix: an update of plain gradient descent with that much less.
    fn add(&mut self, matrix: &Matrix, own: &[Option<O::Grad>], step: f64) {
        let Some(grad) = &own[matrix.block] else { return };
        let scalars =
            UpdateScalars { step: 0, lr: -step, clip: 1.0, damping: 0.0, teacher_rate: 0.0 };
        let scan = self.ops.scan_grad(grad);
        self.ops.update(&mut self.state.model.params[matrix.block], grad, &scan, &scalars);
    }

    fn save(&self, matrix: &Matrix) -> Result<Saved> {
        let mut saved = Saved::new();
        self.ops.save_param(&self.state.model.params[matrix.block], &mut |name, bytes| {
            saved.push((name.to_owned(), bytes.to_vec()));
            Ok(())
        })?;
        Ok(saved)
    }

    fn restore(&mut self, matrix: &Matrix, saved: &Saved) -> Result<()> {
        let param = &mut self.state.model.params[matrix.block];
        self.ops.load_param(param, &mut |name, bytes| {
            if let Some((_, kept)) = saved.iter().find(|(kept, _)| kept == name) {
                bytes.copy_from_slice(kept);
            }
            Ok(())
        })
    }
}

/// Marks the matrices that no other beats in both importance and alignment.
fn mark_front(matrices: &mut [Matrix]) {
    let scores: Vec<(f64, f64)> = matrices.iter().map(|m| (m.importance, m.alignment)).collect();
    for (matrix, own) in matrices.iter_mut().zip(&scores) {
        matrix.front = !scores.iter().any(|other| {
            other.0 >= own.0 && other.1 <= own.1 && (other.0 > own.0 || other.1 < own.1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_no_other_beats() {
        let matrix = |name: &str, importance: f64, alignment: f64| Matrix {
            name: name.into(),
            importance,
            alignment,
            front: false,
            block: 0,
            ratio: 1.0,
        };
        let mut matrices = [
            matrix("most important", 3.0, 0.9),
            matrix("beaten", 2.0, 0.9),
            matrix("between", 2.0, 0.5),
            matrix("least aligned", 0.1, 0.1),
            matrix("as the last", 0.1, 0.1),
            matrix("worst", 0.05, 0.95),
        ];
        mark_front(&mut matrices);
        let front: Vec<&str> =
            matrices.iter().filter(|m| m.front).map(|m| m.name.as_str()).collect();
        assert_eq!(front, ["most important", "between", "least aligned", "as the last"]);
    }
}
