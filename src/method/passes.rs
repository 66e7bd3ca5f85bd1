//! From micro-batches to packs and back: which row counts how much, and what the rows add up to.
//!
//! A micro-batch is a unit of meaning (its normaliser), a pack one of work: documents of several micro-batches
//! share packs of up to a given number of tokens, and every row carries its own coefficient, so that packing
//! changes nothing but rounding.

use std::ops::Range;

use super::{Knobs, Normaliser, Objective, Rows, Span};
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::model::decoder::HeadLoss;
use crate::model::generate::{Request, generate_in};
use crate::model::{Level, Model, Saving, Workspace};
use crate::ops::{Ops, PackData, Role, RowCounts, Tallied, TokenFormula, TokenWeight};

/// A document on its way into a pack.
#[derive(Debug, Clone, Copy)]
struct Document<'a> {
    ids: &'a [u32],
    /// 1 over the objective's normaliser and the number of micro-batches.
    share: f64,
    /// 1 over the number of real targets and the number of micro-batches: what the monitored NLL counts; 0 where none is.
    monitor: f64,
    /// What a sum over its targets is divided by.
    span: usize,
}

/// What a sweep over micro-batches adds up to; means over micro-batches, without the loss weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// The objective's returned value.
    pub value: f64,
    /// Plain NLL of the targets, nats per token; 0 for penalties that compare with a teacher.
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

/// An objective and what it is swept over.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// What is computed.
    pub objective: &'a dyn Objective,
    /// The micro-batches.
    pub batches: &'a [MicroBatch],
    /// What its gradient is multiplied by before it is added to the model's; `None` computes sums alone.
    pub weight: Option<f64>,
}

/// Marks of a step on the backend's clock ([`crate::ops::Sweep::mark`]), in their order.
pub mod marks {
    /// Nothing has been started.
    pub const START: usize = 0;
    /// The packs of the loss have been worked on,
    pub const LOSS: usize = 1;
    /// those of the penalty,
    pub const PENALTY: usize = 2;
    /// the pack that both share,
    pub const SHARED: usize = 3;
    /// and the update.
    pub const UPDATE: usize = 4;
}

/// The rows of one task in a pack.
#[derive(Debug, Clone)]
struct Part {
    slot: Slot,
    loss: Rows,
    backward: bool,
    rows: Range<usize>,
}

impl Part {
    /// Tells whether the teacher's rows are compared with.
    fn asks_teacher(&self) -> bool {
        self.loss.reads_teacher()
    }
}

/// What a model makes of the tokens of a document, its first one left out.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScores {
    /// The log-probability of each, nats.
    pub log_probs: Vec<f64>,
    /// Whether each was the most probable one.
    pub hits: Vec<bool>,
}

/// The buffers of a run: packs, workspace, host rows. Allocated once.
pub struct Passes<O: Ops> {
    /// Forward and backward buffers.
    pub ws: Workspace<O>,
    /// Two that take turns: while one is worked on, the next is made and loaded.
    packs: [O::Pack; 2],
    turn: usize,
    /// The documents that the teacher reads of a pack that loss and penalty share.
    retained: O::Pack,
    data: PackData,
    weights: O::Stat,
    /// The base model's NLL of each row.
    base_nll: O::Stat,
    tallies: [O::Tally; 2],
    /// Tokens behind each tally.
    tokens: [usize; 2],
    /// Tokens of loss and penalty in the pack that both shared in the last step.
    shared: [usize; 2],
    rows: Vec<f64>,
}

impl<O: Ops> Passes<O> {
    /// Allocates buffers for packs of up to `tokens` tokens; for `training` such that no product is done twice.
    pub fn new(ops: &O, model: &Model<O>, tokens: usize, training: bool) -> Result<Self> {
        Self::saving(ops, model, tokens, training.then_some(Saving::same(Level::All)))
    }

    /// Allocates buffers for packs of up to `tokens` tokens; for training with a choice of what is kept of each layer.
    pub fn saving(
        ops: &O,
        model: &Model<O>,
        tokens: usize,
        saving: Option<Saving>,
    ) -> Result<Self> {
        Ok(Self {
            ws: Workspace::new(ops, model, tokens, saving)?,
            packs: [ops.pack(tokens)?, ops.pack(tokens)?],
            turn: 0,
            retained: ops.pack(if saving.is_some() { tokens } else { 0 })?,
            data: PackData::default(),
            weights: ops.stat(tokens)?,
            base_nll: ops.stat(tokens)?,
            tallies: [ops.tally_room()?, ops.tally_room()?],
            tokens: [0; 2],
            shared: [0; 2],
            rows: vec![0.0; tokens],
        })
    }

