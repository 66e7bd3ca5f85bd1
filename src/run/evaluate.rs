//! What a model in memory knows: the NLL of documents and the verbatim memory of prompts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::folder::Folder;
use super::notices;
use super::recipe::Recipe;
use crate::data::{Chunking, Corpus, CorpusOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::muse;
use crate::eval::rouge::{Aggregate, Rouge, Scorer, coverage};
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::ops::Ops;

/// Documents scored at a time.
const DOCUMENTS: usize = 64;
/// Continuations kept for the report, from each set of prompts.
const SAMPLES: usize = 3;
/// The fewest tokens that a document is cut into prompt and truth at.
const SHORTEST: usize = 4;

/// Every figure a run can measure; `nll_*` in nats per token, `verbmem_*` ROUGE-L F1 in [0, 1].
pub const FIGURES: [&str; 5] =
    ["verbmem_forget", "verbmem_retain", "nll_forget", "nll_retain", "nll_holdout"];

/// Documents whose NLL is measured.
#[derive(Debug)]
pub struct Likelihood {
    corpus: Corpus,
    rows: Vec<usize>,
}

/// A mean over all predicted tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Nll {
    /// Documents read.
    pub documents: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Mean NLL, nats per token.
    pub nll: f64,
    /// exp of it.
    pub perplexity: f64,
}

/// Picks `n` of `len` rows at equal distances, or all where there are no more.
fn spread(len: usize, n: usize) -> Vec<usize> {
    let n = n.min(len);
    (0..n).map(|i| i * len / n).collect()
}

impl Likelihood {
    /// Looks at up to `most` documents of `corpus`, at equal distances.
    pub fn new(corpus: Corpus, most: usize) -> Self {
        let rows = spread(corpus.len(), most);
        Self { corpus, rows }
    }

    /// Returns the length of the longest document, tokens.
    pub fn longest(&self) -> usize {
        self.corpus.longest()
    }

    /// Measures the mean NLL of all tokens but the first of each document.
    ///
    /// Errors: [`crate::Kind::Data`] where no document has two tokens.
    pub fn measure<O: Ops>(
        &self,
        ops: &O,
        model: &mut Model<O>,
        passes: &mut Passes<O>,
    ) -> Result<Nll> {
        let (mut sum, mut tokens) = (0.0, 0);
        for group in self.rows.chunks(DOCUMENTS) {
            let documents: Vec<&[u32]> = group.iter().map(|&i| self.corpus.doc(i)).collect();
            for scores in passes.score(ops, model, &documents)? {
                sum -= scores.iter().sum::<f64>();
                tokens += scores.len();
            }
        }
        if tokens == 0 {
            return Err(Error::data("no document has two tokens, nothing to predict"));
        }
        let nll = sum / tokens as f64;
        Ok(Nll { documents: self.rows.len(), tokens, nll, perplexity: nll.exp() })
    }
}

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
        let text = std::fs::read_to_string(path)
            .map_err(|e| wrong(format!("cannot read: {e}")).with_source(e))?;
        let items: Vec<Item> =
            serde_json::from_str(&text).map_err(|e| wrong(e.to_string()).with_source(e))?;
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
    fn of_corpus(
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

/// What one evaluation gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The figures, by the names of [`FIGURES`].
    pub figures: BTreeMap<String, f64>,
    /// The first continuations of the forget set's prompts.
    pub samples: Vec<Sample>,
}

impl Measured {
    /// Returns the figures as a JSON object in the order of [`FIGURES`].
    pub fn json(&self) -> Value {
        let known = FIGURES.iter().filter_map(|name| Some((*name, *self.figures.get(*name)?)));
        let object: serde_json::Map<String, Value> =
            known.map(|(name, value)| (name.to_owned(), json!(value))).collect();
        Value::Object(object)
    }
}

