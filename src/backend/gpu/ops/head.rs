//! Head and loss rows, chunked: kernels/head.cu and kernels/head_matched.cu.

use std::sync::{LazyLock, PoisonError};

use super::gemm::{Gemm, Layout, Out};
use super::linear::{self, gemm};
use super::sm90::{self, Operand};
use super::tile::{Tile, packed, plan as tile_of};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Pack, Precision, Stat, Weight, blocks};
use crate::error::Result;
use crate::ops::{
    HeadGrads, HeadReference, HeadRows, HeadShape, HeadWeight, Matched, RowStats, TokenFormula,
    TokenWeight,
};

/// Rows of a chunk at least, where there are as many: fewer make the products inefficient.
const ROWS: usize = 1024;
/// Logits of a chunk where the vocabulary is small: 256 MiB in fp32.
const LOGITS: usize = 1 << 26;

/// Room for a chunk, taken in [`reserve`] alone.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::backend::gpu) struct Room {
    /// fp32 logits, which become gradients.
    pub(super) logits: u64,
    /// The teacher's fp32 logits.
    teacher: u64,
    /// h - h_ref, in the precision of storage.
    difference: u64,
    /// A number in [0, 1) for each row, f64.
    pub(super) draws: u64,
    /// The token picked for each row, u32.
    pub(super) ids: u64,
    fits: Fits,
    /// Rows of a chunk at most, where a caller wants them fewer than the plan's.
    cap: Option<usize>,
}

/// Capacity of a buffer set, in numbers of each kind.
#[derive(Debug, Clone, Copy, Default)]
struct Fits {
    logits: usize,
    teacher: usize,
    hidden: usize,
    rows: usize,
}

impl Fits {
    /// Returns the capacity that passes in chunks of `rows` need.
    fn new(shape: HeadShape, rows: usize, matched: bool) -> Self {
        let (logits, hidden) = (rows * shape.v, rows * shape.c);
        let of = |n| if matched { n } else { 0 };
        Self { logits, teacher: of(logits), hidden: of(hidden), rows: shape.n }
    }

    fn hold(self, wanted: Self) -> bool {
        self.logits >= wanted.logits
            && self.teacher >= wanted.teacher
            && self.hidden >= wanted.hidden
            && self.rows >= wanted.rows
    }
}

/// Returns the rows of a chunk of logits over a vocabulary of `v`, where a pack has as many.
pub fn chunk_rows(v: usize) -> usize {
    (LOGITS / v.max(1)).max(ROWS)
}

/// Returns the rows of a chunk; it depends on the shape and the cap alone.
fn plan(shape: HeadShape, cap: Option<usize>) -> usize {
    chunk_rows(shape.v).min(cap.unwrap_or(usize::MAX).max(1)).min(shape.n)
}

pub(in crate::backend::gpu) fn cap_rows(gpu: &Gpu, cap: Option<usize>) {
    gpu.head.lock().unwrap_or_else(PoisonError::into_inner).cap = cap;
}

/// Returns the bytes of the buffers that [`reserve`] makes.
pub(in crate::backend::gpu) fn room_bytes(
    shape: HeadShape,
    matched: bool,
    precision: Precision,
) -> Vec<u64> {
    let Fits { logits, teacher, hidden, rows } = Fits::new(shape, plan(shape, None), matched);
    let [logits, teacher, hidden, rows] = [logits, teacher, hidden, rows].map(|n| n as u64);
    vec![4 * logits, 4 * teacher, precision.bytes() * hidden, 8 * rows, 4 * rows]
}

