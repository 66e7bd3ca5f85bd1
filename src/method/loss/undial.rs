//! UNDIAL: towards the base model with the target's logit lowered.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// `KL(t, p)` with `t = softmax(z_base - beta e_y)`: their cross-entropy less the entropy of t, which is constant.
#[derive(Debug, Clone, Copy)]
pub enum Undial {
    /// The mean over real targets.
    Paper,
    /// The mean over B (T - 1) positions.
    OpenUnlearning,
}

impl Objective for Undial {
    fn name(&self) -> &'static str {
        match self {
            Self::Paper => "undial",
            Self::OpenUnlearning => "undial_ou",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Paper => {
                "KL(t, p), t = softmax(z_base - beta_undial e_y), mean over real target tokens"
            }
            Self::OpenUnlearning => {
                "KL(t, p), t = softmax(z_base - beta_undial e_y), masked sum over targets divided by B (T - 1)"
            }
        }
    }

    fn gradient(&self) -> &'static str {
        "p - t"
    }

    fn source(&self) -> &'static str {
        match self {
            Self::Paper => "arXiv 2402.10052",
            Self::OpenUnlearning => "open-unlearning `trainer/utils.py`, `compute_undial_loss`",
        }
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Paper => {
                "public code returns the cross-entropy, which is larger by the constant entropy of t; undial_ou is open-unlearning's variant"
            }
            Self::OpenUnlearning => {
                "averages over padding too; there it also trains the rows of padding and of masked prompts, whose label -100 lowers entry V - 100 of the vocabulary, and those rows do not exist here"
            }
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        &["beta_undial"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Matched(Matched::Undial { strength: knobs.beta_undial })
    }

    fn normaliser(&self) -> Normaliser {
        match self {
            Self::Paper => Normaliser::Targets,
            Self::OpenUnlearning => Normaliser::ShiftedPositions,
        }
    }
}
