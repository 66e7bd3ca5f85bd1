//! Model folders as runs and commands open them: everything is checked before anything large is allocated.

pub mod export;
pub mod import;
mod quantised;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::{Corpus, CorpusOptions, Tokenizer};
use crate::error::{Error, Kind, Result};
use crate::io::safetensors::Weights;
use crate::model::config::end_tokens;
use crate::model::{Layout, ModelConfig, Train};
use crate::report::notices;

/// A model folder whose configuration and weights fit each other.
pub struct Folder {
    /// Where it lies.
    pub dir: PathBuf,
    /// The configuration that is computed: that of config.json, with a tied head only where the files agree.
    pub config: ModelConfig,
    /// The mapped weights, without a second copy of a tied head.
    pub weights: Weights,
    /// Notices about the folder and the corpora read for it (see [`notices`]), each once.
    pub notices: Vec<String>,
    /// Keys of config.json that are set to another value, or removed, in a folder written from this one.
    pub(crate) edits: Vec<(&'static str, Option<Value>)>,
}

const TIED: &str = "tie_word_embeddings";

/// Reads config.json of the folder `dir`, as JSON too.
fn read_config(dir: &Path) -> Result<(Value, ModelConfig)> {
    let wrong = |what: &str| {
        Error::model(format!("{}: {what}", dir.display()))
            .hint("--model takes a Hugging Face model folder: config.json, weights, tokenizer.json")
    };
    if !dir.exists() {
        return Err(wrong("no such folder"));
    }
    if !dir.is_dir() {
        return Err(wrong("is a file, wanted a model folder"));
    }
    let adapter = dir.join("adapter_config.json");
    if adapter.is_file() {
        return Err(adapter_error(dir, &adapter));
    }
    let path = dir.join("config.json");
    if !path.is_file() {
        return Err(wrong("config.json is missing"));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::model(format!("{}: cannot read: {e}", path.display())).with_source(e)
    })?;
    let config = ModelConfig::parse(&text).map_err(|e| e.at(dir.display()))?;
    let json = serde_json::from_str(&text).map_err(|e| {
        Error::model(format!("{}: not valid JSON: {e}", path.display())).with_source(e)
    })?;
    Ok((json, config))
}

/// Returns the error for a folder with an adapter, which transformers applies to another model.
fn adapter_error(dir: &Path, adapter: &Path) -> Error {
    let text = std::fs::read_to_string(adapter).unwrap_or_default();
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let base = json["base_model_name_or_path"].as_str();
    let base = base.map(|base| format!(" for {base}")).unwrap_or_default();
    Error::model(format!(
        "{}: is a PEFT adapter{base} (adapter_config.json), wanted a whole model",
        dir.display()
    ))
    .hint("merge it into its base model first: merge_and_unload(), then save_pretrained(...) into a new folder")
}

/// Reads config.json of the folder `dir`, without a look at the tensors but for the head.
pub fn config(dir: &Path) -> Result<ModelConfig> {
    let (_, mut config) = read_config(dir)?;
    if config.tied
        && let Ok(weights) = Weights::open(dir)
        && let Head::Different { .. } = head(&config, &weights)?
    {
        config.tied = false;
    }
    Ok(config)
}

/// The head of a model whose config.json ties it to the embedding, as the files have it.
enum Head {
    /// There is none, or config.json ties nothing.
    Absent,
    /// A copy of the embedding.
    Copy(String),
    /// Another matrix than the embedding.
    Different { head: String, embed: String },
}

/// Compares a head in the files with the embedding that config.json ties it to.
fn head(config: &ModelConfig, weights: &Weights) -> Result<Head> {
    if !config.tied {
        return Ok(Head::Absent);
    }
    let layout = Layout::new(&ModelConfig { tied: false, ..config.clone() }, Train::Body);
    let [head, embed] = [layout.head, layout.embed].map(|block| &layout.blocks[block].parts[0]);
    let [head, embed] = [head, embed].map(|part| part.name_in(weights).to_owned());
    let (Some(a), Some(b)) = (weights.info(&head), weights.info(&embed)) else {
        return Ok(Head::Absent);
    };
    let equal = a.shape == b.shape
        && if a.dtype == b.dtype {
            weights.bytes(&head)? == weights.bytes(&embed)?
        } else {
            let read = |name: &str, len: usize| {
                let mut values = vec![0.0; len];
                weights.read_f32(name, &mut values).map(|()| values)
            };
            read(&head, a.len())? == read(&embed, b.len())?
        };
    Ok(if equal { Head::Copy(head) } else { Head::Different { head, embed } })
}

