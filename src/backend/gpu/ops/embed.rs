//! Embedding rows: kernels/embed.cu.

use crate::backend::gpu::{Act, Gpu, Grad, Pack, Weight};

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _pack: &Pack,
    _c: usize,
    _table: Weight<'_>,
    _x: &mut Act,
) {
    gpu.refuse("embed: not written");
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    _pack: &Pack,
    _c: usize,
    _dx: &Act,
    _dtable: &mut Grad,
) {
    gpu.refuse("embed backward: not written");
}
