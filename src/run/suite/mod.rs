//! Whole benchmarks on models in memory: MUSE and TOFU, and the file that keeps their results.
//!
//! A suite is read once ([`muse::Muse`], [`tofu::Tofu`]), tokenised for each model, and measured on the weights that a
//! [`Subject`] holds: the very ones a run trains, or those of a folder. docs/evaluation.md defines every figure.

pub mod muse;
pub mod record;
pub mod tofu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::{Table, Tokenizer};
use crate::error::{Error, Result};
use crate::eval::rouge::Scorer;
use crate::method::passes::{Passes, TokenScores};
use crate::model::Model;
use crate::model::generate::{Choice, Request};
use crate::ops::Ops;
use crate::report::direction::Direction;

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

impl<O: Ops> Subject<'_, O> {
    /// Continues every prompt greedily by up to `max_new_tokens` tokens; returns the texts without special tokens.
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

    /// Returns what the model makes of the tokens of each row, the first left out.
    fn scores(&mut self, rows: &[&[u32]]) -> Result<Vec<TokenScores>> {
        self.passes.examine(self.ops, self.model, rows)
    }

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

/// The ids of a prompt and its continuation, and where the continuation starts: at 1 or later, and before the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Completion {
    ids: Vec<u32>,
    start: usize,
}

/// What a suite says of one model: its figures by name, in the order of the documentation, and all that is behind them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Numbers, or null where one is not defined.
    pub figures: Map<String, Value>,
    /// Items, tables and samples that the figures are made of.
    pub details: Map<String, Value>,
}

impl Outcome {
    /// Sets a figure; a number that is not finite becomes null.
    fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.insert(name.into(), value.into());
    }

    /// Returns a figure, if it was measured and is defined.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.as_f64()
    }
}

/// Says what value of a figure is good, in the words of a report; "-" for a name that says nothing.
pub fn good(figure: &str) -> &'static str {
    Direction::of(figure).map_or("-", Direction::label)
}

/// A benchmark, read.
#[non_exhaustive]
pub enum Suite {
    /// MUSE.
    Muse(Box<muse::Muse>),
    /// TOFU.
    Tofu(tofu::Tofu),
}

impl Suite {
    /// Returns the hashes of all files, by their paths within the data folder.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        match self {
            Self::Muse(suite) => suite.hashes(),
            Self::Tofu(suite) => suite.hashes(),
        }
    }

    /// Returns everything that decides the figures beside model and data.
    pub fn settings(&self) -> Value {
        match self {
            Self::Muse(suite) => suite.settings(),
            Self::Tofu(suite) => suite.settings(),
        }
    }

    /// Returns what is not measured, since its files are not there.
    pub fn missing(&self) -> Vec<&'static str> {
        match self {
            Self::Muse(suite) => suite.missing().to_vec(),
            Self::Tofu(suite) => suite.missing(),
        }
    }

    /// Tokenises everything for one model.
    pub fn prepare(&self, tokenizer: &Tokenizer) -> Result<Prepared> {
        Ok(match self {
            Self::Muse(suite) => Prepared::Muse(suite.prepare(tokenizer)?),
            Self::Tofu(suite) => Prepared::Tofu(suite.prepare(tokenizer)?),
        })
    }
}

/// A benchmark, tokenised for one model.
#[non_exhaustive]
pub enum Prepared {
    /// MUSE.
    Muse(muse::Prepared),
    /// TOFU.
    Tofu(tofu::Prepared),
}

impl Prepared {
    /// Returns the length of the longest sequence, tokens, new ones included: what [`Passes`] must hold.
    pub fn longest(&self) -> usize {
        match self {
            Self::Muse(suite) => suite.longest(),
            Self::Tofu(suite) => suite.longest(),
        }
    }

    /// Returns a line for everything that was cut or cannot be scored.
    pub fn notices(&self) -> &[String] {
        match self {
            Self::Muse(suite) => &suite.notices,
            Self::Tofu(suite) => &suite.notices,
        }
    }

    /// Measures everything; `say` hears what is done next.
    ///
    /// Figures do not depend on the batch size, nor on what was measured before.
    pub fn measure<O: Ops>(
        &self,
        subject: &mut Subject<'_, O>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        match self {
            Self::Muse(suite) => suite.measure(subject, say),
            Self::Tofu(suite) => suite.measure(subject, say),
        }
    }
}

/// The model that never saw the forget set, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Retrained {
    /// What was measured of it.
    Measured(Box<Outcome>),
    /// Its area under the ROC curve, forget against holdout, Min-40 %.
    Area(f64),
    /// Nothing.
    Unknown,
}

/// Sets the figures that compare with a retrained model, or takes them out where there is none: figures that were kept
/// from an earlier comparison must not outlive it.
///
/// Errors: [`crate::Kind::Numeric`] where a truth ratio is not a number.
pub fn conclude(outcome: &mut Outcome, retrained: &Retrained) -> Result<()> {
    for name in ["privleak", "forget_quality"] {
        outcome.figures.shift_remove(name);
        outcome.details.shift_remove(name);
    }
    match retrained {
        Retrained::Measured(other) => {
            if let Some(area) = other.get("auc_forget_holdout") {
                muse::conclude(outcome, area);
            }
            tofu::conclude(outcome, other)
        }
        Retrained::Area(area) => {
            muse::conclude(outcome, *area);
            Ok(())
        }
        Retrained::Unknown => Ok(()),
    }
}

/// Refuses names that are not in `known`; an empty list stands for all.
///
/// Errors: [`crate::Kind::Config`].
fn check_metrics(wanted: &[String], known: &[&str]) -> Result<()> {
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
            "warning: extraction: {none} of {all} continuations have no token before their last one and are left out"
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
