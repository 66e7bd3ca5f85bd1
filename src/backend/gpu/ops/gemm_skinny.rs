//! Products with few rows, as a decode step has them: kernels/gemm_skinny.cu.

use std::sync::atomic::Ordering;

use super::gemm::{Gemm, Layout};
use crate::backend::gpu::{Gpu, Precision, blocks};

/// Rows up to which weights that stream once cost more than the products with them.
const MOST_ROWS: usize = 128;
/// Bytes of shared memory that the narrow blocks take: 99 KiB are to be had on every device.
const NARROW: u32 = 96 << 10;
/// Those of the wide one.
const WIDE: u32 = 128 << 10;

/// The rows and columns that one block computes; a row's bits are the same in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skinny {
    /// 16 x 32.
    R16,
    /// 32 x 32.
    R32,
    /// 64 x 32.
    R64,
    /// 64 x 64: reads the rows of the batch half as often.
    Wide,
}

impl Skinny {
    /// Threads of a block.
    pub(super) const THREADS: u32 = 256;

    /// Returns rows and columns.
    fn size(self) -> (usize, usize) {
        match self {
            Self::R16 => (16, 32),
            Self::R32 => (32, 32),
            Self::R64 => (64, 32),
            Self::Wide => (64, 64),
        }
    }

    /// Returns the shared memory of a block in bytes: 512 for each row and column and each of its stages.
    pub(super) fn shared(self) -> u32 {
        if self == Self::Wide { WIDE } else { NARROW }
    }

    /// Returns how many blocks cover `m` rows and `n` columns, of which a block takes `1 / share` of its own.
    pub(super) fn blocks(self, m: usize, n: usize, share: usize) -> u32 {
        let (rows, columns) = self.size();
        blocks(m, rows) * blocks(n, columns / share)
    }
}

/// Names the kernel of a shape: the name of the product and that of the shape.
macro_rules! kernel_of_skinny {
    ($shape:expr, $name:literal) => {
        match $shape {
            Skinny::R16 => concat!($name, "_16x32"),
            Skinny::R32 => concat!($name, "_32x32"),
            Skinny::R64 => concat!($name, "_64x32"),
            Skinny::Wide => concat!($name, "_64x64"),
        }
    };
}
pub(super) use kernel_of_skinny;

/// Returns the shape for `m` rows of aligned operands; `None` where a tile of tile.rs does better, and outside of
/// generation: student and teacher must meet one order of sums however many rows their packs have.
pub(super) fn plan(gpu: &Gpu, m: usize, aligned: bool) -> Option<Skinny> {
    let wanted = gpu.precision() == Precision::Bf16 && gpu.few_rows.load(Ordering::Relaxed);
    (wanted && aligned).then(|| fastest(m, gpu.driver.identity().shared_bytes)).flatten()
}

/// Picks the lowest block that holds all rows; a device that grants it gives high ones twice the columns.
fn fastest(m: usize, shared_bytes: u32) -> Option<Skinny> {
    match m {
        1..=16 => Some(Skinny::R16),
        17..=32 => Some(Skinny::R32),
        33..=MOST_ROWS if shared_bytes >= WIDE => Some(Skinny::Wide),
        33..=MOST_ROWS => Some(Skinny::R64),
        _ => None,
    }
}

/// Returns the shared memory in bytes that some block needs on every device.
pub(super) fn narrow_shared() -> u32 {
    NARROW
}

/// Returns the kernel and the shape for a product of linear.rs, where it is one for few rows.
pub(super) fn kernel(gpu: &Gpu, job: &Gemm, aligned: bool) -> Option<(&'static str, Skinny)> {
    let shape = plan(gpu, job.m, aligned && job.layout == Layout::Nt)?;
    Some((kernel_of_skinny!(shape, "gemm_skinny_bf16"), shape))
}

/// Returns the dynamic shared memory of a block of `kernel`, if it is one of these.
pub(super) fn shared(kernel: &str) -> Option<u32> {
    let wide = kernel.ends_with("_64x64");
    kernel.contains("_skinny_").then(|| if wide { Skinny::Wide.shared() } else { NARROW })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fastest_is_the_lowest_block_that_holds_the_rows() {
        let of = |m| fastest(m, 163 << 10);
        assert_eq!([of(1), of(16)], [Some(Skinny::R16); 2]);
        assert_eq!([of(17), of(32)], [Some(Skinny::R32); 2]);
        assert_eq!([of(33), of(128)], [Some(Skinny::Wide); 2]);
        assert_eq!(fastest(64, 99 << 10), Some(Skinny::R64));
        assert_eq!([of(0), of(129)], [None; 2]);
    }

    #[test]
    fn blocks_cover_the_result_and_fit_the_smallest_device() {
        assert_eq!(Skinny::R16.blocks(3, 4096, 1), 128);
        assert_eq!(Skinny::Wide.blocks(65, 129, 1), 6);
        // Half of the columns are gates.
        assert_eq!(Skinny::R32.blocks(32, 17, 2), 2);
        for shape in [Skinny::R16, Skinny::R32, Skinny::R64] {
            assert!(shape.shared() <= 99 << 10, "{shape:?}");
        }
    }
}
