//! Forward and backward of a Llama-family decoder over packed documents.
//!
//! The residual stream of every layer, its qkv rows, attention output and gate/up rows are kept for the
//! backward pass; normed rows and SwiGLU outputs are made again there, which costs no product. Linear maps go to the
//! backend together with what follows them, so that it may do both in one kernel.

use std::ops::Range;

use super::layout::LayerBlocks;
use super::params::{Model, View};
use crate::error::Result;
use crate::ops::{
    Direction, HeadGrads, HeadShape, Heads, Matched, Ops, Role, RowStats, Sampling, TokenWeight,
};

/// What the backward pass needs of one layer.
struct Saved<O: Ops> {
    rstd1: O::Stat,
    qk_raw: Option<O::Act>,
    qk_rstd: Option<O::Stat>,
    qkv: O::Act,
    lse: O::Stat,
    attn: O::Act,
    mid: O::Act,
    rstd2: O::Stat,
    gate_up: O::Act,
}

/// Scratch for the weights of one layer in state modes that do not store them as the compute reads them.
struct Scratch<O: Ops> {
    matrix: O::Act,
    bias: O::Act,
    gains: [O::Act; 2],
    embed: O::Act,
    head: O::Act,
    head_ref: O::Act,
}

/// Gradients flowing down; made only for training.
struct Flow<O: Ops> {
    dx: O::Act,
    dh: O::Act,
    dqkv: O::Act,
    dattn: O::Act,
}

/// All buffers of forward and backward for packs of up to a given number of tokens, allocated once.
pub struct Workspace<O: Ops> {
    tokens: usize,
    /// Residual stream: one more than layers when training, two to alternate between otherwise.
    x: Vec<O::Act>,
    saved: Vec<Saved<O>>,
    normed: O::Act,
    act: O::Act,
    rstd: O::Stat,
    /// Final hidden rows [N, C].
    pub h: O::Act,
    /// Final hidden rows of the teacher [N, C]; empty without one.
    pub h_ref: O::Act,
    /// Per-row results of the last head sweep.
    pub stats: RowStats<O::Stat>,
    scratch: Scratch<O>,
    flow: Option<Flow<O>>,
}

