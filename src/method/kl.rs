//! Kullback-Leibler penalty against the teacher.

use super::{Knobs, Normaliser, Objective, Rows};
use crate::ops::Matched;

/// `KL(q, p)`, q the teacher's distribution, all positions. Source: mt-unlearn `losses.py`, `kl`.
pub struct Kl;

impl Objective for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn formula(&self) -> &'static str {
        "KL(teacher, student), masked sum over all positions divided by B T"
    }

    fn rows(&self, _: &Knobs) -> Rows {
        Rows::Matched(Matched::Kl)
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::Positions
    }
}
