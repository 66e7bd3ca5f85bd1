//! Evaluation inside a run: the NLL of documents and the verbatim memory of prompts.

use std::path::Path;

use super::recipe::Recipe;
use crate::data::{Chunking, CorpusOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::likelihood::{Likelihood, NLL};
use crate::eval::monitored::{FORGET, HOLDOUT, Measured, RETAIN};
use crate::eval::verbatim::{Memory, VERBATIM};
use crate::folder::Folder;
use crate::method::passes::Passes;
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::ops::Ops;
use crate::report::notices;

/// Continuations kept for the report, from each set of prompts.
const SAMPLES: usize = 3;

/// Everything that a run measures, opened and checked before its first step.
pub struct Monitor {
    tokenizer: Tokenizer,
    request: Request,
    /// By their keys.
    likelihoods: Vec<(String, Likelihood)>,
    /// By their keys.
    memories: Vec<(String, Memory)>,
}

impl Monitor {
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
        for (texts, file, prompts, fallback) in [
            (FORGET, &eval.forget, Some(&eval.verbmem_forget), &data.forget),
            (RETAIN, &eval.retain, Some(&eval.verbmem_retain), &data.retain),
            (HOLDOUT, &eval.holdout, None, &eval.holdout),
        ] {
            let own = !file.as_os_str().is_empty();
            let corpus = match (own, fallback.as_os_str().is_empty(), eval.documents) {
                (true, ..) => Some(open(folder, file)?),
                (false, false, 1..) => Some(open(folder, fallback)?),
                _ => None,
            };
            if let Some(prompts) = prompts {
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
                let prompts = match prompts.as_os_str().is_empty() {
                    true => "lower eval.context",
                    false => "shorten the prompts",
                };
                let key = "eval.max_new_tokens";
                folder.check_generation(&shown, memory.longest(), new, key, prompts)?;
                if !memory.is_empty() {
                    memories.push((VERBATIM.key(texts.key), memory));
                }
            }
            if let Some(corpus) = corpus {
                let most = if own { usize::MAX } else { eval.documents };
                likelihoods.push((NLL.key(texts.key), Likelihood::new(corpus, most)));
            }
        }
        let monitor = Self { tokenizer, request, likelihoods, memories };
        let metric = eval.stop_metric.as_str();
        if monitor.memories.iter().any(|(key, memory)| key == metric && memory.defined() == 0) {
            return Err(Error::config(format!(
                "eval.stop_metric: {metric} is undefined: ROUGE counts letters a-z and digits, and none of the true texts \
                 has any in its first {} tokens (eval.max_new_tokens)",
                eval.max_new_tokens
            ))
            .hint(format!(
                "stop on {}, which works in every script, or do not stop: eval.stop_metric=\"\"",
                NLL.key(FORGET.key)
            )));
        }
        if !metric.is_empty() && !monitor.names().any(|name| name == metric) {
            return Err(Error::config(format!(
                "eval.stop_metric: this run does not measure {metric}"
            ))
            .hint(format!(
                "name the file it is measured on under [eval], or raise eval.documents above 0; \
                     measured are {}",
                monitor.names().collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(monitor)
    }

    /// Returns the keys of the metrics that are defined.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let defined = self.memories.iter().filter(|(_, memory)| memory.defined() > 0);
        let memories = defined.map(|(key, _)| key.as_str());
        memories.chain(self.likelihoods.iter().map(|(key, _)| key.as_str()))
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
        for (key, memory) in &self.memories {
            let (all, samples) =
                memory.measure(ops, model, passes, &self.tokenizer, &self.request)?;
            if all.mean_rouge_l.is_finite() {
                measured.figures.insert(key.clone(), all.mean_rouge_l);
            }
            if *key == VERBATIM.key(FORGET.key) {
                measured.samples = samples.into_iter().take(SAMPLES).collect();
            }
        }
        for (key, likelihood) in &self.likelihoods {
            let one = likelihood.measure(ops, model, passes).map_err(|e| e.at(key))?;
            measured.figures.insert(key.clone(), one.nll);
        }
        Ok(measured)
    }
}
