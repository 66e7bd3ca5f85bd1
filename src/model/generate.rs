//! Generation with a key/value cache: greedy or sampled, any number of prompts at once.

use super::config::ModelConfig;
use super::decoder::{Attend, Caches, Pass};
use super::params::Model;
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::ops::{CachePlace, HeadShape, Memory, Ops, PackData, Role, Sampling};
use crate::rng::Stream;

/// Choice of the next token.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
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

/// Settings of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At most this many new tokens a prompt.
    pub max_new_tokens: usize,
    /// Generation of a prompt stops after one of these, which is part of the output.
    pub end_tokens: Vec<u32>,
    /// Choice of the next token.
    pub choice: Choice,
    /// Prompts generated at the same time.
    pub batch: usize,
}

/// Generates a continuation of every prompt with buffers of its own; see [`generate_in`].
pub fn generate<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    prompts: &[Vec<u32>],
    request: &Request,
) -> Result<Vec<Vec<u32>>> {
    let batch = request.batch.max(1);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let tokens = longest.max(batch.min(prompts.len())).max(PREFILL);
    let mut ws = Workspace::new(ops, model, tokens, None)?;
    let mut pack = ops.pack(tokens)?;
    generate_in(ops, model, &mut ws, &mut pack, prompts, request)
}

/// Generates a continuation of every prompt; returns the new ids only, in the order of the prompts.
///
/// Prompts are packed, not padded: positions count from the first token of each, so the number of prompts at the same
/// time changes nothing but speed. Between steps of training keys and values lie in rows that wait for the next step, and
/// as many prompts run at the same time as these hold, at most `request.batch`; only what a single prompt needs beyond
/// them is allocated. Else there is room for `request.batch` prompts, which the workspace keeps for the next ones.
///
/// Errors: a prompt without tokens, or with more than the workspace takes.
pub fn generate_in<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    ws: &mut Workspace<O>,
    pack: &mut O::Pack,
    prompts: &[Vec<u32>],
    request: &Request,
) -> Result<Vec<Vec<u32>>> {
    if let Some(i) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::data(format!("prompt {i}: has no tokens, nothing to continue")));
    }
    if let Some((i, prompt)) =
        prompts.iter().enumerate().find(|(_, prompt)| prompt.len() > ws.tokens())
    {
        return Err(Error::data(format!(
            "prompt {i}: {} tokens do not fit a pack of {}",
            prompt.len(),
            ws.tokens()
        )));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    model.config.check_length(longest + request.max_new_tokens)?;
    let mut outputs = vec![Vec::new(); prompts.len()];
    if prompts.is_empty() || request.max_new_tokens == 0 {
        return Ok(outputs);
    }
    // Long and short prompts are kept apart, so that a batch finishes together.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| (prompts[i].len(), i));
    let batch = request.batch.clamp(1, ws.tokens());
    let capacity = |i: usize| prompts[i].len() + request.max_new_tokens;
    let config = model.config.clone();
    let heads = config.heads(0);
    let place = |slots: usize, capacity: usize| CachePlace { start: 0, slots, capacity };
    // What has to be there: one prompt where rows can be lent, else a batch.
    let least = if ws.trains() { 1 } else { batch };
    let most = order
        .chunks(least)
        .map(|group| place(group.len(), group.iter().map(|i| capacity(*i)).max().unwrap_or(0)));
    let most = most.map(|place| place.len(heads)).max().unwrap_or(0);
    make_room(ops, ws, most, config.layers)?;
    let sizes = ws.lent(ops);
    let fits = |slots: usize, i: usize| {
        let len = place(slots, capacity(i)).len(heads);
        slots <= batch && lay(&sizes, len, config.layers).len() == config.layers
    };
    let groups = groups(&order, fits);
    let mut session = Session {
        caches: Caches { rooms: ws.lend(ops)?, places: Vec::new() },
        ws,
        pack,
        request,
        prompts,
        data: PackData::default(),
        ids: vec![0; batch],
    };
    let mut run = || {
        for group in &groups {
            let longest = group.iter().map(|i| capacity(*i)).max().unwrap_or(0);
            let len = place(group.len(), longest).len(heads);
            let places = lay(&sizes, len, config.layers).into_iter();
            let at = |(room, start)| (room, CachePlace { start, ..place(group.len(), longest) });
            session.caches.places = places.map(at).collect();
            session.run(ops, model, group, &mut outputs)?;
        }
        Ok(())
    };
    let result = run();
    let Session { ws, caches, .. } = session;
    ws.take_back(caches.rooms);
    result.map(|()| outputs)
}

/// Tokens of a prefill at least, where prompts are shorter: fewer make the products inefficient.
const PREFILL: usize = 1024;

/// Cuts prompts into groups, each as large as `fits` says of its size and its last prompt, at least one.
fn groups(order: &[usize], fits: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &i in order {
        match groups.last_mut() {
            Some(group) if fits(group.len() + 1, i) => group.push(i),
            _ => groups.push(vec![i]),
        }
    }
    groups
}

/// Lays up to `layers` caches of `len` numbers into rooms of the given sizes; returns the room of each and where in it.
fn lay(sizes: &[usize], len: usize, layers: usize) -> Vec<(usize, usize)> {
    let each = |(room, size): (usize, &usize)| (0..size / len.max(1)).map(move |k| (room, k * len));
    sizes.iter().enumerate().flat_map(each).take(layers).collect()
}

