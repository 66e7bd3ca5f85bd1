//! Negative log-unlikelihood: the loss of the paper.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::TokenFormula;

/// `-log(1 + tol - p_y)`, left alone where `p_y <= threshold`.
///
/// Source: arXiv 2504.13388; mt-unlearn `losses.py`, `neg_log_unlikelihood` (which returns the surrogate
/// `w log p_y` with w = p/(1 + tol - p) held constant).
pub struct Nlul;

impl Objective for Nlul {
    fn name(&self) -> &'static str {
        "nlul"
    }

    fn formula(&self) -> &'static str {
        "-log(1 + tol - p_y) where p_y > threshold, mean over real target tokens"
    }

    fn gradient(&self) -> &'static str {
        "-p_y/(1 + tol - p_y) (p - e_y); 0 where p_y <= threshold"
    }

    fn source(&self) -> &'static str {
        "arXiv 2504.13388; mt-unlearn `losses.py`, `neg_log_unlikelihood`"
    }

    fn differs(&self) -> &'static str {
        "the reference returns the surrogate w log p_y with w = p_y/(1 + tol - p_y) held constant: another value, the \
         same gradient"
    }

    fn keys(&self) -> &'static [&'static str] {
        &["tol", "nlul_threshold"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Token(TokenFormula {
            sign: -1.0,
            p_power: 1.0,
            q_power: 0.0,
            pole: Some(knobs.tol),
            threshold: knobs.nlul_threshold,
        })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
