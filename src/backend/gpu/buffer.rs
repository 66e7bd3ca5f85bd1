//! Typed device memory. None of it frees itself: it belongs to the arena of its [`Gpu`](super::Gpu).

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Gpu, Precision};
use crate::error::Result;
use crate::ops::PackData;

/// Activations, in the precision of storage.
#[derive(Debug)]
pub struct Act {
    /// The device address; 0 where `len` is 0.
    pub(super) at: u64,
    /// Number of elements.
    pub(super) len: usize,
}

impl Act {
    /// Returns the device address; 0 where there are no numbers.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Shows the numbers as a weight, which has the same form.
    pub fn as_weight(&self) -> Weight<'_> {
        Weight::new(self.at)
    }
}

/// Statistics and row results, fp32.
#[derive(Debug)]
pub struct Stat {
    /// The device address; 0 where `len` is 0.
    pub(super) at: u64,
    /// Number of elements.
    pub(super) len: usize,
}

/// A weight tensor as the kernels read it, in the precision of storage.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// The device address.
    pub(super) at: u64,
    pub(super) of: PhantomData<&'a ()>,
}

impl Weight<'_> {
    /// Shows what lies at `at`.
    pub(super) fn new(at: u64) -> Self {
        Self { at, of: PhantomData }
    }
}

/// A gradient: fp32 in exact state, bf16 in compact state.
#[derive(Debug)]
pub struct Grad {
    /// The device address; 0 where `len` is 0.
    pub(super) at: u64,
    /// Number of elements.
    pub(super) len: usize,
    /// True if they are fp32.
    pub(super) wide: bool,
    /// Where the partial scans of its norm lie: struct Partial of kernels/common.cuh.
    pub(super) scans: u64,
    pub(super) marks: Arc<GradMarks>,
}

/// Bytes of a partial scan: struct Partial of kernels/common.cuh.
const PARTIAL: u64 = 16;

/// Returns the bytes of the partial scans of a gradient of `len` numbers: as many as the smallest tiles of
/// kernels/sm90/gemm.cu leave of a matrix that fills them, and up to 64 KiB more for one that does not.
pub fn scan_bytes(len: usize) -> u64 {
    let whole = len.div_ceil(2048) as u64;
    PARTIAL * (whole + whole.min(4096))
}

/// State of a gradient's memory.
#[derive(Debug, Default)]
pub(super) struct GradMarks {
    /// True once written since the last clear; until then the memory is undefined.
    pub(super) written: AtomicBool,
    /// Number of partial scans left by the GEMM that wrote last; 0 if it did not scan.
    pub(super) scanned: AtomicU32,
}

impl Grad {
    /// Returns the device address; 0 where there are no numbers.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Returns the bytes of a number.
    pub fn number_bytes(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    /// Notes that its memory means nothing any more.
    pub(super) fn clear(&mut self) {
        self.marks.written.store(false, Ordering::Relaxed);
        self.marks.scanned.store(0, Ordering::Relaxed);
    }

    /// Returns how many partial scans there is room for.
    pub(super) fn scans_room(&self) -> u32 {
        (scan_bytes(self.len) / PARTIAL) as u32
    }

    /// Returns how many partial scans the product left that wrote last; 0 where it did not scan.
    pub fn scanned(&self) -> u32 {
        self.marks.scanned.load(Ordering::Relaxed)
    }

    /// Tells whether anything was written.
    pub(super) fn is_written(&self) -> bool {
        self.marks.written.load(Ordering::Relaxed)
    }
}

/// A pack on the device. Addresses are those of arrays of `tokens` entries unless said otherwise.
#[derive(Debug)]
pub struct Pack {
    /// Room, in tokens.
    pub(super) tokens: usize,
    /// Index of the copy stream (0 or 1); two alternate so that copies overlap with compute.
    pub(super) lane: usize,
    /// Token ids, u32.
    pub(super) ids: u64,
    /// Position of each token in its document, u32.
    pub(super) positions: u64,
    /// Target of each row, u32.
    pub(super) targets: u64,
    /// Coefficient of each row, fp32.
    pub(super) coefs: u64,
    /// Weight of each row's value, fp32.
    pub(super) shares: u64,
    /// Weight of each row's NLL and hit, fp32.
    pub(super) monitors: u64,
    /// Divisor of the sum over each document's targets, u32.
    pub(super) spans: u64,
    /// First row of each document and N at the end, u32, `tokens + 1` entries of room.
    pub(super) starts: u64,
    /// Cache slot of each document, u32.
    pub(super) slots: u64,
    /// Blocks of attention rows: document's first row, its end, the block's first row, 0; u32 x 4.
    pub(super) blocks: u64,
    /// Current number of blocks.
    pub(super) block_count: usize,
    /// Rows sorted by id, rows of equal id in their order, u32.
    pub(super) order: u64,
    /// Where each distinct id begins in `order`, then N up to entry N, u32, `tokens + 1` entries of room.
    pub(super) groups: u64,
    /// Positions that angles are needed for: one more than the last one; 0 where there is no token.
    pub(super) reach: usize,
    /// Host copy of the packed batch.
    pub(super) data: PackData,
}

/// Returns the bytes of the arrays of a [`Pack`], in the order of its fields.
pub(super) fn pack_bytes(tokens: usize) -> [u64; 12] {
    let one = 4 * tokens as u64;
    [one, one, one, one, one, one, one, one + 4, one, 4 * one, one, one + 4]
}

/// Query rows of an attention block in [`Pack::blocks`].
pub(super) const ATTENTION_ROWS: usize = 128;

impl Gpu {
    pub(super) fn new_act(&self, len: usize) -> Result<Act> {
        Ok(Act { at: self.alloc(len as u64 * self.precision.bytes())?, len })
    }

