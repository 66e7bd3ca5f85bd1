//! Whole benchmarks on models in memory: MUSE and TOFU, and the file that keeps their results.
//!
//! A suite is opened once ([`Kind::open`]), tokenised for each model, and measured on the weights that a [`Subject`] holds:
//! the very ones a run trains, or those of a folder. docs/evaluation.md defines every metric.

pub mod docs;
pub mod mini_muse;
pub mod muse;
pub mod record;
pub mod tofu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::metric::extraction::{
    EXACT_MEMORIZATION, EXTRACTION_STRENGTH, exact_memorisation, extraction_strength,
};
use super::metric::rouge::Scorer;
use crate::data::{Table, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::likelihood::{FILE_NLL, FILE_PERPLEXITY};
use crate::eval::mean;
use crate::eval::metric::{self, Direction, Metric};
use crate::eval::monitored::monitored;
use crate::eval::outcome::{Detail, Outcome};
use crate::eval::verbatim::{FILE_F1, FILE_RECALL};
use crate::method::passes::{Passes, TokenScores};
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::ops::Ops;

/// All benchmarks.
pub const SUITES: [&Kind; 2] = [&muse::MUSE, &tofu::TOFU];

/// A benchmark: what it measures and how it is opened.
#[derive(Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Its subject, in a few words.
    pub about: &'static str,
    /// Its parts, each of which can be measured alone.
    pub parts: &'static [Part],
    /// Metrics that need several parts, or options of their own.
    pub derived: &'static [Measures],
    /// The options of the command line that no other suite takes.
    pub options: &'static [&'static str],
    /// Reads its files from a folder.
    ///
    /// Errors: [`crate::Kind::Config`] for options that cannot work, [`crate::Kind::Data`] where a file is broken, one that
    /// was asked for by name is not there, or none is there at all.
    pub open: fn(&Path, Options) -> Result<Box<dyn Suite>>,
}

/// A part of a benchmark that can be measured alone.
#[derive(Debug)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// The metrics that it measures.
    pub metrics: &'static [Measures],
}

/// A metric, and the texts that it is measured on; none where the metric names none.
pub type Measures = (&'static Metric, &'static [&'static str]);

impl Kind {
    /// Returns the names of its parts.
    pub fn part_names(&self) -> Vec<&'static str> {
        self.parts.iter().map(|part| part.name).collect()
    }

    /// Returns everything that it measures.
    pub fn measures(&self) -> impl Iterator<Item = &'static Measures> {
        self.parts.iter().flat_map(|part| part.metrics).chain(self.derived)
    }

    /// Returns the direction in which the metric with this key is good; `None` where it has no such metric.
    pub fn direction(&self, key: &str) -> Option<Direction> {
        metric::direction(self.measures().map(|(metric, _)| *metric), key)
    }
}

/// Returns the direction in which a metric of a run, of a file or of any suite is good; `None` for an unknown key.
pub fn direction(key: &str) -> Option<Direction> {
    let own = monitored().iter().map(|one| one.metric);
    let files = [&FILE_NLL, &FILE_PERPLEXITY, &FILE_F1, &FILE_RECALL];
    let suites = SUITES.into_iter().flat_map(Kind::measures).map(|(metric, _)| *metric);
    metric::direction(own.chain(files).chain(suites), key)
}

/// The metrics that are measured, and limits on the data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Names of parts ([`Kind::parts`]); empty for all whose files are there.
    pub metrics: Vec<String>,
    /// The first items of every file that are looked at.
    pub limit: Option<usize>,
    /// MUSE: examples before a question of knowledge memorisation; all that the file has by default.
    pub shots: Option<usize>,
    /// MUSE: a sequence of requests: the perplexity of each is measured too.
    pub series: Option<muse::Series>,
    /// MUSE: tokens of a document of such a request; longer ones are cut.
    pub context: usize,
    /// TOFU: the forget set, such as `forget10`; by default the one that the folder has.
    pub forget_set: Option<String>,
    /// TOFU: a name of [`tofu::TEMPLATES`], or a text with `{question}`; the first of them by default.
    pub template: Option<String>,
    /// TOFU: where the scored part of an answer begins.
    pub answer_tokens: tofu::AnswerTokens,
}

impl Options {
    /// Returns whether the part `name` is to be measured.
    fn wants(&self, name: &str) -> bool {
        self.metrics.is_empty() || self.metrics.iter().any(|metric| metric == name)
    }
}

/// A benchmark, opened.
pub trait Suite: Send + Sync {
    /// Returns the hashes of all files, by their paths within the data folder.
    fn hashes(&self) -> BTreeMap<String, String>;

    /// Returns everything that decides the results besides model and data.
    fn settings(&self) -> Value;

    /// Returns what is not measured, since its files are not there.
    fn missing(&self) -> Vec<&'static str>;

    /// Returns the number of models that it wants, if not any number: one for each request of a sequence.
    fn models(&self) -> Option<usize> {
        None
    }

