//! The recipe of a run: TOML, presets, `--set`, and the checks before anything is read.

mod method;
mod trained;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::evaluate::FIGURES;
use super::export::{Save, SaveDtype, SaveRounding};
use super::presets;
use super::watch::Stop;
use crate::error::{Error, Result, nearest};
use crate::eval::muse;
use crate::method::Method;
use crate::model::Level;
use crate::model::params::Keeping;
use crate::ops::{StateMode, TeacherForm};
use crate::optim::OptimConfig;

pub use method::MethodSection;

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
    /// What is minimised.
    pub method: MethodSection,
    /// How weights move.
    pub optim: OptimConfig,
    /// Steps, batches, checkpoints.
    pub run: RunSection,
    /// What is measured, and when to stop.
    pub eval: EvalSection,
    /// What is written for people beside report.html.
    pub report: ReportSection,
}

/// `[report]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportSection {
    /// Also write TensorBoard event files, under tensorboard/ of the run folder.
    pub tensorboard: bool,
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSection {
    /// The model folder to start from.
    pub path: PathBuf,
    /// The base model of losses that compare with one; the starting model where empty.
    pub base: PathBuf,
    /// `body` (all but embeddings, head, norms), `all`, or `down` (the matrices that end MLPs).
    pub train: TrainKey,
    /// The layers of which it trains, as `5` or `5-7`, counted from 0; all where empty.
    pub train_layers: String,
    /// `auto` (compact from 3e9 trainable parameters up), `exact` (16 bytes a trained parameter), `compact` (10), `tiny` (9:
    /// SGD's momentum in 8 bits) or `approx` (8: weights in one bf16, rounded stochastically; loses most of small steps).
    pub state: StateKey,
    /// `full` or `drift`; all states but exact keep the drift.
    pub teacher: TeacherKey,
    /// `source` (the dtypes of the folder to start from) or `f32`: what the model is written in.
    pub save_dtype: SaveDtype,
    /// `stochastic` or `nearest`: how it becomes 16 bits long. The first keeps small motions in the mean, the second loses
    /// them.
    pub save_rounding: SaveRounding,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// The forget set: .jsonl, .json or .txt. For `finetune` this is the training set.
    pub forget: PathBuf,
    /// The retain set.
    pub retain: PathBuf,
    /// A preferred document for each forget document, in order (`dpo` alone).
    pub alternate: PathBuf,
    /// Longest forget document, tokens.
    pub forget_context: usize,
    /// Longest retain document, tokens.
    pub retain_context: usize,
    /// Cut longer forget documents into chunks instead of truncating them.
    pub forget_chunking: bool,
    /// Cut longer retain documents into chunks instead of truncating them.
    pub retain_chunking: bool,
    /// `replacement` or `epochs`.
    pub order: OrderKey,
    /// Where tokenised corpora are cached; beside the source where empty.
    pub cache: PathBuf,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSection {
    /// Optimizer steps.
    pub steps: u64,
    /// Documents in a micro-batch: the unit that losses are averaged over, so that with documents of unequal length it
    /// changes results as other hyperparameters do, not only memory and speed.
    pub micro_batch: usize,
    /// Forget micro-batches a step.
    pub forget_accum_steps: usize,
    /// Retain micro-batches a step.
    pub kl_accum_steps: usize,
    /// Tokens run at once; changes memory and speed, not what is computed.
    pub pack_tokens: usize,
    /// What is kept of each layer for the backward pass, the rest being made again: `auto` (on a GPU as much as its free
    /// memory takes, layer by layer; on the CPU all), `all`, `attention` (all but gate and up), `residual` (nor the qkv
    /// rows) or `input` (of each layer its input alone); changes memory and speed, not what is computed.
    pub save: SaveKey,
    /// Steps between checkpoints; 0 for none but the last.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Steps in a row whose gradient may be not finite before the run stops.
    pub max_skipped: u64,
}

/// `[eval]`.
///
/// Figures are `verbmem_forget`, `verbmem_retain` (ROUGE-L F1 of greedy continuations, 0 to 1), `nll_forget`,
/// `nll_retain` and `nll_holdout` (nats per token).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalSection {
    /// Steps between evaluations; 0 for before and after the run only.
    pub every: u64,
    /// Documents taken from a training corpus where no file is named below; 0 measures named files only.
    pub documents: usize,
    /// Documents of `nll_forget`, all of them; the forget set where empty.
    pub forget: PathBuf,
    /// Documents of `nll_retain`; the retain set where empty.
    pub retain: PathBuf,
    /// Documents of `nll_holdout`.
    pub holdout: PathBuf,
    /// Prompts of `verbmem_forget`, a .json list of {prompt, gt}; halves of documents where empty.
    pub verbmem_forget: PathBuf,
    /// Prompts of `verbmem_retain`.
    pub verbmem_retain: PathBuf,
    /// Longest document measured, tokens.
    pub context: usize,
    /// Tokens generated for each prompt.
    pub max_new_tokens: usize,
    /// Prompts generated at once.
    pub batch: usize,
    /// A model that never saw the forget set, measured once beside the run.
    pub retrain: PathBuf,
    /// The figure that ends the run: below `stop_val` for verbatim memory, above it for an NLL.
    pub stop_metric: String,
    /// Its bound.
    pub stop_val: f64,
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$vdoc])* $variant),* }
    };
}

