//! Micro-batches: documents packed without padding, with the sizes the reference's padded batches would have.

use crate::error::{Error, Result};

/// B documents of a micro-batch, packed one after the other.
///
/// The reference pads every row to the longest one, T. Padding never reaches earlier positions of a causal
/// model, so it is left out; it enters only through the normalisers [`MicroBatch::target_tokens`] and
/// [`MicroBatch::padded_positions`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    ids: Vec<u32>,
    offsets: Vec<usize>,
    width: usize,
}

impl MicroBatch {
    /// Packs `rows`; T becomes the length of the longest.
    pub fn new<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>) -> Self {
        let mut batch = Self { ids: Vec::new(), offsets: vec![0], width: 0 };
        for row in rows {
            batch.push(row.as_ref());
        }
        batch
    }

    /// Packs a right-padded batch: `ids` and the 0/1 `mask` are row-major `[rows, width]`.
    ///
    /// `width` stays T even where it exceeds the longest row; a row may be all padding.
    ///
    /// Errors: `Kind::Data` for wrong sizes, a mask value other than 0 and 1, or a 1 after a 0.
    pub fn from_padded(ids: &[u32], mask: &[u8], rows: usize, width: usize) -> Result<Self> {
        let wanted = rows.checked_mul(width);
        if wanted != Some(ids.len()) || ids.len() != mask.len() {
            return Err(Error::data(format!(
                "padded batch: {} ids and {} mask values, wanted {rows} x {width} of each",
                ids.len(),
                mask.len()
            )));
        }
        let mut batch = Self { ids: Vec::with_capacity(ids.len()), offsets: vec![0], width: 0 };
        for b in 0..rows {
            let range = b * width..(b + 1) * width;
            let len = real_length(&mask[range.clone()])
                .map_err(|e| e.at(format_args!("padded batch: row {b}")))?;
            batch.push(&ids[range][..len]);
        }
        batch.width = width;
        Ok(batch)
    }

    fn push(&mut self, row: &[u32]) {
        self.ids.extend_from_slice(row);
        self.offsets.push(self.ids.len());
        self.width = self.width.max(row.len());
    }

    /// Returns B, the number of documents.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Returns T, the length of the rows if they were padded, in tokens.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the ids of document `b`; panics if `b` is not below [`MicroBatch::rows`], as slices do.
    pub fn row(&self, b: usize) -> &[u32] {
        &self.ids[self.offsets[b]..self.offsets[b + 1]]
    }

    /// Returns all ids, document after document.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns the B + 1 places in [`MicroBatch::ids`] where documents begin and end.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Returns the number of real tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Returns the number of predicted tokens, the sum of the shifted mask: every token but each row's first.
    ///
    /// It is 0 if no row has two tokens; a loss must then be 0, not a division by it.
    pub fn target_tokens(&self) -> usize {
        self.offsets.windows(2).map(|o| (o[1] - o[0]).saturating_sub(1)).sum()
    }

    /// Returns B * T, the divisor of the retain penalties, in positions.
    pub fn padded_positions(&self) -> usize {
        self.rows() * self.width
    }
}

/// Returns how many leading 1s `mask` has, if only 0s follow.
pub(super) fn real_length(mask: &[u8]) -> Result<usize> {
    if let Some(at) = mask.iter().position(|&m| m > 1) {
        return Err(Error::data(format!("mask[{at}] is {}, wanted 0 or 1", mask[at])));
    }
    let len = mask.iter().take_while(|&&m| m == 1).count();
    match mask[len..].iter().position(|&m| m == 1) {
        None => Ok(len),
        Some(after) => Err(Error::data(format!(
            "mask is 0 at {len} but 1 again at {}, wanted padding at the right end only",
            len + after
        ))
        .hint("set the tokenizer's padding_side to \"right\"")),
    }
}