    /// Tokenises everything for one model.
    ///
    /// Errors: [`crate::Kind::Data`] where a text cannot be used, and those of the tokenizer.
    fn prepare(&self, tokenizer: &Tokenizer) -> Result<Box<dyn Prepared>>;

    /// Sets the results that compare with a retrained model, or takes them out where there is none: results that were kept
    /// from an earlier comparison must not outlive it.
    ///
    /// Errors: [`crate::Kind::Numeric`] where a value that is compared is not a number.
    fn conclude(&self, outcome: &mut Outcome, retrained: &Retrained) -> Result<()>;
}

/// A benchmark, tokenised for one model.
pub trait Prepared: Send + Sync {
    /// Returns the length of the longest sequence, tokens, new ones included: what [`Passes`] must hold.
    fn longest(&self) -> usize;

    /// Returns a line for everything that was cut or cannot be scored.
    fn notices(&self) -> &[String];

    /// Measures everything; `say` hears what is done next.
    ///
    /// Results do not depend on the batch size, nor on what was measured before. Errors: those of the model.
    fn measure(&self, model: &mut dyn LanguageModel, say: &mut dyn FnMut(&str)) -> Result<Outcome>;
}

/// A language model that continues prompts and scores texts.
pub trait LanguageModel {
    /// Continues every prompt greedily by up to `max_new_tokens` tokens; returns the texts without special tokens.
    ///
    /// Errors: those of the model and of the tokenizer.
    fn answers(&mut self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<String>>;

    /// Returns what it makes of the tokens of each row, the first left out.
    ///
    /// Errors: those of the model.
    fn scores(&mut self, rows: &[&[u32]]) -> Result<Vec<TokenScores>>;
}

impl dyn LanguageModel + '_ {
    /// Returns what it makes of the tokens of each row from `start` on.
    fn completions(&mut self, rows: &[Completion]) -> Result<Vec<TokenScores>> {
        let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        let mut all = self.scores(&ids)?;
        for (row, scores) in rows.iter().zip(&mut all) {
            scores.log_probs.drain(..row.start - 1);
            scores.hits.drain(..row.start - 1);
        }
        Ok(all)
    }
}

/// A model in memory, and how it is asked.
pub struct Subject<'a, O: Ops> {
    /// The backend.
    pub ops: &'a O,
    /// The model whose evaluated weights are asked.
    pub model: &'a mut Model<O>,
    /// Buffers for packs of at least the suite's longest sequence; generation borrows them.
    pub passes: &'a mut Passes<O>,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Ids after which a generation stops.
    pub end_tokens: &'a [u32],
    /// Prompts generated at the same time.
    pub batch: usize,
}

impl<O: Ops> LanguageModel for Subject<'_, O> {
    fn answers(&mut self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<String>> {
        let request = Request {
            max_new_tokens,
            end_tokens: self.end_tokens.to_vec(),
            choice: Choice::Greedy,
            batch: self.batch,
        };
        let outputs = self.passes.generate(self.ops, self.model, prompts, &request)?;
        outputs.iter().map(|ids| self.tokenizer.decode(ids, true)).collect()
    }

    fn scores(&mut self, rows: &[&[u32]]) -> Result<Vec<TokenScores>> {
        self.passes.examine(self.ops, self.model, rows)
    }
}

/// The ids of a prompt and its continuation, and where the continuation starts: at 1 or later, and before the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Completion {
    ids: Vec<u32>,
    start: usize,
}

/// The model that never saw the forget set, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Retrained {
    /// Its results.
    Measured(Box<Outcome>),
    /// Its area under the ROC curve, forget against holdout, Min-40 %.
    Area(f64),
    /// Nothing.
    Unknown,
}

/// The name of the part that measures both metrics of extraction.
const EXTRACTION: &str = "extraction";

/// The metrics of the part [`EXTRACTION`].
const EXTRACTION_METRICS: &[Measures] = &[(&EXACT_MEMORIZATION, &[]), (&EXTRACTION_STRENGTH, &[])];

/// Sets the metrics of extraction; the last token of each row is not looked at (the reference takes it for the end mark).
fn extraction(outcome: &mut Outcome, scores: &[TokenScores]) {
    let hits = scores.iter().map(|scores| &scores.hits[..scores.hits.len().saturating_sub(1)]);
    let hits: Vec<&[bool]> = hits.collect();
    for (metric, of) in [
        (&EXACT_MEMORIZATION, exact_memorisation as fn(&[bool]) -> Option<f64>),
        (&EXTRACTION_STRENGTH, extraction_strength),
    ] {
        let all: Vec<f64> = hits.iter().filter_map(|hits| of(hits)).collect();
        outcome.set(metric.name, mean(all.iter().copied()));
        let all = all.into_iter().map(Some).collect();
        outcome.details.insert(metric.name, Detail::Fractions(all));
    }
}

