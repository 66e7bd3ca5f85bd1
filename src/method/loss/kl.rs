//! Kullback-Leibler penalty against the teacher.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// `KL(q, p)`, q the teacher's distribution, all positions.
#[derive(Debug, Clone, Copy)]
pub enum Kl {
    /// The reference's mean, over B T positions, padding among them.
    Padded,
    /// The mean over real tokens.
    Tokens,
    /// Logits taken for log-probabilities.
    Muse,
}

impl Objective for Kl {
    fn name(&self) -> &'static str {
        match self {
            Self::Padded => "kl",
            Self::Tokens => "kl_tokens",
            Self::Muse => "kl_muse",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Padded => "KL(teacher, student), masked sum over all positions divided by B T",
            Self::Tokens => "KL(teacher, student), mean over real tokens",
            Self::Muse => {
                "sum over the vocabulary of exp(z_ref) (z_ref - z), summed over positions and divided by B"
            }
        }
    }

    fn gradient(&self) -> &'static str {
        match self {
            Self::Padded => "p - q, q = softmax(z_ref)",
            Self::Tokens => "p - q, q = softmax(z_ref)",
            Self::Muse => "-exp(z_ref)",
        }
    }

    fn source(&self) -> &'static str {
        match self {
            Self::Padded => {
                "mt-unlearn `losses.py`, `kl`; open-unlearning `trainer/utils.py`, `compute_kl_divergence`"
            }
            Self::Tokens => "the mean that the padding of others does not change",
            Self::Muse => "muse_bench `iterative.py`, `klr`",
        }
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Padded => {
                "open-unlearning also sums over padding, which is not computed here; kl_tokens divides by real tokens only"
            }
            Self::Tokens => "kl is the references' form",
            Self::Muse => {
                "no divergence and unbounded below; for comparison with MUSE's figures alone. MUSE also sums the rows of padding"
            }
        }
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(match self {
            Self::Padded | Self::Tokens => Matched::Kl,
            Self::Muse => Matched::LogitKl,
        })
    }

    fn normaliser(&self) -> Normaliser {
        match self {
            Self::Padded => Normaliser::Positions,
            Self::Tokens => Normaliser::Tokens,
            Self::Muse => Normaliser::AllDocuments,
        }
    }
}
