//! Embedding rows: kernels/embed.cu.

use super::elementwise;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Pack, Weight};

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    pack: &Pack,
    c: usize,
    scale: f64,
    table: Weight<'_>,
    x: &mut Act,
) {
    let n = pack.data.tokens();
    let args = Args::new().ptr(table.at).ptr(pack.ids).ptr(x.at).u32(n as u32).u32(c as u32);
    let args = args.f32(scale as f32);
    elementwise::launch(gpu, ["embed_fwd_bf16", "embed_fwd_f32"], (n, c), args);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    pack: &Pack,
    c: usize,
    scale: f64,
    dx: &Act,
    dtable: &mut Grad,
) {
    if !gpu.adds(dtable) {
        // Rows that do not occur are zero too.
        let bytes = dtable.len as u64 * if dtable.wide { 4 } else { 2 };
        gpu.keep(gpu.fill(dtable.at, 0, bytes));
    }
    let kernel = if dtable.wide {
        gpu.pick("embed_bwd_bf16_f32", "embed_bwd_f32_f32")
    } else {
        gpu.pick("embed_bwd_bf16_bf16", "embed_bwd_f32_bf16")
    };
    let args = Args::new()
        .ptr(dx.at)
        .ptr(pack.ids)
        .ptr(pack.order)
        .ptr(pack.groups)
        .ptr(dtable.at)
        .u32(c as u32)
        .f32(scale as f32);
    gpu.launch(kernel, [pack.data.tokens() as u32, 1, 1], 256, 0, args);
}
