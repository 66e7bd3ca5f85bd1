//! WGA: gradient ascent weighted by a power of the probability.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `p_y^beta log p_y` with the power held constant.
pub struct Wga;

impl Objective for Wga {
    fn name(&self) -> &'static str {
        "wga"
    }

    fn formula(&self) -> &'static str {
        "p_y^beta_wga log p_y with the power held constant, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-p_y^beta_wga (p - e_y)"
    }

    fn source(&self) -> &'static str {
        "arXiv 2502.19301; open-unlearning `trainer/utils.py`, `compute_wga_loss`"
    }

    fn differs(&self) -> &'static str {
        "public code copies a reference model that the loss never reads"
    }

    fn keys(&self) -> &'static [&'static str] {
        &["beta_wga"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Token(TokenFormula { p_power: knobs.beta_wga, ..TokenFormula::constant(-1.0) })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
