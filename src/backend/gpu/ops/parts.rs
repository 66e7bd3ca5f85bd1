//! Weight gradients of small models: k in parts, so that few tiles keep a whole device busy.

use super::tile::Tile;

/// Tiles that are enough of them: about one for each processor of a large device. A constant, as the order of a sum
/// must not depend on the device.
const ENOUGH: usize = 128;
/// The least of k in a part: below it, writing and adding parts takes longer than the products they save.
const LEAST_DEPTH: usize = 1024;
/// A multiple of every tile height and of the clusters that compute them.
const ROWS: usize = 256;
/// Upper bound of the buffer for all parts of a GEMM, in bytes: 128 tiles of 128 x 128 fp32 numbers.
pub const BYTES: u64 = 4 * (ENOUGH * 128 * 128) as u64;

/// Split of the k of a GEMM (split-K). The results of the parts are stored contiguously as fp32 matrices of `rows` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// Number of parts.
    pub count: usize,
    /// Of k in each but the last, which may be shorter.
    pub depth: usize,
    /// From the first row of a result to that of the next one.
    pub rows: usize,
}

impl Parts {
    /// Leaves a product of `m` rows whole.
    pub(super) fn whole(m: usize, k: usize) -> Self {
        Self { count: 1, depth: k, rows: m.next_multiple_of(ROWS) }
    }

    /// Cuts an `m` x `n` product in as many parts as fill a large device, as far as `k` allows: by the shape alone.
    pub(super) fn of(m: usize, n: usize, k: usize) -> Self {
        let tiles = (Tile::Sm90Medium.blocks(m, n) as usize).max(1);
        let count = (ENOUGH / tiles).min(k / LEAST_DEPTH).max(1);
        // Whole stages of every kernel.
        let depth = k.div_ceil(count).next_multiple_of(64).min(k);
        Self { count: k.div_ceil(depth.max(1)).max(1), depth, ..Self::whole(m, k) }
    }

    /// Returns the rows of the results of all parts together.
    pub(super) fn stacked(self, m: usize) -> usize {
        if self.count == 1 { m } else { self.count * self.rows }
    }
}

/// Returns in how many parts the k of an `m` x `n` weight gradient is cut.
pub fn count(m: usize, n: usize, k: usize) -> usize {
    Parts::of(m, n, k).count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_device_where_tiles_do_not() {
        // SmolLM2-135M with packs of 4096 tokens: out, qkv, gate and up, down.
        let count = |m, n| count(m, n, 4096);
        assert_eq!([count(576, 576), count(960, 576)], [4, 3]);
        assert_eq!([count(3072, 576), count(576, 1536), count(4096, 4096)], [1; 3]);
        assert_eq!(Parts::of(960, 576, 4096), Parts { count: 3, depth: 1408, rows: 1024 });
        // A short k is not worth it.
        assert_eq!(Parts::of(576, 576, 2047).count, 1);
        assert_eq!(Parts::of(576, 576, 2048), Parts { count: 2, depth: 1024, rows: 768 });
    }

    #[test]
    fn parts_cover_k_and_fit_the_scratch() {
        for m in [1, 64, 200, 256, 257, 576, 2048, 4097] {
            for n in [1, 8, 128, 129, 576, 4096] {
                for k in [0, 1, 2047, 2049, 3100, 4096, 100_000] {
                    let parts = Parts::of(m, n, k);
                    let Parts { count, depth, rows } = parts;
                    assert!(count * depth >= k && (count == 1 || (count - 1) * depth < k));
                    assert!(rows >= m && rows.is_multiple_of(256));
                    assert!(count == 1 || depth.is_multiple_of(64));
                    assert!(
                        count == 1 || (4 * count * rows * n) as u64 <= BYTES,
                        "{m}x{n}x{k}: {parts:?}"
                    );
                }
            }
        }
    }
}
