//! Cuts a document's ids to the context, special tokens counted.

use serde::{Deserialize, Serialize};

use super::tokenizer::Side;
use crate::error::{Error, Result};

/// Treatment of a document's ids beyond the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Chunking {
    /// They are cut away: one row per document (transformers' `truncation=True`).
    #[default]
    Truncate,
    /// They go on in further rows without overlap, the last one short (`return_overflowing_tokens=True`).
    Chunk,
    /// As `Chunk`, but rows shorter than the context are dropped.
    ChunkFull,
}

/// The rows of one document and what was lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Ids of each row, special tokens included, at most the context each.
    pub rows: Vec<Vec<u32>>,
    /// Ids that truncation cut away.
    pub cut: usize,
    /// True if a row shorter than the context was dropped.
    pub dropped: bool,
}

/// Cuts plain ids into rows of one context and puts special tokens around each.
#[derive(Debug, Clone, Copy)]
pub struct Cutter<'a> {
    prefix: &'a [u32],
    suffix: &'a [u32],
    side: Side,
    chunking: Chunking,
    room: usize,
}

impl<'a> Cutter<'a> {
    /// Makes a cutter for rows of at most `context` ids, `prefix` and `suffix` included.
    ///
    /// Errors: `Kind::Config` if the special tokens leave no room for text.
    pub fn new(
        prefix: &'a [u32],
        suffix: &'a [u32],
        side: Side,
        context: usize,
        chunking: Chunking,
    ) -> Result<Self> {
        let special = prefix.len() + suffix.len();
        if context <= special {
            return Err(Error::config(format!(
                "context: {context} tokens leave no room for text beside {special} special tokens"
            ))
            .hint(format!("a context of at least {} is needed", special + 2)));
        }
        Ok(Self { prefix, suffix, side, chunking, room: context - special })
    }

    /// Cuts one document given as plain ids; a document without ids becomes one row of special tokens.
    pub fn cut(&self, plain: &[u32]) -> Rows {
        let wrap = |ids: &[u32]| [self.prefix, ids, self.suffix].concat();
        let (len, room) = (plain.len(), self.room);
        if self.chunking == Chunking::Truncate || len == 0 {
            let kept = match self.side {
                Side::Right => &plain[..len.min(room)],
                Side::Left => &plain[len.saturating_sub(room)..],
            };
            let dropped = self.chunking == Chunking::ChunkFull;
            let rows = if dropped { Vec::new() } else { vec![wrap(kept)] };
            return Rows { rows, cut: len.saturating_sub(room), dropped };
        }
        // Chunks count from the side that truncation keeps, so that the first row is the truncated text.
        let chunks: Vec<&[u32]> = match self.side {
            Side::Right => plain.chunks(room).collect(),
            Side::Left => plain.rchunks(room).collect(),
        };
        let full = |chunk: &&&[u32]| self.chunking == Chunking::Chunk || chunk.len() == room;
        let rows: Vec<_> = chunks.iter().filter(full).map(|chunk| wrap(chunk)).collect();
        let dropped = rows.len() < chunks.len();
        Rows { rows, cut: 0, dropped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(side: Side, context: usize, chunking: Chunking, plain: &[u32]) -> Rows {
        Cutter::new(&[100], &[200], side, context, chunking).unwrap().cut(plain)
    }

    const PLAIN: [u32; 5] = [1, 2, 3, 4, 5];

    #[test]
    fn truncation_counts_special_tokens_and_keeps_the_last() {
        let rows = cut(Side::Right, 5, Chunking::Truncate, &PLAIN);
        assert_eq!(rows.rows, [[100, 1, 2, 3, 200]]);
        assert_eq!(rows.cut, 2);
        let rows = cut(Side::Left, 5, Chunking::Truncate, &PLAIN);
        assert_eq!(rows.rows, [[100, 3, 4, 5, 200]]);
        let rows = cut(Side::Right, 7, Chunking::Truncate, &PLAIN);
        assert_eq!(rows.rows, [[100, 1, 2, 3, 4, 5, 200]]);
        assert_eq!(rows.cut, 0);
    }

    #[test]
    fn chunks_do_not_overlap_and_the_last_is_short() {
        let rows = cut(Side::Right, 4, Chunking::Chunk, &PLAIN).rows;
        assert_eq!(rows, [vec![100, 1, 2, 200], vec![100, 3, 4, 200], vec![100, 5, 200]]);
        let rows = cut(Side::Left, 4, Chunking::Chunk, &PLAIN).rows;
        assert_eq!(rows, [vec![100, 4, 5, 200], vec![100, 2, 3, 200], vec![100, 1, 200]]);
        let rows = cut(Side::Right, 4, Chunking::ChunkFull, &PLAIN);
        assert_eq!(rows.rows, [[100, 1, 2, 200], [100, 3, 4, 200]]);
        assert!(rows.dropped && rows.cut == 0);
    }

    #[test]
    fn document_without_ids_becomes_special_tokens_only() {
        assert_eq!(cut(Side::Right, 4, Chunking::Truncate, &[]).rows, [[100, 200]]);
        assert_eq!(cut(Side::Right, 4, Chunking::Chunk, &[]).rows, [[100, 200]]);
        let rows = cut(Side::Right, 4, Chunking::ChunkFull, &[]);
        assert!(rows.rows.is_empty() && rows.dropped);
    }

    #[test]
    fn context_without_room_is_refused() {
        let e = Cutter::new(&[1], &[2], Side::Right, 2, Chunking::Chunk).unwrap_err();
        assert_eq!(
            e.to_string(),
            "context: 2 tokens leave no room for text beside 2 special tokens\n\
             hint: a context of at least 4 is needed"
        );
    }
}