/// Allocates space for passes of `shape`; with `matched` also that of full-vocabulary losses, the second model's logits
/// among it.
pub(in crate::backend::gpu) fn reserve(gpu: &Gpu, shape: HeadShape, matched: bool) -> Result<()> {
    let mut room = gpu.head.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Fits::new(shape, plan(shape, room.cap), matched);
    if wanted.logits > room.fits.logits {
        room.logits = gpu.alloc(4 * wanted.logits as u64)?;
        room.fits.logits = wanted.logits;
    }
    if wanted.teacher > room.fits.teacher {
        room.teacher = gpu.alloc(4 * wanted.teacher as u64)?;
        room.fits.teacher = wanted.teacher;
    }
    if wanted.hidden > room.fits.hidden {
        room.difference = gpu.alloc(wanted.hidden as u64 * gpu.precision().bytes())?;
        room.fits.hidden = wanted.hidden;
    }
    if wanted.rows > room.fits.rows {
        room.draws = gpu.alloc(8 * wanted.rows as u64)?;
        room.ids = gpu.alloc(4 * wanted.rows as u64)?;
        room.fits.rows = wanted.rows;
    }
    Ok(())
}

/// Returns the room and the rows of a chunk, if [`reserve`] has made enough.
pub(super) fn room(gpu: &Gpu, shape: HeadShape, matched: bool) -> Option<(Room, usize)> {
    let room = *gpu.head.lock().unwrap_or_else(PoisonError::into_inner);
    let rows = plan(shape, room.cap);
    if !room.fits.hold(Fits::new(shape, rows, matched)) {
        gpu.refuse(format!("head: no room for {rows} rows of {} logits was reserved", shape.v));
        return None;
    }
    Some((room, rows))
}

/// The product of a head whose tiles record statistics.
pub(super) const STATISTICS: &str = "head_statistics_sm90_128x256";
/// Columns of a record of kernels/sm90/head.cu, and its bytes.
const RECORD: (usize, u64) = (256, 16);

/// Makes fp32 logits of `m` rows at `h` (only where something goes back) and records of their statistics, and returns the
/// address of these; `None` where the product does not come with them.
fn product_with_records(
    gpu: &Gpu,
    HeadShape { c, v, .. }: HeadShape,
    m: usize,
    [h, w, z, targets]: [u64; 4],
    keep: bool,
) -> Option<u64> {
    let bytes = gpu.precision().bytes();
    let aligned = packed(h, c, bytes) && packed(w, c, bytes);
    let tile = tile_of(gpu, m, v, aligned, packed(z, v, 4) && c > 0);
    if tile != Tile::Sm90Large {
        return None;
    }
    let (columns, each) = RECORD;
    let records = gpu.scratch((m * v.div_ceil(columns)) as u64 * each);
    if records == 0 {
        return None;
    }
    let rows = Operand { at: h, outer: m, k: c, pitch: c, k_major: true };
    let matrix = Operand { at: w, outer: v, ..rows };
    let logits = sm90::result(z, (m, v), v, true);
    sm90::launch(gpu, STATISTICS, (tile, tile.blocks(m, v)), [rows, matrix], &[logits], |args| {
        let args = args.ptr(targets).ptr(records).u32(m as u32).u32(v as u32);
        args.u32(c as u32).u32(u32::from(keep))
    });
    Some(records)
}

/// Returns the cap of logits as the kernels take it.
pub(super) fn cap(w: HeadWeight<Weight<'_>>) -> f32 {
    w.cap.map_or(0.0, |cap| cap as f32)
}

/// The kernels of a loss: for logits as they are and for capped ones, bf16 and fp32 of each.
type Kernels = [[&'static str; 2]; 2];

const ONEHOT: Kernels = [
    ["head_onehot_bf16", "head_onehot_f32"],
    ["head_onehot_capped_bf16", "head_onehot_capped_f32"],
];

/// Returns the kernel for the precision of storage.
fn variant(gpu: &Gpu, cap: Option<f64>, kernels: &Kernels) -> &'static str {
    let [bf16, fp32] = kernels[usize::from(cap.is_some())];
    gpu.pick(bf16, fp32)
}

/// Returns the kernel of a full-vocabulary loss: `head_NAME`, as MATCHED of kernels/head_matched.cu names it.
fn matched_kernel(gpu: &Gpu, cap: Option<f64>, target: Matched) -> &'static str {
    /// Made once, for launches keep the names that they are given.
    static KERNELS: LazyLock<Vec<(&'static str, Kernels)>> = LazyLock::new(|| {
        let kernel = |name, cap, precision| &*format!("head_{name}{cap}_{precision}").leak();
        let kernels = |target: Matched| {
            let of = |cap| ["bf16", "f32"].map(|precision| kernel(target.name(), cap, precision));
            (target.name(), ["", "_capped"].map(of))
        };
        Matched::ALL.map(kernels).to_vec()
    });
    let found = KERNELS.iter().find(|(name, _)| *name == target.name());
    // A loss that the list lacks is refused by the launch: no kernel has this name.
    found.map_or("head_matched", |(_, kernels)| variant(gpu, cap, kernels))
}

