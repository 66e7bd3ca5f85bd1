//! Linear maps: kernels/gemm.cuh and its instances, kernels/columns.cu; what hopper.rs and skinny.rs start instead.

use super::columns::{self, COLUMNS};
use super::parts::{self, Parts};
use super::skinny::{self, Skinny};
use super::{head, hopper};
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Act, Gpu, Grad, Precision, Weight, blocks};

/// Which operands of a product are transposed; all matrices are row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Layout {
    /// `A[m,k] B[n,k]^T`: forward.
    Nt,
    /// `A[m,k] B[k,n]`: input gradient.
    Nn,
    /// `A[k,m]^T B[k,n]`: weight gradient.
    Tn,
}

/// What the result is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Out {
    /// The precision of storage.
    Stored,
    /// fp32.
    F32,
    /// bf16, rounded to nearest even.
    Bf16,
}

/// One matrix product: `c[m,n] = A B (+ bias[n]) (+ residual[m,n])`, or `c += A B (+ bias[n])`.
///
/// Operands, bias and residual are in the precision of storage, pitches in elements. Addresses are those of whole
/// elements; rows that are multiples of 16 bytes from an address that is one are read fastest.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::gpu) struct Gemm {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: u64,
    pub lda: usize,
    pub b: u64,
    pub ldb: usize,
    pub c: u64,
    /// In elements of c's own type.
    pub ldc: usize,
    pub out: Out,
    /// Adds to what c holds; excludes a residual.
    pub accumulate: bool,
    /// 0 for none.
    pub bias: u64,
    /// 0 for none; its pitch is `ldc`, and c is in the precision of storage.
    pub residual: u64,
}

/// The part of a product's result that one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 256 by 256 threads, one block a processor.
    Large,
    /// 128 x 128 by 128 threads, two blocks a processor.
    Medium,
    /// 64 x 64 by 128 threads, five blocks a processor.
    Small,
    /// 64 x 64 by 128 threads from operands of any alignment.
    Any,
    /// 128 x 256 by 384 threads, one block a processor: bf16 on compute capability 9.0, as the next one.
    HopperLarge,
    /// 128 x 128 by 384 threads, one block a processor.
    HopperMedium,
}

impl Tile {
    /// Tells whether its kernels are those of kernels/hopper/.
    pub(super) fn is_hopper(self) -> bool {
        matches!(self, Self::HopperLarge | Self::HopperMedium)
    }

    /// Returns the tile of its size that every device has.
    pub(super) fn portable(self) -> Self {
        match self {
            Self::HopperLarge => Self::Large,
            Self::HopperMedium => Self::Medium,
            tile => tile,
        }
    }

    /// Returns rows and columns.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Large | Self::HopperLarge => (128, 256),
            Self::Medium | Self::HopperMedium => (128, 128),
            Self::Small | Self::Any => (64, 64),
        }
    }

    /// Returns the threads of a block.
    pub(super) fn threads(self) -> u32 {
        match self {
            Self::Large => 256,
            Self::Medium | Self::Small | Self::Any => 128,
            Self::HopperLarge | Self::HopperMedium => hopper::THREADS,
        }
    }

    /// Returns the shared memory of a block in bytes: four stages of 64 bytes for each row and each column, or what
    /// hopper.rs says.
    pub(super) fn shared(self) -> u32 {
        if self.is_hopper() {
            return hopper::shared(self.size());
        }
        let (rows, columns) = self.size();
        4 * 64 * (rows + columns) as u32
    }

    /// Returns how many tiles cover `m` x `n`.
    pub(super) fn blocks(self, m: usize, n: usize) -> u32 {
        if self.is_hopper() {
            return hopper::tiles(self.size(), m, n);
        }
        let (rows, columns) = self.size();
        blocks(m, rows) * blocks(n, columns)
    }
}

/// Returns the tile for an `m` x `n` result: the one asked for by [`Gpu::force_tile`], or the fastest.
///
/// `aligned`: rows of the operands are whole 16-byte packs; `bulk`: those of all that is read and written are, and `k`
/// is not 0, which is what the kernels of [`hopper`] need.
/// The choice does not touch the order of any sum within a kind of tensor core; that of a product with few rows
/// (skinny.rs) is another one.
pub(super) fn plan(gpu: &Gpu, m: usize, n: usize, aligned: bool, bulk: bool) -> Tile {
    if !aligned {
        return Tile::Any;
    }
    let hopper = bulk && m > 0 && n > 0 && hopper::serves(gpu);
    match gpu.forced_tile() {
        Some(tile) if hopper => tile,
        Some(tile) => tile.portable(),
        None => fastest(m, n, hopper),
    }
}

/// Columns from which on a tile of 128 rows by a cluster of blocks is worth its setting up.
const HOPPER_FROM: usize = 64;

/// Picks the tile that a device of 128 processors should finish an `m` x `n` result with first.
///
/// The time of a tile is its area over the rate at which its blocks together keep a processor busy: the smaller the
/// tile, the more bytes of operands it needs for a product. Rates are estimates, 1 being some 400 TFLOP/s of an H100.
fn fastest(m: usize, n: usize, hopper: bool) -> Tile {
    let time = |&(tile, together, rate): &(Tile, usize, f64)| {
        let (rows, columns) = tile.size();
        let rounds = (tile.blocks(m, n) as usize).div_ceil(128 * together);
        (rounds * rows * columns * together) as f64 / rate
    };
    // Whatever the rows: student and teacher meet the same tensor cores in packs of any size.
    let pays = hopper && n >= HOPPER_FROM;
    [
        (Tile::Large, 1, 1.0),
        (Tile::Medium, 2, 0.95),
        (Tile::Small, 4, 0.6),
        (Tile::HopperLarge, 1, 1.8),
        (Tile::HopperMedium, 1, 1.25),
    ]
    .iter()
    .filter(|(tile, ..)| tile.is_hopper() == pays)
    .min_by(|a, b| time(a).total_cmp(&time(b)))
    .map_or(Tile::Small, |(tile, ..)| *tile)
}

