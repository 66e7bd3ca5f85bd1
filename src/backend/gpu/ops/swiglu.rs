//! SwiGLU: kernels/swiglu.cu.

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, blocks};

/// Returns the blocks that cover all numbers, eight a thread, none across two rows.
pub(super) fn plan(n: usize, f: usize) -> u32 {
    blocks(n * f.div_ceil(8), 256)
}

pub(in crate::backend::gpu) fn forward(gpu: &Gpu, n: usize, f: usize, gate_up: &Act, y: &mut Act) {
    let args = Args::new().ptr(gate_up.at).ptr(y.at).u32(n as u32).u32(f as u32);
    let kernel = gpu.pick("swiglu_fwd_bf16", "swiglu_fwd_f32");
    gpu.launch(kernel, [plan(n, f), 1, 1], 256, 0, args);
}

pub(in crate::backend::gpu) fn backward(
    gpu: &Gpu,
    n: usize,
    f: usize,
    dy: &mut Act,
    gate_up: &mut Act,
) {
    let args = Args::new().ptr(dy.at).ptr(gate_up.at).u32(n as u32).u32(f as u32);
    let kernel = gpu.pick("swiglu_bwd_bf16", "swiglu_bwd_f32");
    gpu.launch(kernel, [plan(n, f), 1, 1], 256, 0, args);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_covers_ragged_rows() {
        assert_eq!(plan(0, 64), 0);
        assert_eq!(plan(129, 9), 2);
        assert_eq!(plan(4096, 11008), 4096 * 1376 / 256);
    }
}
