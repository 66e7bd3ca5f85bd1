//! Mean squared error of hidden states: kernels/mse.cu.

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Pack, Stat, blocks};
use crate::ops::Toward;

/// Rows of a block: a warp each.
const ROWS: usize = 8;

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn mse(
    gpu: &Gpu,
    n: usize,
    c: usize,
    pack: &Pack,
    x: &Act,
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