/// Allocates what caches of `len` numbers for `layers` layers need beyond the rows that the workspace lends.
fn make_room<M: Memory>(
    memory: &M,
    ws: &mut Workspace<M>,
    len: usize,
    layers: usize,
) -> Result<()> {
    (lay(&ws.lent(memory), len, layers).len()..layers).try_for_each(|_| ws.add_room(memory, len))
}

/// Allocates what generation of a prompt and its continuation, `capacity` tokens together, needs beyond the rows that a
/// workspace lends.
pub fn make_room_for<M: Memory>(
    memory: &M,
    config: &ModelConfig,
    ws: &mut Workspace<M>,
    capacity: usize,
) -> Result<()> {
    let len = CachePlace { start: 0, slots: 1, capacity }.len(config.heads(0));
    make_room(memory, ws, len, config.layers)
}

/// Buffers, and the prompts at work.
struct Session<'a, O: Ops> {
    ws: &'a mut Workspace<O>,
    pack: &'a mut O::Pack,
    caches: Caches<O>,
    request: &'a Request,
    prompts: &'a [Vec<u32>],
    data: PackData,
    /// The new token of each prompt that still runs.
    ids: Vec<u32>,
}

impl<O: Ops> Session<'_, O> {
    fn run(
        &mut self,
        ops: &O,
        model: &Model<O>,
        group: &[usize],
        outputs: &mut [Vec<u32>],
    ) -> Result<()> {
        // Places in the group of the prompts that still run, in the order of the pack's documents.
        let mut live: Vec<usize> = (0..group.len()).collect();
        let mut done = 0;
        while done < group.len() {
            self.data.clear();
            let first = done;
            while let Some(&i) = group.get(done)
                && self.data.tokens() + self.prompts[i].len() <= self.ws.tokens()
            {
                self.data.push(&self.prompts[i], |_| 0.0);
                self.data.slots.push(done as u32);
                done += 1;
            }
            self.step(ops, model, true, &group[first..done], first, outputs)?;
        }
        loop {
            self.data.clear();
            let mut next = Vec::with_capacity(live.len());
            for (&slot, &id) in live.iter().zip(&self.ids) {
                let i = group[slot];
                outputs[i].push(id);
                let full = outputs[i].len() >= self.request.max_new_tokens;
                if !full && !self.request.end_tokens.contains(&id) {
                    next.push(slot);
                    self.data.push(&[id], |_| 0.0);
                    if let Some(position) = self.data.positions.last_mut() {
                        *position = (self.prompts[i].len() + outputs[i].len() - 1) as u32;
                    }
                    self.data.slots.push(slot as u32);
                }
            }
            live = next;
            if live.is_empty() {
                return Ok(());
            }
            let prompts: Vec<usize> = live.iter().map(|slot| group[*slot]).collect();
            self.step(ops, model, false, &prompts, 0, outputs)?;
        }
    }

    /// Runs the loaded tokens and picks the token after the last one of each document, which are those of `prompts`; the
    /// ids go to `ids` from `first` on. They are all that a step brings to the host.
    fn step(
        &mut self,
        ops: &O,
        model: &Model<O>,
        prefill: bool,
        prompts: &[usize],
        first: usize,
        outputs: &[Vec<u32>],
    ) -> Result<()> {
        let n = self.data.tokens();
        let Self { ws, pack, caches, .. } = self;
        ops.load_pack(pack, &self.data);
        ops.single_tokens(!prefill);
        let attend = if prefill { Attend::Prefill(caches) } else { Attend::Decode(caches) };
        model.run(Pass { ops, pack, n, role: Role::Evaluated }, ws, attend);
        let last: Vec<u32> = self.data.starts.iter().skip(1).map(|end| end - 1).collect();
        let shape = HeadShape { n: last.len(), c: model.config.width, v: model.config.vocab };
        // The forward pass is done with its normed rows.
        ops.gather_rows(shape.c, &last, &ws.h, &mut ws.normed);
        let numbers;
        let draws = match self.request.choice {
            Choice::Greedy => None,
            Choice::Sample { sampling, seed } => {
                let stream = Stream::new(seed, "generate");
                let draw = |i: &usize| stream.uniform(*i as u64, outputs[*i].len() as u64);
                numbers = prompts.iter().map(draw).collect::<Vec<_>>();
                Some((sampling, &numbers[..]))
            }
        };
        ws.choose(ops, model, shape, draws, &mut self.ids[first..first + shape.n]);
        ops.single_tokens(false);
        ops.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lay_fills_rooms_in_order_and_says_what_does_not_fit() {
        assert_eq!(lay(&[10, 3, 8], 4, 9), [(0, 0), (0, 4), (2, 0), (2, 4)]);
        assert_eq!(lay(&[10, 3, 8], 4, 3), [(0, 0), (0, 4), (2, 0)]);
        assert!(lay(&[3], 4, 1).is_empty());
    }

    #[test]
    fn groups_hold_what_fits_and_at_least_one() {
        let cut = |most: usize| groups(&[7, 3, 5], |slots, i| slots <= most && i != 5);
        assert_eq!(cut(2), [vec![7, 3], vec![5]]);
        assert_eq!(cut(0), [vec![7], vec![3], vec![5]]);
    }
}