    pub(super) fn new_stat(&self, len: usize) -> Result<Stat> {
        Ok(Stat { at: self.alloc(4 * len as u64)?, len })
    }

    pub(super) fn new_pack(&self, tokens: usize) -> Result<Pack> {
        let mut at = [0; 12];
        for (at, bytes) in at.iter_mut().zip(pack_bytes(tokens)) {
            *at = self.alloc(bytes)?;
        }
        let [ids, positions, targets, coefs, shares, monitors, spans, starts, slots, rest @ ..] =
            at;
        let [blocks, order, groups] = rest;
        Ok(Pack {
            tokens,
            lane: self.packs.fetch_add(1, Ordering::Relaxed) % 2,
            ids,
            positions,
            targets,
            coefs,
            shares,
            monitors,
            spans,
            starts,
            slots,
            blocks,
            block_count: 0,
            order,
            groups,
            reach: 0,
            data: PackData::default(),
        })
    }

    /// Copies a pack to the device.
    pub(super) fn upload_pack(&self, pack: &mut Pack, data: &PackData) -> Result<()> {
        if data.tokens() > pack.tokens {
            return Err(crate::Error::config(format!(
                "a pack of {} tokens does not fit into room for {}",
                data.tokens(),
                pack.tokens
            )));
        }
        let narrow = |wide: &[f64]| wide.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let [coefs, shares, monitors] =
            [&data.coefs, &data.shares, &data.monitors].map(|wide| narrow(wide));
        let blocks = attention_blocks(&data.starts);
        pack.block_count = blocks.len();
        pack.reach = data.positions.iter().max().map_or(0, |last| *last as usize + 1);
        let (order, groups) = id_groups(&data.ids);
        let parts = [
            (pack.ids, bytemuck::cast_slice::<u32, u8>(&data.ids)),
            (pack.positions, bytemuck::cast_slice(&data.positions)),
            (pack.targets, bytemuck::cast_slice(&data.targets)),
            (pack.coefs, bytemuck::cast_slice(&coefs)),
            (pack.shares, bytemuck::cast_slice(&shares)),
            (pack.monitors, bytemuck::cast_slice(&monitors)),
            (pack.spans, bytemuck::cast_slice(&data.spans)),
            (pack.starts, bytemuck::cast_slice(&data.starts)),
            (pack.slots, bytemuck::cast_slice(&data.slots)),
            (pack.blocks, bytemuck::cast_slice(&blocks)),
            (pack.order, bytemuck::cast_slice(&order)),
            (pack.groups, bytemuck::cast_slice(&groups)),
        ];
        self.first(self.driver.stage(pack.lane, &parts))?;
        pack.data.clone_from(data);
        Ok(())
    }

    /// Copies stored numbers to the host as fp32.
    pub(super) fn download_act(&self, at: u64, out: &mut [f32]) -> Result<()> {
        match self.precision {
            Precision::Fp32 => self.download(at, bytemuck::cast_slice_mut(out)),
            Precision::Bf16 => {
                let mut narrow = vec![0u16; out.len()];
                self.download(at, bytemuck::cast_slice_mut(&mut narrow))?;
                out.iter_mut()
                    .zip(narrow)
                    .for_each(|(to, from)| *to = crate::ops::format::widen(from));
                Ok(())
            }
        }
    }

    /// Copies host numbers to the device, rounded to the nearest stored number.
    pub(super) fn upload_act(&self, at: u64, values: &[f32]) -> Result<()> {
        match self.precision {
            Precision::Fp32 => self.upload(at, bytemuck::cast_slice(values)),
            Precision::Bf16 => {
                let narrow: Vec<u16> =
                    values.iter().map(|x| crate::ops::format::narrow_even(*x)).collect();
                self.upload(at, bytemuck::cast_slice(&narrow))
            }
        }
    }
}

/// Cuts documents into blocks of [`ATTENTION_ROWS`] rows, those with the most keys first.
fn attention_blocks(starts: &[u32]) -> Vec<[u32; 4]> {
    let mut blocks: Vec<[u32; 4]> = starts
        .windows(2)
        .flat_map(|ends| {
            let (start, end) = (ends[0], ends[1]);
            (start..end).step_by(ATTENTION_ROWS).map(move |first| [start, end, first, 0])
        })
        .collect();
    // A stable sort: equal work keeps the order of the rows.
    blocks.sort_by_key(|[start, _, first, _]| std::cmp::Reverse(first - start));
    blocks
}

/// Sorts rows by id, stably, and tells where each distinct id begins; N + 1 entries, the last ones N.
fn id_groups(ids: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|row| ids[*row as usize]);
    let id = |at: usize| ids[order[at] as usize];
    let mut groups: Vec<u32> =
        (0..ids.len()).filter(|at| *at == 0 || id(*at) != id(at - 1)).map(|at| at as u32).collect();
    groups.resize(ids.len() + 1, ids.len() as u32);
    (order, groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_groups_keep_rows_of_an_id_in_order() {
        assert_eq!(id_groups(&[7, 2, 7, 7, 0]), (vec![4, 1, 0, 2, 3], vec![0, 1, 2, 5, 5, 5]));
        assert_eq!(id_groups(&[]), (vec![], vec![0]));
    }

    #[test]
    fn attention_blocks_cover_each_document_alone_and_start_with_the_longest() {
        let blocks = attention_blocks(&[0, 130, 131, 195]);
        assert_eq!(
            blocks,
            [[0, 130, 128, 0], [0, 130, 0, 0], [130, 131, 130, 0], [131, 195, 131, 0]]
        );
        assert!(attention_blocks(&[]).is_empty());
    }
}
