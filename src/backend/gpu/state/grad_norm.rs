//! The global gradient norm: kernels/grad_norm.cu.

use bytemuck::Zeroable as _;

use super::entry::{ENTRY, Entry, SCAN, Scan, Trained};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, Grad, blocks};
use crate::ops::state::GradScan;

/// Numbers a block of the scan takes: kChunk of kernels/grad_norm.cu.
const CHUNK: usize = 16384;

/// Returns how many partial scans tell all of a gradient: those that its last product left, or those of a scan.
pub(super) fn partials(grad: &Grad) -> u32 {
    match (grad.is_written(), grad.scanned()) {
        (false, _) => 0,
        (true, 0) => blocks(grad.len, CHUNK),
        (true, left) => left,
    }
}

impl Gpu {
    /// Scans a gradient that was written, unless its last product has.
    fn launch_scan(&self, grad: &Grad) {
        if grad.scanned() > 0 {
            return;
        }
        let kernel = if grad.wide { "grad_norm_partial_f32" } else { "grad_norm_partial_bf16" };
        let args = Args::new().ptr(grad.at).ptr(grad.scans).u64(grad.len as u64);
        self.launch(kernel, [blocks(grad.len, CHUNK), 1, 1], 256, 0, args);
    }

    pub(super) fn scan(&self, grad: &Grad) -> GradScan {
        if !grad.is_written() || grad.len == 0 {
            return GradScan::default();
        }
        let entry = Entry { scans: grad.scans, partials: partials(grad), ..Entry::zeroed() };
        let entries = self.scratch(ENTRY + SCAN);
        self.launch_scan(grad);
        let scans = entries + ENTRY;
        self.keep(self.upload(entries, bytemuck::bytes_of(&entry)));
        let args = Args::new().ptr(entries).ptr(scans);
        self.launch("grad_norm_tensor", [1, 1, 1], 256, 0, args);
        let mut scan = Scan::zeroed();
        self.keep(self.download(scans, bytemuck::bytes_of_mut(&mut scan)));
        GradScan {
            sum_sq: scan.sum_sq,
            max_abs: f64::from(f32::from_bits(scan.max_bits)),
            nonfinite: scan.nonfinite,
        }
    }

    /// Starts the scan of all gradients, and the decision on the update.
    pub(super) fn launch_grad_norm(&self, trained: &[Trained<'_>], (at, scans): (u64, u64)) {
        for (_, _, grad) in trained.iter().filter(|(_, _, grad)| partials(grad) > 0) {
            self.launch_scan(grad);
        }
        let count = trained.len();
        let args = Args::new().ptr(at).ptr(scans);
        self.launch("grad_norm_tensor", [count as u32, 1, 1], 256, 0, args);
        let args = Args::new().ptr(self.step.at).ptr(at).ptr(scans).u32(count as u32);
        self.launch("grad_norm_step", [1, 1, 1], 256, 0, args);
    }
}
