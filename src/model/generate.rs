//! Generation with a key/value cache: greedy or sampled, any number of prompts at once.

use super::decoder::{Attend, Workspace};
use super::params::Model;
use crate::error::{Error, Result};
use crate::ops::{HeadShape, Ops, PackData, Role, Sampling};
use crate::rng::Stream;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The most probable one; the smallest id among equals.
    Greedy,
    /// Drawn from the softmax at a temperature, within the smallest set of tokens that holds `top_p`.
    Sample {
        /// Temperature and `top_p`.
        sampling: Sampling,
        /// Root seed; the draw depends on it, the prompt's number and the token's alone.
        seed: u64,
    },
}

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At most this many new tokens a prompt.
    pub max_new_tokens: usize,
    /// Generation of a prompt stops after one of these, which is part of the output.
    pub end_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub choice: Choice,
    /// Prompts generated at the same time.
    pub batch: usize,
}

/// Generates a continuation of every prompt with buffers of its own; see [`Generator::generate`].
pub fn generate<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    prompts: &[Vec<u32>],
    request: &Request,
) -> Result<Vec<Vec<u32>>> {
    Generator::default().generate(ops, model, prompts, request)
}

/// The buffers of generation, kept for the next prompts: a device's memory is given back at the end of a run only.
pub struct Generator<O: Ops> {
    room: Option<Room<O>>,
}

impl<O: Ops> Default for Generator<O> {
    fn default() -> Self {
        Self { room: None }
    }
}

impl<O: Ops> Generator<O> {
    /// Generates a continuation of every prompt; returns the new ids only, in the order of the prompts.
    ///
    /// Prompts are packed, not padded: positions count from the first token of each, so the batch size changes
    /// nothing but speed. An empty prompt is an error. All models that use one generator must be of one shape.
    pub fn generate(
        &mut self,
        ops: &O,
        model: &mut Model<O>,
        prompts: &[Vec<u32>],
        request: &Request,
    ) -> Result<Vec<Vec<u32>>> {
        if let Some(i) = prompts.iter().position(Vec::is_empty) {
            return Err(Error::data(format!("prompt {i}: has no tokens, nothing to continue")));
        }
        // Long and short prompts are kept apart, so that a batch finishes together.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| (prompts[i].len(), i));
        let mut outputs = vec![Vec::new(); prompts.len()];
        if prompts.is_empty() || request.max_new_tokens == 0 {
            return Ok(outputs);
        }
        let groups: Vec<&[usize]> = order.chunks(request.batch.max(1)).collect();
        let tokens = |group: &&[usize]| group.iter().map(|&i| prompts[i].len()).sum::<usize>();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let wanted = Size {
            tokens: groups.iter().map(tokens).max().unwrap_or(0),
            slots: groups.iter().map(|group| group.len()).max().unwrap_or(0),
            capacity: longest + request.max_new_tokens,
        };
        let room = match self.room.take().filter(|room| room.size.holds(wanted)) {
            Some(room) => room,
            None => Room::new(ops, model, wanted)?,
        };
        let mut session = Session {
            group: &[],
            request,
            ids: vec![0; room.size.slots],
            room,
            data: PackData::default(),
            live: Vec::new(),
        };
        for group in groups {
            session.run(ops, model, prompts, group, &mut outputs)?;
        }
        self.room = Some(session.room);
        Ok(outputs)
    }
}

/// What buffers hold: tokens of a prefill, prompts at the same time, tokens of a prompt and its continuation.
#[derive(Debug, Clone, Copy)]
struct Size {
    tokens: usize,
    slots: usize,
    capacity: usize,
}

impl Size {
    fn holds(self, wanted: Self) -> bool {
        self.tokens >= wanted.tokens
            && self.slots >= wanted.slots
            && self.capacity >= wanted.capacity
    }
}

/// Buffers of a size.
struct Room<O: Ops> {
    size: Size,
    ws: Workspace<O>,
    caches: Vec<O::Cache>,
    pack: O::Pack,
    rows: O::Act,
}