/// Tells whether rows of `pitch` elements of `bytes` bytes from `address` on are whole 16-byte packs.
pub(super) fn packed(address: u64, pitch: usize, bytes: u64) -> bool {
    address.is_multiple_of(16) && (pitch as u64 * bytes).is_multiple_of(16)
}

/// Names the kernel of a tile: the name of the product and that of the tile.
macro_rules! kernel_of_tile {
    ($tile:expr, $name:literal) => {
        match $tile {
            Tile::Large | Tile::HopperLarge => concat!($name, "_128x256"),
            Tile::Medium | Tile::HopperMedium => concat!($name, "_128x128"),
            Tile::Small => concat!($name, "_64x64"),
            Tile::Any => concat!($name, "_any"),
        }
    };
}
pub(super) use kernel_of_tile;

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

/// Returns the dynamic shared memory of a block of `kernel`, if it is a product: by the tile that its name ends in.
pub(super) fn shared(kernel: &str) -> Option<u32> {
    let hopper = kernel.contains("_sm90_");
    let named = |tile: &Tile| {
        let (rows, columns) = tile.size();
        match tile {
            Tile::Any => kernel.ends_with("_any"),
            _ => tile.is_hopper() == hopper && kernel.ends_with(&format!("_{rows}x{columns}")),
        }
    };
    let all =
        [Tile::Large, Tile::Medium, Tile::Small, Tile::Any, Tile::HopperLarge, Tile::HopperMedium];
    let product = kernel.starts_with("gemm_") || kernel == head::STATISTICS;
    product.then(|| all.into_iter().find(named).map(Tile::shared)).flatten()
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
    if let Some((name, shape)) = skinny::kernel(gpu, job, aligned) {
        let grid = [shape.blocks(job.m, job.n, 1), 1, 1];
        gpu.launch(name, grid, Skinny::THREADS, shape.shared(), args);
        return 0;
    }
    let tile = plan(gpu, parts.stacked(job.m), job.n, aligned, rows && job.k > 0);
    if tile.is_hopper() {
        let count = hopper::scans(tile.blocks(job.m, job.n));
        if let Some((at, _)) = scans.filter(|(_, room)| count <= *room) {
            hopper::gemm_scanned(gpu, tile, job, wide, addend, at);
            return count;
        }
        hopper::gemm(gpu, tile, job, wide, addend, parts);
        return 0;
    }
    let name = kernel(job.layout, gpu.precision(), tile);
    let grid = [tile.blocks(job.m, job.n), parts.count as u32, 1];
    args = args.u32(parts.rows as u32).u32(parts.depth as u32);
    gpu.launch(name, grid, tile.threads(), tile.shared(), args);
    0
}

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    n: usize,
    (o, i): (usize, usize),
    x: &Act,
    w: Weight<'_>,
    bias: Option<Weight<'_>>,
    residual: Option<&Act>,
    y: &mut Act,
) {
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
    n: usize,
    (o, i): (usize, usize),
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
    n: usize,
    (o, i): (usize, usize),
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
    parts::wgrad(gpu, &job, dw);
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
    columns::sum(gpu, partial, (slabs as usize, pitch), o, db);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fastest_is_a_large_tile_where_it_fills_the_device_and_a_small_one_where_not() {
        let portable = |m, n| fastest(m, n, false);
        assert_eq!(portable(4096, 12288), Tile::Large);
        assert_eq!(portable(4096, 4096), Tile::Large);
        // 32 large tiles would leave three processors of four idle.
        assert_eq!(portable(1024, 1024), Tile::Small);
        assert_eq!(portable(1, 4096), Tile::Small);
        // 640 columns are two and a half large tiles, which need a second round.
        assert_eq!(portable(6400, 640), Tile::Medium);
    }

    #[test]
    fn fastest_is_a_hopper_tile_where_the_device_has_them_and_the_result_is_not_tiny() {
        for (m, n) in [(4096, 12288), (4096, 4096), (4096, 22016), (12288, 4096), (3072, 4096)] {
            assert_eq!(fastest(m, n, true), Tile::HopperLarge, "{m}x{n}");
        }
        assert_eq!(fastest(1024, 1024, true), Tile::HopperMedium);
        assert_eq!(fastest(6400, 640, true), Tile::HopperMedium);
        assert_eq!(fastest(4096, 8, true), Tile::Small);
        assert_eq!(fastest(1, 4096, true), Tile::HopperMedium);
    }

    #[test]
    fn tiles_cover_the_result_and_fit_the_smallest_device() {
        assert_eq!(Tile::Large.blocks(129, 257), 4);
        assert_eq!(Tile::Small.blocks(64, 65), 2);
        assert_eq!(Tile::Any.blocks(0, 5), 0);
        for tile in [Tile::Large, Tile::Medium, Tile::Small, Tile::Any] {
            assert!(tile.shared() <= 99 << 10, "{tile:?}");
        }
        for tile in [Tile::HopperLarge, Tile::HopperMedium] {
            assert!(
                tile.shared() <= 227 << 10 && tile.portable().size() == tile.size(),
                "{tile:?}"
            );
        }
    }

    #[test]
    fn packed_needs_address_and_pitch_in_whole_packs() {
        assert!(packed(256, 8, 2) && packed(0, 4, 4));
        assert!(!packed(256, 41, 2) && !packed(258, 8, 2) && !packed(256, 4, 2));
    }
}
