//! Tiles: the part of a product's result that one block computes, and which to take.

use crate::backend::gpu::driver::Matrix;
use crate::backend::gpu::{Gpu, Precision, blocks};

/// Blocks that share the columns of a tile: `kCluster` of gemm.cuh.
pub(super) const CLUSTER: usize = 2;

/// Threads of a block: one warpgroup that moves and two that multiply.
pub(super) const SM90_THREADS: u32 = 384;

/// Boxes of the result that each of two warpgroups owns: `kSlots` of gemm.cuh.
const SLOTS: u32 = 5;

/// Bytes of a box of 64 rows.
const BOX: u32 = 64 * Matrix::BOX_BYTES;

/// Tells whether the device has the instructions and the kernels are for its precision.
pub(super) fn has_sm90(gpu: &Gpu) -> bool {
    gpu.precision() == Precision::Bf16 && gpu.driver.identity().capability == (9, 0)
}

/// Returns the shared memory of a block in bytes: stages of 128 bytes for each row and column, the boxes of the
/// result, barriers, and what aligning to 1024 may take.
fn sm90_shared((rows, columns): (usize, usize)) -> u32 {
    let stages = if columns == 256 { 3 } else { 4 };
    let operands = stages * Matrix::BOX_BYTES * (rows + columns) as u32;
    1024 + operands + 2 * SLOTS * BOX + 8 * (2 * stages + 4 * SLOTS)
}

/// Returns how many tiles of `rows` x `columns` whole clusters need for `m` x `n`.
pub(super) fn sm90_tiles((rows, columns): (usize, usize), m: usize, n: usize) -> u32 {
    blocks(m, rows * CLUSTER) * CLUSTER as u32 * blocks(n, columns)
}

/// The part of a product's result that one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
    Sm90Large,
    /// 128 x 128 by 384 threads, one block a processor.
    Sm90Medium,
}

impl Tile {
    /// Tells whether its kernels are those of kernels/sm90/.
    pub(super) fn is_sm90(self) -> bool {
        matches!(self, Self::Sm90Large | Self::Sm90Medium)
    }

    /// Returns the tile of its size that every device has.
    pub(super) fn portable(self) -> Self {
        match self {
            Self::Sm90Large => Self::Large,
            Self::Sm90Medium => Self::Medium,
            tile => tile,
        }
    }

    /// Returns rows and columns.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Large | Self::Sm90Large => (128, 256),
            Self::Medium | Self::Sm90Medium => (128, 128),
            Self::Small | Self::Any => (64, 64),
        }
    }

    /// Returns the threads of a block.
    pub(super) fn threads(self) -> u32 {
        match self {
            Self::Large => 256,
            Self::Medium | Self::Small | Self::Any => 128,
            Self::Sm90Large | Self::Sm90Medium => SM90_THREADS,
        }
    }

    /// Returns the shared memory of a block in bytes: four stages of 64 bytes for each row and each column, or that of
    /// compute capability 9.0.
    pub(super) fn shared(self) -> u32 {
        if self.is_sm90() {
            return sm90_shared(self.size());
        }
        let (rows, columns) = self.size();
        4 * 64 * (rows + columns) as u32
    }

    /// Returns how many tiles cover `m` x `n`.
    pub(super) fn blocks(self, m: usize, n: usize) -> u32 {
        if self.is_sm90() {
            return sm90_tiles(self.size(), m, n);
        }
        let (rows, columns) = self.size();
        blocks(m, rows) * blocks(n, columns)
    }
}

/// Returns the tile for an `m` x `n` result: the one asked for by [`Gpu::force_tile`], or the fastest.
///
/// `aligned`: rows of the operands are whole 16-byte packs; `bulk`: those of all that is read and written are, and `k`
/// is not 0, which is what the kernels of sm90.rs need.
/// The choice does not touch the order of any sum within a kind of tensor core; that of a product with few rows
/// (gemm_skinny.rs) is another one.
pub(super) fn plan(gpu: &Gpu, m: usize, n: usize, aligned: bool, bulk: bool) -> Tile {
    if !aligned {
        return Tile::Any;
    }
    let sm90 = bulk && m > 0 && n > 0 && has_sm90(gpu);
    match gpu.forced_tile() {
        Some(tile) if sm90 => tile,
        Some(tile) => tile.portable(),
        None => fastest(m, n, sm90),
    }
}

