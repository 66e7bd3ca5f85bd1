//! Micro-batches: documents packed without padding, with the sizes the reference's padded batches would have.

use super::corpus::Corpus;
use super::sampler::Sampler;
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

/// Draws the `accum` micro-batches of `step`, `micro_batch` documents each.
///
/// The rows of a step depend on `accum * micro_batch` alone: splitting it otherwise gives the same rows.
///
/// Errors: `Kind::Config` if `accum` or `micro_batch` is 0; `Kind::Data` if `sampler` is not one over `corpus`,
/// or a row of a damaged cache has an id that was never written.
pub fn draw(
    corpus: &Corpus,
    sampler: &Sampler,
    step: u64,
    accum: usize,
    micro_batch: usize,
) -> Result<Vec<MicroBatch>> {
    let rows = accum.checked_mul(micro_batch).filter(|&rows| rows > 0).ok_or_else(|| {
        Error::config(format!(
            "a step of {accum} micro-batches of {micro_batch} documents, wanted at least 1 of each"
        ))
    })?;
    if sampler.documents() != corpus.len() {
        return Err(Error::data(format!(
            "sampler draws from {} documents, the corpus has {}",
            sampler.documents(),
            corpus.len()
        )));
    }
    let rows = sampler.rows(step, rows);
    rows.chunks(micro_batch)
        .map(|chunk| {
            let docs: Vec<&[u32]> =
                chunk.iter().map(|&i| corpus.checked_doc(i)).collect::<Result<_>>()?;
            Ok(MicroBatch::new(docs))
        })
        .collect()
}

/// Returns the first `count` documents of `corpus`, or all, in micro-batches of `micro_batch`.
///
/// Errors: `Kind::Data` where a document of a damaged cache has an id that was never written.
pub fn first(corpus: &Corpus, count: usize, micro_batch: usize) -> Result<Vec<MicroBatch>> {
    let docs = (0..corpus.len().min(count)).map(|i| corpus.checked_doc(i));
    let docs: Vec<&[u32]> = docs.collect::<Result<_>>()?;
    Ok(docs.chunks(micro_batch.max(1)).map(MicroBatch::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sampler::Order;

    #[test]
    fn packed_rows_give_the_padded_normalisers() {
        let batch = MicroBatch::new([&[1, 2, 3][..], &[4], &[5, 6]]);
        assert_eq!((batch.rows(), batch.width(), batch.tokens()), (3, 3, 6));
        assert_eq!((batch.target_tokens(), batch.padded_positions()), (3, 9));
        assert_eq!(batch.row(2), [5, 6]);
        assert_eq!(batch.offsets(), [0, 3, 4, 6]);
        assert_eq!(batch.ids(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn padded_batch_loses_right_padding_and_keeps_its_width() {
        let batch =
            MicroBatch::from_padded(&[7, 8, 1, 1, 9, 1, 1, 1], &[1, 1, 0, 0, 0, 0, 0, 0], 2, 4)
                .unwrap();
        assert_eq!((batch.row(0), batch.row(1)), (&[7, 8][..], &[][..]));
        assert_eq!((batch.target_tokens(), batch.padded_positions()), (1, 8));
    }

    #[test]
    fn padded_batch_with_other_padding_is_refused() {
        let message = |mask: &[u8], rows, width| {
            MicroBatch::from_padded(&[0; 4], mask, rows, width).unwrap_err().message().to_owned()
        };
        assert_eq!(
            message(&[1, 1, 0, 1], 2, 2),
            "padded batch: row 1: mask is 0 at 0 but 1 again at 1, wanted padding at the right end only"
        );
        assert_eq!(
            message(&[1, 2, 1, 1], 1, 4),
            "padded batch: row 0: mask[1] is 2, wanted 0 or 1"
        );
        assert_eq!(
            message(&[1; 4], usize::MAX, 4),
            format!("padded batch: 4 ids and 4 mask values, wanted {} x 4 of each", usize::MAX)
        );
    }

    #[test]
    fn draw_gives_the_same_rows_for_every_split() {
        let corpus = Corpus::from_docs((0..50).map(|i| vec![i, i + 1]).collect());
        let flat = |batches: Vec<MicroBatch>| -> Vec<u32> {
            batches.iter().flat_map(|b| b.ids().to_vec()).collect()
        };
        for order in [Order::Replacement, Order::Epochs] {
            let sampler = Sampler::new(order, 9, "forget", 50).unwrap();
            let whole = flat(draw(&corpus, &sampler, 3, 1, 24).unwrap());
            for (accum, micro_batch) in [(24, 1), (2, 12), (6, 4)] {
                let batches = draw(&corpus, &sampler, 3, accum, micro_batch).unwrap();
                assert_eq!(batches.len(), accum);
                assert_eq!(flat(batches), whole);
            }
        }
    }

    #[test]
    fn draw_refuses_empty_steps_and_foreign_samplers() {
        let corpus = Corpus::from_docs(vec![vec![1]]);
        let sampler = Sampler::new(Order::Epochs, 9, "forget", 2).unwrap();
        assert_eq!(
            draw(&corpus, &sampler, 0, 0, 4).unwrap_err().message(),
            "a step of 0 micro-batches of 4 documents, wanted at least 1 of each"
        );
        assert_eq!(
            draw(&corpus, &sampler, 0, 1, 4).unwrap_err().message(),
            "sampler draws from 2 documents, the corpus has 1"
        );
    }
}