/// Makes fp32 logits of `m` rows at `h`, not capped yet.
pub(super) fn product(
    gpu: &Gpu,
    HeadShape { c, v, .. }: HeadShape,
    m: usize,
    h: u64,
    w: HeadWeight<Weight<'_>>,
    z: u64,
) {
    let job = Gemm {
        layout: Layout::Nt,
        m,
        n: v,
        k: c,
        a: h,
        lda: c,
        b: w.matrix.at,
        ldb: c,
        c: z,
        ldc: v,
        out: Out::F32,
        accumulate: false,
        bias: w.bias.map_or(0, |bias| bias.at),
        residual: 0,
    };
    gemm(gpu, &job);
}

/// Sends the gradient at the logits of rows `start..start + m` back through the head.
fn back(
    gpu: &Gpu,
    HeadShape { c, v, .. }: HeadShape,
    (start, m): (usize, usize),
    (dz, h, w): (u64, u64, u64),
    grads: &mut HeadGrads<'_, Act, Grad>,
) {
    // bf16 gradients lie in rows of fp32.
    let pitch = if gpu.precision() == Precision::Bf16 { 2 * v } else { v };
    let bytes = gpu.precision().bytes();
    let job = Gemm {
        layout: Layout::Nn,
        m,
        n: c,
        k: v,
        a: dz,
        lda: pitch,
        b: w,
        ldb: c,
        c: grads.dh.at + (start * c) as u64 * bytes,
        ldc: c,
        out: Out::Stored,
        accumulate: false,
        bias: 0,
        residual: 0,
    };
    gemm(gpu, &job);
    if let Some(dw) = grads.dw.as_deref_mut() {
        let job = Gemm {
            layout: Layout::Tn,
            m: v,
            n: c,
            k: m,
            b: h,
            ldb: c,
            c: dw.at,
            out: if dw.wide { Out::F32 } else { Out::Bf16 },
            accumulate: gpu.adds(dw),
            ..job
        };
        gemm(gpu, &job);
    }
    if let Some(db) = grads.db.as_deref_mut() {
        linear::column_sums(gpu, dz, (m, pitch), v, db);
    }
}

pub(in crate::backend::gpu) fn onehot(
    gpu: &Gpu,
    rows: HeadRows<'_, Act, Pack, Weight<'_>>,
    weight: TokenWeight<'_, Stat>,
    stats: &mut RowStats<Stat>,
    mut grads: Option<HeadGrads<'_, Act, Grad>>,
) {
    let HeadRows { shape, first: row, pack, h, w } = rows;
    let Some((room, rows)) = room(gpu, shape, false) else {
        return;
    };
    let (formula, weights) = match weight {
        TokenWeight::Formula(formula) => (formula, None),
        TokenWeight::PerRow(weights) => (TokenFormula::constant(0.0), Some(weights.at)),
    };
    for start in (0..shape.n).step_by(rows.max(1)) {
        let m = rows.min(shape.n - start);
        let at = row + start;
        let (words, hidden) = (4 * at as u64, (at * shape.c) as u64 * gpu.precision().bytes());
        let operands = [h.at + hidden, w.matrix.at, room.logits, pack.targets + words];
        let records = match (w.bias, w.cap) {
            (None, None) => product_with_records(gpu, shape, m, operands, grads.is_some()),
            // The records are those of a product alone.
            _ => None,
        };
        if records.is_none() {
            product(gpu, shape, m, h.at + hidden, w, room.logits);
        }
        let args = Args::new()
            .ptr(room.logits)
            .ptr(pack.targets + words)
            .ptr(pack.coefs + words)
            .ptr(weights.map_or(0, |at| at + words))
            .ptr(stats.nll.at + words)
            .ptr(stats.value.at + words)
            .ptr(stats.hit.at + words)
            .u32(shape.v as u32)
            .f32(formula.sign as f32)
            .f32(formula.p_power as f32)
            .f32(formula.q_power as f32)
            .f32(formula.pole.unwrap_or(0.0) as f32)
            .f32(formula.threshold as f32)
            .u32(u32::from(formula.pole.is_some()))
            .u32(u32::from(grads.is_some()));
        let (kernel, args) = match records {
            Some(records) => ("head_onehot_records_bf16", args.ptr(records)),
            None => (variant(gpu, w.cap, &ONEHOT), args.f32(cap(w))),
        };
        gpu.launch(kernel, [m as u32, 1, 1], 256, 0, args);
        if let Some(grads) = &mut grads {
            back(gpu, shape, (at, m), (room.logits, h.at + hidden, w.matrix.at), grads);
        }
    }
}

