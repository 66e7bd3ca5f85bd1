//! `eval`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::engine::{self, DeviceArgs, Job};
use super::folder::Folder;
use super::output::{Output, note, table};
use crate::data::{Corpus, CorpusOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::muse;
use crate::eval::rouge::{Aggregate, Scorer};
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::{Choice, Request, generate};
use crate::model::params::Keeping;
use crate::ops::Ops;

/// Documents scored between two lines of progress.
const DOCUMENTS: usize = 64;

/// Options of `eval`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text whose NLL and perplexity are measured: .jsonl, .json or .txt; can be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "verbmem")]
    nll: Vec<PathBuf>,
    /// Prompts for verbatim memory: a .json list of {"prompt", "gt"}; can be repeated
    #[arg(long, value_name = "FILE")]
    verbmem: Vec<PathBuf>,
    /// Longest document, in tokens; longer ones are truncated
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Tokens generated per prompt, and ids of the true continuation that count
    #[arg(long, default_value_t = muse::VERBMEM_NEW_TOKENS)]
    max_new_tokens: usize,
    /// Prompts generated at once
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One verbatim-memory item.
#[derive(Debug, Deserialize)]
struct Item {
    prompt: String,
    gt: String,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    args.device.check()?;
    let folder = Folder::open(&args.model)?;
    let tokenizer = folder.tokenizer()?;
    let options = CorpusOptions { context: args.context, ..CorpusOptions::default() };
    let mut corpora = Vec::with_capacity(args.nll.len());
    for path in &args.nll {
        let corpus = Corpus::open(path, &tokenizer, &options)?;
        corpus.check_ids(path, folder.config.vocab)?;
        // Every document is about to be read and computed with, so this costs next to nothing.
        corpus.verify().map_err(|e| e.at(path.display()))?;
        corpora.push((path.as_path(), corpus));
    }
    let mut memories = Vec::with_capacity(args.verbmem.len());
    for path in &args.verbmem {
        memories.push((path.as_path(), items(path)?));
    }
    let request = Request {
        max_new_tokens: args.max_new_tokens,
        end_tokens: folder.end_tokens(&tokenizer)?,
        choice: Choice::Greedy,
        batch: args.batch,
    };
    let job = Evaluation { folder, tokenizer, corpora: &corpora, memories: &memories, request };
    let (nll, verbmem) = engine::compute(&args.device, job)?;
    let value = json!({
        "model": args.model.display().to_string(), "nll": nll, "verbmem": verbmem,
    });
    out.result(&value, || text(&nll, &verbmem))
}

fn items(path: &Path) -> Result<Vec<Item>> {
    let wrong = |what: String| {
        Error::data(format!("{}: {what}", path.display()))
            .hint("wanted a .json list of objects with \"prompt\" and \"gt\"")
    };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read: {e}")))?;
    let items: Vec<Item> = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    match items.is_empty() {
        true => Err(wrong("holds no prompts".into())),
        false => Ok(items),
    }
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
    corpora: &'a [(&'a Path, Corpus)],
    memories: &'a [(&'a Path, Vec<Item>)],
    request: Request,
}

impl Job for Evaluation<'_> {
    type Out = (Vec<Value>, Vec<Value>);

    fn run<O: Ops>(self, ops: &O) -> Result<Self::Out> {
        let Folder { config, weights, .. } = self.folder;
        let mut model = Model::load(ops, config, &weights, &Keeping::inference())?;
        let mut nll = Vec::with_capacity(self.corpora.len());
        for (path, corpus) in self.corpora {
            nll.push(likelihood(ops, &mut model, path, corpus)?);
        }
        let mut verbmem = Vec::with_capacity(self.memories.len());
        for (path, items) in self.memories {
            verbmem.push(memory(ops, &mut model, &self.tokenizer, &self.request, path, items)?);
        }
        Ok((nll, verbmem))
    }
}

/// Measures the mean NLL over all predicted tokens of a corpus, nats.
fn likelihood<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    path: &Path,
    corpus: &Corpus,
) -> Result<Value> {
    let mut passes = Passes::new(ops, model, corpus.longest().max(1024), false)?;
    let rows: Vec<usize> = (0..corpus.len()).collect();
    let (mut sum, mut tokens, mut done) = (0.0, 0usize, 0);
    for group in rows.chunks(DOCUMENTS) {
        let documents: Vec<&[u32]> = group.iter().map(|&i| corpus.doc(i)).collect();
        for scores in passes.score(ops, model, &documents)? {
            sum -= scores.iter().sum::<f64>();
            tokens += scores.len();
        }
        done += group.len();
        note(&format!("{}: {done} of {} documents", path.display(), corpus.len()));
    }
    if tokens == 0 {
        return Err(Error::data(format!(
            "{}: no document has two tokens, nothing to predict",
            path.display()
        )));
    }
    let nll = sum / tokens as f64;
    Ok(json!({
        "file": path.display().to_string(), "documents": corpus.len(), "tokens": tokens,
        "nll": nll, "perplexity": nll.exp(),
    }))
}

/// Continues every prompt greedily and compares with the true continuation.
fn memory<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    tokenizer: &Tokenizer,
    request: &Request,
    path: &Path,
    items: &[Item],
) -> Result<Value> {
    let texts: Vec<&str> = items.iter().map(|item| item.prompt.as_str()).collect();
    let prompts = tokenizer.encode_batch(&texts)?;
    note(&format!("{}: generating for {} prompts", path.display(), prompts.len()));
    let outputs = generate(ops, model, &prompts, request).map_err(|e| e.at(path.display()))?;
    let scorer = Scorer::new();
    let mut rouges = Vec::with_capacity(items.len());
    let mut responses = Vec::with_capacity(items.len());
    for (item, ids) in items.iter().zip(&outputs) {
        let truth = muse::verbmem_truth(
            &item.gt,
            request.max_new_tokens,
            |text| tokenizer.encode(text),
            |ids| tokenizer.decode(ids, true),
        )?;
        let scored = muse::verbmem_score(&scorer, &truth, &tokenizer.decode(ids, true)?);
        rouges.push(scored.rouge);
        responses.push(json!({
            "prompt": item.prompt, "gt": truth, "response": scored.response,
            "rouge_l_f1": scored.rouge.rouge_l.f1,
        }));
    }
    let all = Aggregate::of(&rouges);
    Ok(json!({
        "file": path.display().to_string(), "prompts": items.len(), "rouge_l_f1": all.mean_rouge_l,
        "rouge_l_recall": all.mean_rouge_l_recall, "items": responses,
    }))
}