/// Everything that a run measures, opened and checked before its first step.
pub struct Suite {
    tokenizer: Tokenizer,
    request: Request,
    likelihoods: Vec<(&'static str, Likelihood)>,
    memories: Vec<(&'static str, Memory)>,
}

impl Suite {
    /// Opens the files that `[eval]` names; where it names none, looks at the training corpora themselves.
    pub fn open(recipe: &Recipe, folder: &mut Folder, tokenizer: Tokenizer) -> Result<Self> {
        let (eval, data) = (&recipe.eval, &recipe.data);
        let request = Request {
            max_new_tokens: eval.max_new_tokens,
            end_tokens: folder.end_tokens(&tokenizer)?,
            choice: Choice::Greedy,
            batch: eval.batch,
        };
        let open = |folder: &mut Folder, path: &Path| {
            let options = CorpusOptions {
                context: eval.context,
                chunking: Chunking::Truncate,
                cache_dir: data.cache_dir(),
            };
            folder.corpus(path, &tokenizer, &options, "eval.context")
        };
        let mut likelihoods = Vec::new();
        let mut memories = Vec::new();
        for (name, memory_name, file, prompts, fallback) in [
            (
                "nll_forget",
                Some("verbmem_forget"),
                &eval.forget,
                &eval.verbmem_forget,
                &data.forget,
            ),
            (
                "nll_retain",
                Some("verbmem_retain"),
                &eval.retain,
                &eval.verbmem_retain,
                &data.retain,
            ),
            ("nll_holdout", None, &eval.holdout, &eval.holdout, &eval.holdout),
        ] {
            let own = !file.as_os_str().is_empty();
            let corpus = match (own, fallback.as_os_str().is_empty(), eval.documents) {
                (true, ..) => Some(open(folder, file)?),
                (false, false, 1..) => Some(open(folder, fallback)?),
                _ => None,
            };
            if let Some(memory_name) = memory_name {
                let new = eval.max_new_tokens;
                let memory = match (&corpus, prompts.as_os_str().is_empty()) {
                    (_, false) => Memory::open(prompts, &tokenizer, new)?,
                    (Some(corpus), true) => {
                        Memory::of_corpus(corpus, eval.documents, &tokenizer, new)?
                    }
                    (None, true) => Memory::default(),
                };
                let file =
                    [prompts, file, fallback].into_iter().find(|p| !p.as_os_str().is_empty());
                let shown = file.map_or_else(String::new, |path| path.display().to_string());
                notices::add(&mut folder.notices, memory.notice(&shown));
                folder.check_length(&shown, memory.longest() + new, "eval.max_new_tokens")?;
                if !memory.is_empty() {
                    memories.push((memory_name, memory));
                }
            }
            if let Some(corpus) = corpus {
                let most = if own { usize::MAX } else { eval.documents };
                likelihoods.push((name, Likelihood::new(corpus, most)));
            }
        }
        let suite = Self { tokenizer, request, likelihoods, memories };
        let metric = eval.stop_metric.as_str();
        if suite.memories.iter().any(|(name, memory)| *name == metric && memory.defined() == 0) {
            return Err(Error::config(format!(
                "eval.stop_metric: {metric} is undefined: ROUGE counts letters a-z and digits, and none of the true texts \
                 has any in its first {} tokens (eval.max_new_tokens)",
                eval.max_new_tokens
            ))
            .hint("stop on nll_forget, which works in every script, or do not stop: eval.stop_metric=\"\""));
        }
        if !metric.is_empty() && !suite.names().any(|name| name == metric) {
            return Err(Error::config(format!(
                "eval.stop_metric: this run does not measure {metric}"
            ))
            .hint(format!(
                "name the file it is measured on under [eval], or raise eval.documents above 0; \
                     measured are {}",
                suite.names().collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(suite)
    }

    /// Returns the names of the figures that are defined.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let defined = self.memories.iter().filter(|(_, memory)| memory.defined() > 0);
        let memories = defined.map(|(name, _)| *name);
        memories.chain(self.likelihoods.iter().map(|(name, _)| *name))
    }

    /// Returns the length of the longest document or prompt, tokens: what [`Passes`] must hold.
    pub fn longest(&self) -> usize {
        let documents = self.likelihoods.iter().map(|(_, one)| one.longest());
        documents.chain(self.memories.iter().map(|(_, one)| one.longest())).max().unwrap_or(0)
    }

    /// Measures everything on the evaluated weights of `model`.
    pub fn measure<O: Ops>(
        &self,
        ops: &O,
        model: &mut Model<O>,
        passes: &mut Passes<O>,
    ) -> Result<Measured> {
        let mut measured = Measured::default();
        for (name, memory) in &self.memories {
            let (all, samples) =
                memory.measure(ops, model, passes, &self.tokenizer, &self.request)?;
            if all.mean_rouge_l.is_finite() {
                measured.figures.insert((*name).to_owned(), all.mean_rouge_l);
            }
            if *name == "verbmem_forget" {
                measured.samples = samples.into_iter().take(SAMPLES).collect();
            }
        }
        for (name, likelihood) in &self.likelihoods {
            let one = likelihood.measure(ops, model, passes).map_err(|e| e.at(name))?;
            measured.figures.insert((*name).to_owned(), one.nll);
        }
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_takes_all_or_equal_distances() {
        assert_eq!(spread(3, usize::MAX), [0, 1, 2]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert!(spread(0, 4).is_empty() && spread(4, 0).is_empty());
    }
}
