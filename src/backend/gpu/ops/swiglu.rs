//! SwiGLU: kernels/swiglu.cu.

use crate::backend::gpu::{Act, Gpu};

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _n: usize,
    _f: usize,
    _gate_up: &Act,
    _y: &mut Act,
) {
    gpu.refuse("swiglu: not written");
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    _n: usize,
    _f: usize,
    _dy: &Act,
    _gate_up: &mut Act,
) {
    gpu.refuse("swiglu backward: not written");
}
