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

/// Generates a continuation of every prompt; returns the new ids only, in the order of the prompts.
///
/// Prompts are packed, not padded: positions count from the first token of each, so the batch size changes
/// nothing but speed. An empty prompt is an error.
pub fn generate<O: Ops>(
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
    let mut session = Session::new(ops, model, prompts, &groups, request)?;
    for group in groups {
        session.run(ops, model, prompts, group, &mut outputs)?;
    }
    Ok(outputs)
}

/// Buffers that fit every group of prompts, and the group at work.
struct Session<'a, O: Ops> {
    group: &'a [usize],
    request: &'a Request,
    ws: Workspace<O>,
    caches: Vec<O::Cache>,
    pack: O::Pack,
    data: PackData,
    rows: O::Act,
    /// Places in the group of the prompts that still run, in the order of the pack's documents.
    live: Vec<usize>,
    /// The new token of each of these.
    ids: Vec<u32>,
}

impl<'a, O: Ops> Session<'a, O> {
    fn new(
        ops: &O,
        model: &Model<O>,
        prompts: &[Vec<u32>],
        groups: &[&[usize]],
        request: &'a Request,
    ) -> Result<Self> {
        let cfg = &model.config;
        let tokens = |group: &&[usize]| group.iter().map(|&i| prompts[i].len()).sum::<usize>();
        let tokens = groups.iter().map(tokens).max().unwrap_or(0);
        let slots = groups.iter().map(|group| group.len()).max().unwrap_or(0);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = longest + request.max_new_tokens;
        let caches = (0..cfg.layers)
            .map(|l| ops.cache(slots, capacity, cfg.heads(l)))
            .collect::<Result<_>>()?;
        Ok(Self {
            group: &[],
            request,
            ws: Workspace::new(ops, model, tokens, false)?,
            caches,
            pack: ops.pack(tokens)?,
            data: PackData::default(),
            rows: ops.act(slots * cfg.width)?,
            live: Vec::new(),
            ids: vec![0; slots],
        })
    }

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
        ops.load_pack(&mut self.pack, &self.data);
        let caches = &mut self.caches;
        let attend = if prefill { Attend::Prefill(caches) } else { Attend::Decode(caches) };
        model.run(ops, &self.pack, n, Role::Evaluated, &mut self.ws, attend);
        let last: Vec<u32> = self.data.starts.iter().skip(1).map(|end| end - 1).collect();
        let shape = HeadShape { n: last.len(), c: model.config.width, v: model.config.vocab };
        ops.gather_rows(shape.c, &last, &self.ws.h, &mut self.rows);
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
        self.ws.choose(ops, model, shape, &self.rows, draws, ids);
        ops.sync()
    }
}
