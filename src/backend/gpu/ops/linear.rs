//! Linear maps: kernels/gemm*.cu.

use crate::backend::gpu::{Act, Gpu, Grad, Weight};

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _x: &Act,
    _w: Weight<'_>,
    _bias: Option<Weight<'_>>,
    _residual: Option<&Act>,
    _y: &mut Act,
) {
    gpu.refuse("linear: not written");
}

pub(in crate::backend::gpu) fn dgrad(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _dy: &Act,
    _w: Weight<'_>,
    _dx: &mut Act,
) {
    gpu.refuse("linear dgrad: not written");
}

pub(in crate::backend::gpu) fn wgrad(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _dy: &Act,
    _x: &Act,
    _dw: &mut Grad,
) {
    gpu.refuse("linear wgrad: not written");
}

pub(in crate::backend::gpu) fn bias_grad(
    gpu: &Gpu,
    _n: usize,
    _o: usize,
    _dy: &Act,
    _db: &mut Grad,
) {
    gpu.refuse("bias gradient: not written");
}
