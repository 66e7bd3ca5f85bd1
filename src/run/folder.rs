//! Model folders as runs and commands open them: everything is checked before anything large is allocated.

use std::path::{Path, PathBuf};

use crate::data::{Corpus, CorpusOptions, Tokenizer};
use crate::error::{Error, Kind, Result};
use crate::io::safetensors::Weights;
use crate::model::config::end_tokens;
use crate::model::{Layout, ModelConfig, Train};

/// A model folder whose configuration and weights fit each other.
pub struct Folder {
    /// Where it lies.
    pub dir: PathBuf,
    /// config.json.
    pub config: ModelConfig,
    /// The mapped weights.
    pub weights: Weights,
}

/// Reads config.json of the folder `dir`.
pub fn config(dir: &Path) -> Result<ModelConfig> {
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
    let path = dir.join("config.json");
    if !path.is_file() {
        return Err(wrong("config.json is missing"));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|e| Error::model(format!("{}: cannot read: {e}", path.display())))?;
    ModelConfig::parse(&text).map_err(|e| e.at(dir.display()))
}

impl Folder {
    /// Opens the folder `dir` and checks name, shape and dtype of every tensor.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = config(dir)?;
        let weights = Weights::open(dir).map_err(|e| match e.kind() {
            // A file that the folder should have is the folder's fault, not the file system's.
            Kind::Io => Error::model(e.message())
                .hint("the folder is incomplete; copy or download the missing file"),
            _ => e,
        })?;
        Layout::new(&config, Train::Body).check(&weights).map_err(|e| e.at(dir.display()))?;
        Ok(Self { dir: dir.to_owned(), config, weights })
    }

    /// Opens its tokenizer and checks that the model has a row for every id.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
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
        Ok(tokenizer)
    }

    /// Opens a corpus and checks that the model has a row for every id in it.
    pub fn corpus(
        &self,
        path: &Path,
        tokenizer: &Tokenizer,
        options: &CorpusOptions,
    ) -> Result<Corpus> {
        let corpus = Corpus::open(path, tokenizer, options)?;
        corpus.check_ids(path, self.config.vocab)?;
        Ok(corpus)
    }

    /// Returns the ids that end a generation: those of generation_config.json, else the tokenizer's.
    pub fn end_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let path = self.dir.join("generation_config.json");
        let listed = match std::fs::read_to_string(&path) {
            Ok(text) => end_tokens(&text).map_err(|e| e.at(self.dir.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::model(format!("{}: cannot read: {e}", path.display()))),
        };
        Ok(match listed.is_empty() {
            true => tokenizer.eos().into_iter().collect(),
            false => listed,
        })
    }
}
