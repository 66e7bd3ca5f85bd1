//! `eval`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::engine::{self, DeviceArgs, Job};
use super::output::{Output, note, table};
use super::suite;
use crate::data::{CorpusOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::muse;
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::model::params::Keeping;
use crate::ops::Ops;
use crate::run::evaluate::{Likelihood, Memory};
use crate::run::plan::Plan;
use crate::run::{Folder, notices};

/// Options of `eval`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder; with --suite it can be repeated
    #[arg(long, value_name = "DIR", required = true)]
    model: Vec<PathBuf>,
    /// Text whose NLL and perplexity are measured: .jsonl, .json or .txt; can be repeated
    #[arg(long, value_name = "FILE", required_unless_present_any = ["verbmem", "suite"], conflicts_with = "suite")]
    nll: Vec<PathBuf>,
    /// Prompts for verbatim memory: a .json list of {"prompt", "gt"}; can be repeated
    #[arg(long, value_name = "FILE", conflicts_with = "suite")]
    verbmem: Vec<PathBuf>,
    #[command(flatten)]
    suite: suite::Args,
    /// Longest document, in tokens; longer ones are truncated
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Tokens generated per prompt, and ids of the true continuation that count
    #[arg(long, default_value_t = muse::VERBMEM_NEW_TOKENS, conflicts_with = "suite")]
    max_new_tokens: usize,
    /// Prompts generated in one batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    if let Some(name) = args.suite.suite {
        let common = suite::Common {
            models: &args.model,
            device: &args.device,
            batch: args.batch,
            context: args.context,
        };
        return suite::run(name, &args.suite, &common, out);
    }
    let [path] = args.model.as_slice() else {
        return Err(Error::config(format!("--model: {} folders, wanted one", args.model.len()))
            .hint("several models are compared with --suite"));
    };
    let engine = args.device.open()?;
    let mut folder = Folder::open(path)?;
    let tokenizer = folder.tokenizer()?;
    let options = CorpusOptions { context: args.context, ..CorpusOptions::default() };
    let mut likelihoods = Vec::with_capacity(args.nll.len());
    for path in &args.nll {
        let corpus = folder.corpus(path, &tokenizer, &options, "--context")?;
        // Every document is about to be read and computed with, so this costs next to nothing.
        corpus.verify().map_err(|e| e.at(path.display()))?;
        likelihoods.push((path.as_path(), Likelihood::new(corpus, usize::MAX)));
    }
    let mut memories = Vec::with_capacity(args.verbmem.len());
    for path in &args.verbmem {
        let memory = Memory::open(path, &tokenizer, args.max_new_tokens)?;
        let shown = path.display().to_string();
        let (prompt, new, key) = (memory.longest(), args.max_new_tokens, "--max-new-tokens");
        folder.check_generation(&shown, prompt, new, key, "shorten the prompts")?;
        notices::add(&mut folder.notices, memory.notice(&shown));
        memories.push((path.as_path(), memory));
    }
    let notices = folder.notices.clone();
    notices::say(&notices);
    let request = Request {
        max_new_tokens: args.max_new_tokens,
        end_tokens: folder.end_tokens(&tokenizer)?,
        choice: Choice::Greedy,
        batch: args.batch,
    };
    let job =
        Evaluation { folder, tokenizer, likelihoods: &likelihoods, memories: &memories, request };
    let (nll, verbmem) = engine::compute(&engine, job)?;
    let value = json!({
        "model": path.display().to_string(), "nll": nll, "verbmem": verbmem, "notices": notices,
    });
    out.result(&value, || text(&nll, &verbmem))
}

fn text(nll: &[Value], verbmem: &[Value]) -> String {
    let lay = |items: &[Value], columns: &[(&str, &str)]| {
        if items.is_empty() {
            return String::new();
        }
        let head = columns.iter().map(|(label, _)| (*label).to_owned()).collect();
        let row = |item: &Value| {
            let cell = |(_, key): &(&str, &str)| match &item[*key] {
                Value::String(text) => text.clone(),
                Value::Number(n) if n.is_f64() => format!("{:.4}", n.as_f64().unwrap_or(0.0)),
                other => other.to_string(),
            };
            columns.iter().map(cell).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(row)).collect();
        table(&rows)
    };
    let first = lay(
        nll,
        &[
            ("text", "file"),
            ("documents", "documents"),
            ("tokens", "tokens"),
            ("nats/token", "nll"),
            ("perplexity", "perplexity"),
        ],
    );
    let second =
        lay(verbmem, &[("verbatim", "file"), ("prompts", "prompts"), ("ROUGE-L F1", "rouge_l_f1")]);
    [first, second].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n")
}

struct Evaluation<'a> {
    folder: Folder,
    tokenizer: Tokenizer,
    likelihoods: &'a [(&'a Path, Likelihood)],
    memories: &'a [(&'a Path, Memory)],
    request: Request,
}

impl Job for Evaluation<'_> {
    type Out = (Vec<Value>, Vec<Value>);

    fn run<O: Ops>(self, ops: O, _plan: Option<&Plan>) -> Result<Self::Out> {
        let ops = &ops;
        let Folder { config, weights, .. } = self.folder;
        let mut model = Model::load(ops, config, &weights, &Keeping::inference())?;
        let documents = self.likelihoods.iter().map(|(_, one)| one.longest());
        let prompts = self.memories.iter().map(|(_, one)| one.longest());
        let longest = documents.chain(prompts).max().unwrap_or(1);
        let mut passes = Passes::new(ops, &model, longest.max(1024), false)?;
        let mut nll = Vec::with_capacity(self.likelihoods.len());
        for (path, one) in self.likelihoods {
            note(&format!("{}: scoring", path.display()));
            let result = one.measure(ops, &mut model, &mut passes);
            let result = result.map_err(|e| e.at(path.display()))?;
            let mut value = json!({"file": path.display().to_string()});
            extend(&mut value, json!(result));
            nll.push(value);
        }
        let mut verbmem = Vec::with_capacity(self.memories.len());
        for (path, one) in self.memories {
            note(&format!("{}: generating for {} prompts", path.display(), one.len()));
            let result = one.measure(ops, &mut model, &mut passes, &self.tokenizer, &self.request);
            let (all, items) = result.map_err(|e| e.at(path.display()))?;
            verbmem.push(json!({
                "file": path.display().to_string(), "prompts": items.len(),
                "rouge_l_f1": all.mean_rouge_l, "rouge_l_recall": all.mean_rouge_l_recall,
                "items": items,
            }));
        }
        Ok((nll, verbmem))
    }
}

fn extend(value: &mut Value, more: Value) {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
}
