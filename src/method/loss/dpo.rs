//! Direct preference optimisation: an alternative answer instead of what is forgotten.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::DocumentFormula;

/// `-(2/beta) log sigmoid(beta (r_win - r_lose))` per pair; refusals as alternatives make it IDK.
pub struct Dpo;

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn formula(&self) -> &'static str {
        "-(2/beta_npo) log sigmoid(beta_npo (r_win - r_lose)), r = sum of log p_y - log p_base,y over a document, mean over pairs"
    }

    fn gradient(&self) -> &'static str {
        "g (p - e_y) on the alternative, -g (p - e_y) on the forget document, g = 2 sigmoid(-beta_npo (r_win - r_lose))"
    }

    fn source(&self) -> &'static str {
        "arXiv 2305.18290, with NPO's factor 2/beta; open-unlearning `dpo.py`"
    }

    fn differs(&self) -> &'static str {
        "public code scores answers only; a common prompt of both documents cancels out of ratio and gradient"
    }

    fn keys(&self) -> &'static [&'static str] {
        &["beta_npo"]
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Document(DocumentFormula {
            factor: -2.0,
            slope: knobs.beta_npo,
            shift: 0.0,
            against_base: true,
            paired: true,
        })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Documents
    }
}
