//! The sections of a recipe and their defaults. Meanings, units and types for users are in the table of settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::eval::metric::muse;
use crate::folder::export::{SaveDtype, SaveRounding};
use crate::model::Level;

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
    /// Optimizer steps; not read where `epochs` is above 0.
    pub steps: u64,
    /// Passes over the forget documents, from which the steps follow once their number is known; 0 where `steps` says.
    pub epochs: u64,
    /// Documents in a micro-batch: the unit that losses are averaged over, so that with documents of unequal length it
    /// changes results as other hyperparameters do, not only memory and speed.
    pub micro_batch: usize,
    /// Forget micro-batches a step.
    pub forget_accum_steps: usize,
    /// Retain micro-batches a step.
    pub kl_accum_steps: usize,
    /// Tokens run at once; changes memory and speed, not what is computed.
    pub pack_tokens: usize,
    /// Activations saved of each layer for the backward pass, the rest being recomputed: `auto` (on a GPU as many as fit in its
    /// free memory, layer by layer; on the CPU all), `all`, `attention` (all but gate and up), `residual` (nor the qkv rows)
    /// or `input` (the input of each layer alone); changes memory and speed, not results.
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
    /// The parameters that train.
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
    /// The state mode.
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
    /// Storage of the teacher.
    TeacherKey {
        /// Its own weights.
        #[default] Full,
        /// The difference to the student.
        Drift
    }
);
key!(
    /// Activations saved of each layer for the backward pass.
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
    /// Sampling of documents.
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
            epochs: 0,
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
