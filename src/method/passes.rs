//! From micro-batches to packs and back: which row counts how much, and what the rows add up to.
//!
//! A micro-batch is a unit of meaning (its normaliser), a pack one of work: documents of several micro-batches
//! share packs of up to a given number of tokens, and every row carries its own coefficient, so that packing
//! changes nothing but rounding.

use std::ops::Range;

use super::combine::Combine;
use super::packs::{Document, fill, packs, push};
use super::{Hidden, Knobs, Nll, Objective, Rows};
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::model::decoder::{HeadLoss, HeadPass};
use crate::model::generate::{Request, generate_in};
use crate::model::sink::{InputHook, Sink};
use crate::model::{Level, Model, Saving, Workspace};
use crate::ops::{
    Memory, Ops, PackData, Role, RowStats, Tallied, TokenFormula, TokenWeight, WorkKey,
};

/// Sums of a sweep: means over micro-batches, without the loss weight.
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

/// An objective and what it is swept over.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The objective.
    pub objective: &'a dyn Objective,
    /// The micro-batches.
    pub batches: &'a [MicroBatch],
    /// Factor of its gradient; `None` computes sums alone.
    pub weight: Option<f64>,
    /// True if the step's hook on the inputs of linear layers applies.
    pub hooked: bool,
}

impl<'a> Task<'a> {
    /// Makes a task without a hook.
    pub fn new(
        objective: &'a dyn Objective,
        batches: &'a [MicroBatch],
        weight: Option<f64>,
    ) -> Self {
        Self { objective, batches, weight, hooked: false }
    }
}

/// The passes of a step.
pub struct Step<'a, O: Ops> {
    /// The terms of the objective, the forget loss first.
    pub tasks: &'a [Task<'a>],
    /// Hyperparameters of the objectives.
    pub knobs: &'a Knobs,
    /// Destination of the terms' gradients.
    pub combine: &'a mut dyn Combine<O>,
    /// Hook on the inputs of linear layers, for the terms that ask for it.
    pub hook: Option<&'a mut (dyn InputHook<O> + 'static)>,
}

/// Terms of a step at most.
pub const MOST_TERMS: usize = 8;

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

/// The rows of one term in a packed batch.
#[derive(Debug, Clone)]
struct Part {
    /// Index of the term.
    term: usize,
    /// Name of its objective, which with the hyperparameters determines its ops.
    name: &'static str,
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

/// Scores of the tokens of a document but the first.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScores {
    /// The log-probability of each, nats.
    pub log_probs: Vec<f64>,
    /// True for each token that was the most probable one.
    pub hits: Vec<bool>,
}

/// The buffers of a run: packs, workspace, host rows.
pub struct Passes<M: Memory> {
    /// Forward and backward buffers.
    pub ws: Workspace<M>,
    /// Two that take turns: while one is worked on, the next is made and loaded.
    packs: [M::Pack; 2],
    turn: usize,
    /// The documents that the teacher reads of a pack that loss and penalty share.
    retained: M::Pack,
    data: PackData,
    weights: M::Stat,
    /// Results of the base model's head.
    base: RowStats<M::Stat>,
    /// Target of hidden states; none before [`Passes::steer`].
    steering: Option<M::Stat>,
    /// Sums of each term.
    tallies: Vec<M::Tally>,
    /// Tokens behind each tally.
    tokens: [usize; MOST_TERMS],
    /// Tokens of the first two terms in the packed batch that both shared in the last step.
    shared: [usize; 2],
    rows: Vec<f64>,
}

impl<M: Memory> Passes<M> {
    /// Allocates buffers for packs of up to `tokens` tokens; for `training` such that no product is done twice.
    pub fn new(memory: &M, model: &Model<M>, tokens: usize, training: bool) -> Result<Self> {
        Self::saving(memory, model, tokens, training.then_some(Saving::same(Level::All)))
    }

    /// Allocates buffers for packs of up to `tokens` tokens; for training with a choice of what is kept of each layer.
    pub fn saving(
        memory: &M,
        model: &Model<M>,
        tokens: usize,
        saving: Option<Saving>,
    ) -> Result<Self> {
        Ok(Self {
            ws: Workspace::new(memory, model, tokens, saving)?,
            packs: [memory.pack(tokens)?, memory.pack(tokens)?],
            turn: 0,
            retained: memory.pack(if saving.is_some() { tokens } else { 0 })?,
            data: PackData::default(),
            weights: memory.stat(tokens)?,
            base: RowStats {
                nll: memory.stat(tokens)?,
                value: memory.stat(tokens)?,
                hit: memory.stat(tokens)?,
            },
            steering: None,
            tallies: (0..MOST_TERMS).map(|_| memory.tally_room()).collect::<Result<_>>()?,
            tokens: [0; MOST_TERMS],
            shared: [0; 2],
            rows: Vec::new(),
        })
    }
}

