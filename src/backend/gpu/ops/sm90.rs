//! Products on compute capability 9.0: kernels/sm90/gemm.cuh and its instances. tile.rs says which products.

use super::gemm::{Gemm, Layout};
use super::parts::Parts;
use super::tile::{CLUSTER, SM90_THREADS, Tile, kernel_of_tile};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::{Args, Matrix};

/// Flag of kernels/sm90/gemm.cu: C is fp32.
const WIDE: u32 = 1;
/// Flag of kernels/sm90/gemm.cu: the addend is added.
const ADDS: u32 = 2;

/// Returns how many blocks take turns at `tiles` tiles: whole clusters, one block a processor.
fn grid(processors: u32, tiles: u32) -> u32 {
    let cluster = CLUSTER as u32;
    tiles.min((processors / cluster).max(1) * cluster)
}

/// A bf16 operand: `outer` rows (or columns, where `k` is the first index) of the product and `k`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub at: u64,
    pub outer: usize,
    pub k: usize,
    /// In elements.
    pub pitch: usize,
    /// True if `k` runs along the rows in memory.
    pub k_major: bool,
}

impl Operand {
    /// Describes it in boxes of `box_rows` of its outer rows, or in panels of 64 outer columns and 64 of `k`.
    fn matrix(self, box_rows: usize) -> Matrix {
        let Self { at, outer, k, pitch, k_major } = self;
        let (rows, columns) = if k_major { (outer, k) } else { (k, outer) };
        let box_rows = if k_major { box_rows } else { 64 };
        Matrix { address: at, rows, columns, pitch: 2 * pitch as u64, wide: false, box_rows }
    }
}

/// Describes an `m` x `n` matrix of rows of `pitch` elements in boxes of 64 rows: a result, or what attention reads.
pub(super) fn result(at: u64, (m, n): (usize, usize), pitch: usize, wide: bool) -> Matrix {
    let bytes = if wide { 4 } else { 2 };
    Matrix { address: at, rows: m, columns: n, pitch: bytes * pitch as u64, wide, box_rows: 64 }
}

/// Starts `kernel` on `count` tiles: its operands, then its results, then what `rest` appends.
pub(super) fn launch(
    gpu: &Gpu,
    kernel: &'static str,
    (tile, count): (Tile, u32),
    [a, b]: [Operand; 2],
    results: &[Matrix],
    rest: impl FnOnce(Args) -> Args,
) {
    let (rows, columns) = tile.size();
    // A tile's columns come in two halves: one from each block of a cluster, or gates and ups.
    let operands = [a.matrix(rows), b.matrix(columns / 2)];
    let Some(args) = maps(gpu, operands.iter().chain(results)) else { return };
    let grid = grid(gpu.driver.identity().processors, count);
    gpu.launch(kernel, [grid, 1, 1], SM90_THREADS, tile.shared(), rest(args));
}

/// Begins a kernel's arguments with the maps of its matrices; keeps the driver's error where it has one.
pub(super) fn maps<'a>(gpu: &Gpu, matrices: impl IntoIterator<Item = &'a Matrix>) -> Option<Args> {
    let maps = matrices.into_iter().map(|matrix| gpu.driver.tensor_map(matrix));
    match maps.into_iter().try_fold(Args::new(), |args, map| map.map(|map| args.map(map))) {
        Ok(args) => Some(args),
        Err(error) => {
            gpu.keep(Err(error));
            None
        }
    }
}

/// Describes the operands of a product, its result and what is added to that, and the flags of the kernel.
fn describe(job: &Gemm, rows: usize, wide: bool, addend: u64) -> ([Operand; 2], [Matrix; 2], u32) {
    let &Gemm { layout, m, n, k, .. } = job;
    let a = Operand { at: job.a, outer: m, k, pitch: job.lda, k_major: layout != Layout::Tn };
    let b = Operand { at: job.b, outer: n, k, pitch: job.ldb, k_major: layout == Layout::Nt };
    let c = result(job.c, (rows, n), job.ldc, wide);
    let added = Matrix { address: if addend == 0 { job.c } else { addend }, ..c };
    let flags = if wide { WIDE } else { 0 } | if addend == 0 { 0 } else { ADDS };
    ([a, b], [c, added], flags)
}

/// Starts a plain product, or the parts of a weight gradient; `addend` is 0 for none.
pub(super) fn gemm(gpu: &Gpu, tile: Tile, job: &Gemm, wide: bool, addend: u64, parts: Parts) {
    let rows = parts.stacked(job.m);
    let name = match job.layout {
        Layout::Nt => kernel_of_tile!(tile, "gemm_sm90_nt"),
        Layout::Nn => kernel_of_tile!(tile, "gemm_sm90_nn"),
        Layout::Tn => kernel_of_tile!(tile, "gemm_sm90_tn"),
    };
    let (operands, results, flags) = describe(job, rows, wide, addend);
    launch(gpu, name, (tile, tile.blocks(rows, job.n)), operands, &results, |args| {
        args.ptr(job.bias)
            .u32(rows as u32)
            .u32(job.n as u32)
            .u32(job.k as u32)
            .u32(flags)
            .u32(parts.rows as u32)
            .u32(parts.depth as u32)
    });
}

/// Starts a whole weight gradient that leaves [`scans`] partial scans of itself at `to`.
pub(super) fn gemm_scanned(gpu: &Gpu, tile: Tile, job: &Gemm, wide: bool, addend: u64, to: u64) {
    let &Gemm { m, n, k, .. } = job;
    let name = kernel_of_tile!(tile, "gemm_sm90_scan");
    let (operands, results, flags) = describe(job, m, wide, addend);
    launch(gpu, name, (tile, tile.blocks(m, n)), operands, &results, |args| {
        args.ptr(to).u32(m as u32).u32(n as u32).u32(k as u32).u32(flags)
    });
}

/// Returns how many partial scans `tiles` tiles leave: one for the 16 rows of each warp that multiplies.
pub(super) fn scans(tiles: u32) -> u32 {
    8 * tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_is_whole_clusters_that_fit_the_device() {
        assert_eq!(grid(132, 1000), 132);
        assert_eq!(grid(131, 1000) as usize, 131 / CLUSTER * CLUSTER);
        assert_eq!(grid(132, 6), 6);
        assert_eq!(grid(1, 6) as usize, CLUSTER);
    }

    #[test]
    fn operands_are_boxes_of_rows_or_panels_of_columns() {
        let x = Operand { at: 256, outer: 300, k: 72, pitch: 80, k_major: true };
        let matrix = x.matrix(128);
        assert_eq!((matrix.rows, matrix.columns, matrix.pitch), (300, 72, 160));
        assert_eq!(matrix.box_rows, 128);
        let matrix = Operand { k_major: false, pitch: 304, ..x }.matrix(128);
        assert_eq!((matrix.rows, matrix.columns, matrix.pitch), (72, 300, 608));
        assert_eq!(matrix.box_rows, 64);
    }
}