pub(in crate::backend::gpu) fn matched(
    gpu: &Gpu,
    rows: HeadRows<'_, Act, Pack, Weight<'_>>,
    reference: HeadReference<'_, Act, Weight<'_>>,
    target: Matched,
    stats: &mut RowStats<Stat>,
    mut grads: Option<HeadGrads<'_, Act, Grad>>,
) {
    let HeadRows { shape, first: row, pack, h, w } = rows;
    let HeadReference { h: h_ref, w: w_ref } = reference;
    let Some((room, rows)) = room(gpu, shape, true) else {
        return;
    };
    let compares = target.compares();
    let shared = compares && w_ref.is_none();
    for start in (0..shape.n).step_by(rows.max(1)) {
        let m = rows.min(shape.n - start);
        let at = row + start;
        let (words, hidden) = (4 * at as u64, (at * shape.c) as u64 * gpu.precision().bytes());
        let reference = h_ref.at + (start * shape.c) as u64 * gpu.precision().bytes();
        let mut first = h.at + hidden;
        if shared {
            let len = m * shape.c;
            let args = Args::new().ptr(first).ptr(reference).ptr(room.difference).u64(len as u64);
            let kernel = gpu.pick("head_difference_bf16", "head_difference_f32");
            gpu.launch(kernel, [blocks(len, 2048), 1, 1], 256, 0, args);
            first = room.difference;
        }
        // Of two heads that are the same the bias takes itself off.
        let own = if shared { HeadWeight::plain(w.matrix) } else { w };
        product(gpu, shape, m, first, own, room.logits);
        if compares {
            product(gpu, shape, m, reference, w_ref.unwrap_or(w), room.teacher);
        }
        let args = Args::new()
            .ptr(room.logits)
            .ptr(if compares { room.teacher } else { 0 })
            .ptr(pack.targets + words)
            .ptr(pack.coefs + words)
            .ptr(stats.nll.at + words)
            .ptr(stats.value.at + words)
            .ptr(stats.hit.at + words)
            .u32(shape.v as u32)
            .f32(target.number() as f32)
            .u32(u32::from(compares && !shared))
            .u32(u32::from(grads.is_some()))
            .f32(cap(w));
        let kernel = matched_kernel(gpu, w.cap, target);
        gpu.launch(kernel, [m as u32, 1, 1], 256, 0, args);
        if let Some(grads) = &mut grads {
            back(gpu, shape, (at, m), (room.logits, h.at + hidden, w.matrix.at), grads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_keeps_chunks_tall() {
        let rows = |n, v| plan(HeadShape { n, c: 64, v }, None);
        assert_eq!(rows(20_000, 128_256), 1024);
        assert_eq!(rows(20_000, 32_000), 2097);
        assert_eq!(rows(300, 32_000), 300);
        assert_eq!(rows(5, 1), 5);
        assert_eq!(plan(HeadShape { n: 20_000, c: 64, v: 32_000 }, Some(7)), 7);
    }
}