impl<O: Ops> Passes<O> {
    /// Sets the vector that rows of steered losses are pulled to, C numbers.
    pub fn steer(&mut self, ops: &O, vector: &[f64]) -> Result<()> {
        let mut steering = ops.stat(vector.len())?;
        ops.write_stat(vector, &mut steering);
        self.steering = Some(steering);
        Ok(())
    }

    /// Sweeps an objective over its batches and waits for the sums; with a weight its gradient times that is added to the
    /// model's. No hook applies.
    ///
    /// `base` is the base model of document-weighted losses. Penalties read the teacher of `model`.
    pub fn sweep(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        base: Option<&mut Model<O>>,
        knobs: &Knobs,
        task: Task<'_>,
    ) -> Result<Sums> {
        self.sweep_into(ops, model, base, knobs, task, &mut Sink::own())
    }

    /// Runs forward and backward passes over `batches` for the inputs of linear layers, which `hook` is shown; no
    /// gradient is meant to be kept.
    pub fn observe(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        knobs: &Knobs,
        batches: &[MicroBatch],
        hook: &mut (dyn InputHook<O> + 'static),
    ) -> Result<()> {
        // With weight 0 the backward pass carries zeros; only the inputs are asked for.
        let task = Task { objective: &Nll, batches, weight: Some(0.0), hooked: true };
        let mut sink = Sink { grads: None, hook: Some(hook) };
        self.sweep_into(ops, model, None, knobs, task, &mut sink).map(drop)
    }

    fn sweep_into(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        task: Task<'_>,
        sink: &mut Sink<'_, O>,
    ) -> Result<Sums> {
        self.clear(ops, 0);
        for group in packs(task.objective, knobs, task.batches, self.ws.tokens())? {
            let tasks = [(0, task, group)];
            let base = base.as_deref_mut();
            self.start(
                ops,
                model,
                base,
                knobs,
                &tasks,
                Destination { sink, term: 0, last: false },
            )?;
        }
        self.sums(ops, 0)
    }

    /// Starts the passes of a step and waits for nothing; [`Passes::sums`] returns the sums of each term.
    ///
    /// Leftover partial batches of the first two terms share one packed batch if they fit and can be computed together:
    /// not where the first weighs whole documents or compares with a frozen model, which would have to read the other's
    /// rows too, where one has no logits, where the hook applies to one of them, or where gradients are kept separate.
    pub fn start_step(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        step: Step<'_, O>,
    ) -> Result<()> {
        let Step { tasks, knobs, combine, mut hook } = step;
        if tasks.len() > MOST_TERMS {
            return Err(Error::config(format!(
                "the objective has {} terms, at most {MOST_TERMS} are possible",
                tasks.len()
            )));
        }
        (0..tasks.len()).for_each(|i| self.clear(ops, i));
        ops.mark(marks::START);
        let limit = self.ws.tokens();
        let groups = tasks.iter().map(|task| packs(task.objective, knobs, task.batches, limit));
        let mut groups = groups.collect::<Result<Vec<_>>>()?;
        let shared = self.share(tasks, knobs, &mut groups, combine.separates());
        let mut left = groups.iter().map(Vec::len).sum::<usize>() + usize::from(shared.is_some());
        let separate = combine.separates();
        // Gradients that are combined afterwards are not the step's yet.
        let mut is_last = || {
            left -= 1;
            left == 0 && !separate
        };
        for (i, (task, groups)) in tasks.iter().zip(groups).enumerate() {
            for group in groups {
                let hook = hook.as_deref_mut().filter(|_| task.hooked);
                let hook = hook.map(|hook| hook as &mut dyn InputHook<O>);
                let mut sink = Sink { grads: combine.buffers(i), hook };
                let to = Destination { sink: &mut sink, term: i, last: is_last() };
                self.start(ops, model, base.as_deref_mut(), knobs, &[(i, *task, group)], to)?;
            }
            if i == 0 {
                ops.mark(marks::LOSS);
            }
        }
        ops.mark(marks::PENALTY);
        self.shared = [0; 2];
        if let (Some((a, b)), [first, second, ..]) = (shared, tasks) {
            self.shared = [&a, &b].map(|docs| docs.iter().map(|doc| doc.ids.len()).sum());
            let parts = [(0, *first, a), (1, *second, b)];
            let to = Destination { sink: &mut Sink::own(), term: 0, last: is_last() };
            self.start(ops, model, None, knobs, &parts, to)?;
        }
        ops.mark(marks::SHARED);
        Ok(())
    }

    /// Takes the last groups of the first two tasks out of `groups` where they can share a packed batch.
    #[allow(clippy::type_complexity)]
    fn share<'a>(
        &self,
        tasks: &[Task<'_>],
        knobs: &Knobs,
        groups: &mut [Vec<Vec<Document<'a>>>],
        separate: bool,
    ) -> Option<(Vec<Document<'a>>, Vec<Document<'a>>)> {
        let ([first, second, ..], [a, b, ..]) = (tasks, groups) else { return None };
        let rows = first.objective.rows(knobs);
        let alone = matches!(rows, Rows::Document(_) | Rows::Hidden(_))
            || rows.reads_base()
            || second.objective.rows(knobs).hidden()
            || first.hooked != second.hooked
            || separate;
        let tokens =
            |group: &Vec<Document<'_>>| group.iter().map(|doc| doc.ids.len()).sum::<usize>();
        let fits = tokens(a.last()?) + tokens(b.last()?) <= self.ws.tokens();
        if alone || !fits { None } else { a.pop().zip(b.pop()) }
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

    fn clear(&mut self, ops: &O, term: usize) {
        ops.clear_tally(&mut self.tallies[term]);
        self.tokens[term] = 0;
    }

    /// Loads documents of one or two terms into one packed batch and starts the work on it.
    fn start(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        mut base: Option<&mut Model<O>>,
        knobs: &Knobs,
        tasks: &[(usize, Task<'_>, Vec<Document<'_>>)],
        to: Destination<'_, '_, O>,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(tasks.len());
        self.data.clear();
        for (term, task, documents) in tasks {
            let start = self.data.tokens();
            let longest = documents.iter().map(|doc| doc.ids.len()).max().unwrap_or(0);
            model.config.check_length(longest)?;
            let shifted = task.objective.normaliser().shifted();
            push(&mut self.data, documents, shifted, task.weight.unwrap_or(1.0));
            let rows = start..self.data.tokens();
            self.tokens[*term] += rows.len();
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
            let (name, backward) = (task.objective.name(), task.weight.is_some());
            parts.push(Part { term: *term, name, loss, backward, rows });
        }
        self.turn = 1 - self.turn;
        ops.load_pack(&mut self.packs[self.turn], &self.data);
        let n = self.data.tokens();
        let apart = parts.iter().find(|part| part.asks_teacher() && part.rows.start > 0);
        if apart.is_some() {
            // The teacher reads the documents that are compared with it alone.
            self.data.clear();
            let compared = |(_, task, _): &&(usize, Task<'_>, Vec<Document<'_>>)| {
                task.objective.rows(knobs).reads_teacher()
            };
            for (_, task, documents) in tasks.iter().filter(compared) {
                push(&mut self.data, documents, task.objective.normaliser().shifted(), 0.0);
            }
            ops.load_pack(&mut self.retained, &self.data);
        }
        let Self {
            ws, packs, turn, retained, weights, base: base_stats, steering, tallies, ..
        } = self;
        let pack = &packs[*turn];
        let teacher = if apart.is_some() { &*retained } else { pack };
        let steering = steering.as_ref();
        let Destination { sink, term, last } = to;
        let key = work_key(&parts, knobs, model, sink, term);
        let mut pass = Pass { ops, ws, pack, teacher, n, weights, base_stats, steering, sink };
        let mut work = || {
            pass.run(model, base.as_deref_mut(), &parts);
            for Part { term, rows, .. } in &parts {
                ops.tally(pack, rows.clone(), &pass.ws.stats, &mut tallies[*term]);
            }
        };
        ops.last_writes(last);
        if parts.iter().all(|part| part.backward) {
            ops.replay(&[pack, teacher], key, &mut work);
        } else {
            work();
        }
        ops.last_writes(false);
        Ok(())
    }

    /// Waits for the passes last started and returns the sums of term `term`.
    pub fn sums(&mut self, ops: &O, term: usize) -> Result<Sums> {
        let Tallied { value, nll, hit } = ops.read_tally(&self.tallies[term]);
        ops.sync()?;
        Ok(Sums { value, nll, accuracy: hit, tokens: self.tokens[term] })
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
            model.head(ops, &mut self.ws, plain(pack, 0..n, Role::Evaluated), None);
            let first = scores.len();
            self.rows.resize(n, 0.0);
            ops.read_stat(&self.ws.stats.nll, &mut self.rows);
            ops.sync()?;
            let mut start = 0;
            for ids in &group {
                let end = start + ids.len();
                let targets = start..end.saturating_sub(1).max(start);
                let log_probs = self.rows[targets].iter().map(|nll| -nll).collect();
                scores.push(TokenScores { log_probs, hits: Vec::new() });
                start = end;
            }
            ops.read_stat(&self.ws.stats.hit, &mut self.rows);
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

/// Destination of the gradients of a packed batch.
struct Destination<'a, 'b, O: Ops> {
    sink: &'a mut Sink<'b, O>,
    /// The term whose gradients they are.
    term: usize,
    /// True if no packed batch of the step comes behind it.
    last: bool,
}

/// One pack on its way through the model.
struct Pass<'a, 'b, O: Ops> {
    ops: &'a O,
    ws: &'a mut Workspace<O>,
    pack: &'a O::Pack,
    /// The documents that the teacher reads.
    teacher: &'a O::Pack,
    n: usize,
    weights: &'a mut O::Stat,
    base_stats: &'a mut RowStats<O::Stat>,
    steering: Option<&'a O::Stat>,
    sink: &'a mut Sink<'b, O>,
}

impl<O: Ops> Pass<'_, '_, O> {
    /// Starts the forward passes, the head of every part, and the way back where asked. Documents are weighed against
    /// `base`.
    fn run(&mut self, model: &mut Model<O>, base: Option<&mut Model<O>>, parts: &[Part]) {
        if let [Part { loss: Rows::Hidden(hidden), backward, .. }] = parts {
            return self.pull(model, *hidden, *backward);
        }
        let Self { ops, ws, pack, teacher, n, weights, base_stats, sink, .. } = self;
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
                let stats = Some(&mut **base_stats);
                base.head(ops, ws, HeadPass { stats, ..plain(pack, 0..n, Role::Evaluated) }, None);
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
                    model.head(ops, ws, plain(pack, rows.clone(), student), None);
                    let base_nll = formula.against_base.then_some(&base_stats.nll);
                    ops.document_weights(pack, base_nll, &ws.stats.nll, formula, weights);
                    HeadLoss::OneHot(TokenWeight::PerRow(&**weights))
                }
                Rows::Matched(target) => match base.as_deref().filter(|_| part.loss.reads_base()) {
                    Some(base) => HeadLoss::Against(target, base),
                    None => HeadLoss::Matched(target),
                },
                // It shares no pack and has been done.
                Rows::Hidden(_) => continue,
            };
            let pass = HeadPass { pack, rows, role: student, loss, stats: None };
            model.head(ops, ws, pass, backward.then_some(&mut **sink));
        }
        if backward {
            model.backward(ops, pack, n, ws, sink);
        }
    }

    /// Runs the pack up to a layer, pulls the rows behind it, and goes the way back where asked.
    fn pull(&mut self, model: &mut Model<O>, hidden: Hidden, backward: bool) {
        let Self { ops, ws, pack, n, steering, sink, .. } = self;
        let depth = hidden.layer + 1;
        if !hidden.steered {
            model.forward_to(*ops, pack, *n, Role::Teacher, ws, depth);
        }
        let student = if backward { Role::Student } else { Role::Evaluated };
        model.forward_to(*ops, pack, *n, student, ws, depth);
        let toward = steering.filter(|_| hidden.steered);
        model.pull(*ops, (pack, *n), ws, toward, depth, backward);
        if backward {
            model.backward_from(*ops, pack, *n, ws, depth, sink);
        }
    }
}

/// The pass of the head for the plain NLL.
fn plain<O: Ops>(pack: &O::Pack, rows: Range<usize>, role: Role) -> HeadPass<'_, O> {
    let loss = HeadLoss::OneHot(TokenWeight::Formula(TokenFormula::constant(1.0)));
    HeadPass { pack, rows, role, loss, stats: None }
}

/// Returns the key of the work on a packed batch: everything that decides which ops with which numbers it is given, beside
/// the shapes of packs.
fn work_key<O: Ops>(
    parts: &[Part],
    knobs: &Knobs,
    model: &Model<O>,
    sink: &Sink<'_, O>,
    term: usize,
) -> WorkKey {
    let mut key = WorkKey::new("pass");
    for Part { term, name, backward, rows, .. } in parts {
        let [term, start, end] = [*term, rows.start, rows.end].map(|n| n as u64);
        key.name(name).word(term).word(u64::from(*backward)).word(start).word(end);
    }
    key.numbers(&knobs.numbers()).word(model.params.as_ptr() as u64);
    // The buffers of gradients: those of a term, or the model's.
    key.word(sink.grads.as_ref().map_or(0, |_| 1 + term as u64));
    key.word(sink.hook.as_ref().map_or(0, |hook| 1 + hook.key()));
    key
}
