//! LayerNorm of rows: kernels/layernorm.cu, column_sum.cu.

use super::column_sum;
use super::norm::plan;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Stat, Weight, blocks};
use crate::ops::NormArgs;

/// Rows that a partial of the gain's gradient covers: kRows of the kernel.
const ROWS: usize = 64;

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    args: &NormArgs<'_, Act, Weight<'_>>,
    y: &mut Act,
    stats: &mut Stat,
) {
    let NormArgs { n, norm, x, gain, bias } = *args;
    let Some(bias) = bias else { return gpu.refuse("layernorm: wanted a bias") };
    let c = norm.width;
    let (wide, grid) = plan(n, c);
    let kernel = if wide {
        gpu.pick("layernorm_fwd_bf16_block", "layernorm_fwd_f32_block")
    } else {
        gpu.pick("layernorm_fwd_bf16_warp", "layernorm_fwd_f32_warp")
    };
    let args = Args::new()
        .ptr(x.at)
        .ptr(gain.at)
        .ptr(bias.at)
        .ptr(y.at)
        .ptr(stats.at)
        .u32(n as u32)
        .u32(c as u32)
        .f32(norm.eps as f32);
    gpu.launch(kernel, grid, 256, 0, args);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    args: &NormArgs<'_, Act, Weight<'_>>,
    dy: &Act,
    stats: &Stat,
    dx: &mut Act,
    dgain: Option<&mut Grad>,
) {
    let NormArgs { n, norm, x, gain, .. } = *args;
    let c = norm.width;
    let (wide, grid) = plan(n, c);
    let kernel = if wide {
        gpu.pick("layernorm_bwd_bf16_block", "layernorm_bwd_f32_block")
    } else {
        gpu.pick("layernorm_bwd_bf16_warp", "layernorm_bwd_f32_warp")
    };
    let args = Args::new()
        .ptr(dy.at)
        .ptr(x.at)
        .ptr(gain.at)
        .ptr(stats.at)
        .ptr(dx.at)
        .u32(n as u32)
        .u32(c as u32);
    gpu.launch(kernel, grid, 256, 0, args);
    let Some(dgain) = dgain else { return };
    let parts = n.div_ceil(ROWS);
    let partials = gpu.scratch((parts * c * 4) as u64);
    if partials == 0 {
        return;
    }
    let args =
        Args::new().ptr(dy.at).ptr(x.at).ptr(stats.at).ptr(partials).u32(n as u32).u32(c as u32);
    let kernel = gpu.pick("layernorm_dgain_bf16", "layernorm_dgain_f32");
    gpu.launch(kernel, [blocks(c, 256), parts as u32, 1], 256, 0, args);
    column_sum::sum(gpu, partials, (parts, c), c, dgain);
}