    /// Sweeps `objective` over `batches` and waits for the sums; with `weight` its gradient times that is added to the
    /// model's.
    ///
    /// `base` is the base model of document-weighted losses. Penalties read the teacher of `model`.
    #[allow(clippy::too_many_arguments)]
    pub fn sweep(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        objective: &dyn Objective,
        knobs: &Knobs,
        batches: &[MicroBatch],
        weight: Option<f64>,
    ) -> Result<Sums> {
        let task = Task { objective, batches, weight };
        self.clear(ops, Slot::Loss);
        for group in packs(objective, knobs, batches, self.ws.tokens())? {
            let tasks = [(Slot::Loss, task, group)];
            self.start(ops, model, base.as_deref_mut(), knobs, &tasks, false)?;
        }
        self.sums(ops, Slot::Loss)
    }

    /// Starts the passes of a step and waits for nothing; [`Passes::sums`] tells what their rows came to.
    ///
    /// What is left of loss and of penalty when their full packs are made shares one pack where it fits, unless the loss
    /// weighs documents or compares with a base model, which would have to read the penalty's rows too, or the penalty's
    /// gradient goes `apart`, into buffers of its own.
    #[allow(clippy::too_many_arguments)]
    pub fn start_step(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        loss: Task<'_>,
        penalty: Option<Task<'_>>,
        mut apart: Option<&mut Vec<Option<O::Grad>>>,
    ) -> Result<()> {
        self.clear(ops, Slot::Loss);
        self.clear(ops, Slot::Penalty);
        ops.mark(marks::START);
        let limit = self.ws.tokens();
        let mut losses = packs(loss.objective, knobs, loss.batches, limit)?;
        let mut penalties = match penalty {
            Some(task) => packs(task.objective, knobs, task.batches, limit)?,
            None => Vec::new(),
        };
        let rows = loss.objective.rows(knobs);
        let alone = matches!(rows, Rows::Document(_)) || rows.reads_base() || apart.is_some();
        let rest = losses.last().zip(penalties.last()).is_some_and(|(a, b)| {
            a.iter().chain(b).map(|doc| doc.ids.len()).sum::<usize>() <= limit
        });
        let shared = (rest && !alone).then(|| losses.pop().zip(penalties.pop())).flatten();
        let mut left = losses.len() + penalties.len() + usize::from(shared.is_some());
        let combined = apart.is_some();
        let mut last = || {
            left -= 1;
            // What is combined afterwards is not the step's gradient yet.
            left == 0 && !combined
        };
        for group in losses {
            let tasks = [(Slot::Loss, loss, group)];
            self.start(ops, model, base.as_deref_mut(), knobs, &tasks, last())?;
        }
        ops.mark(marks::LOSS);
        if let Some(apart) = &mut apart {
            std::mem::swap(&mut model.grads, apart);
            model.clear_grads(ops);
        }
        for group in penalties {
            // There are none without a penalty.
            let Some(task) = penalty else { break };
            self.start(ops, model, None, knobs, &[(Slot::Penalty, task, group)], last())?;
        }
        // Back, so that recorded work finds the buffers it was recorded with.
        if let Some(apart) = apart {
            std::mem::swap(&mut model.grads, apart);
        }
        ops.mark(marks::PENALTY);
        self.shared = [0; 2];
        if let (Some(penalty), Some((a, b))) = (penalty, shared) {
            self.shared = [&a, &b].map(|docs| docs.iter().map(|doc| doc.ids.len()).sum());
            let parts = [(Slot::Loss, loss, a), (Slot::Penalty, penalty, b)];
            self.start(ops, model, None, knobs, &parts, last())?;
        }
        ops.mark(marks::SHARED);
        Ok(())
    }

    /// Returns the seconds that loss and penalty took in the last step, after its end; a pack that both shared counts by
    /// tokens.
    pub fn seconds(&self, ops: &O) -> [f64; 2] {
        let shared = ops.seconds(marks::PENALTY, marks::SHARED);
        let tokens = self.shared.iter().sum::<usize>().max(1) as f64;
        let [loss, penalty] = self.shared.map(|part| shared * part as f64 / tokens);
        [
            ops.seconds(marks::START, marks::LOSS) + loss,
            ops.seconds(marks::LOSS, marks::PENALTY) + penalty,
        ]
    }

    fn clear(&mut self, ops: &O, slot: Slot) {
        ops.clear_tally(&mut self.tallies[slot as usize]);
        self.tokens[slot as usize] = 0;
    }

