//! Which documents share a pack of work, and what each of their rows counts.

use super::{Knobs, Normaliser, Objective, Span};
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::ops::{PackData, RowCounts};

/// A document on its way into a pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a> {
    pub(super) ids: &'a [u32],
    /// 1 over the objective's normaliser and the number of micro-batches.
    share: f64,
    /// 1 over the number of real targets and the number of micro-batches: what the monitored NLL counts; 0 where none is.
    monitor: f64,
    /// Divisor of a sum over its targets.
    span: usize,
}

/// Appends documents and what their rows count: where rows are `shifted` the last one of each has no target and counts
/// nothing, else all positions count.
pub(super) fn push(data: &mut PackData, documents: &[Document<'_>], shifted: bool, weight: f64) {
    for doc in documents {
        let rows = doc.ids.len() - usize::from(shifted);
        let counts = RowCounts { coef: doc.share * weight, share: doc.share, monitor: 0.0 };
        let last = doc.ids.len() - 1;
        data.push_counted(doc.ids, doc.span, |t| {
            let counts = if t < rows { counts } else { RowCounts::default() };
            RowCounts { monitor: if t < last { doc.monitor } else { 0.0 }, ..counts }
        });
    }
}

/// Lays the documents of all micro-batches into packs of up to `limit` tokens, in order; pairs stay together.
pub(super) fn packs<'a>(
    objective: &dyn Objective,
    knobs: &Knobs,
    batches: &'a [MicroBatch],
    limit: usize,
) -> Result<Vec<Vec<Document<'a>>>> {
    let (rows, normaliser, span) =
        (objective.rows(knobs), objective.normaliser(), objective.span());
    let unit = if rows.paired() { 2 } else { 1 };
    let count = batches.len() as f64;
    let documents = batches.iter().flat_map(|batch| {
        let targets = batch.target_tokens();
        let over = |n: usize| if n == 0 { 0.0 } else { 1.0 / (n as f64 * count) };
        (0..batch.rows()).map(move |b| {
            let ids = batch.row(b);
            let own = ids.len().saturating_sub(1);
            let divisor = match normaliser {
                Normaliser::Targets => targets,
                Normaliser::ShiftedPositions => batch.padded_positions() - batch.rows(),
                Normaliser::Positions => batch.padded_positions(),
                Normaliser::Tokens => batch.tokens(),
                Normaliser::Documents => batch.rows() / unit,
                Normaliser::AllDocuments => batch.rows(),
                Normaliser::OwnTargets => batch.rows() * own,
                Normaliser::OwnTokens | Normaliser::OwnPositions => batch.rows() * ids.len(),
            };
            let span = match span {
                Span::Padded => batch.width().saturating_sub(1),
                Span::Sum => 1,
                Span::Targets => own,
                Span::Tokens => ids.len(),
            };
            // Of a pair the first is what is forgotten.
            let monitored = !rows.reads_teacher() && !rows.hidden() && b % unit == 0;
            let monitor = if monitored { over(targets) } else { 0.0 };
            Document { ids, share: over(divisor), monitor, span }
        })
    });
    let documents: Vec<Document<'_>> = documents.collect();
    let whole = |docs: &&[Document<'_>]| docs.iter().all(|doc| !doc.ids.is_empty());
    let documents: Vec<_> = documents.chunks(unit).filter(whole).flatten().copied().collect();
    fill(&documents, unit, |doc| doc.ids.len(), limit)
}

/// Groups runs of `unit` of `items` into runs of at most `limit` tokens, in order.
pub(super) fn fill<T: Copy>(
    items: &[T],
    unit: usize,
    len: impl Fn(&T) -> usize,
    limit: usize,
) -> Result<Vec<Vec<T>>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for items in items.chunks(unit) {
        let tokens = items.iter().map(&len).sum::<usize>();
        if tokens > limit {
            let what = if unit == 1 { "a document" } else { "a pair of documents" };
            return Err(Error::config(format!(
                "{what} of {tokens} tokens does not fit a pack of {limit}"
            ))
            .hint("raise run.pack_tokens or lower the context"));
        }
        if tokens > room || groups.is_empty() {
            groups.push(Vec::new());
            room = limit;
        }
        room -= tokens;
        if let Some(group) = groups.last_mut() {
            group.extend(items);
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method;

    #[test]
    fn fill_keeps_order_and_limit() {
        let groups = fill(&[3, 4, 2, 9, 1], 1, |n| *n, 9).unwrap();
        assert_eq!(groups, [vec![3, 4, 2], vec![9], vec![1]]);
        assert!(fill(&[10], 1, |n| *n, 9).is_err());
        assert_eq!(fill(&[3, 4, 2, 1], 2, |n| *n, 9).unwrap(), [vec![3, 4], vec![2, 1]]);
        assert!(fill(&[5, 5], 2, |n| *n, 9).is_err());
    }

    #[test]
    fn packs_divide_by_padded_positions_or_targets() {
        let batches =
            [MicroBatch::new([&[1u32, 2, 3][..], &[4, 5]]), MicroBatch::new([&[6u32, 7][..]])];
        let share = |name: &str| {
            let objective = method::find(&method::FORGET, "", name)
                .or_else(|_| method::find(&method::PENALTIES, "", name))
                .unwrap();
            let packs = packs(objective, &Knobs::default(), &batches, 100).unwrap();
            packs[0].iter().map(|d| d.share).collect::<Vec<_>>()
        };
        assert_eq!(share("nll"), [1.0 / 6.0, 1.0 / 6.0, 0.5]);
        assert_eq!(share("mismatch"), [0.125, 0.125, 0.5]);
        assert_eq!(share("kl"), [1.0 / 12.0, 1.0 / 12.0, 0.25]);
        assert_eq!(share("npo"), [0.25, 0.25, 0.5]);
        assert_eq!(share("simnpo"), [0.125, 0.25, 0.5]);
        assert_eq!(share("simnpo_ou"), [1.0 / 12.0, 0.125, 0.25]);
        assert_eq!(share("pdu_ou"), [0.1, 0.1, 0.25]);
        // A pair is one comparison; the odd one out is weighed by itself.
        assert_eq!(share("dpo"), [0.5, 0.5, 0.0]);
    }
}