/// Refuses names that are not of a part of `kind`; an empty list stands for all.
///
/// Errors: [`crate::Kind::Config`].
fn check_parts(wanted: &[String], kind: &Kind) -> Result<()> {
    let known = kind.part_names();
    for name in wanted {
        if !known.contains(&name.as_str()) {
            let mut hint = format!("known are {}", known.join(", "));
            if let Some(near) = crate::error::nearest(name, known.iter().copied()) {
                hint.push_str(&format!("; nearest is {near}"));
            }
            return Err(Error::config(format!("--metric: `{name}` is unknown")).hint(hint));
        }
    }
    Ok(())
}

/// Says how many of the true texts of the figure `name` ROUGE cannot score; benchmarks count 0 for them.
fn unscored(name: &str, truths: &[String]) -> Option<String> {
    let scorer = Scorer::new();
    let none = truths.iter().filter(|truth| !scorer.defined(truth)).count();
    let all = truths.len();
    match none {
        0 => None,
        _ if none == all => Some(format!(
            "warning: {name}: undefined (null): ROUGE counts letters a-z and digits, and none of the {all} true texts \
             has any"
        )),
        _ => Some(format!(
            "warning: {name}: {none} of {all} true texts have no letter a-z and no digit, which is all that ROUGE \
             counts; as in the benchmark they count 0, forgotten or not"
        )),
    }
}

/// Says how many of `all` continuations have no token that extraction looks at.
fn uncounted(none: usize, all: usize) -> Option<String> {
    (none > 0).then(|| {
        format!(
            "warning: {EXTRACTION}: {none} of {all} continuations have no token before their last one and are left out"
        )
    })
}

/// Opens the first file of `dir` that has one of the names `stems`, without its ending.
fn find(dir: &Path, stems: &[String]) -> Option<PathBuf> {
    stems.iter().find_map(|stem| Table::find(dir, stem))
}

/// Hashes of the files that a suite was read from, by their paths within its folder.
fn hashes<'a>(dir: &Path, tables: impl IntoIterator<Item = &'a Table>) -> BTreeMap<String, String> {
    let entry = |table: &Table| {
        let path = table.path().strip_prefix(dir).unwrap_or(table.path());
        (path.display().to_string(), format!("{:032x}", table.hash()))
    };
    tables.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_tells_the_metrics_of_runs_files_and_suites() {
        for (key, wanted) in [
            ("verbmem_forget", Some(Direction::Retrained)),
            ("verbmem_retain", Some(Direction::Higher)),
            ("verbmem.verbmem_forget.rouge_l_f1", Some(Direction::Retrained)),
            ("verbmem.prompts.rouge_l_recall", Some(Direction::Higher)),
            ("nll_forget", Some(Direction::Retrained)),
            ("nll_retain", Some(Direction::Lower)),
            ("nll.forget.v2.nll", Some(Direction::Retrained)),
            ("nll.retain.perplexity", Some(Direction::Lower)),
            ("privleak", Some(Direction::Zero)),
            ("auc_forget_holdout", Some(Direction::Retrained)),
            ("forget_quality", Some(Direction::Higher)),
            ("model_utility", Some(Direction::Higher)),
            ("verbmem_f", Some(Direction::Retrained)),
            ("knowmem_f", Some(Direction::Retrained)),
            ("knowmem_r", Some(Direction::Higher)),
            ("mmlu_val", Some(Direction::Higher)),
            ("ppl_sust_2", Some(Direction::Retrained)),
            ("ppl_scal_1", Some(Direction::Retrained)),
            ("ppl_forget", Some(Direction::Retrained)),
            ("ppl_retain", Some(Direction::Lower)),
            ("forget_Q_A_Prob", Some(Direction::Retrained)),
            ("ra_Q_A_Prob_normalised", Some(Direction::Higher)),
            ("retain_Q_A_ROUGE", Some(Direction::Higher)),
            ("forget_Q_A_ROUGE", Some(Direction::Retrained)),
            ("forget_Truth_Ratio", Some(Direction::Higher)),
            ("exact_memorization", Some(Direction::Retrained)),
            ("extraction_strength", Some(Direction::Retrained)),
            ("steps", None),
            ("nll.forget.tokens", None),
        ] {
            assert_eq!(direction(key), wanted, "{key}");
        }
    }

    #[test]
    fn every_metric_of_a_suite_has_a_key_of_its_own() {
        for kind in SUITES {
            let mut keys: Vec<String> = Vec::new();
            for (metric, texts) in kind.measures() {
                let texts = if texts.is_empty() { &[""] } else { *texts };
                keys.extend(texts.iter().map(|texts| metric.key(texts)));
            }
            for (i, key) in keys.iter().enumerate() {
                assert!(
                    !keys[..i].contains(key) && !key.contains(['{', '}']),
                    "{}: {key}",
                    kind.name
                );
            }
        }
    }
}
