//! UCE: the unlearning cross-entropy of MOLLM.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `-log(1 - p_y/2)`: bounded, and so is its weight.
pub struct Uce;

impl Objective for Uce {
    fn name(&self) -> &'static str {
        "uce"
    }

    fn formula(&self) -> &'static str {
        "-log(1 - p_y/2), mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-p_y/(2 - p_y) (p - e_y)"
    }

    fn source(&self) -> &'static str {
        "MOLLM; FedOSD `UnlearnAlgorithm.py`"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Token(TokenFormula { p_power: 1.0, pole: Some(1.0), ..TokenFormula::constant(-1.0) })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
