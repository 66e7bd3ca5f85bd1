//! SwiGLU: kernels/swiglu.cu.

use super::elementwise::launch;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu};

pub(in crate::backend::gpu) fn forward(gpu: &Gpu, n: usize, f: usize, gate_up: &Act, y: &mut Act) {
    let args = Args::new().ptr(gate_up.at).ptr(y.at).u32(n as u32).u32(f as u32);
    launch(gpu, ["swiglu_fwd_bf16", "swiglu_fwd_f32"], (n, f), args);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    n: usize,
    f: usize,
    dy: &mut Act,
    gate_up: &mut Act,
) {
    let args = Args::new().ptr(dy.at).ptr(gate_up.at).u32(n as u32).u32(f as u32);
    launch(gpu, ["swiglu_bwd_bf16", "swiglu_bwd_f32"], (n, f), args);
}
