//! Likelihood of documents: NLL and perplexity.

use serde::Serialize;

use super::metric::membership::mean_nll;
use super::metric::{Direction, Metric};
use super::spread;
use crate::data::Corpus;
use crate::error::{Error, Result};
use crate::method::passes::Passes;
use crate::model::Model;
use crate::ops::Ops;

/// Mean NLL, as runs measure it.
pub const NLL: Metric = Metric {
    name: "nll_{}",
    label: Some("NLL"),
    unit: "nats per token",
    definition: "mean NLL of all tokens but the first of each document",
    direction: Direction::Lower,
    on_forget: Some(Direction::Retrained),
};

/// Mean NLL of a file, by its path in the JSON of `eval --nll`.
pub const FILE_NLL: Metric = Metric { name: "nll.{}.nll", ..NLL };

/// Perplexity of a file, by its path in the JSON of `eval --nll`.
pub const FILE_PERPLEXITY: Metric = Metric {
    name: "nll.{}.perplexity",
    definition: "exp of the mean NLL of all tokens but the first of each document",
    ..PERPLEXITY
};

/// Perplexity, as suites measure it ([`perplexity`]).
pub const PERPLEXITY: Metric = Metric {
    name: "ppl_{}",
    label: None,
    unit: "",
    definition: "perplexity of the privleak texts: exp of the mean NLL over all their tokens",
    direction: Direction::Lower,
    on_forget: Some(Direction::Retrained),
};

/// Perplexity of a request of a sequence, the `sust` series of MUSE.
pub const PPL_SUST: Metric = Metric {
    name: "ppl_sust_{}",
    definition: "perplexity of request K, with `--series`",
    direction: Direction::Retrained,
    ..PERPLEXITY
};

/// Perplexity of a request of a sequence, the `scal` series of MUSE.
pub const PPL_SCAL: Metric = Metric { name: "ppl_scal_{}", ..PPL_SUST };

/// Returns exp of the mean NLL over all tokens; NaN of none.
pub fn perplexity<'a>(log_probs: impl Iterator<Item = &'a [f64]>) -> f64 {
    let all: Vec<f64> = log_probs.flatten().copied().collect();
    mean_nll(&all).exp()
}

/// Documents scored at a time.
const DOCUMENTS: usize = 64;

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
