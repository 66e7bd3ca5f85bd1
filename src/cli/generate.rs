//! `generate`.

use std::path::PathBuf;

use serde_json::json;

use super::engine::{self, DeviceArgs, Job};
use super::output::Output;
use crate::data::{Document, Report, Tokenizer};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::Model;
use crate::model::generate::{Choice, Request, generate};
use crate::model::params::Keeping;
use crate::ops::{Ops, Sampling};
use crate::report::notices;
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
    /// A .jsonl or .json file of prompts, or a .txt file with one; question-answer records ask the question alone
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
    let mut folder = Folder::open(&args.model)?;
    let tokenizer = folder.tokenizer()?;
    let texts = match &args.prompts {
        Some(path) => documents(path, &mut folder)?,
        None => args.prompt.iter().cloned().map(Document::Text).collect(),
    };
    let prompts = ids(&texts, &tokenizer, true, &mut folder)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let (new, key) = (args.max_new_tokens, "--max-new-tokens");
    folder.check_generation("the longest prompt", longest, new, key, "shorten the prompt")?;
    notices::say(&folder.notices);
    let end_tokens = if args.stop_at_eos { folder.end_tokens(&tokenizer)? } else { Vec::new() };
    let request =
        Request { max_new_tokens: args.max_new_tokens, end_tokens, choice, batch: args.batch };
    let new = engine::compute(&engine, Generation { folder, prompts: &prompts, request })?;
    let mut items = Vec::with_capacity(new.len());
    let mut lines = String::new();
    for ((given, prompt), ids) in texts.iter().zip(&prompts).zip(&new) {
        let text = tokenizer.decode(ids, true)?;
        lines.push_str(&text);
        lines.push('\n');
        items.push(json!({
            "prompt": match given.prompt() {
                Some(text) => text.into_owned(),
                None => tokenizer.decode(prompt, false)?,
            },
            "text": text, "prompt_tokens": prompt.len(), "prompt_ids": prompt, "ids": ids,
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

/// Reads all documents of a source file for the model of `folder`, which gathers the notices.
pub(super) fn documents(path: &std::path::Path, folder: &mut Folder) -> Result<Vec<Document>> {
    let (format, file) = crate::data::source::open(path)?;
    let mut documents = Vec::new();
    let name = path.display().to_string();
    let vocab = folder.config.vocab;
    let summary = crate::data::source::read_file(format, &name, file, vocab, &mut |document| {
        documents.push(document);
        Ok(())
    })?;
    notices::add(&mut folder.notices, summary.report.notices(&name, usize::MAX));
    Ok(documents)
}

/// Encodes documents; `open` leaves out what ends a text: the answer to a question, and the tokens that end it.
///
/// `folder` gathers a notice where a special token stands twice.
pub(super) fn ids(
    documents: &[Document],
    tokenizer: &Tokenizer,
    open: bool,
    folder: &mut Folder,
) -> Result<Vec<Vec<u32>>> {
    let mut doubled = 0;
    let mut rows = Vec::with_capacity(documents.len());
    for document in documents {
        let text = if open { document.prompt() } else { document.text() };
        rows.push(match (document, text) {
            (Document::Ids(ids), _) => ids.clone(),
            (_, text) => {
                let plain = tokenizer.encode_plain(&text.unwrap_or_default())?;
                doubled += u64::from(tokenizer.doubles(&plain));
                let suffix = if open { &[][..] } else { tokenizer.suffix() };
                [tokenizer.prefix(), &plain, suffix].concat()
            }
        });
    }
    let report =
        Report { records: rows.len() as u64, doubled_special: doubled, ..Report::default() };
    notices::add(&mut folder.notices, report.notices("texts", usize::MAX));
    Ok(rows)
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