key!(
    /// What trains.
    TrainKey {
        /// All but embeddings, head and norms.
        #[default] Body,
        /// Everything.
        All,
        /// The matrices that end MLPs.
        Down
    }
);
key!(
    /// How state is kept.
    StateKey {
        /// By size.
        #[default] Auto,
        /// fp32.
        Exact,
        /// 10 bytes a parameter.
        Compact,
        /// 9 bytes a parameter, SGD only.
        Tiny,
        /// 8 bytes a parameter, most of a small step lost.
        Approx
    }
);
key!(
    /// How the teacher is kept.
    TeacherKey {
        /// Its own weights.
        #[default] Full,
        /// The difference to the student.
        Drift
    }
);
key!(
    /// What is kept of each layer for the backward pass.
    SaveKey {
        /// As much as the memory takes.
        #[default] Auto,
        /// [`Level::All`].
        All,
        /// [`Level::Attention`].
        Attention,
        /// [`Level::Residual`].
        Residual,
        /// [`Level::Input`].
        Input
    }
);

impl SaveKey {
    /// Returns the level of all layers, `None` where the memory decides.
    pub fn level(self) -> Option<Level> {
        match self {
            Self::Auto => None,
            Self::All => Some(Level::All),
            Self::Attention => Some(Level::Attention),
            Self::Residual => Some(Level::Residual),
            Self::Input => Some(Level::Input),
        }
    }
}

key!(
    /// How documents are drawn.
    OrderKey {
        /// Uniformly, with replacement: the reference's way.
        #[default] Replacement,
        /// Shuffled, each once an epoch.
        Epochs
    }
);

impl Default for DataSection {
    fn default() -> Self {
        Self {
            forget: PathBuf::new(),
            retain: PathBuf::new(),
            alternate: PathBuf::new(),
            forget_context: 1024,
            retain_context: 512,
            forget_chunking: false,
            retain_chunking: true,
            order: OrderKey::Replacement,
            cache: PathBuf::new(),
        }
    }
}

impl Default for RunSection {
    fn default() -> Self {
        Self {
            steps: 400,
            micro_batch: 4,
            forget_accum_steps: 10,
            kl_accum_steps: 10,
            pack_tokens: 1024,
            save: SaveKey::Auto,
            checkpoint_every: 100,
            keep_checkpoints: 2,
            max_skipped: 3,
        }
    }
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            every: 0,
            documents: 32,
            forget: PathBuf::new(),
            retain: PathBuf::new(),
            holdout: PathBuf::new(),
            verbmem_forget: PathBuf::new(),
            verbmem_retain: PathBuf::new(),
            context: 1024,
            max_new_tokens: muse::VERBMEM_NEW_TOKENS,
            batch: 16,
            retrain: PathBuf::new(),
            stop_metric: String::new(),
            stop_val: 0.0,
        }
    }
}

impl DataSection {
    /// Returns the folder of cached corpora, if one is named.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        (!self.cache.as_os_str().is_empty()).then(|| self.cache.clone())
    }
}

