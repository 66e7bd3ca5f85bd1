//! `score`.

use std::path::PathBuf;

use serde_json::json;

use super::engine::{self, DeviceArgs, Job};
use super::generate::{documents, ids};
use super::output::{Output, table};
use crate::data::Document;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::params::Keeping;
use crate::ops::Ops;
use crate::report::notices;
use crate::run::plan::Plan;

/// Options of `score`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The text to score; can be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "data")]
    text: Vec<String>,
    /// A .jsonl, .json or .txt file to score; documents are not truncated
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    data: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, out: &Output) -> Result<()> {
    let engine = args.device.open()?;
    let mut folder = Folder::open(&args.model)?;
    let tokenizer = folder.tokenizer()?;
    let texts = match &args.data {
        Some(path) => documents(path, &mut folder)?,
        None => args.text.iter().cloned().map(Document::Text).collect(),
    };
    let rows = ids(&texts, &tokenizer, false, &mut folder)?;
    if let Some(i) = rows.iter().position(Vec::is_empty) {
        return Err(Error::data(format!("document {i}: has no tokens, nothing to score")));
    }
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    folder.check_length("the longest text", longest, "the length of the text")?;
    let single = rows.iter().filter(|ids| ids.len() == 1).count();
    if single > 0 {
        let text = format!(
            "{single} of {} texts have a single token: nothing is predicted in them, and their sum is 0",
            rows.len()
        );
        notices::add(&mut folder.notices, [text]);
    }
    notices::say(&folder.notices);
    let scores = engine::compute(&engine, Scoring { folder, rows: &rows })?;
    let mut items = Vec::with_capacity(rows.len());
    let mut lines = vec![["token", "id", "log p (nats)"].map(str::to_owned).to_vec()];
    for (ids, logprobs) in rows.iter().zip(&scores) {
        let mut tokens = Vec::with_capacity(ids.len());
        for (t, &id) in ids.iter().enumerate() {
            let token = tokenizer.decode(&[id], false)?;
            // The first token has nothing before it to be predicted from.
            let score = t.checked_sub(1).and_then(|t| logprobs.get(t));
            let score = score.map_or("-".to_owned(), |score| format!("{score:.4}"));
            lines.push(vec![format!("{token:?}"), id.to_string(), score]);
            tokens.push(token);
        }
        // The sum of nothing is -0.
        let sum = logprobs.iter().sum::<f64>() + 0.0;
        let padded: Vec<Option<f64>> =
            std::iter::once(None).chain(logprobs.iter().copied().map(Some)).collect();
        items.push(json!({"tokens": tokens, "ids": ids, "logprobs": padded, "sum": sum}));
        lines.push(vec!["sum".into(), String::new(), format!("{sum:.4}")]);
    }
    out.result(&json!(items), || table(&lines))
}

struct Scoring<'a> {
    folder: Folder,
    rows: &'a [Vec<u32>],
}

impl Job for Scoring<'_> {
    type Out = Vec<Vec<f64>>;

    fn run<O: Ops>(self, ops: O, _plan: Option<&Plan>) -> Result<Self::Out> {
        let ops = &ops;
        let Folder { config, weights, .. } = self.folder;
        let mut model = Model::load(ops, config, &weights, &Keeping::inference())?;
        let longest = self.rows.iter().map(Vec::len).max().unwrap_or(1);
        let mut passes = Passes::new(ops, &model, longest.max(512), false)?;
        let rows: Vec<&[u32]> = self.rows.iter().map(Vec::as_slice).collect();
        passes.score(ops, &mut model, &rows)
    }
}
