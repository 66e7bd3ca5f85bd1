//! Rotary positions: kernels/rope.cu.

use crate::backend::gpu::{Act, Gpu, Pack};
use crate::ops::{Direction, Heads, RopeTable};

/// Cosines and sines on the device, made once a table and as far as positions go.
#[derive(Debug, Default)]
pub(in crate::backend::gpu) struct Angles {}

pub(in crate::backend::gpu) fn rotate(
    gpu: &Gpu,
    _pack: &Pack,
    _heads: Heads,
    _table: &RopeTable,
    _direction: Direction,
    _qkv: &mut Act,
) {
    gpu.refuse("rope: not written");
}
