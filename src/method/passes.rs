//! From micro-batches to packs and back: which row counts how much, and what the rows add up to.
//!
//! A micro-batch is a unit of meaning (its normaliser), a pack one of work: documents of several micro-batches
//! share packs of up to a given number of tokens, and every row carries its own coefficient, so that packing
//! changes nothing but rounding.

use super::{Knobs, Normaliser, Objective, Rows};
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::model::decoder::HeadLoss;
use crate::model::{Model, Workspace};
use crate::ops::{Ops, PackData, Role, TokenFormula, TokenWeight};

/// A document on its way into a pack.
#[derive(Debug, Clone, Copy)]
struct Document<'a> {
    ids: &'a [u32],
    /// 1 over the objective's normaliser and the number of micro-batches.
    share: f64,
    /// 1 over the number of real targets and the number of micro-batches: what the monitored NLL counts.
    monitor: f64,
    /// Padded length of its micro-batch.
    width: usize,
}

/// What a sweep over micro-batches adds up to; means over micro-batches, without the loss weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// The objective's returned value.
    pub value: f64,
    /// Plain NLL of the targets, nats per token; 0 for penalties.
    pub nll: f64,
    /// Share of targets that are the most probable token.
    pub accuracy: f64,
    /// Tokens run through the student.
    pub tokens: usize,
}

/// The buffers of a run: packs, workspace, host rows. Allocated once.
pub struct Passes<O: Ops> {
    /// Forward and backward buffers.
    pub ws: Workspace<O>,
    pack: O::Pack,
    data: PackData,
    weights: O::Stat,
    rows: Vec<f64>,
    other: Vec<f64>,
}

impl<O: Ops> Passes<O> {
    /// Allocates buffers for packs of up to `tokens` tokens.
    pub fn new(ops: &O, model: &Model<O>, tokens: usize, training: bool) -> Result<Self> {
        Ok(Self {
            ws: Workspace::new(ops, model, tokens, training)?,
            pack: ops.pack(tokens)?,
            data: PackData::default(),
            weights: ops.stat(tokens)?,
            rows: vec![0.0; tokens],
            other: vec![0.0; tokens],
        })
    }

    /// Sweeps `objective` over `batches`; with `weight` its gradient times that is added to the model's.
    ///
    /// `base` is the base model of document-weighted losses. Penalties read the teacher of `model`.
    #[allow(clippy::too_many_arguments)]
    pub fn sweep(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        base: Option<&mut Model<O>>,
        objective: &dyn Objective,
        knobs: &Knobs,
        batches: &[MicroBatch],
        weight: Option<f64>,
    ) -> Result<Sums> {
        let mut sums = Sums::default();
        let mut base = base;
        let shifted = objective.normaliser() != Normaliser::Positions;
        for group in packs(objective.normaliser(), batches, self.ws.tokens())? {
            self.data.clear();
            for doc in &group {
                let rows = doc.ids.len() - usize::from(shifted);
                let coef = doc.share * weight.unwrap_or(1.0);
                self.data.push(doc.ids, |t| if t < rows { coef } else { 0.0 });
            }
            let n = self.data.tokens();
            sums.tokens += n;
            ops.load_pack(&mut self.pack, &self.data);
            let rows = objective.rows(knobs);
            self.run(ops, model, base.as_deref_mut(), &rows, &group, knobs, weight.is_some())?;
            self.collect(ops, &group, shifted, &mut sums);
        }
        Ok(sums)
    }

