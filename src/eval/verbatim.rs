//! Verbatim memory: greedy continuations of prompts against the true ones.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metric::muse;
use super::metric::rouge::{Aggregate, Rouge, Scorer, coverage};
use super::metric::{Direction, Metric};
use super::spread;
use crate::data::{Corpus, Tokenizer};
use crate::error::{Error, Result};
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::Request;
use crate::ops::Ops;

/// Mean ROUGE-L F1 of continuations, in [0, 1], as runs measure it.
pub const VERBATIM: Metric = Metric {
    name: "verbmem_{}",
    label: Some("verbatim memory"),
    unit: "ROUGE-L F1",
    definition: "mean ROUGE-L F1 of greedy continuations against the true text",
    direction: Direction::Higher,
    on_forget: Some(Direction::Retrained),
};

/// Mean ROUGE-L F1 of the prompts of a file, by its path in the JSON of `eval --verbmem`.
pub const FILE_F1: Metric = Metric { name: "verbmem.{}.rouge_l_f1", ..VERBATIM };

/// Mean ROUGE-L recall of the prompts of a file, by its path in the JSON of `eval --verbmem`.
pub const FILE_RECALL: Metric =
    Metric { name: "verbmem.{}.rouge_l_recall", unit: "ROUGE-L recall", ..VERBATIM };

/// The fewest tokens that a document is cut into prompt and truth at.
const SHORTEST: usize = 4;

/// A prompt, its true continuation, and what the model made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The text to be continued.
    pub prompt: String,
    /// The true continuation, cut to the number of tokens generated.
    pub gt: String,
    /// The continuation.
    pub response: String,
    /// ROUGE-L F1 of it; `None` where the true text has no token that ROUGE counts.
    pub rouge_l_f1: Option<f64>,
}

/// Prompts whose greedy continuation is compared with the true one.
#[derive(Debug, Default)]
pub struct Memory {
    prompts: Vec<Vec<u32>>,
    texts: Vec<(String, String)>,
}

/// One item of a file of prompts.
#[derive(Debug, Deserialize)]
struct Item {
    prompt: String,
    gt: String,
}

impl Memory {
    /// Reads a .json list of objects with `prompt` and `gt`.
    ///
    /// The true text is cut to `max_new_tokens` as the benchmark does ([`muse::verbmem_truth`]).
    pub fn open(path: &Path, tokenizer: &Tokenizer, max_new_tokens: usize) -> Result<Self> {
        let wrong = |what: String| {
            Error::data(format!("{}: {what}", path.display()))
                .hint("wanted a .json list of objects with \"prompt\" and \"gt\"")
        };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read: {e}")))?;
        let items: Vec<Item> = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if items.is_empty() {
            return Err(wrong("holds no prompts".into()));
        }
        let mut memory = Self::default();
        for item in items {
            let truth = muse::verbmem_truth(
                &item.gt,
                max_new_tokens,
                |text| tokenizer.encode(text),
                |ids| tokenizer.decode(ids, true),
            )?;
            memory.prompts.push(tokenizer.encode(&item.prompt)?);
            memory.texts.push((item.prompt, truth));
        }
        Ok(memory)
    }

    /// Cuts up to `most` documents of `corpus` in the middle: the first half is the prompt, what follows the truth.
    ///
    /// Errors: those of the tokenizer.
    pub fn of_corpus(
        corpus: &Corpus,
        most: usize,
        tokenizer: &Tokenizer,
        max_new_tokens: usize,
    ) -> Result<Self> {
        let mut memory = Self::default();
        for ids in spread(corpus.len(), most).into_iter().map(|i| corpus.doc(i)) {
            if ids.len() < SHORTEST {
                continue;
            }
            let (prompt, rest) = ids.split_at(ids.len() / 2);
            let truth = tokenizer.decode(&rest[..rest.len().min(max_new_tokens)], true)?;
            memory.texts.push((tokenizer.decode(prompt, true)?, truth));
            memory.prompts.push(prompt.to_vec());
        }
        Ok(memory)
    }

    /// Returns the number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Returns the length of the longest prompt, tokens.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Returns the number of prompts whose score is defined.
    pub fn defined(&self) -> usize {
        let scorer = Scorer::new();
        self.texts.iter().filter(|(_, gt)| scorer.defined(gt)).count()
    }

    /// Says how much of the true texts of `name` ROUGE cannot score.
    pub fn notice(&self, name: &str) -> Option<String> {
        let (all, defined) = (self.len(), self.defined());
        let seen = coverage(self.texts.iter().map(|(_, gt)| gt.as_str()));
        if all > defined {
            Some(format!(
                "warning: {name}: the verbatim memory of {} of {all} prompts is undefined and left out: ROUGE counts letters \
                 a-z and digits, and the true text has none",
                all - defined
            ))
        } else if seen < 0.5 {
            Some(format!(
                "warning: {name}: ROUGE counts only {:.0} % of the letters and digits of the true texts, those of a-z and \
                 0-9; the NLL counts all",
                100.0 * seen
            ))
        } else {
            None
        }
    }

    /// Returns whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Continues every prompt and scores the continuations; the mean is over those whose score is defined, NaN of none.
    pub fn measure<O: Ops>(
        &self,
        ops: &O,
        model: &mut Model<O>,
        passes: &mut Passes<O>,
        tokenizer: &Tokenizer,
        request: &Request,
    ) -> Result<(Aggregate, Vec<Sample>)> {
        let outputs = passes.generate(ops, model, &self.prompts, request)?;
        let scorer = Scorer::new();
        let mut rouges: Vec<Rouge> = Vec::with_capacity(outputs.len());
        let mut samples = Vec::with_capacity(outputs.len());
        for ((prompt, gt), ids) in self.texts.iter().zip(&outputs) {
            let scored = muse::verbmem_score(&scorer, gt, &tokenizer.decode(ids, true)?);
            let defined = scorer.defined(gt);
            rouges.extend(defined.then_some(scored.rouge));
            samples.push(Sample {
                prompt: prompt.clone(),
                gt: gt.clone(),
                response: scored.response,
                rouge_l_f1: defined.then_some(scored.rouge.rouge_l.f1),
            });
        }
        Ok((Aggregate::of(&rouges), samples))
    }
}
