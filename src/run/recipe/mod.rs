//! The recipe of a run: TOML, presets, `--set`, and the checks before anything is read.

mod assemble;
mod check;
mod length;
mod method;
mod page;
pub mod presets;
mod sections;
pub mod settings;
mod trained;
mod write;

use serde::{Deserialize, Serialize};

use super::watch::Stop;
use crate::folder::export::Save;
use crate::method::Reference;
use crate::model::params::Keeping;
use crate::ops::{StateMode, TeacherForm};
use crate::optim::OptimConfig;

pub use method::MethodSection;
pub use page::page;
pub use sections::{
    DataSection, EvalSection, ModelSection, OrderKey, ReportSection, RunSection, SaveKey, StateKey,
    TeacherKey, TrainKey,
};

/// Everything a run depends on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// Root seed of sampling and rounding.
    pub seed: u64,
    /// Where models come from and how their state is kept.
    pub model: ModelSection,
    /// The corpora.
    pub data: DataSection,
    /// The objective.
    pub method: MethodSection,
    /// The update of the weights.
    pub optim: OptimConfig,
    /// Steps, batches, checkpoints.
    pub run: RunSection,
    /// Evaluation and early stopping.
    pub eval: EvalSection,
    /// Output for people beside report.html.
    pub report: ReportSection,
}

impl Recipe {
    /// Returns how state is kept for a model with `trainable` trained parameters.
    pub fn state_mode(&self, trainable: usize) -> StateMode {
        match self.model.state {
            StateKey::Exact => StateMode::Exact,
            StateKey::Compact => StateMode::Compact,
            StateKey::Tiny => StateMode::Tiny,
            StateKey::Approx => StateMode::Approx,
            StateKey::Auto if trainable >= 3_000_000_000 => StateMode::Compact,
            StateKey::Auto => StateMode::Exact,
        }
    }

    /// Returns how the teacher is kept under `mode`.
    pub fn teacher(&self, mode: StateMode) -> TeacherForm {
        let method = self.method().ok();
        let read = method.is_some_and(|method| {
            method.terms[1..].iter().any(|term| term.reference == Reference::Teacher)
        });
        let unused = !read && self.method.damping == 0.0;
        match (unused, mode, self.model.teacher) {
            (true, ..) => TeacherForm::None,
            (_, StateMode::Exact, TeacherKey::Full) => TeacherForm::Full,
            _ => TeacherForm::Drift,
        }
    }

    /// Returns how a model that trains in `mode` is kept.
    pub fn keeping(&self, mode: StateMode) -> Keeping {
        Keeping {
            train: Some(self.train()),
            mode,
            teacher: self.teacher(mode),
            rule: self.optim.rule(),
            seed: self.seed,
        }
    }

    /// Returns how the model is written.
    pub fn save(&self) -> Save {
        let ModelSection { save_dtype: dtype, save_rounding: rounding, .. } = self.model;
        Save { dtype, rounding, seed: self.seed }
    }

    /// Returns when the run stops before its last step, if it may.
    pub fn stop(&self) -> Option<Stop> {
        let EvalSection { stop_metric, stop_val, .. } = &self.eval;
        let stop = || Stop { metric: stop_metric.clone(), bound: *stop_val };
        (!stop_metric.is_empty()).then(stop)
    }

    /// Returns the length of the longest document that is measured, tokens; `None` where nothing is.
    pub fn measured_context(&self) -> Option<usize> {
        let eval = &self.eval;
        let files = [&eval.forget, &eval.retain, &eval.holdout];
        let prompts = [&eval.verbmem_forget, &eval.verbmem_retain];
        let named = files.into_iter().chain(prompts).any(|path| !path.as_os_str().is_empty());
        (named || eval.documents > 0).then_some(eval.context)
    }

    /// Returns how many tokens the longest prompt has at most with its continuation; `None` where nothing is measured.
    pub fn longest_prompt(&self) -> Option<usize> {
        let eval = &self.eval;
        let named = [&eval.verbmem_forget, &eval.verbmem_retain]
            .into_iter()
            .any(|path| !path.as_os_str().is_empty());
        // Documents of a corpus are cut in the middle; files hold prompts of up to a whole document.
        let prompt = |context| if named { context } else { context / 2 };
        Some(prompt(self.measured_context()?) + eval.max_new_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_overrides_preset_and_accepts_plain_words() {
        let sets = ["optim.lr=1e-3", "method.loss=ll", "seed=7"].map(String::from);
        let recipe = Recipe::assemble(Some("muse-books"), None, &sets).unwrap();
        assert_eq!((recipe.optim.lr, recipe.method.loss.as_str(), recipe.seed), (1e-3, "ll", 7));
        assert_eq!(recipe.method.forget_weight, 0.1);
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = Recipe::assemble(None, None, &["optim.momentun=0.9".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--set optim.momentun=0.9: unknown key `optim.momentun`\nhint: did you mean `optim.momentum`?"
        );
    }

    #[test]
    fn unknown_loss_names_the_nearest() {
        let error = Recipe::assemble(None, None, &["method.loss=nlull".into()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("method.loss: `nlull` is unknown\nhint: known are nll, ll, nlul, ")
        );
        assert!(text.ends_with("; nearest is nlul"), "{text}");
    }

    #[test]
    fn recipe_survives_its_own_toml() {
        let recipe = Recipe::assemble(Some("muse-news"), None, &["optim.clip=inf".into()]).unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
    }
}
