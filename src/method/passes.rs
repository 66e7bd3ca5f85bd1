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
use crate::ops::{Matched, Ops, PackData, Role, RowCounts, Tallied, TokenFormula, TokenWeight};

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

/// Which sums a sweep adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Those of the loss.
    Loss,
    /// Those of the penalty.
    Penalty,
}

/// The buffers of a run: packs, workspace, host rows. Allocated once.
pub struct Passes<O: Ops> {
    /// Forward and backward buffers.
    pub ws: Workspace<O>,
    /// Two that take turns: while one is worked on, the next is made and loaded.
    packs: [O::Pack; 2],
    turn: usize,
    data: PackData,
    weights: O::Stat,
    /// The base model's NLL of each row.
    base_nll: O::Stat,
    tallies: [O::Tally; 2],
    /// Tokens behind each tally.
    tokens: [usize; 2],
    rows: Vec<f64>,
}

impl<O: Ops> Passes<O> {
    /// Allocates buffers for packs of up to `tokens` tokens.
    pub fn new(ops: &O, model: &Model<O>, tokens: usize, training: bool) -> Result<Self> {
        Ok(Self {
            ws: Workspace::new(ops, model, tokens, training)?,
            packs: [ops.pack(tokens)?, ops.pack(tokens)?],
            turn: 0,
            data: PackData::default(),
            weights: ops.stat(tokens)?,
            base_nll: ops.stat(tokens)?,
            tallies: [ops.tally_room()?, ops.tally_room()?],
            tokens: [0; 2],
            rows: vec![0.0; tokens],
        })
    }

    /// Sweeps `objective` over `batches` and waits for the sums; see [`Passes::start`].
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
        self.start(ops, model, base, (Slot::Loss, objective), knobs, batches, weight)?;
        self.sums(ops, Slot::Loss)
    }

    /// Starts a sweep of `objective` over `batches`; with `weight` its gradient times that is added to the model's.
    ///
    /// `base` is the base model of document-weighted losses. Penalties read the teacher of `model`. Nothing is waited
    /// for; [`Passes::sums`] tells what the rows came to.
    #[allow(clippy::too_many_arguments)]
    pub fn start(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        (slot, objective): (Slot, &dyn Objective),
        knobs: &Knobs,
        batches: &[MicroBatch],
        weight: Option<f64>,
    ) -> Result<()> {
        let rows = objective.rows(knobs);
        if matches!(rows, Rows::Document(_)) && base.is_none() {
            return Err(Error::config("this loss compares with a base model, and none is loaded"));
        }
        ops.clear_tally(&mut self.tallies[slot as usize]);
        self.tokens[slot as usize] = 0;
        let shifted = objective.normaliser() != Normaliser::Positions;
        // Everything that decides which ops with which numbers a pack is given, beside its shape.
        let backward = weight.is_some();
        let (name, params) = (objective.name(), model.params.as_ptr());
        let key = format!("{slot:?} {name} {rows:?} {params:p}");
        for group in packs(objective.normaliser(), batches, self.ws.tokens())? {
            self.data.clear();
            for doc in &group {
                let rows = doc.ids.len() - usize::from(shifted);
                let counts = RowCounts {
                    coef: doc.share * weight.unwrap_or(1.0),
                    share: doc.share,
                    monitor: if shifted { doc.monitor } else { 0.0 },
                };
                let span = doc.width.saturating_sub(1);
                self.data.push_counted(doc.ids, span, |t| {
                    if t < rows { counts } else { RowCounts::default() }
                });
            }
            self.tokens[slot as usize] += self.data.tokens();
            self.turn = 1 - self.turn;
            ops.load_pack(&mut self.packs[self.turn], &self.data);
            let n = self.data.tokens();
            let Self { ws, packs, turn, weights, base_nll, tallies, .. } = self;
            let (pack, tally) = (&packs[*turn], &mut tallies[slot as usize]);
            let mut pass = Pass { ops, ws, pack, n, weights, base_nll };
            let mut work = || {
                pass.run(model, base.as_deref_mut(), rows, backward);
                ops.tally(pack, &pass.ws.stats, tally);
            };
            if backward {
                ops.replay(pack, &key, &mut work);
            } else {
                work();
            }
        }
        Ok(())
    }

    /// Waits for the sweep that was last started into `slot` and returns its sums.
    pub fn sums(&mut self, ops: &O, slot: Slot) -> Result<Sums> {
        let Tallied { value, nll, hit } = ops.read_tally(&self.tallies[slot as usize]);
        ops.sync()?;
        Ok(Sums { value, nll, accuracy: hit, tokens: self.tokens[slot as usize] })
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
            let pack = &mut self.packs[0];
            ops.load_pack(pack, &self.data);
            model.forward(ops, pack, n, Role::Evaluated, &mut self.ws);
            model.head(ops, pack, n, Role::Evaluated, &mut self.ws, plain(), false);
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

/// One pack on its way through the model.
struct Pass<'a, O: Ops> {
    ops: &'a O,
    ws: &'a mut Workspace<O>,
    pack: &'a O::Pack,
    n: usize,
    weights: &'a mut O::Stat,
    base_nll: &'a mut O::Stat,
}

impl<O: Ops> Pass<'_, O> {
    /// Starts forward, and backward where asked. Documents are weighed against `base`.
    fn run(
        &mut self,
        model: &mut Model<O>,
        base: Option<&mut Model<O>>,
        rows: Rows,
        backward: bool,
    ) {
        let Self { ops, ws, pack, n, weights, base_nll } = self;
        let (ops, pack, n) = (*ops, *pack, *n);
        let student = if backward { Role::Student } else { Role::Evaluated };
        match rows {
            Rows::Token(formula) => {
                model.forward(ops, pack, n, student, ws);
                let loss = HeadLoss::OneHot(TokenWeight::Formula(formula));
                model.head(ops, pack, n, student, ws, loss, backward);
            }
            Rows::Document(formula) => {
                let Some(base) = base else { return };
                // The base first: a training workspace must end on the student's forward pass.
                base.forward(ops, pack, n, Role::Evaluated, ws);
                std::mem::swap(&mut ws.stats.nll, base_nll);
                base.head(ops, pack, n, Role::Evaluated, ws, plain(), false);
                std::mem::swap(&mut ws.stats.nll, base_nll);
                model.forward(ops, pack, n, student, ws);
                model.head(ops, pack, n, student, ws, plain(), false);
                ops.document_weights(pack, base_nll, &ws.stats.nll, formula, weights);
                let loss = HeadLoss::OneHot(TokenWeight::PerRow(&**weights));
                model.head(ops, pack, n, student, ws, loss, backward);
            }
            Rows::Matched(target) => {
                let penalty = target != Matched::Uniform;
                if penalty {
                    model.forward(ops, pack, n, Role::Teacher, ws);
                }
                model.forward(ops, pack, n, student, ws);
                if !penalty {
                    model.head(ops, pack, n, student, ws, plain(), false);
                }
                model.head(ops, pack, n, student, ws, HeadLoss::Matched(target), backward);
            }
        }
    }
}

/// The rows of plain NLL.
fn plain<'a, S>() -> HeadLoss<'a, S> {
    HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)))
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