    /// Runs the loaded pack forward, and backward where asked.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        base: Option<&mut Model<O>>,
        rows: &Rows,
        group: &[Document<'_>],
        knobs: &Knobs,
        backward: bool,
    ) -> Result<()> {
        let n = self.data.tokens();
        let student = if backward { Role::Student } else { Role::Evaluated };
        let plain = || HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)));
        match *rows {
            Rows::Token(formula) => {
                model.forward(ops, &self.pack, n, student, &mut self.ws);
                let loss = HeadLoss::OneHot(TokenWeight::Formula(formula));
                model.head(ops, &self.pack, n, student, &mut self.ws, loss, backward);
            }
            Rows::Document(weigh) => {
                let base = base.ok_or_else(|| {
                    Error::config("this loss compares with a base model, and none is loaded")
                })?;
                // The base first: a training workspace must end on the student's forward pass.
                base.forward(ops, &self.pack, n, Role::Evaluated, &mut self.ws);
                base.head(ops, &self.pack, n, Role::Evaluated, &mut self.ws, plain(), false);
                ops.read_stat(&self.ws.stats.nll, &mut self.other[..n]);
                model.forward(ops, &self.pack, n, student, &mut self.ws);
                model.head(ops, &self.pack, n, student, &mut self.ws, plain(), false);
                ops.read_stat(&self.ws.stats.nll, &mut self.rows[..n]);
                let mut start = 0;
                for doc in group {
                    let targets = start..start + doc.ids.len() - 1;
                    let log_ratio: f64 = targets.map(|r| self.other[r] - self.rows[r]).sum();
                    let weight = weigh(knobs, log_ratio / (doc.width - 1) as f64);
                    self.other[start..start + doc.ids.len()].fill(weight);
                    start += doc.ids.len();
                }
                ops.write_stat(&self.other[..n], &mut self.weights);
                let loss = HeadLoss::OneHot(TokenWeight::PerRow(&self.weights));
                model.head(ops, &self.pack, n, student, &mut self.ws, loss, backward);
            }
            Rows::Matched(target) => {
                let penalty = target != crate::ops::Matched::Uniform;
                if penalty {
                    model.forward(ops, &self.pack, n, Role::Teacher, &mut self.ws);
                }
                model.forward(ops, &self.pack, n, student, &mut self.ws);
                if !penalty {
                    model.head(ops, &self.pack, n, student, &mut self.ws, plain(), false);
                }
                model.head(
                    ops,
                    &self.pack,
                    n,
                    student,
                    &mut self.ws,
                    HeadLoss::Matched(target),
                    backward,
                );
            }
        }
        ops.sync()
    }

    /// Adds the rows of the pack just run to `sums`.
    fn collect(&mut self, ops: &O, group: &[Document<'_>], shifted: bool, sums: &mut Sums) {
        let n = self.data.tokens();
        let mut add = |stat: &O::Stat, of: fn(&Document<'_>) -> f64, into: &mut f64| {
            ops.read_stat(stat, &mut self.rows[..n]);
            let mut start = 0;
            for doc in group {
                let rows = doc.ids.len() - usize::from(shifted);
                *into += of(doc) * self.rows[start..start + rows].iter().sum::<f64>();
                start += doc.ids.len();
            }
        };
        add(&self.ws.stats.value, |doc| doc.share, &mut sums.value);
        if shifted {
            add(&self.ws.stats.nll, |doc| doc.monitor, &mut sums.nll);
            add(&self.ws.stats.hit, |doc| doc.monitor, &mut sums.accuracy);
        }
    }

    /// Returns the log-probability of every token but the first of each document, nats.
    pub fn score(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        documents: &[&[u32]],
    ) -> Result<Vec<Vec<f64>>> {
        let mut scores = Vec::with_capacity(documents.len());
        for group in fill(documents, |ids| ids.len(), self.ws.tokens())? {
            self.data.clear();
            group.iter().for_each(|ids| self.data.push(ids, |_| 0.0));
            let n = self.data.tokens();
            ops.load_pack(&mut self.pack, &self.data);
            let loss = HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)));
            model.forward(ops, &self.pack, n, Role::Evaluated, &mut self.ws);
            model.head(ops, &self.pack, n, Role::Evaluated, &mut self.ws, loss, false);
            ops.sync()?;
            ops.read_stat(&self.ws.stats.nll, &mut self.rows[..n]);
            let mut start = 0;
            for ids in group {
                let end = start + ids.len();
                let targets = start..end.saturating_sub(1).max(start);
                scores.push(self.rows[targets].iter().map(|nll| -nll).collect());
                start = end;
            }
        }
        Ok(scores)
    }
}

/// Lays the documents of all micro-batches into packs of up to `limit` tokens, in order.
fn packs(
    normaliser: Normaliser,
    batches: &[MicroBatch],
    limit: usize,
) -> Result<Vec<Vec<Document<'_>>>> {
    let count = batches.len() as f64;
    let documents: Vec<Document<'_>> = batches
        .iter()
        .flat_map(|batch| {
            let targets = batch.target_tokens();
            let divisor = match normaliser {
                Normaliser::Targets => targets,
                Normaliser::ShiftedPositions => batch.padded_positions() - batch.rows(),
                Normaliser::Positions => batch.padded_positions(),
            };
            let over = |n: usize| if n == 0 { 0.0 } else { 1.0 / (n as f64 * count) };
            (0..batch.rows()).map(move |b| Document {
                ids: batch.row(b),
                share: over(divisor),
                monitor: over(targets),
                width: batch.width(),
            })
        })
        .filter(|doc| !doc.ids.is_empty())
        .collect();
    fill(&documents, |doc| doc.ids.len(), limit)
}

/// Groups `items` into runs of at most `limit` tokens, in order.
fn fill<T: Copy>(items: &[T], len: impl Fn(T) -> usize, limit: usize) -> Result<Vec<Vec<T>>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for &item in items {
        let tokens = len(item);
        if tokens > limit {
            return Err(Error::config(format!(
                "a document of {tokens} tokens does not fit a pack of {limit}"
            ))
            .hint("raise run.pack_tokens or lower the context"));
        }
        if tokens > room || groups.is_empty() {
            groups.push(Vec::new());
            room = limit;
        }
        room -= tokens;
        if let Some(group) = groups.last_mut() {
            group.push(item);
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_keeps_order_and_limit() {
        let groups = fill(&[3, 4, 2, 9, 1], |n| n, 9).unwrap();
        assert_eq!(groups, [vec![3, 4, 2], vec![9], vec![1]]);
        assert!(fill(&[10], |n| n, 9).is_err());
    }

    #[test]
    fn packs_divide_by_padded_positions_or_targets() {
        let batches =
            [MicroBatch::new([&[1u32, 2, 3][..], &[4, 5]]), MicroBatch::new([&[6u32, 7][..]])];
        let share =
            |n| packs(n, &batches, 100).unwrap()[0].iter().map(|d| d.share).collect::<Vec<_>>();
        assert_eq!(share(Normaliser::Targets), [1.0 / 6.0, 1.0 / 6.0, 0.5]);
        assert_eq!(share(Normaliser::ShiftedPositions), [0.125, 0.125, 0.5]);
        assert_eq!(share(Normaliser::Positions), [1.0 / 12.0, 1.0 / 12.0, 0.25]);
    }
}
