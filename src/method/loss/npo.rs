//! Negative preference optimisation, in three forms.

use crate::method::{Knobs, Normaliser, Objective, Rows, Span};
use crate::ops::{DocumentFormula, Matched};

/// `(2/beta) log(1 + exp(beta r))` per document, r its log-ratio to the base model.
#[derive(Debug, Clone, Copy)]
pub enum Npo {
    /// r is the sum over the document, documents are averaged.
    Paper,
    /// r is the mean over the T - 1 padded positions, tokens are averaged over the micro-batch.
    MeanTeacher,
    /// Each logit is compared with the base model's.
    Muse,
}

impl Objective for Npo {
    fn name(&self) -> &'static str {
        match self {
            Self::Paper => "npo",
            Self::MeanTeacher => "npo_mt",
            Self::Muse => "npo_muse",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Paper => {
                "(2/beta_npo) log(1 + exp(beta_npo r)), r = sum of log p_y - log p_base,y over a document, mean over documents"
            }
            Self::MeanTeacher => {
                "(2/beta_npo) log(1 + exp(beta_npo r)), r the log-ratio divided by the padded length, tokens averaged over the micro-batch"
            }
            Self::Muse => {
                "(2/beta_npo) log(1 + exp(beta_npo (z - z_base))), mean over vocabulary and B T positions"
            }
        }
    }

    fn gradient(&self) -> &'static str {
        match self {
            Self::Paper => "-2 sigmoid(beta_npo r) (p - e_y)",
            Self::MeanTeacher => "-2 sigmoid(beta_npo r) (p - e_y)",
            Self::Muse => "2 sigmoid(beta_npo (z - z_base))/V",
        }
    }

    fn source(&self) -> &'static str {
        match self {
            Self::Paper => "arXiv 2404.05868; open-unlearning `npo.py`",
            Self::MeanTeacher => "mt-unlearn `losses.py`, `npo`",
            Self::Muse => "muse_bench `iterative.py`, `npo`",
        }
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Paper => "npo_mt and npo_muse are variants of other implementations",
            Self::MeanTeacher => {
                "the base model's log-softmax is taken in full precision here, in fp16 there"
            }
            Self::Muse => {
                "no log-ratio: adding a number to all logits of a row changes it. MUSE also averages over the rows of padding"
            }
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        &["beta_npo"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        let beta = knobs.beta_npo;
        match self {
            Self::Paper | Self::MeanTeacher => Rows::Document(DocumentFormula {
                factor: -2.0,
                slope: beta,
                shift: 0.0,
                against_base: true,
                paired: false,
            }),
            Self::Muse => Rows::Matched(Matched::LogitRatio { beta }),
        }
    }

    fn normaliser(&self) -> Normaliser {
        match self {
            Self::Paper => Normaliser::Documents,
            Self::MeanTeacher => Normaliser::Targets,
            Self::Muse => Normaliser::Positions,
        }
    }

    fn span(&self) -> Span {
        match self {
            Self::MeanTeacher => Span::Padded,
            Self::Paper | Self::Muse => Span::Sum,
        }
    }
}