/// Columns from which on a tile of 128 rows by a cluster of blocks is worth its setting up.
const SM90_FROM: usize = 64;

/// Picks the tile that a device of 128 processors should finish an `m` x `n` result with first.
///
/// The time of a tile is its area over the rate at which its blocks together keep a processor busy: the smaller the
/// tile, the more bytes of operands it needs for a product. Rates are estimates, 1 being some 400 TFLOP/s of an H100.
fn fastest(m: usize, n: usize, sm90: bool) -> Tile {
    let time = |&(tile, together, rate): &(Tile, usize, f64)| {
        let (rows, columns) = tile.size();
        let rounds = (tile.blocks(m, n) as usize).div_ceil(128 * together);
        (rounds * rows * columns * together) as f64 / rate
    };
    // Whatever the rows: student and teacher meet the same tensor cores in packs of any size.
    let pays = sm90 && n >= SM90_FROM;
    [
        (Tile::Large, 1, 1.0),
        (Tile::Medium, 2, 0.95),
        (Tile::Small, 4, 0.6),
        (Tile::Sm90Large, 1, 1.8),
        (Tile::Sm90Medium, 1, 1.25),
    ]
    .iter()
    .filter(|(tile, ..)| tile.is_sm90() == pays)
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
            Tile::Large | Tile::Sm90Large => concat!($name, "_128x256"),
            Tile::Medium | Tile::Sm90Medium => concat!($name, "_128x128"),
            Tile::Small => concat!($name, "_64x64"),
            Tile::Any => concat!($name, "_any"),
        }
    };
}
pub(super) use kernel_of_tile;

/// Returns the dynamic shared memory of a block of `kernel`, if it is a product: by the tile that its name ends in.
pub(super) fn shared(kernel: &str) -> Option<u32> {
    let sm90 = kernel.contains("_sm90_");
    let named = |tile: &Tile| {
        let (rows, columns) = tile.size();
        match tile {
            Tile::Any => kernel.ends_with("_any"),
            _ => tile.is_sm90() == sm90 && kernel.ends_with(&format!("_{rows}x{columns}")),
        }
    };
    let all =
        [Tile::Large, Tile::Medium, Tile::Small, Tile::Any, Tile::Sm90Large, Tile::Sm90Medium];
    let product = kernel.starts_with("gemm_") || kernel.starts_with("head_statistics_sm90_");
    product.then(|| all.into_iter().find(named).map(Tile::shared)).flatten()
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
    fn fastest_is_an_sm90_tile_where_the_device_has_them_and_the_result_is_not_tiny() {
        for (m, n) in [(4096, 12288), (4096, 4096), (4096, 22016), (12288, 4096), (3072, 4096)] {
            assert_eq!(fastest(m, n, true), Tile::Sm90Large, "{m}x{n}");
        }
        assert_eq!(fastest(1024, 1024, true), Tile::Sm90Medium);
        assert_eq!(fastest(6400, 640, true), Tile::Sm90Medium);
        assert_eq!(fastest(4096, 8, true), Tile::Small);
        assert_eq!(fastest(1, 4096, true), Tile::Sm90Medium);
    }

    #[test]
    fn tiles_cover_the_result_and_fit_the_smallest_device() {
        assert_eq!(Tile::Large.blocks(129, 257), 4);
        assert_eq!(Tile::Small.blocks(64, 65), 2);
        assert_eq!(Tile::Any.blocks(0, 5), 0);
        for tile in [Tile::Large, Tile::Medium, Tile::Small, Tile::Any] {
            assert!(tile.shared() <= 99 << 10, "{tile:?}");
        }
        for tile in [Tile::Sm90Large, Tile::Sm90Medium] {
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

    #[test]
    fn a_block_fits_its_processor() {
        for size in [(128, 256), (128, 128)] {
            assert!(sm90_shared(size) <= 232_448, "{size:?}");
        }
        assert_eq!(sm90_shared((128, 256)), 1024 + 3 * 48 * 1024 + 10 * 8192 + 8 * 26);
    }
}
