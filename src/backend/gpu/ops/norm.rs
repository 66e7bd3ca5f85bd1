//! RMSNorm of rows and of heads: kernels/rmsnorm.cu.

use crate::backend::gpu::{Act, Gpu, Grad, Stat, Weight};
use crate::ops::Heads;

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _n: usize,
    _c: usize,
    _eps: f64,
    _x: &Act,
    _gain: Weight<'_>,
    _y: &mut Act,
    _rstd: &mut Stat,
) {
    gpu.refuse("rmsnorm: not written");
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    _n: usize,
    _c: usize,
    _dy: &Act,
    _x: &Act,
    _gain: Weight<'_>,
    _rstd: &Stat,
    _dx: &mut Act,
    _dgain: Option<&mut Grad>,
) {
    gpu.refuse("rmsnorm backward: not written");
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn qk_forward(
    gpu: &Gpu,
    _n: usize,
    _heads: Heads,
    _eps: f64,
    _gains: [Weight<'_>; 2],
    _raw: &Act,
    _qkv: &mut Act,
    _rstd: &mut Stat,
) {
    gpu.refuse("qk norm: not written");
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn qk_backward(
    gpu: &Gpu,
    _n: usize,
    _heads: Heads,
    _gains: [Weight<'_>; 2],
    _raw: &Act,
    _rstd: &Stat,
    _dqkv: &mut Act,
    _dgains: Option<[&mut Grad; 2]>,
) {
    gpu.refuse("qk norm backward: not written");
}
