//! Mismatch: towards the uniform distribution.

use super::{Knobs, Normaliser, Objective, Rows};
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

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(Matched::Uniform)
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::ShiftedPositions
    }
}
