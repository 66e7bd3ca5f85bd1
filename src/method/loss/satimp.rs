//! SatImp: gradient ascent weighted by saturation and importance.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `p_y^b1 (1 - p_y)^b2 log p_y` with the weight held constant.
pub struct SatImp;

impl Objective for SatImp {
    fn name(&self) -> &'static str {
        "satimp"
    }

    fn formula(&self) -> &'static str {
        "p_y^b1 (1 - p_y)^b2 log p_y with the weight held constant, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-p_y^b1 (1 - p_y)^b2 (p - e_y)"
    }

    fn source(&self) -> &'static str {
        "arXiv 2505.11953; open-unlearning `trainer/utils.py`, `compute_satimp_loss`"
    }

    fn differs(&self) -> &'static str {
        "public code copies a reference model that the loss never reads, and takes 1 - p_y as a difference"
    }

    fn keys(&self) -> &'static [&'static str] {
        &["satimp_beta1", "satimp_beta2"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Token(TokenFormula {
            p_power: knobs.satimp_beta1,
            q_power: knobs.satimp_beta2,
            ..TokenFormula::constant(-1.0)
        })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