impl<O: Ops> Room<O> {
    fn new(ops: &O, model: &Model<O>, size: Size) -> Result<Self> {
        let cfg = &model.config;
        let cache = |l| ops.cache(size.slots, size.capacity, cfg.heads(l));
        Ok(Self {
            size,
            ws: Workspace::new(ops, model, size.tokens, false)?,
            caches: (0..cfg.layers).map(cache).collect::<Result<_>>()?,
            pack: ops.pack(size.tokens)?,
            rows: ops.act(size.slots * cfg.width)?,
        })
    }
}

/// Buffers, and the group of prompts at work.
struct Session<'a, O: Ops> {
    group: &'a [usize],
    request: &'a Request,
    room: Room<O>,
    data: PackData,
    /// Places in the group of the prompts that still run, in the order of the pack's documents.
    live: Vec<usize>,
    /// The new token of each of these.
    ids: Vec<u32>,
}

impl<'a, O: Ops> Session<'a, O> {
    fn run(
        &mut self,
        ops: &O,
        model: &Model<O>,
        prompts: &[Vec<u32>],
        group: &'a [usize],
        outputs: &mut [Vec<u32>],
    ) -> Result<()> {
        (self.group, self.live) = (group, (0..group.len()).collect());
        self.data.clear();
        for (slot, &i) in self.group.iter().enumerate() {
            self.data.push(&prompts[i], |_| 0.0);
            self.data.slots.push(slot as u32);
        }
        self.step(ops, model, true, outputs)?;
        loop {
            self.data.clear();
            let mut next = Vec::with_capacity(self.live.len());
            for (&slot, &id) in self.live.iter().zip(&self.ids) {
                let i = self.group[slot];
                outputs[i].push(id);
                let full = outputs[i].len() >= self.request.max_new_tokens;
                if !full && !self.request.end_tokens.contains(&id) {
                    next.push(slot);
                    self.data.push(&[id], |_| 0.0);
                    if let Some(position) = self.data.positions.last_mut() {
                        *position = (prompts[i].len() + outputs[i].len() - 1) as u32;
                    }
                    self.data.slots.push(slot as u32);
                }
            }
            self.live = next;
            if self.live.is_empty() {
                return Ok(());
            }
            self.step(ops, model, false, outputs)?;
        }
    }

    /// Runs the loaded tokens and picks the token after the last one of each document. The ids are all that a step
    /// brings to the host.
    fn step(
        &mut self,
        ops: &O,
        model: &Model<O>,
        prefill: bool,
        outputs: &[Vec<u32>],
    ) -> Result<()> {
        let n = self.data.tokens();
        let Room { ws, caches, pack, rows, .. } = &mut self.room;
        ops.load_pack(pack, &self.data);
        ops.single_tokens(!prefill);
        let attend = if prefill { Attend::Prefill(caches) } else { Attend::Decode(caches) };
        model.run(ops, pack, n, Role::Evaluated, ws, attend);
        let last: Vec<u32> = self.data.starts.iter().skip(1).map(|end| end - 1).collect();
        let shape = HeadShape { n: last.len(), c: model.config.width, v: model.config.vocab };
        ops.gather_rows(shape.c, &last, &ws.h, rows);
        let numbers;
        let draws = match self.request.choice {
            Choice::Greedy => None,
            Choice::Sample { sampling, seed } => {
                let stream = Stream::new(seed, "generate");
                let draw = |i: usize| stream.uniform(i as u64, outputs[i].len() as u64);
                numbers = self.live.iter().map(|slot| draw(self.group[*slot])).collect::<Vec<_>>();
                Some((sampling, &numbers[..]))
            }
        };
        let ids = &mut self.ids[..shape.n];
        ws.choose(ops, model, shape, rows, draws, ids);
        ops.single_tokens(false);
        ops.sync()
    }
}
