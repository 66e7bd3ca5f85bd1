//! Forward and backward of a Llama-family decoder over packed documents.
//!
//! What is kept of every layer for the backward pass, and what is made again there, says [`super::saving`]; normed rows
//! and SwiGLU outputs always are made again, which costs no product. Linear maps go to the backend together with what
//! follows them, so that it may do both in one kernel.

use std::ops::Range;

use super::layout::LayerBlocks;
use super::params::{Model, View};
use super::workspace::{Flow, Workspace};
use crate::ops::{CachePlace, Direction, HeadGrads, HeadShape, Matched, Ops, Role, TokenWeight};

/// The loss rows of one head sweep.
pub enum HeadLoss<'a, O: Ops> {
    /// Weighted one-hot rows.
    OneHot(TokenWeight<'a, O::Stat>),
    /// Rows that reach all logits; where they compare, with the teacher's.
    Matched(Matched),
    /// The same, compared with those of a model that was run as a teacher.
    Against(Matched, &'a Model<O>),
}

/// Keys and values of every layer, in rooms that several of them may share.
pub(super) struct Caches<O: Ops> {
    pub(super) rooms: Vec<O::Act>,
    /// The room of each layer, and where in it.
    pub(super) places: Vec<(usize, CachePlace)>,
}

/// How attention is done in a forward pass.
pub(super) enum Attend<'a, O: Ops> {
    /// Inside the pack.
    Pack,
    /// Inside the pack, and keys and values go to the cache.
    Prefill(&'a mut Caches<O>),
    /// One token a document against the cache.
    Decode(&'a mut Caches<O>),
}

/// A layer in a pass, and the buffers it works on.
#[derive(Clone, Copy)]
struct At {
    /// Its number.
    l: usize,
    /// Its number too where its rows are kept for the backward pass.
    kept: Option<usize>,
    /// Where in the residual stream it reads,
    from: usize,
    /// and where it writes.
    to: usize,
}

impl At {
    fn new(l: usize, keep: bool) -> Self {
        if keep {
            Self { l, kept: Some(l), from: l, to: l + 1 }
        } else {
            Self { l, kept: None, from: l % 2, to: (l + 1) % 2 }
        }
    }
}

impl<O: Ops> Model<O> {
    fn show<'a>(&'a self, ops: &O, b: usize, role: Role, scratch: &'a mut O::Act) -> View<'a, O> {
        ops.view(&self.params[b], role, scratch)
    }

    /// Runs the pack through the model; the final hidden rows land in `ws.h`, or in `ws.h_ref` for the teacher.
    ///
    /// A training workspace keeps what the backward pass needs when the role is the student.
    pub fn forward(&self, ops: &O, pack: &O::Pack, n: usize, role: Role, ws: &mut Workspace<O>) {
        self.run(ops, pack, n, role, ws, Attend::Pack);
    }

    pub(super) fn run(
        &self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        mut attend: Attend<'_, O>,
    ) {
        debug_assert!(n <= ws.tokens());
        let cfg = &self.config;
        let keep = ws.trains() && role == Role::Student;
        let table = self.show(ops, self.layout.embed, role, &mut ws.scratch.embed);
        ops.embed(pack, cfg.width, table, &mut ws.x[0]);
        for l in 0..cfg.layers {
            let at = At::new(l, keep);
            self.attention_half(ops, pack, n, role, ws, at, &mut attend);
            // Gate and up that are made again need not be stored now.
            self.gate_up(ops, n, role, ws, at, keep && !ws.gate_up.again(l));
            self.down(ops, n, role, ws, at);
        }
        let last = if keep { cfg.layers } else { cfg.layers % 2 };
        let gain = self.show(ops, self.layout.norm, role, &mut ws.scratch.bias);
        let out = if role == Role::Teacher { &mut ws.h_ref } else { &mut ws.h };
        ops.rmsnorm(n, cfg.width, cfg.eps, &ws.x[last], gain, out, &mut ws.rstd);
    }

    /// Makes the qkv rows of a layer, and leaves its normed input in `ws.normed`.
    fn qkv(
        &self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        At { l, kept, from, .. }: At,
    ) {
        let (cfg, blocks, heads) = (&self.config, &self.layout.layers[l], self.config.heads(l));
        let Workspace { x, qkv, middle, normed, scratch, .. } = ws;
        let (qkv, middle) = (qkv.at(kept), middle.at(kept));
        let gain = self.show(ops, blocks.norm1, role, &mut scratch.bias);
        ops.rmsnorm(n, cfg.width, cfg.eps, &x[from], gain, normed, &mut middle.rstd1);
        let w = self.show(ops, blocks.qkv, role, &mut scratch.matrix);
        let bias = blocks.qkv_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        if let (Some(raw), Some(rstd), Some(gains)) = (&mut qkv.raw, &mut qkv.rstd, blocks.qk_norm)
        {
            ops.linear(n, (heads.qkv_width(), cfg.width), normed, w, bias, None, raw);
            let [q, k] = &mut scratch.gains;
            let gains = [self.show(ops, gains[0], role, q), self.show(ops, gains[1], role, k)];
            ops.qk_norm(n, heads, cfg.eps, gains, raw, &mut qkv.rows, rstd);
            ops.rope(pack, heads, &self.rope, Direction::Forward, &mut qkv.rows);
        } else {
            let shape = (n, cfg.width);
            ops.linear_rope(pack, shape, heads, &self.rope, normed, w, bias, &mut qkv.rows);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn attention_half(
        &self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        at: At,
        attend: &mut Attend<'_, O>,
    ) {
        self.qkv(ops, pack, n, role, ws, at);
        let (cfg, blocks) = (&self.config, &self.layout.layers[at.l]);
        let heads = cfg.heads(at.l);
        let Workspace { x, qkv, middle, scratch, .. } = ws;
        let (qkv, s) = (&qkv.at(at.kept).rows, middle.at(at.kept));
        match attend {
            Attend::Pack => ops.attention(pack, heads, qkv, &mut s.attn, &mut s.lse),
            Attend::Prefill(Caches { rooms, places }) => {
                let (room, place) = places[at.l];
                ops.cache_store(pack, heads, qkv, &mut rooms[room], place);
                ops.attention(pack, heads, qkv, &mut s.attn, &mut s.lse);
            }
            Attend::Decode(Caches { rooms, places }) => {
                let (room, place) = places[at.l];
                ops.cache_store(pack, heads, qkv, &mut rooms[room], place);
                ops.decode_attention(pack, heads, qkv, &rooms[room], place, &mut s.attn);
            }
        }
        let w = self.show(ops, blocks.out, role, &mut scratch.matrix);
        let bias = blocks.out_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = (cfg.width, heads.out_width());
        ops.linear(n, shape, &s.attn, w, bias, Some(&x[at.from]), &mut s.rows);
    }

    /// Makes SwiGLU's rows of a layer in `ws.act`, its gate and up where they are to be kept, and leaves the normed
    /// input of its MLP in `ws.normed`.
    fn gate_up(&self, ops: &O, n: usize, role: Role, ws: &mut Workspace<O>, at: At, keep: bool) {
        let (cfg, blocks) = (&self.config, &self.layout.layers[at.l]);
        let Workspace { middle, gate_up, normed, act, scratch, .. } = ws;
        let s = middle.at(at.kept);
        let gain = self.show(ops, blocks.norm2, role, &mut scratch.bias);
        ops.rmsnorm(n, cfg.width, cfg.eps, &s.rows, gain, normed, &mut s.rstd2);
        let w = self.show(ops, blocks.gate_up, role, &mut scratch.matrix);
        let bias = blocks.gate_up_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = (cfg.ffn, cfg.width);
        ops.linear_swiglu(n, shape, normed, w, bias, keep, gate_up.at(at.kept), act);
    }

    fn down(&self, ops: &O, n: usize, role: Role, ws: &mut Workspace<O>, at: At) {
        let (cfg, blocks) = (&self.config, &self.layout.layers[at.l]);
        let Workspace { x, middle, act, scratch, .. } = ws;
        let w = self.show(ops, blocks.down, role, &mut scratch.matrix);
        let bias = blocks.down_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let residual = Some(&middle.at(at.kept).rows);
        ops.linear(n, (cfg.width, cfg.ffn), act, w, bias, residual, &mut x[at.to]);
    }

    /// Sweeps the head over rows `rows` of the last forward pass; their results land in `ws.stats`.
    ///
    /// With `grads` the gradient at these hidden rows is kept for [`Model::backward`], and that of a trained head added;
    /// the forward pass must then have been the student's on a training workspace. Rows of the teacher's last forward
    /// pass are compared from its first one on.
    #[allow(clippy::too_many_arguments)]
    pub fn head(
        &mut self,
        ops: &O,
        pack: &O::Pack,
        rows: Range<usize>,
        role: Role,
        ws: &mut Workspace<O>,
        loss: HeadLoss<'_, O>,
        grads: bool,
    ) {
        let shape = HeadShape { n: rows.len(), c: self.config.width, v: self.config.vocab };
        let first = rows.start;
        let head = self.layout.head;
        let trained = self.layout.blocks[head].trainable;
        let w = ops.view(&self.params[head], role, &mut ws.scratch.head);
        let grads = match &mut ws.flow {
            Some(flow) if grads => {
                Some(HeadGrads { dh: &mut flow.dh, dw: self.grads[head].as_mut() })
            }
            _ => None,
        };
        match loss {
            HeadLoss::OneHot(weight) => {
                ops.head_onehot(shape, first, pack, &ws.h, w, weight, &mut ws.stats, grads);
            }
            HeadLoss::Matched(target) | HeadLoss::Against(target, _) => {
                let w_ref = match loss {
                    HeadLoss::Against(_, other) => {
                        let w = &other.params[other.layout.head];
                        Some(ops.view(w, Role::Teacher, &mut ws.scratch.head_ref))
                    }
                    _ => (trained && target.compares()).then(|| {
                        ops.view(&self.params[head], Role::Teacher, &mut ws.scratch.head_ref)
                    }),
                };
                let (h, h_ref, stats) = (&ws.h, &ws.h_ref, &mut ws.stats);
                ops.head_matched(shape, first, pack, h, h_ref, w, w_ref, target, stats, grads);
            }
        }
    }

    /// Sends the gradients that [`Model::head`] left at all `n` rows down through the model into [`Model::grads`].
    pub fn backward(&mut self, ops: &O, pack: &O::Pack, n: usize, ws: &mut Workspace<O>) {
        let Workspace { x, rstd, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, .. }) = flow else { return };
        let Self { config: cfg, layout, params, grads, .. } = self;
        let c = cfg.width;
        ops.zero(n * c, dx);
        let gain = ops.view(&params[layout.norm], Role::Student, &mut scratch.bias);
        let dgain = grads[layout.norm].as_mut();
        ops.rmsnorm_bwd(n, c, dh, &x[cfg.layers], gain, rstd, dx, dgain);
        for l in (0..self.config.layers).rev() {
            if ws.middle.again(l) {
                let attend = &mut Attend::Pack;
                self.attention_half(ops, pack, n, Role::Student, ws, At::new(l, true), attend);
            }
            self.mlp_backward(ops, n, ws, l);
            self.attention_backward(ops, pack, n, ws, l);
        }
        let Some(Flow { dx, .. }) = &ws.flow else { return };
        if let Some(dtable) = self.grads[self.layout.embed].as_mut() {
            ops.embed_bwd(pack, c, dx, dtable);
        }
    }

    fn mlp_backward(&mut self, ops: &O, n: usize, ws: &mut Workspace<O>, l: usize) {
        let (role, at) = (Role::Student, At::new(l, true));
        let again = ws.gate_up.again(l);
        if again {
            self.gate_up(ops, n, role, ws, at, true);
        }
        let Self { config: cfg, layout, params, grads, .. } = self;
        let blocks: &LayerBlocks = &layout.layers[l];
        let Workspace { middle, gate_up, normed, act, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, .. }) = flow else { return };
        let (s, gate_up) = (middle.at(at.kept), gate_up.at(at.kept));
        let (c, f) = (cfg.width, cfg.ffn);
        let w = ops.view(&params[blocks.down], role, &mut scratch.matrix);
        ops.linear_dgrad_swiglu(n, (c, f), dx, w, gate_up, act);
        wgrad::<O>(ops, n, (c, f), dx, act, grads, (blocks.down, blocks.down_bias));
        if !again {
            let gain = ops.view(&params[blocks.norm2], role, &mut scratch.bias);
            ops.rmsnorm(n, c, cfg.eps, &s.rows, gain, normed, &mut s.rstd2);
        }
        let into = (blocks.gate_up, blocks.gate_up_bias);
        wgrad::<O>(ops, n, (2 * f, c), gate_up, normed, grads, into);
        let w = ops.view(&params[blocks.gate_up], role, &mut scratch.matrix);
        // dh is free from here on and carries the gradient at the normed rows.
        ops.linear_dgrad(n, (2 * f, c), gate_up, w, dh);
        let gain = ops.view(&params[blocks.norm2], role, &mut scratch.bias);
        ops.rmsnorm_bwd(n, c, dh, &s.rows, gain, &s.rstd2, dx, grads[blocks.norm2].as_mut());
    }

    fn attention_backward(
        &mut self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        ws: &mut Workspace<O>,
        l: usize,
    ) {
        let (role, at) = (Role::Student, At::new(l, true));
        // Where the whole layer was made again, its qkv rows are there.
        let again = ws.qkv.again(l) && !ws.middle.again(l);
        if again {
            self.qkv(ops, pack, n, role, ws, at);
        }
        let Self { config: cfg, layout, rope, params, grads } = self;
        let blocks: &LayerBlocks = &layout.layers[l];
        let Workspace { x, qkv: rooms, middle, normed, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, dqkv, dattn }) = flow else { return };
        let (rows, s) = (rooms.at(at.kept), middle.at(at.kept));
        let heads = cfg.heads(l);
        let (c, qkv, hd) = (cfg.width, heads.qkv_width(), heads.out_width());
        wgrad::<O>(ops, n, (c, hd), dx, &s.attn, grads, (blocks.out, blocks.out_bias));
        let w = ops.view(&params[blocks.out], role, &mut scratch.matrix);
        ops.linear_dgrad(n, (c, hd), dx, w, dattn);
        ops.attention_bwd(pack, heads, &rows.rows, &s.attn, &s.lse, dattn, dqkv);
        ops.rope(pack, heads, rope, Direction::Backward, dqkv);
        if let (Some(raw), Some(rstd), Some([q, k])) = (&rows.raw, &rows.rstd, blocks.qk_norm) {
            let [sq, sk] = &mut scratch.gains;
            let gains = [ops.view(&params[q], role, sq), ops.view(&params[k], role, sk)];
            let (low, high) = grads.split_at_mut(k);
            let dgains = match (low[q].as_mut(), high[0].as_mut()) {
                (Some(dq), Some(dk)) => Some([dq, dk]),
                _ => None,
            };
            ops.qk_norm_bwd(n, heads, gains, raw, rstd, dqkv, dgains);
        }
        if !again {
            let gain = ops.view(&params[blocks.norm1], role, &mut scratch.bias);
            ops.rmsnorm(n, c, cfg.eps, &x[l], gain, normed, &mut s.rstd1);
        }
        let into = (blocks.qkv, blocks.qkv_bias);
        wgrad::<O>(ops, n, (qkv, c), dqkv, normed, grads, into);
        // Below the first layer only a trained embedding (or norm) asks for a gradient.
        if l > 0 || grads[layout.embed].is_some() || grads[blocks.norm1].is_some() {
            let w = ops.view(&params[blocks.qkv], role, &mut scratch.matrix);
            ops.linear_dgrad(n, (qkv, c), dqkv, w, dh);
            let gain = ops.view(&params[blocks.norm1], role, &mut scratch.bias);
            ops.rmsnorm_bwd(n, c, dh, &x[l], gain, &s.rstd1, dx, grads[blocks.norm1].as_mut());
        }
    }
}

/// Adds the weight gradient of a linear map, and that of its bias, where they train.
fn wgrad<O: Ops>(
    ops: &O,
    n: usize,
    shape: (usize, usize),
    dy: &O::Act,
    x: &O::Act,
    grads: &mut [Option<O::Grad>],
    (matrix, bias): (usize, Option<usize>),
) {
    if let Some(dw) = grads[matrix].as_mut() {
        ops.linear_wgrad(n, shape, dy, x, dw);
    }
    if let Some(db) = bias.and_then(|bias| grads[bias].as_mut()) {
        ops.bias_grad(n, shape.0, dy, db);
    }
}
