//! Learned positions: kernels/positions.cu.

use super::elementwise;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Pack, Weight};

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    pack: &Pack,
    c: usize,
    (rows, first): (usize, usize),
    table: Weight<'_>,
    x: &mut Act,
) {
    let n = pack.data.tokens();
    let args = Args::new()
        .ptr(table.at)
        .ptr(pack.positions)
        .ptr(x.at)
        .u32(n as u32)
        .u32(c as u32)
        .u32(rows as u32)
        .u32(first as u32);
    elementwise::launch(gpu, ["positions_fwd_bf16", "positions_fwd_f32"], (n, c), args);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    pack: &Pack,
    c: usize,
    (rows, first): (usize, usize),
    dx: &Act,
    dtable: &mut Grad,
) {
    if !gpu.adds(dtable) {
        // Positions that do not occur are zero too.
        let bytes = dtable.len as u64 * if dtable.wide { 4 } else { 2 };
        gpu.keep(gpu.fill(dtable.at, 0, bytes));
    }
    let kernel = if dtable.wide {
        gpu.pick("positions_bwd_bf16_f32", "positions_bwd_f32_f32")
    } else {
        gpu.pick("positions_bwd_bf16_bf16", "positions_bwd_f32_bf16")
    };
    let args = Args::new()
        .ptr(dx.at)
        .ptr(pack.starts)
        .ptr(dtable.at)
        .u32(pack.data.spans.len() as u32)
        .u32(c as u32)
        .u32(first as u32);
    // Recorded work is started again for other packs that reach as far up to the next power of two.
    let reached = pack.reach.next_power_of_two().min(rows.saturating_sub(first));
    gpu.launch(kernel, [reached as u32, 1, 1], 256, 0, args);
}
