//! Mean squared error of hidden states: kernels/mse.cu.

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, Stat, blocks};
use crate::ops::{MseArgs, Toward};

/// Rows of a block: a warp each.
const ROWS: usize = 8;

pub(in crate::backend::gpu) fn mse(
    gpu: &Gpu,
    MseArgs { n, c, pack, x }: MseArgs<'_, Act, Pack>,
    toward: Toward<'_, Act, Stat>,
    value: &mut Stat,
    dx: Option<&mut Act>,
) {
    // A null address stands for what is not there.
    let (rows, steering) = match toward {
        Toward::Rows(rows) => (rows.at, 0),
        Toward::Vector(vector) => (0, vector.at),
    };
    let args = Args::new()
        .ptr(x.at)
        .ptr(rows)
        .ptr(steering)
        .ptr(pack.coefs)
        .ptr(value.at)
        .ptr(dx.map_or(0, |dx| dx.at))
        .u32(n as u32)
        .u32(c as u32);
    gpu.launch(gpu.pick("mse_bf16", "mse_f32"), [blocks(n, ROWS), 1, 1], 256, 0, args);
}
