//! `eval`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::engine::{self, DeviceArgs, Job};
use super::output::{Output, note, table};
use super::suite;
use crate::data::{CorpusOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::likelihood::{Likelihood, Nll};
use crate::eval::metric::muse;
use crate::eval::verbatim::{Memory, Sample};
use crate::folder::Folder;
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::model::params::Keeping;
use crate::ops::Ops;
use crate::report::notices;
use crate::run::plan::Plan;

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
    if let Some(kind) = args.suite.suite {
        let common = suite::Common {
            models: &args.model,
            device: &args.device,
            batch: args.batch,
            context: args.context,
        };
        return suite::run(kind, &args.suite, &common, out);
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
    let results = Results { model: path.display().to_string(), nll, verbmem, notices };
    out.result(&results, || text(&results))
}

/// Output of `eval`.
#[derive(Debug, Serialize)]
struct Results {
    model: String,
    nll: Vec<FileNll>,
    verbmem: Vec<FileMemory>,
    notices: Vec<String>,
}

/// The NLL of one file.
#[derive(Debug, Serialize)]
struct FileNll {
    file: String,
    #[serde(flatten)]
    nll: Nll,
}

/// The verbatim memory of the prompts of one file.
#[derive(Debug, Serialize)]
struct FileMemory {
    file: String,
    prompts: usize,
    rouge_l_f1: f64,
    rouge_l_recall: f64,
    items: Vec<Sample>,
}

fn text(results: &Results) -> String {
    let number = |value: f64| match value.is_finite() {
        true => format!("{value:.4}"),
        false => "null".to_owned(),
    };
    let lay = |head: &[&str], rows: Vec<Vec<String>>| {
        let head = head.iter().map(|label| (*label).to_owned()).collect();
        let empty = rows.is_empty();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        (!empty).then(|| table(&rows))
    };
    let nll = |FileNll { file, nll }: &FileNll| {
        let counts = [nll.documents.to_string(), nll.tokens.to_string()];
        let numbers = [number(nll.nll), number(nll.perplexity)];
        [file.clone()].into_iter().chain(counts).chain(numbers).collect()
    };
    let verbmem =
        |one: &FileMemory| vec![one.file.clone(), one.prompts.to_string(), number(one.rouge_l_f1)];
    let first = lay(
        &["text", "documents", "tokens", "nats/token", "perplexity"],
        results.nll.iter().map(nll).collect(),
    );
    let second =
        lay(&["verbatim", "prompts", "ROUGE-L F1"], results.verbmem.iter().map(verbmem).collect());
    first.into_iter().chain(second).collect::<Vec<_>>().join("\n")
}

struct Evaluation<'a> {
    folder: Folder,
    tokenizer: Tokenizer,
    likelihoods: &'a [(&'a Path, Likelihood)],
    memories: &'a [(&'a Path, Memory)],
    request: Request,
}

impl Job for Evaluation<'_> {
    type Out = (Vec<FileNll>, Vec<FileMemory>);

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
            nll.push(FileNll { file: path.display().to_string(), nll: result });
        }
        let mut verbmem = Vec::with_capacity(self.memories.len());
        for (path, one) in self.memories {
            note(&format!("{}: generating for {} prompts", path.display(), one.len()));
            let result = one.measure(ops, &mut model, &mut passes, &self.tokenizer, &self.request);
            let (all, items) = result.map_err(|e| e.at(path.display()))?;
            verbmem.push(FileMemory {
                file: path.display().to_string(),
                prompts: items.len(),
                rouge_l_f1: all.mean_rouge_l,
                rouge_l_recall: all.mean_rouge_l_recall,
                items,
            });
        }
        Ok((nll, verbmem))
    }
}
