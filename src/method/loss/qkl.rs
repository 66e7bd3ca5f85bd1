//! Quadratic KL penalty against the teacher.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// Half the variance of `z - z_ref` under the teacher's distribution; what is logged is the whole variance.
///
/// Source: mt-unlearn `losses.py`, `qkl`.
pub struct Qkl;

impl Objective for Qkl {
    fn name(&self) -> &'static str {
        "qkl"
    }

    fn formula(&self) -> &'static str {
        "Var_q(z - z_ref) / 2 (logged without the half), masked sum over all positions divided by B T"
    }

    fn gradient(&self) -> &'static str {
        "q (D - E_q D), D = z - z_ref, q = softmax(z_ref)"
    }

    fn source(&self) -> &'static str {
        "arXiv 2504.13388; mt-unlearn `losses.py`, `qkl`"
    }

    fn differs(&self) -> &'static str {
        "the variance is logged and half of it minimized, as in the reference"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(Matched::Qkl)
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Positions
    }
}
