//! Mismatch: towards the uniform distribution.

use crate::method::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// `KL(uniform, p)`. Source: mt-unlearn `losses.py`, `mismatch` (its docstring names the other direction).
pub struct Mismatch;

impl Objective for Mismatch {
    fn name(&self) -> &'static str {
        "mismatch"
    }

    fn formula(&self) -> &'static str {
        "KL(uniform, p), masked sum over targets divided by B (T - 1)"
    }

    fn gradient(&self) -> &'static str {
        "p - 1/V"
    }

    fn source(&self) -> &'static str {
        "mt-unlearn `losses.py`, `mismatch`"
    }

    fn differs(&self) -> &'static str {
        "the reference's docstring names the other direction of the divergence"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(Matched::Uniform)
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::ShiftedPositions
    }
}
