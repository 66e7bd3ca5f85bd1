//! Sums over rows, column by column: kernels/column_sum.cu.

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, Grad, blocks};

/// Columns of a block of both passes.
pub(super) const COLUMNS: usize = 256;

/// Adds `slabs` rows of `width` fp32 numbers, `pitch` apart at `partial`, in order, into a gradient.
pub(super) fn sum(
    gpu: &Gpu,
    partial: u64,
    (slabs, pitch): (usize, usize),
    width: usize,
    grad: &mut Grad,
) {
    let name = if grad.wide { "column_sum_f32" } else { "column_sum_bf16" };
    let adds = gpu.adds(grad);
    let args = Args::new()
        .ptr(partial)
        .ptr(grad.at)
        .u32(slabs as u32)
        .u32(pitch as u32)
        .u32(width as u32)
        .u32(u32::from(adds));
    gpu.launch(name, [blocks(width, COLUMNS), 1, 1], 256, 0, args);
}
