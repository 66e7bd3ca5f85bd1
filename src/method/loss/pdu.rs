//! PDU: flattening of the logits; its dual variable is `method.dual_rate`.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// `(max z - mean z)^2`.
#[derive(Debug, Clone, Copy)]
pub enum Pdu {
    /// The mean over real targets.
    Paper,
    /// The mean over real tokens, the last of a document among them.
    OpenUnlearning,
}

impl Objective for Pdu {
    fn name(&self) -> &'static str {
        match self {
            Self::Paper => "pdu",
            Self::OpenUnlearning => "pdu_ou",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Paper => "(max z - mean z)^2, mean over real target tokens",
            Self::OpenUnlearning => "(max z - mean z)^2, mean over real tokens",
        }
    }

    fn gradient(&self) -> &'static str {
        "2 (max z - mean z) (e_argmax - 1/V)"
    }

    fn source(&self) -> &'static str {
        match self {
            Self::Paper => "open-unlearning `pdu.py`, over positions with a target",
            Self::OpenUnlearning => "open-unlearning `pdu.py`",
        }
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Paper => "pdu_ou is open-unlearning's variant",
            Self::OpenUnlearning => {
                "the mask is not shifted: the last position of a document counts, and of an answer the prompt's last one does not"
            }
        }
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(Matched::Flatten)
    }

    fn normaliser(&self) -> Normaliser {
        match self {
            Self::Paper => Normaliser::Targets,
            Self::OpenUnlearning => Normaliser::Tokens,
        }
    }
}
