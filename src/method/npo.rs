//! Negative preference optimisation, in the form the reference computes.

use super::{Knobs, Normaliser, Objective, Rows};
use crate::ops::DocumentFormula;

/// `(2/beta) softplus(beta r)` per document, r the mean log-ratio to the base model over the T - 1 padded
/// positions (not the sum of the NPO paper), tokens averaged over the micro-batch.
///
/// Source: mt-unlearn `losses.py`, `npo`; the base model's log-softmax is taken in full precision here, in fp16
/// there.
pub struct Npo;

impl Objective for Npo {
    fn name(&self) -> &'static str {
        "npo"
    }

    fn formula(&self) -> &'static str {
        "(2/beta_npo) log(1 + (p/p_base)^beta_npo) with the mean log-ratio over the padded length"
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Document(DocumentFormula { factor: -2.0, slope: knobs.beta_npo })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Targets
    }
}
