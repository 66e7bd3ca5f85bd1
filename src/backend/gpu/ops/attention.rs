//! Attention over packed documents: kernels/attention*.cu.

use crate::backend::gpu::{Act, Gpu, Pack, Stat};
use crate::ops::Heads;

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _pack: &Pack,
    _heads: Heads,
    _qkv: &Act,
    _out: &mut Act,
    _lse: &mut Stat,
) {
    gpu.refuse("attention: not written");
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    _pack: &Pack,
    _heads: Heads,
    _qkv: &Act,
    _out: &Act,
    _lse: &Stat,
    _dout: &Act,
    _dqkv: &mut Act,
) {
    gpu.refuse("attention backward: not written");
}
