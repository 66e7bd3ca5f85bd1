//! CE-U: towards the model's own distribution with the target struck out.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// Cross-entropy to `softmax(z)` without y, held constant: NLUL with tol 0, but for its value.
pub struct Ceu;

impl Objective for Ceu {
    fn name(&self) -> &'static str {
        "ceu"
    }

    fn formula(&self) -> &'static str {
        "-sum over i != y of t_i log p_i with t = p/(1 - p_y) held constant, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-p_y/(1 - p_y) (p - e_y)"
    }

    fn source(&self) -> &'static str {
        "arXiv 2503.01224; open-unlearning `ceu.py`"
    }

    fn differs(&self) -> &'static str {
        "public code skips the first answer token of a question; in whole documents that is the first token, which has no prediction"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Token(TokenFormula { p_power: 1.0, pole: Some(0.0), ..TokenFormula::constant(-1.0) })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