    /// Loads documents of one or two tasks into one pack and starts the work on it; `last`: no pack of the step comes
    /// behind it.
    fn start(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        tasks: &[(Slot, Task<'_>, Vec<Document<'_>>)],
        last: bool,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(tasks.len());
        self.data.clear();
        for (slot, task, documents) in tasks {
            let start = self.data.tokens();
            let longest = documents.iter().map(|doc| doc.ids.len()).max().unwrap_or(0);
            model.config.check_length(longest)?;
            let shifted = task.objective.normaliser().shifted();
            push(&mut self.data, documents, shifted, task.weight.unwrap_or(1.0));
            let rows = start..self.data.tokens();
            self.tokens[*slot as usize] += rows.len();
            let loss = task.objective.rows(knobs);
            if loss.reads_base() && base.is_none() {
                return Err(Error::config(
                    "this loss compares with a base model, and none is loaded",
                ));
            }
            parts.push(Part { slot: *slot, loss, backward: task.weight.is_some(), rows });
        }
        self.turn = 1 - self.turn;
        ops.load_pack(&mut self.packs[self.turn], &self.data);
        let n = self.data.tokens();
        let apart = parts.iter().find(|part| part.asks_teacher() && part.rows.start > 0);
        if apart.is_some() {
            // The teacher reads the penalty's documents alone.
            self.data.clear();
            for (_, task, documents) in tasks.iter().filter(|(slot, ..)| *slot == Slot::Penalty) {
                push(&mut self.data, documents, task.objective.normaliser().shifted(), 0.0);
            }
            ops.load_pack(&mut self.retained, &self.data);
        }
        let Self { ws, packs, turn, retained, weights, base_nll, tallies, .. } = self;
        let pack = &packs[*turn];
        let teacher = if apart.is_some() { &*retained } else { pack };
        let mut pass = Pass { ops, ws, pack, teacher, n, weights, base_nll };
        // Everything that decides which ops with which numbers a pack is given, beside the shapes of packs.
        let key = format!("{parts:?} {:p}", model.params.as_ptr());
        let mut work = || {
            pass.run(model, base.as_deref_mut(), &parts);
            for Part { slot, rows, .. } in &parts {
                ops.tally(pack, rows.clone(), &pass.ws.stats, &mut tallies[*slot as usize]);
            }
        };
        ops.last_writes(last);
        if parts.iter().all(|part| part.backward) {
            ops.replay(&[pack, teacher], &key, &mut work);
        } else {
            work();
        }
        ops.last_writes(false);
        Ok(())
    }

    /// Waits for the sweep that was last started into `slot` and returns its sums.
    pub fn sums(&mut self, ops: &O, slot: Slot) -> Result<Sums> {
        let Tallied { value, nll, hit } = ops.read_tally(&self.tallies[slot as usize]);
        ops.sync()?;
        Ok(Sums { value, nll, accuracy: hit, tokens: self.tokens[slot as usize] })
    }

    /// Generates a continuation of every prompt, as [`generate_in`] does, in the buffers of these passes.
    pub fn generate(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        prompts: &[Vec<u32>],
        request: &Request,
    ) -> Result<Vec<Vec<u32>>> {
        generate_in(ops, model, &mut self.ws, &mut self.packs[0], prompts, request)
    }

    /// Returns the log-probability of every token but the first of each document, nats.
    pub fn score(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        documents: &[&[u32]],
    ) -> Result<Vec<Vec<f64>>> {
        let scores = self.examine(ops, model, documents)?;
        Ok(scores.into_iter().map(|scores| scores.log_probs).collect())
    }

    /// Returns what the model makes of every token but the first of each document.
    pub fn examine(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        documents: &[&[u32]],
    ) -> Result<Vec<TokenScores>> {
        let longest = documents.iter().map(|ids| ids.len()).max().unwrap_or(0);
        model.config.check_length(longest)?;
        let mut scores = Vec::with_capacity(documents.len());
        for group in fill(documents, 1, |ids| ids.len(), self.ws.tokens())? {
            self.data.clear();
            group.iter().for_each(|ids| self.data.push(ids, |_| 0.0));
            let n = self.data.tokens();
            let pack = &mut self.packs[0];
            ops.load_pack(pack, &self.data);
            model.forward(ops, pack, n, Role::Evaluated, &mut self.ws);
            model.head(ops, pack, 0..n, Role::Evaluated, &mut self.ws, plain(), false);
            let first = scores.len();
            ops.read_stat(&self.ws.stats.nll, &mut self.rows[..n]);
            ops.sync()?;
            let mut start = 0;
            for ids in &group {
                let end = start + ids.len();
                let targets = start..end.saturating_sub(1).max(start);
                let log_probs = self.rows[targets].iter().map(|nll| -nll).collect();
                scores.push(TokenScores { log_probs, hits: Vec::new() });
                start = end;
            }
            ops.read_stat(&self.ws.stats.hit, &mut self.rows[..n]);
            ops.sync()?;
            let mut start = 0;
            for (ids, scores) in group.iter().zip(&mut scores[first..]) {
                let targets = start..start + scores.log_probs.len();
                scores.hits = self.rows[targets].iter().map(|hit| *hit != 0.0).collect();
                start += ids.len();
            }
        }
        Ok(scores)
    }
}

