//! From micro-batches to packs and back: which row counts how much, and what the rows add up to.
//!
//! A micro-batch is a unit of meaning (its normaliser), a pack one of work: documents of several micro-batches
//! share packs of up to a given number of tokens, and every row carries its own coefficient, so that packing
//! changes nothing but rounding.

use std::ops::Range;

use super::packs::{Document, fill, packs, push};
use super::{Hidden, Knobs, Objective, Rows};
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::model::decoder::HeadLoss;
use crate::model::generate::{Request, generate_in};
use crate::model::{Level, Model, Saving, Workspace};
use crate::ops::{Compute, Ops, PackData, Role, Tallied, TokenFormula, TokenWeight};

/// What a sweep over micro-batches adds up to; means over micro-batches, without the loss weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// The objective's returned value.
    pub value: f64,
    /// Plain NLL of the targets, nats per token; 0 for penalties that compare with a teacher and where there are no logits.
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
    /// Those of the second penalty.
    Second,
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
    /// those of the penalties,
    pub const PENALTY: usize = 2;
    /// the pack that both share,
    pub const SHARED: usize = 3;
    /// and the update.
    pub const UPDATE: usize = 4;
}

/// The gradients of a model, one for each block that trains.
type Gradients<O> = Vec<Option<<O as Compute>::Grad>>;

/// How a pack stands in its step.
#[derive(Debug, Clone, Copy, Default)]
struct Stage {
    /// No pack of the step comes behind it.
    last: bool,
    /// Its gradients are shielded.
    shielded: bool,
}

