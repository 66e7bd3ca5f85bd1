//! `generate`.

use std::path::PathBuf;

use serde_json::json;

use super::engine::{self, DeviceArgs, Job};
use super::output::{Output, note};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::generate::{Choice, Request, generate};
use crate::model::params::Keeping;
use crate::model::{Model, ModelConfig};
use crate::ops::{Ops, Sampling};
use crate::run::Folder;
use crate::run::plan::Plan;

/// Options of `generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The text to continue; can be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// A .jsonl or .json file of prompts, or a .txt file with one
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Maximum number of new tokens per prompt
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 is greedy decoding; above 0, sampling at this temperature
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Nucleus sampling: the smallest set of tokens with this probability mass
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Sampling seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop after an end-of-sequence token
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    stop_at_eos: bool,
    /// Prompts generated in one batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let choice = choice(args)?;
    let engine = args.device.open()?;
    let folder = Folder::open(&args.model)?;
    let tokenizer = folder.tokenizer()?;
    let texts = match &args.prompts {
        Some(path) => documents(path, folder.config.vocab)?,
        None => args.prompt.iter().cloned().map(crate::data::Document::Text).collect(),
    };
    let prompts = ids(&texts, &tokenizer, true)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    warn_length(&folder.config, longest + args.max_new_tokens);
    let end_tokens = if args.stop_at_eos { folder.end_tokens(&tokenizer)? } else { Vec::new() };
    let request =
        Request { max_new_tokens: args.max_new_tokens, end_tokens, choice, batch: args.batch };
    let new = engine::compute(&engine, Generation { folder, prompts: &prompts, request })?;
    let mut items = Vec::with_capacity(new.len());
    let mut lines = String::new();
    for (prompt, ids) in prompts.iter().zip(&new) {
        let text = tokenizer.decode(ids, true)?;
        lines.push_str(&text);
        lines.push('\n');
        items.push(json!({
            "prompt": tokenizer.decode(prompt, true)?, "text": text, "prompt_tokens": prompt.len(), "ids": ids,
        }));
    }
    out.result(&json!(items), || lines)
}

fn choice(args: &Args) -> Result<Choice> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(Error::config(format!(
            "--temperature: wanted 0 or more, got {}",
            args.temperature
        )));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::config(format!("--top-p: wanted above 0 to 1, got {}", args.top_p)));
    }
    Ok(if args.temperature == 0.0 {
        Choice::Greedy
    } else {
        let sampling = Sampling { temperature: args.temperature, top_p: args.top_p };
        Choice::Sample { sampling, seed: args.seed }
    })
}

/// Says so where positions go beyond what the model was made for.
pub(super) fn warn_length(config: &ModelConfig, tokens: usize) {
    if tokens > config.max_positions {
        note(&format!(
            "warning: {tokens} tokens, but the model was made for {}",
            config.max_positions
        ));
    }
}

/// Reads all documents of a source file.
pub(super) fn documents(
    path: &std::path::Path,
    vocab: usize,
) -> Result<Vec<crate::data::Document>> {
    let (format, file) = crate::data::source::open(path)?;
    let mut documents = Vec::new();
    let name = path.display().to_string();
    crate::data::source::read_file(format, &name, file, vocab, &mut |document| {
        documents.push(document);
        Ok(())
    })?;
    Ok(documents)
}

/// Encodes documents; `open` leaves the tokens out that end a text.
pub(super) fn ids(
    documents: &[crate::data::Document],
    tokenizer: &Tokenizer,
    open: bool,
) -> Result<Vec<Vec<u32>>> {
    let encode = |document: &crate::data::Document| match document {
        crate::data::Document::Ids(ids) => Ok(ids.clone()),
        crate::data::Document::Text(text) if open => {
            Ok([tokenizer.prefix(), &tokenizer.encode_plain(text)?].concat())
        }
        crate::data::Document::Text(text) => tokenizer.encode(text),
    };
    documents.iter().map(encode).collect()
}

struct Generation<'a> {
    folder: Folder,
    prompts: &'a [Vec<u32>],
    request: Request,
}

impl Job for Generation<'_> {
    type Out = Vec<Vec<u32>>;

    fn run<O: Ops>(self, ops: O, _plan: Option<&Plan>) -> Result<Self::Out> {
        let ops = &ops;
        let Folder { config, weights, .. } = self.folder;
        let mut model = Model::load(ops, config, &weights, &Keeping::inference())?;
        generate(ops, &mut model, self.prompts, &self.request)
    }
}
