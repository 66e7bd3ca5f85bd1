//! Products and mixtures of gradients: kernels/grad_mix.cu.

use std::sync::atomic::Ordering;

use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, Grad, blocks};

/// Numbers of a block.
const BLOCK: usize = 2048;

impl Gpu {
    /// Returns the sum of products of two gradients; waits for it.
    pub(super) fn dot(&self, a: &Grad, b: &Grad) -> f64 {
        if a.len == 0 || !a.is_written() || !b.is_written() {
            return 0.0;
        }
        let count = blocks(a.len, BLOCK);
        let partials = self.scratch(8 * u64::from(count));
        let args = Args::new().ptr(a.at).ptr(b.at).ptr(partials).u64(a.len as u64);
        let kernel = if a.wide { "grad_dot_f32" } else { "grad_dot_bf16" };
        self.launch(kernel, [count, 1, 1], 256, 0, args);
        let mut sums = vec![0f64; count as usize];
        self.keep(self.download(partials, bytemuck::cast_slice_mut(&mut sums)));
        sums.iter().sum()
    }

    /// `out = keep y + add x` of `n` fp32 numbers at addresses, products and sum rounded; an address
    /// of 0 stands for zeros.
    pub(super) fn mix_f32(&self, out: u64, (keep, y): (f32, u64), (add, x): (f32, u64), n: usize) {
        let args = Args::new().ptr(out).ptr(y).ptr(x).u64(n as u64).f32(keep).f32(add);
        self.launch("grad_mix_f32", [blocks(n, BLOCK), 1, 1], 256, 0, args);
    }

    /// `y = keep y + add x`.
    pub(super) fn mix(&self, y: &mut Grad, keep: f64, x: &Grad, add: f64) {
        if y.len == 0 {
            return;
        }
        // A null address stands for zeros.
        let shown = |grad: &Grad| if grad.is_written() { grad.at } else { 0 };
        let args = Args::new().ptr(y.at).ptr(shown(y)).ptr(shown(x)).u64(y.len as u64);
        let args = args.f32(keep as f32).f32(add as f32);
        let kernel = if y.wide { "grad_mix_f32" } else { "grad_mix_bf16" };
        self.launch(kernel, [blocks(y.len, BLOCK), 1, 1], 256, 0, args);
        y.marks.written.store(true, Ordering::Relaxed);
        y.marks.scanned.store(0, Ordering::Relaxed);
    }
}