/// The rows of one task in a pack.
#[derive(Debug, Clone)]
struct Part {
    slot: Slot,
    loss: Rows,
    backward: bool,
    /// Whether what the model shields is taken off its gradients.
    shielded: bool,
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
    /// What hidden rows are pulled to; none before [`Passes::steer`].
    steering: Option<O::Stat>,
    tallies: [O::Tally; 3],
    /// Tokens behind each tally.
    tokens: [usize; 3],
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
            steering: None,
            tallies: [ops.tally_room()?, ops.tally_room()?, ops.tally_room()?],
            tokens: [0; 3],
            shared: [0; 2],
            rows: vec![0.0; tokens],
        })
    }

    /// Sets the vector that rows of steered losses are pulled to, C numbers.
    pub fn steer(&mut self, ops: &O, vector: &[f64]) -> Result<()> {
        let mut steering = ops.stat(vector.len())?;
        ops.write_stat(vector, &mut steering);
        self.steering = Some(steering);
        Ok(())
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
            self.start(ops, model, base.as_deref_mut(), knobs, &tasks, Stage::default())?;
        }
        self.sums(ops, Slot::Loss)
    }

    /// Starts the passes of a step and waits for nothing; [`Passes::sums`] tells what their rows came to.
    ///
    /// What is left of loss and of the first of up to two `penalties` when their full packs are made shares one pack where
    /// it fits, unless the loss weighs documents or compares with a base model, which would have to read the penalty's
    /// rows too, one of both has no logits, the loss alone is shielded, or the penalties' gradients go `apart`, into
    /// buffers of their own.
    #[allow(clippy::too_many_arguments)]
    pub fn start_step(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        loss: Task<'_>,
        penalties: &[Task<'_>],
        mut apart: Option<&mut [Gradients<O>]>,
    ) -> Result<()> {
        const SLOTS: [Slot; 2] = [Slot::Penalty, Slot::Second];
        [Slot::Loss, Slot::Penalty, Slot::Second]
            .into_iter()
            .for_each(|slot| self.clear(ops, slot));
        ops.mark(marks::START);
        let limit = self.ws.tokens();
        let mut losses = packs(loss.objective, knobs, loss.batches, limit)?;
        let retained = penalties.iter().map(|p| packs(p.objective, knobs, p.batches, limit));
        let mut retained = retained.collect::<Result<Vec<_>>>()?;
        let rows = loss.objective.rows(knobs);
        let shielded = model.shields();
        let hidden = penalties.first().is_some_and(|p| p.objective.rows(knobs).hidden());
        let alone = matches!(rows, Rows::Document(_) | Rows::Hidden(_))
            || rows.reads_base()
            || hidden
            || shielded
            || apart.is_some();
        let first = retained.first_mut();
        let shared = first.filter(|_| !alone).and_then(|first| {
            let rest = losses.last().into_iter().chain(first.last()).flatten();
            let fits = rest.map(|doc| doc.ids.len()).sum::<usize>() <= limit;
            if fits && !losses.is_empty() && !first.is_empty() {
                losses.pop().zip(first.pop())
            } else {
                None
            }
        });
        let packs = losses.len() + retained.iter().map(Vec::len).sum::<usize>();
        let mut left = packs + usize::from(shared.is_some());
        let combined = apart.is_some();
        let mut stage = |shielded| {
            left -= 1;
            // What is combined afterwards is not the step's gradient yet.
            Stage { last: left == 0 && !combined, shielded }
        };
        for group in losses {
            let tasks = [(Slot::Loss, loss, group)];
            self.start(ops, model, base.as_deref_mut(), knobs, &tasks, stage(shielded))?;
        }
        ops.mark(marks::LOSS);
        for (i, (task, groups)) in penalties.iter().zip(retained).enumerate() {
            let mut apart = apart.as_mut().map(|apart| &mut apart[i]);
            if let Some(apart) = &mut apart {
                std::mem::swap(&mut model.grads, apart);
                model.clear_grads(ops);
            }
            for group in groups {
                self.start(ops, model, None, knobs, &[(SLOTS[i], *task, group)], stage(false))?;
            }
            // Back, so that recorded work finds the buffers it was recorded with.
            if let Some(apart) = apart {
                std::mem::swap(&mut model.grads, apart);
            }
        }
        ops.mark(marks::PENALTY);
        self.shared = [0; 2];
        if let (Some(penalty), Some((a, b))) = (penalties.first(), shared) {
            self.shared = [&a, &b].map(|docs| docs.iter().map(|doc| doc.ids.len()).sum());
            let parts = [(Slot::Loss, loss, a), (Slot::Penalty, *penalty, b)];
            self.start(ops, model, None, knobs, &parts, stage(false))?;
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

    /// Loads documents of one or two tasks into one pack and starts the work on it.
    fn start(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        tasks: &[(Slot, Task<'_>, Vec<Document<'_>>)],
        stage: Stage,
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
            if let Rows::Hidden(hidden) = loss {
                model.config.check_layer("method.rmu_layer", hidden.layer)?;
                if hidden.steered && self.steering.is_none() {
                    return Err(Error::config("this loss pulls rows to a vector, and none is set")
                        .hint("a run whose method.loss is rmu has one"));
                }
            }
            let (backward, shielded) = (task.weight.is_some(), stage.shielded);
            parts.push(Part { slot: *slot, loss, backward, shielded, rows });
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
        let Self { ws, packs, turn, retained, weights, base_nll, steering, tallies, .. } = self;
        let pack = &packs[*turn];
        let teacher = if apart.is_some() { &*retained } else { pack };
        let steering = steering.as_ref();
        let mut pass = Pass { ops, ws, pack, teacher, n, weights, base_nll, steering };
        // Everything that decides which ops with which numbers a pack is given, beside the shapes of packs.
        let key = format!("{parts:?} {:p} {}", model.params.as_ptr(), model.tap_name());
        let mut work = || {
            pass.run(model, base.as_deref_mut(), &parts);
            for Part { slot, rows, .. } in &parts {
                ops.tally(pack, rows.clone(), &pass.ws.stats, &mut tallies[*slot as usize]);
            }
        };
        ops.last_writes(stage.last);
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
    steering: Option<&'a O::Stat>,
}

impl<O: Ops> Pass<'_, O> {
    /// Starts the forward passes, the head of every part, and the way back where asked. Documents are weighed against
    /// `base`.
    fn run(&mut self, model: &mut Model<O>, base: Option<&mut Model<O>>, parts: &[Part]) {
        model.shield(parts.iter().all(|part| part.shielded));
        if let [Part { loss: Rows::Hidden(hidden), backward, .. }] = parts {
            return self.pull(model, *hidden, *backward);
        }
        let Self { ops, ws, pack, teacher, n, weights, base_nll, .. } = self;
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
                // It shares no pack and has been done.
                Rows::Hidden(_) => continue,
            };
            model.head(ops, pack, rows, student, ws, loss, backward);
        }
        if backward {
            model.backward(ops, pack, n, ws);
        }
    }

    /// Runs the pack up to a layer, pulls the rows behind it, and goes the way back where asked.
    fn pull(&mut self, model: &mut Model<O>, hidden: Hidden, backward: bool) {
        let Self { ops, ws, pack, n, steering, .. } = self;
        let depth = hidden.layer + 1;
        if !hidden.steered {
            model.forward_to(*ops, pack, *n, Role::Teacher, ws, depth);
        }
        let student = if backward { Role::Student } else { Role::Evaluated };
        model.forward_to(*ops, pack, *n, student, ws, depth);
        let toward = steering.filter(|_| hidden.steered);
        model.pull(*ops, pack, *n, ws, toward, depth, backward);
        if backward {
            model.backward_from(*ops, pack, *n, ws, depth);
        }
    }
}

/// The rows of plain NLL.
fn plain<'a, O: Ops>() -> HeadLoss<'a, O> {
    HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)))
}