/// The loss rows of one head sweep.
pub enum HeadLoss<'a, O: Ops> {
    /// Weighted one-hot rows.
    OneHot(TokenWeight<'a, O::Stat>),
    /// Rows that reach all logits; where they compare, with the teacher's.
    Matched(Matched),
    /// The same, compared with those of a model that was run as a teacher.
    Against(Matched, &'a Model<O>),
}

impl<O: Ops> Workspace<O> {
    /// Allocates buffers for packs of up to `tokens` tokens of `model`, with those of the backward pass if
    /// `training`.
    pub fn new(ops: &O, model: &Model<O>, tokens: usize, training: bool) -> Result<Self> {
        let cfg = &model.config;
        let heads = cfg.heads(0);
        let layers = cfg.layers;
        let act = |width: usize| ops.act(tokens * width);
        let stat = |width: usize| ops.stat(tokens * width);
        let x = (0..if training { layers + 1 } else { 2 })
            .map(|_| act(cfg.width))
            .collect::<Result<_>>()?;
        let saved = (0..if training { layers } else { 1 })
            .map(|_| {
                let qk = |width| cfg.qk_norm.then(|| act(width)).transpose();
                Ok(Saved {
                    rstd1: stat(1)?,
                    qk_raw: qk(heads.qkv_width())?,
                    qk_rstd: cfg.qk_norm.then(|| stat(heads.h + heads.g)).transpose()?,
                    qkv: act(heads.qkv_width())?,
                    lse: stat(heads.h)?,
                    attn: act(heads.out_width())?,
                    mid: act(cfg.width)?,
                    rstd2: stat(1)?,
                    gate_up: act(2 * cfg.ffn)?,
                })
            })
            .collect::<Result<_>>()?;
        let flow = if training {
            Some(Flow {
                dx: act(cfg.width)?,
                dh: act(cfg.width)?,
                dqkv: act(heads.qkv_width())?,
                dattn: act(heads.out_width())?,
            })
        } else {
            None
        };
        let trained_head = model.layout.blocks[model.layout.head].trainable;
        ops.reserve(HeadShape { n: tokens, c: cfg.width, v: cfg.vocab }, training)?;
        Ok(Self {
            tokens,
            x,
            saved,
            normed: act(cfg.width)?,
            act: act(cfg.ffn)?,
            rstd: stat(1)?,
            h: act(cfg.width)?,
            h_ref: act(if training { cfg.width } else { 0 })?,
            stats: RowStats { nll: stat(1)?, value: stat(1)?, hit: stat(1)? },
            scratch: Scratch {
                matrix: model.layer_scratch(ops)?,
                bias: model.layer_scratch(ops)?,
                gains: [ops.act(cfg.head_width)?, ops.act(cfg.head_width)?],
                embed: model.block_scratch(ops, model.layout.embed)?,
                head: model.block_scratch(ops, model.layout.head)?,
                head_ref: if trained_head {
                    model.block_scratch(ops, model.layout.head)?
                } else {
                    ops.act(0)?
                },
            },
            flow,
        })
    }

    /// Picks a token after each of `rows`: drawn where `draws` says how and with what, else the most probable one.
    pub(super) fn choose(
        &mut self,
        ops: &O,
        model: &Model<O>,
        shape: HeadShape,
        rows: &O::Act,
        draws: Option<(Sampling, &[f64])>,
        ids: &mut [u32],
    ) {
        let w = model.show(ops, model.layout.head, Role::Evaluated, &mut self.scratch.head);
        match draws {
            Some((sampling, draws)) => ops.head_sample(shape, rows, w, sampling, draws, ids),
            None => ops.head_argmax(shape, rows, w, ids),
        }
    }

    /// Returns the longest pack it takes, tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Keys and values of every layer.
pub(super) type Caches<O> = Vec<<O as crate::ops::Compute>::Cache>;

/// How attention is done in a forward pass.
pub(super) enum Attend<'a, O: Ops> {
    /// Inside the pack.
    Pack,
    /// Inside the pack, and keys and values go to the cache.
    Prefill(&'a mut Caches<O>),
    /// One token a document against the cache.
    Decode(&'a mut Caches<O>),
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
        debug_assert!(n <= ws.tokens);
        let cfg = &self.config;
        let keep = ws.flow.is_some() && role == Role::Student;
        let table = self.show(ops, self.layout.embed, role, &mut ws.scratch.embed);
        ops.embed(pack, cfg.width, table, &mut ws.x[0]);
        for (l, blocks) in self.layout.layers.iter().enumerate() {
            let (slot, from, to) = if keep { (l, l, l + 1) } else { (0, l % 2, (l + 1) % 2) };
            self.attention_half(ops, pack, n, role, ws, (slot, from, l), blocks, &mut attend);
            self.mlp_half(ops, n, role, ws, (slot, to), blocks);
        }
        let last = if keep { cfg.layers } else { cfg.layers % 2 };
        let gain = self.show(ops, self.layout.norm, role, &mut ws.scratch.bias);
        let out = if role == Role::Teacher { &mut ws.h_ref } else { &mut ws.h };
        ops.rmsnorm(n, cfg.width, cfg.eps, &ws.x[last], gain, out, &mut ws.rstd);
    }

    #[allow(clippy::too_many_arguments)]
    fn attention_half(
        &self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        (slot, from, l): (usize, usize, usize),
        blocks: &LayerBlocks,
        attend: &mut Attend<'_, O>,
    ) {
        let cfg = &self.config;
        let heads = cfg.heads(l);
        let Workspace { x, saved, normed, scratch, .. } = ws;
        let s = &mut saved[slot];
        let gain = self.show(ops, blocks.norm1, role, &mut scratch.bias);
        ops.rmsnorm(n, cfg.width, cfg.eps, &x[from], gain, normed, &mut s.rstd1);
        let w = self.show(ops, blocks.qkv, role, &mut scratch.matrix);
        let bias = blocks.qkv_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        if let (Some(raw), Some(rstd), Some(gains)) =
            (&mut s.qk_raw, &mut s.qk_rstd, blocks.qk_norm)
        {
            ops.linear(n, (heads.qkv_width(), cfg.width), normed, w, bias, None, raw);
            let [q, k] = &mut scratch.gains;
            let gains = [self.show(ops, gains[0], role, q), self.show(ops, gains[1], role, k)];
            ops.qk_norm(n, heads, cfg.eps, gains, raw, &mut s.qkv, rstd);
            ops.rope(pack, heads, &self.rope, Direction::Forward, &mut s.qkv);
        } else {
            let shape = (n, cfg.width);
            ops.linear_rope(pack, shape, heads, &self.rope, normed, w, bias, &mut s.qkv);
        }
        match attend {
            Attend::Pack => ops.attention(pack, heads, &s.qkv, &mut s.attn, &mut s.lse),
            Attend::Prefill(caches) => {
                ops.cache_store(pack, heads, &s.qkv, &mut caches[l]);
                ops.attention(pack, heads, &s.qkv, &mut s.attn, &mut s.lse);
            }
            Attend::Decode(caches) => {
                ops.cache_store(pack, heads, &s.qkv, &mut caches[l]);
                ops.decode_attention(pack, heads, &s.qkv, &caches[l], &mut s.attn);
            }
        }
        let w = self.show(ops, blocks.out, role, &mut scratch.matrix);
        let bias = blocks.out_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = (cfg.width, heads.out_width());
        ops.linear(n, shape, &s.attn, w, bias, Some(&x[from]), &mut s.mid);
    }

    fn mlp_half(
        &self,
        ops: &O,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        (slot, to): (usize, usize),
        blocks: &LayerBlocks,
    ) {
        let cfg = &self.config;
        let Workspace { x, saved, normed, act, scratch, flow, .. } = ws;
        let s = &mut saved[slot];
        let gain = self.show(ops, blocks.norm2, role, &mut scratch.bias);
        ops.rmsnorm(n, cfg.width, cfg.eps, &s.mid, gain, normed, &mut s.rstd2);
        let w = self.show(ops, blocks.gate_up, role, &mut scratch.matrix);
        let bias = blocks.gate_up_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let (shape, keep) = ((cfg.ffn, cfg.width), flow.is_some() && role == Role::Student);
        ops.linear_swiglu(n, shape, normed, w, bias, keep, &mut s.gate_up, act);
        let w = self.show(ops, blocks.down, role, &mut scratch.matrix);
        let bias = blocks.down_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        ops.linear(n, (cfg.width, cfg.ffn), act, w, bias, Some(&s.mid), &mut x[to]);
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
        let Self { config: cfg, layout, rope, params, grads } = self;
        let Workspace { x, saved, normed, act, rstd, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, dqkv, dattn }) = flow else { return };
        let role = Role::Student;
        let (c, f) = (cfg.width, cfg.ffn);
        ops.zero(n * c, dx);
        let gain = ops.view(&params[layout.norm], role, &mut scratch.bias);
        let dgain = grads[layout.norm].as_mut();
        ops.rmsnorm_bwd(n, c, dh, &x[cfg.layers], gain, rstd, dx, dgain);
        for (l, blocks) in layout.layers.iter().enumerate().rev() {
            let s = &mut saved[l];
            let heads: Heads = cfg.heads(l);
            let w = ops.view(&params[blocks.down], role, &mut scratch.matrix);
            ops.linear_dgrad_swiglu(n, (c, f), dx, w, &mut s.gate_up, act);
            wgrad::<O>(ops, n, (c, f), dx, act, grads, (blocks.down, blocks.down_bias));
            let gain = ops.view(&params[blocks.norm2], role, &mut scratch.bias);
            ops.rmsnorm(n, c, cfg.eps, &s.mid, gain, normed, &mut s.rstd2);
            let into = (blocks.gate_up, blocks.gate_up_bias);
            wgrad::<O>(ops, n, (2 * f, c), &s.gate_up, normed, grads, into);
            let w = ops.view(&params[blocks.gate_up], role, &mut scratch.matrix);
            // dh is free from here on and carries the gradient at the normed rows.
            ops.linear_dgrad(n, (2 * f, c), &s.gate_up, w, dh);
            let gain = ops.view(&params[blocks.norm2], role, &mut scratch.bias);
            ops.rmsnorm_bwd(n, c, dh, &s.mid, gain, &s.rstd2, dx, grads[blocks.norm2].as_mut());

            let (qkv, hd) = (heads.qkv_width(), heads.out_width());
            wgrad::<O>(ops, n, (c, hd), dx, &s.attn, grads, (blocks.out, blocks.out_bias));
            let w = ops.view(&params[blocks.out], role, &mut scratch.matrix);
            ops.linear_dgrad(n, (c, hd), dx, w, dattn);
            ops.attention_bwd(pack, heads, &s.qkv, &s.attn, &s.lse, dattn, dqkv);
            ops.rope(pack, heads, rope, Direction::Backward, dqkv);
            if let (Some(raw), Some(rstd), Some([q, k])) = (&s.qk_raw, &s.qk_rstd, blocks.qk_norm) {
                let [sq, sk] = &mut scratch.gains;
                let gains = [ops.view(&params[q], role, sq), ops.view(&params[k], role, sk)];
                let (low, high) = grads.split_at_mut(k);
                let dgains = match (low[q].as_mut(), high[0].as_mut()) {
                    (Some(dq), Some(dk)) => Some([dq, dk]),
                    _ => None,
                };
                ops.qk_norm_bwd(n, heads, gains, raw, rstd, dqkv, dgains);
            }
            let gain = ops.view(&params[blocks.norm1], role, &mut scratch.bias);
            ops.rmsnorm(n, c, cfg.eps, &x[l], gain, normed, &mut s.rstd1);
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
        if let Some(dtable) = grads[layout.embed].as_mut() {
            ops.embed_bwd(pack, c, dx, dtable);
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