impl Folder {
    /// Opens the folder `dir` and checks name, shape and dtype of every tensor.
    ///
    /// A head in the files that config.json ties to the embedding is judged as transformers 5 does: a copy is left out, a
    /// different one is the head.
    pub fn open(dir: &Path) -> Result<Self> {
        let (json, mut config) = read_config(dir)?;
        let mut weights = Weights::open(dir).map_err(|e| match e.kind() {
            // A file that the folder should have is the folder's fault, not the file system's.
            Kind::Io => Error::model(e.message())
                .hint("the folder is incomplete; copy or download the missing file")
                .with_source(e),
            _ => e,
        })?;
        let (mut notices, mut edits) = (Vec::new(), Vec::new());
        quantised::refuse(&json, &weights).map_err(|e| e.at(dir.display()))?;
        match head(&config, &weights).map_err(|e| e.at(dir.display()))? {
            Head::Absent => {}
            Head::Copy(head) => {
                notices.push(format!(
                    "{head}: a second copy of the embedding, which {TIED} makes the head anyway; a written folder \
                     leaves it out"
                ));
                weights.leave_out(&head);
            }
            Head::Different { head, embed } => {
                notices.push(format!(
                    "{head}: differs from {embed} although config.json ties them ({TIED}); it is used as an untied \
                     head, as transformers 5 does, and a written config.json says {TIED} = false"
                ));
                edits.push((TIED, Some(false.into())));
                config.tied = false;
            }
        }
        let layout = Layout::new(&config, Train::Body);
        layout.check(&weights).map_err(|e| e.at(dir.display()))?;
        let left: Vec<&str> = layout.leftovers(&weights).collect();
        if let Some(first) = left.first() {
            notices.push(format!(
                "{first}: not used by the model, copied unchanged into a written folder ({} such tensors)",
                left.len()
            ));
        }
        if let Some(claim) = quantised::claim(&json) {
            notices.push(format!(
                "{claim}, but the weights are not quantised; a written config.json leaves it out"
            ));
            edits.extend(quantised::KEYS.map(|key| (key, None)));
        }
        notices.extend(ModelConfig::ignored_keys(&json).into_iter().map(|key| {
            format!(
                "config.json: {key}: ignored, as transformers 5 does for {}",
                config.architecture
            )
        }));
        Ok(Self { dir: dir.to_owned(), config, weights, notices, edits })
    }

    /// Opens its tokenizer, checks that the model has a row for every id, and gathers its notices.
    pub fn tokenizer(&mut self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::open(&self.dir)?;
        if tokenizer.vocab_size() > self.config.vocab {
            return Err(Error::model(format!(
                "{}: tokenizer.json has ids up to {}, vocab_size is {}",
                self.dir.display(),
                tokenizer.vocab_size() - 1,
                self.config.vocab
            ))
            .hint("the tokenizer is of another model"));
        }
        notices::add(&mut self.notices, tokenizer.notices().iter().cloned());
        Ok(tokenizer)
    }

    /// Opens a corpus, checks that the model has a row for every id in it, and gathers its notices.
    ///
    /// `key` names the setting of the context, for messages about rows longer than the model's positions.
    pub fn corpus(
        &mut self,
        path: &Path,
        tokenizer: &Tokenizer,
        options: &CorpusOptions,
        key: &str,
    ) -> Result<Corpus> {
        let corpus = Corpus::open(path, tokenizer, options)?;
        corpus.check_ids(path, self.config.vocab)?;
        let name = path.display().to_string();
        notices::add(&mut self.notices, corpus.report().notices(&name, options.context));
        self.check_length(&name, corpus.longest(), key)?;
        Ok(corpus)
    }

    /// Gathers a notice where `name` has rows of more `tokens` than the model was made for; `key` is what shortens them.
    ///
    /// Errors: [`Kind::Config`] where the model has learned positions and none for them.
    pub fn check_length(&mut self, name: &str, tokens: usize, key: &str) -> Result<()> {
        let hint = format!("lower {key} to at most {}", self.config.max_positions);
        self.check_positions(name, tokens, &hint)
    }

    fn check_positions(&mut self, name: &str, tokens: usize, hint: &str) -> Result<()> {
        self.config.check_length(tokens).map_err(|e| e.at(name).hint(hint))?;
        if tokens > self.config.max_positions {
            let text = format!(
                "{}{name}: up to {tokens} tokens in a row, but the model was made for {} \
                 (max_position_embeddings); {hint}",
                notices::WARNING,
                self.config.max_positions
            );
            notices::add(&mut self.notices, [text]);
        }
        Ok(())
    }

    /// Like [`Folder::check_length`], for prompts of up to `prompt` tokens that are continued by `new` tokens; `key` sets the
    /// latter, `prompts` is what shortens the former.
    pub fn check_generation(
        &mut self,
        name: &str,
        prompt: usize,
        new: usize,
        key: &str,
        prompts: &str,
    ) -> Result<()> {
        let left = self.config.max_positions.saturating_sub(prompt);
        let hint = match left {
            0 => format!("{prompts}: prompts of up to {prompt} tokens leave none to generate"),
            left => format!("lower {key} to at most {left}, or {prompts}"),
        };
        self.check_positions(name, prompt + new, &hint)
    }

    /// Returns the ids that end a generation: those of generation_config.json, else the tokenizer's.
    pub fn end_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let path = self.dir.join("generation_config.json");
        let listed = match std::fs::read_to_string(&path) {
            Ok(text) => end_tokens(&text).map_err(|e| e.at(self.dir.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => {
                return Err(
                    Error::model(format!("{}: cannot read: {e}", path.display())).with_source(e)
                );
            }
        };
        Ok(match listed.is_empty() {
            true => tokenizer.eos().into_iter().collect(),
            false => listed,
        })
    }
}