/// Appends documents and what their rows count: where rows are `shifted` the last one of each has no target and counts
/// nothing, else all positions count.
fn push(data: &mut PackData, documents: &[Document<'_>], shifted: bool, weight: f64) {
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

/// One pack on its way through the model.
struct Pass<'a, O: Ops> {
    ops: &'a O,
    ws: &'a mut Workspace<O>,
    pack: &'a O::Pack,
    /// What the teacher reads.
    teacher: &'a O::Pack,
    n: usize,
    weights: &'a mut O::Stat,
    base_nll: &'a mut O::Stat,
}

impl<O: Ops> Pass<'_, O> {
    /// Starts the forward passes, the head of every part, and the way back where asked. Documents are weighed against
    /// `base`.
    fn run(&mut self, model: &mut Model<O>, base: Option<&mut Model<O>>, parts: &[Part]) {
        let Self { ops, ws, pack, teacher, n, weights, base_nll } = self;
        let (ops, pack, n) = (*ops, *pack, *n);
        let backward = parts.iter().any(|part| part.backward);
        let student = if backward { Role::Student } else { Role::Evaluated };
        // Other models first: a training workspace must end on the student's forward pass.
        if let Some(part) = parts.iter().find(|part| part.asks_teacher()) {
            model.forward(ops, teacher, part.rows.len(), Role::Teacher, ws);
        }
        let mut base = base.filter(|_| parts.iter().any(|part| part.loss.reads_base()));
        if let Some(base) = base.as_deref_mut() {
            if parts.iter().any(|part| matches!(part.loss, Rows::Document(_))) {
                base.forward(ops, pack, n, Role::Evaluated, ws);
                std::mem::swap(&mut ws.stats.nll, base_nll);
                base.head(ops, pack, 0..n, Role::Evaluated, ws, plain(), false);
                std::mem::swap(&mut ws.stats.nll, base_nll);
            } else {
                base.forward(ops, pack, n, Role::Teacher, ws);
            }
        }
        model.forward(ops, pack, n, student, ws);
        for part in parts {
            let (rows, backward) = (part.rows.clone(), part.backward);
            let loss = match part.loss {
                Rows::Token(formula) => HeadLoss::OneHot(TokenWeight::Formula(formula)),
                Rows::Document(formula) => {
                    model.head(ops, pack, rows.clone(), student, ws, plain(), false);
                    let base_nll = formula.against_base.then_some(&**base_nll);
                    ops.document_weights(pack, base_nll, &ws.stats.nll, formula, weights);
                    HeadLoss::OneHot(TokenWeight::PerRow(&**weights))
                }
                Rows::Matched(target) => {
                    if !target.reads_teacher() {
                        // For the NLL that is monitored.
                        model.head(ops, pack, rows.clone(), student, ws, plain(), false);
                    }
                    match base.as_deref().filter(|_| part.loss.reads_base()) {
                        Some(base) => HeadLoss::Against(target, base),
                        None => HeadLoss::Matched(target),
                    }
                }
            };
            model.head(ops, pack, rows, student, ws, loss, backward);
        }
        if backward {
            model.backward(ops, pack, n, ws);
        }
    }
}

/// The rows of plain NLL.
fn plain<'a, O: Ops>() -> HeadLoss<'a, O> {
    HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)))
}

/// Lays the documents of all micro-batches into packs of up to `limit` tokens, in order; pairs stay together.
fn packs<'a>(
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
                Normaliser::OwnTokens => batch.rows() * ids.len(),
            };
            let span = match span {
                Span::Padded => batch.width().saturating_sub(1),
                Span::Sum => 1,
                Span::Targets => own,
                Span::Tokens => ids.len(),
            };
            // Of a pair the first is what is forgotten.
            let monitored = !rows.reads_teacher() && b % unit == 0;
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
fn fill<T: Copy>(
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