impl Recipe {
    /// Puts together preset, recipe file and `key=value` settings, later ones winning, and checks the result.
    pub fn assemble(preset: Option<&str>, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let mut table = Table::new();
        if let Some(name) = preset {
            merge(&mut table, presets::find(name)?);
        }
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|e| Error::io("read recipe", path, e))?;
            let read = text.parse::<Table>().map_err(|e| {
                Error::config(format!("{}: {}", path.display(), one_line(&e.to_string())))
                    .with_source(e)
            })?;
            check_keys(&read).map_err(|e| e.at(path.display()))?;
            merge(&mut table, read);
        }
        for set in sets {
            merge(&mut table, parse_set(set)?);
        }
        let recipe: Self = table.try_into().map_err(|e: toml::de::Error| {
            Error::config(format!("recipe: {}", one_line(&e.to_string()))).with_source(e)
        })?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Reads back what [`Recipe::to_toml`] wrote.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            Error::config(format!("recipe: {}", one_line(&e.to_string()))).with_source(e)
        })
    }

    /// Writes the recipe out in full.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|e| Error::config(format!("recipe: {e}")).with_source(e))
    }

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
        let mut penalties = method.iter().flat_map(Method::penalties);
        let read = penalties.any(|p| p.rows(&self.method.knobs).reads_teacher());
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

    fn check(&self) -> Result<()> {
        self.check_method()?;
        self.check_trained()?;
        self.check_stop()?;
        if self.optim.lr > 1.0 {
            return Err(Error::config(format!("optim.lr: {:e} is above 1", self.optim.lr))
                .hint(format!("did you mean {:e}?", self.optim.lr.recip())));
        }
        let unit = 0.0..=1.0;
        let checks = [
            ("optim.lr", self.optim.lr, self.optim.lr >= 0.0, "0 or more"),
            (
                "optim.momentum",
                self.optim.momentum,
                (0.0..1.0).contains(&self.optim.momentum),
                "0 to below 1",
            ),
            ("optim.b1", self.optim.b1, (0.0..1.0).contains(&self.optim.b1), "0 to below 1"),
            ("optim.b2", self.optim.b2, (0.0..1.0).contains(&self.optim.b2), "0 to below 1"),
            ("optim.eps", self.optim.eps, self.optim.eps > 0.0, "above 0"),
            ("optim.clip", self.optim.clip, self.optim.clip > 0.0, "above 0 (inf for no clipping)"),
            (
                "method.teacher_rate",
                self.method.teacher_rate,
                unit.contains(&self.method.teacher_rate),
                "0 to 1",
            ),
            ("method.damping", self.method.damping, self.method.damping >= 0.0, "0 or more"),
            ("method.tol", self.method.knobs.tol, self.method.knobs.tol >= 0.0, "0 or more"),
            ("method.dual_rate", self.method.dual_rate, self.method.dual_rate >= 0.0, "0 or more"),
        ];
        for (key, value, good, wanted) in checks {
            if !good || value.is_nan() {
                return Err(Error::config(format!("{key}: wanted {wanted}, got {value}")));
            }
        }
        let counts = [
            ("data.forget_context", self.data.forget_context, 2),
            ("data.retain_context", self.data.retain_context, 2),
            ("run.micro_batch", self.run.micro_batch, 1),
            ("run.forget_accum_steps", self.run.forget_accum_steps, 1),
            ("run.kl_accum_steps", self.run.kl_accum_steps, 1),
            ("run.pack_tokens", self.run.pack_tokens, 2),
            ("run.keep_checkpoints", self.run.keep_checkpoints, 1),
            ("eval.context", self.eval.context, 2),
            ("eval.max_new_tokens", self.eval.max_new_tokens, 1),
            ("eval.batch", self.eval.batch, 1),
        ];
        for (key, value, least) in counts {
            if value < least {
                return Err(Error::config(format!("{key}: wanted at least {least}, got {value}")));
            }
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        let Some(Stop { metric, bound }) = self.stop() else { return Ok(()) };
        if !FIGURES.contains(&metric.as_str()) {
            let error = Error::config(format!("eval.stop_metric: `{metric}` is unknown"));
            let near =
                nearest(&metric, FIGURES).map_or(String::new(), |n| format!("; nearest is {n}"));
            return Err(error.hint(format!("known are {}{near}", FIGURES.join(", "))));
        }
        if self.eval.every == 0 {
            return Err(Error::config(
                "eval.stop_metric: eval.every is 0, so nothing would be measured",
            )
            .hint("set eval.every to the steps between evaluations"));
        }
        if !bound.is_finite() {
            return Err(Error::config(format!("eval.stop_val: wanted a number, got {bound}")));
        }
        Ok(())
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Reads `a.b=c`; c is TOML, or a plain string where it is none.
fn parse_set(set: &str) -> Result<Table> {
    let (key, text) = set.split_once('=').ok_or_else(|| {
        Error::config(format!("--set {set}: wanted key=value"))
            .hint("for example --set optim.lr=5e-4")
    })?;
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let mut table = Table::new();
    let last = parts.pop().unwrap_or_default();
    table.insert(last.to_owned(), value);
    for part in parts.into_iter().rev() {
        table = Table::from_iter([(part.to_owned(), Value::Table(table))]);
    }
    check_keys(&table).map_err(|e| e.at(format!("--set {set}")))?;
    Ok(table)
}

/// Returns all keys of a recipe, dotted.
fn known_keys() -> Vec<String> {
    let value = serde_json::to_value(Recipe::default()).unwrap_or_default();
    let sections = value.as_object().into_iter().flatten();
    sections
        .flat_map(|(name, value)| match value.as_object() {
            Some(inner) => inner.keys().map(|key| format!("{name}.{key}")).collect(),
            None => vec![name.clone()],
        })
        .collect()
}

fn check_keys(table: &Table) -> Result<()> {
    let known = known_keys();
    for (name, value) in table {
        let keys: Vec<String> = match value {
            Value::Table(inner) => inner.keys().map(|key| format!("{name}.{key}")).collect(),
            _ => vec![name.clone()],
        };
        for key in keys {
            if !known.contains(&key) {
                let error = Error::config(format!("unknown key `{key}`"));
                return Err(match nearest(&key, known.iter().map(String::as_str)) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error,
                });
            }
        }
    }
    Ok(())
}

/// Lays `over` on `table`, one level deep.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => old.extend(new),
            // A whole number is a good fraction: `lr = 1`.
            (_, value) => {
                table.insert(key, value);
            }
        }
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
