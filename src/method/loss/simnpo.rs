//! SimNPO: NPO by mean log-likelihood, without a base model.

use crate::method::{Knobs, Normaliser, Objective, Rows, Span};
use crate::ops::DocumentFormula;

/// `-(2/beta) log sigmoid(beta (l - delta))` per document, l its mean NLL.
#[derive(Debug, Clone, Copy)]
pub enum SimNpo {
    /// l is the mean over targets.
    Paper,
    /// l is divided by one more, the document's length.
    OpenUnlearning,
}

impl Objective for SimNpo {
    fn name(&self) -> &'static str {
        match self {
            Self::Paper => "simnpo",
            Self::OpenUnlearning => "simnpo_ou",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Paper => {
                "-(2/beta_simnpo) log sigmoid(beta_simnpo (l - delta_simnpo)), l the mean NLL of a document's targets, mean over documents"
            }
            Self::OpenUnlearning => {
                "-(2/beta_simnpo) log sigmoid(beta_simnpo (l - delta_simnpo)), l the NLL of a document divided by its length n, mean over documents"
            }
        }
    }

    fn gradient(&self) -> &'static str {
        match self {
            Self::Paper => "-2/(n - 1) sigmoid(beta_simnpo (delta_simnpo - l)) (p - e_y)",
            Self::OpenUnlearning => "-2/n sigmoid(beta_simnpo (delta_simnpo - l)) (p - e_y)",
        }
    }

    fn source(&self) -> &'static str {
        match self {
            Self::Paper => "arXiv 2410.07163, its gamma being beta delta",
            Self::OpenUnlearning => "open-unlearning `simnpo.py`",
        }
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Paper => {
                "the paper's gamma is beta_simnpo delta_simnpo; simnpo_ou is open-unlearning's variant"
            }
            Self::OpenUnlearning => {
                "counts labels before they are shifted, which is one more than are predicted where the whole document is labelled"
            }
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        &["beta_simnpo", "delta_simnpo"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Document(DocumentFormula {
            factor: -2.0,
            slope: knobs.beta_simnpo,
            shift: -knobs.delta_simnpo,
            against_base: false,
            paired: false,
        })
    }

    fn normaliser(&self) -> Normaliser {
        match self {
            Self::Paper => Normaliser::OwnTargets,
            Self::OpenUnlearning => Normaliser::OwnTokens,
        }
    }

    fn span(&self) -> Span {
        match self {
            Self::Paper => Span::Targets,
            Self::OpenUnlearning => Span::Tokens,
        }
    }
}
