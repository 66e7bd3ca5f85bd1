//! Shapes and operands of linear maps.

use super::heads::{Heads, RopeTable};

/// Shape of a linear map of N rows, from I inputs to O outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// N, rows.
    pub n: usize,
    /// O, outputs.
    pub o: usize,
    /// I, inputs.
    pub i: usize,
}

/// Operands of a linear map.
#[derive(Debug)]
pub struct LinearArgs<'a, A, W> {
    /// Its shape.
    pub shape: LinearShape,
    /// Inputs, [N, I].
    pub x: &'a A,
    /// Matrix, [O, I].
    pub w: W,
    /// Bias, O numbers.
    pub bias: Option<W>,
}

impl<A, W: Copy> Clone for LinearArgs<'_, A, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, W: Copy> Copy for LinearArgs<'_, A, W> {}

/// Rotary positions of the heads of a packed batch.
#[derive(Debug)]
pub struct Rotation<'a, P> {
    /// The packed batch.
    pub pack: &'a P,
    /// The heads.
    pub heads: Heads,
    /// Frequencies.
    pub table: &'a RopeTable,
}
