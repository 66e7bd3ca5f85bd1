//! Log-likelihood: gradient ascent.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `log p_y`. Source: mt-unlearn `losses.py`, `loglikelihood`.
pub struct Ll;

impl Objective for Ll {
    fn name(&self) -> &'static str {
        "ll"
    }

    fn formula(&self) -> &'static str {
        "log p_y, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-(p - e_y)"
    }

    fn source(&self) -> &'static str {
        "gradient ascent; mt-unlearn `losses.py`, `loglikelihood`; open-unlearning `grad_ascent.py`"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Token(TokenFormula::constant(-1.0))
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
