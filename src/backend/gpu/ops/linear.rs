//! Linear maps: kernels/gemm.cuh and its instances, kernels/column_sum.cu; what sm90.rs and gemm_skinny.rs start instead.

use std::sync::atomic::Ordering;

use super::column_sum::{self, COLUMNS};
use super::gemm::{Gemm, Layout, Out};
use super::gemm_skinny::{self, Skinny};
use super::parts::{BYTES, Parts};
use super::sm90;
use super::tile::{Tile, kernel_of_tile, packed, plan};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Precision, Weight, blocks};
use crate::ops::{LinearArgs, LinearShape};

/// Returns the kernel of a layout, a precision and a tile.
fn kernel(layout: Layout, precision: Precision, tile: Tile) -> &'static str {
    match (layout, precision) {
        (Layout::Nt, Precision::Bf16) => kernel_of_tile!(tile, "gemm_nt_bf16"),
        (Layout::Nn, Precision::Bf16) => kernel_of_tile!(tile, "gemm_nn_bf16"),
        (Layout::Tn, Precision::Bf16) => kernel_of_tile!(tile, "gemm_tn_bf16"),
        (Layout::Nt, Precision::Fp32) => kernel_of_tile!(tile, "gemm_nt_f32"),
        (Layout::Nn, Precision::Fp32) => kernel_of_tile!(tile, "gemm_nn_f32"),
        (Layout::Tn, Precision::Fp32) => kernel_of_tile!(tile, "gemm_tn_f32"),
    }
}

/// Starts a product.
pub(in crate::backend::gpu) fn gemm(gpu: &Gpu, job: &Gemm) {
    start(gpu, job, Parts::whole(job.m, job.k), None);
}

/// Starts a product whose k is cut in `parts`: results of more than one lie behind each other at `c`.
///
/// `scans`: where partial scans of the result go, and how many there is room for. Returns how many the product leaves.
pub(super) fn start(gpu: &Gpu, job: &Gemm, parts: Parts, scans: Option<(u64, u32)>) -> u32 {
    let stored = gpu.precision().bytes();
    let wide = match job.out {
        Out::Stored => gpu.precision() == Precision::Fp32,
        Out::F32 => true,
        Out::Bf16 => false,
    };
    let bytes = if wide { 4 } else { 2 };
    if job.residual != 0 && (job.accumulate || bytes != stored) {
        gpu.refuse("gemm: a residual needs a result in its own type that does not accumulate");
        return 0;
    }
    let addend = if job.accumulate { job.c } else { job.residual };
    let aligned = packed(job.a, job.lda, stored) && packed(job.b, job.ldb, stored);
    let rows = packed(job.c, job.ldc, bytes) && packed(addend, job.ldc, bytes);
    let mut args = Args::new()
        .ptr(job.a)
        .ptr(job.b)
        .ptr(job.c)
        .ptr(addend)
        .ptr(job.bias)
        .u32(job.m as u32)
        .u32(job.n as u32)
        .u32(job.k as u32)
        .u32(job.lda as u32)
        .u32(job.ldb as u32)
        .u32(job.ldc as u32)
        .u32(u32::from(wide) | u32::from(rows) << 1);
    if let Some((name, shape)) = gemm_skinny::kernel(gpu, job, aligned) {
        let grid = [shape.blocks(job.m, job.n, 1), 1, 1];
        gpu.launch(name, grid, Skinny::THREADS, shape.shared(), args);
        return 0;
    }
    let tile = plan(gpu, parts.stacked(job.m), job.n, aligned, rows && job.k > 0);
    if tile.is_sm90() {
        let count = sm90::scans(tile.blocks(job.m, job.n));
        if let Some((at, _)) = scans.filter(|(_, room)| count <= *room) {
            sm90::gemm_scanned(gpu, tile, job, wide, addend, at);
            return count;
        }
        sm90::gemm(gpu, tile, job, wide, addend, parts);
        return 0;
    }
    let name = kernel(job.layout, gpu.precision(), tile);
    let grid = [tile.blocks(job.m, job.n), parts.count as u32, 1];
    args = args.u32(parts.rows as u32).u32(parts.depth as u32);
    gpu.launch(name, grid, tile.threads(), tile.shared(), args);
    0
}

pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    args: LinearArgs<'_, Act, Weight<'_>>,
    residual: Option<&Act>,
    y: &mut Act,
) {
    let LinearArgs { shape: LinearShape { n, o, i }, x, w, bias } = args;
    let job = Gemm {
        layout: Layout::Nt,
        m: n,
        n: o,
        k: i,
        a: x.at,
        lda: i,
        b: w.at,
        ldb: i,
        c: y.at,
        ldc: o,
        out: Out::Stored,
        accumulate: false,
        bias: bias.map_or(0, |bias| bias.at),
        residual: residual.map_or(0, |residual| residual.at),
    };
    gemm(gpu, &job);
}

pub(in crate::backend::gpu) fn dgrad(
    gpu: &Gpu,
    LinearShape { n, o, i }: LinearShape,
    dy: &Act,
    w: Weight<'_>,
    dx: &mut Act,
) {
    let job = Gemm {
        layout: Layout::Nn,
        m: n,
        n: i,
        k: o,
        a: dy.at,
        lda: o,
        b: w.at,
        ldb: i,
        c: dx.at,
        ldc: i,
        out: Out::Stored,
        accumulate: false,
        bias: 0,
        residual: 0,
    };
    gemm(gpu, &job);
}

pub(in crate::backend::gpu) fn wgrad(
    gpu: &Gpu,
    LinearShape { n, o, i }: LinearShape,
    dy: &Act,
    x: &Act,
    dw: &mut Grad,
) {
    let job = Gemm {
        layout: Layout::Tn,
        m: o,
        n: i,
        k: n,
        a: dy.at,
        lda: o,
        b: x.at,
        ldb: i,
        c: dw.at,
        ldc: i,
        out: if dw.wide { Out::F32 } else { Out::Bf16 },
        accumulate: false,
        bias: 0,
        residual: 0,
    };
    in_parts(gpu, &job, dw);
}

/// Starts a weight gradient: in one product that adds to it (and scans it where it is the last of a step), or in parts that
/// are then added in order.
fn in_parts(gpu: &Gpu, job: &Gemm, dw: &mut Grad) {
    let parts = Parts::of(job.m, job.n, job.k);
    if parts.count == 1 {
        let job = Gemm { accumulate: gpu.adds(dw), ..*job };
        let room = if gpu.writes_last() { dw.scans_room() } else { 0 };
        let scanned = start(gpu, &job, parts, Some((dw.scans, room)));
        return dw.marks.scanned.store(scanned, Ordering::Relaxed);
    }
    // Always as much, so that the scratch grows once.
    let partial = gpu.scratch(BYTES);
    start(gpu, &Gemm { c: partial, out: Out::F32, ..*job }, parts, None);
    column_sum::sum(gpu, partial, (parts.count, parts.rows * job.n), job.m * job.n, dw);
}

/// Rows that one block of the first pass of [`bias_grad`] sums.
const SLAB: usize = 256;

/// Sums columns in two passes: a block sums a slab of rows into scratch, then one thread a column adds the slabs in
/// order.
pub(in crate::backend::gpu) fn bias_grad(gpu: &Gpu, n: usize, o: usize, dy: &Act, db: &mut Grad) {
    column_sums(gpu, dy.at, (n, o), o, db);
}

/// Sums the first `o` columns of `n` rows of `pitch` numbers at `dy`; see [`bias_grad`].
pub(super) fn column_sums(gpu: &Gpu, dy: u64, (n, pitch): (usize, usize), o: usize, db: &mut Grad) {
    let slabs = blocks(n, SLAB);
    let partial = gpu.scratch(u64::from(slabs) * pitch as u64 * 4);
    let rows = packed(dy, pitch, gpu.precision().bytes());
    let args = Args::new()
        .ptr(dy)
        .ptr(partial)
        .u32(n as u32)
        .u32(pitch as u32)
        .u32(SLAB as u32)
        .u32(u32::from(rows));
    let name = gpu.pick("column_slab_bf16", "column_slab_f32");
    gpu.launch(name, [blocks(o, COLUMNS), slabs, 1], 256, 0, args);
    column_sum::sum(gpu, partial, (slabs as usize, pitch), o, db);
}
