//! Activations of MLPs: kernels/activation.cu.

use super::elementwise;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu};
use crate::ops::{Activation, Mlp};

/// The number of a function in the kernel.
fn kind(mlp: Mlp) -> u32 {
    match mlp.activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

fn launch(gpu: &Gpu, kernels: [&'static str; 2], (n, f): (usize, usize), mlp: Mlp, at: [u64; 2]) {
    let args = Args::new()
        .ptr(at[0])
        .ptr(at[1])
        .u32(n as u32)
        .u32(f as u32)
        .u32(kind(mlp))
        .u32(u32::from(mlp.gated));
    elementwise::launch(gpu, kernels, (n, f), args);
}

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    n: usize,
    f: usize,
    mlp: Mlp,
    x: &Act,
    y: &mut Act,
) {
    launch(gpu, ["activation_fwd_bf16", "activation_fwd_f32"], (n, f), mlp, [x.at, y.at]);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    n: usize,
    f: usize,
    mlp: Mlp,
    dy: &mut Act,
    x: &mut Act,
) {
    launch(gpu, ["activation_bwd_bf16", "activation_bwd_f32"], (n, f), mlp, [dy.at, x.at]);
}
