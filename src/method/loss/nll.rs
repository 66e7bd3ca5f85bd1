//! Negative log-likelihood: plain training.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `-log p_y`. Source: mt-unlearn `losses.py`, `nll`.
pub struct Nll;

impl Objective for Nll {
    fn name(&self) -> &'static str {
        "nll"
    }

    fn formula(&self) -> &'static str {
        "-log p_y, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "p - e_y"
    }

    fn source(&self) -> &'static str {
        "ordinary training; as a penalty, the retain term of GradDiff and of MUSE's `gdr`; mt-unlearn `losses.py`, `nll`"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Token(TokenFormula::constant(1.0))
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
