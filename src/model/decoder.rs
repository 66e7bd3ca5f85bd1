//! Forward pass of a decoder over packed sequences, and the pass of its head; the backward pass is in backward.rs.
//!
//! [`super::saving`] decides how much of every layer is kept for the backward pass and how much is recomputed; normalized
//! hidden states and outputs of activations are always recomputed, which costs no GEMM. Linear maps go to the backend together
//! with the op that follows, so that it may do both in one kernel.

use std::ops::Range;

use super::config::Learned;
use super::layout::NormBlocks;
use super::norm::{RowNorm, of_heads};
use super::params::{Model, View, head_weight};
use super::sink::Sink;
use super::workspace::Workspace;
use crate::ops::{
    CachePlace, Direction, HeadGrads, HeadReference, HeadRows, HeadShape, LinearArgs, LinearShape,
    Matched, MseArgs, Ops, QkNormArgs, Role, Rotation, RowStats, TokenWeight, Toward,
};

/// The loss of a pass of the head.
pub enum HeadLoss<'a, O: Ops> {
    /// A target-token loss with weights.
    OneHot(TokenWeight<'a, O::Stat>),
    /// A loss over all logits; where it compares, with those of the teacher.
    Matched(Matched),
    /// The same, compared with those of a model that was run as the teacher.
    Against(Matched, &'a Model<O>),
}

/// A pass of the head over rows of a packed batch.
pub struct HeadPass<'a, O: Ops> {
    /// The packed batch of the last forward pass.
    pub pack: &'a O::Pack,
    /// Its rows.
    pub rows: Range<usize>,
    /// The weights of that forward pass.
    pub role: Role,
    /// The loss of these rows.
    pub loss: HeadLoss<'a, O>,
    /// Destination of the results; `None` for [`Workspace::stats`].
    pub stats: Option<&'a mut RowStats<O::Stat>>,
}

/// Keys and values of every layer, in rooms that several of them may share.
pub(super) struct Caches<O: Ops> {
    pub(super) rooms: Vec<O::Act>,
    /// The room of each layer, and where in it.
    pub(super) places: Vec<(usize, CachePlace)>,
}

/// Keys and values of attention in a forward pass.
pub(super) enum Attend<'a, O: Ops> {
    /// Inside the pack.
    Pack,
    /// Inside the pack, and keys and values go to the cache.
    Prefill(&'a mut Caches<O>),
    /// One token a document against the cache.
    Decode(&'a mut Caches<O>),
}

/// A forward pass of a packed batch.
pub(super) struct Pass<'a, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) pack: &'a O::Pack,
    /// Its tokens.
    pub(super) n: usize,
    pub(super) role: Role,
}

impl<O: Ops> Clone for Pass<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: Ops> Copy for Pass<'_, O> {}

/// A layer in a pass, and the buffers it works on.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// Its number.
    pub(super) l: usize,
    /// Its number too where its rows are kept for the backward pass.
    pub(super) kept: Option<usize>,
    /// Index of the buffer of the residual stream that it reads.
    from: usize,
    /// Buffer that it writes.
    to: To,
}

/// Destination of the hidden states after a layer.
#[derive(Clone, Copy)]
enum To {
    /// A buffer of the residual stream, by its index.
    Stream(usize),
    /// [`Workspace::h`], or [`Workspace::h_ref`] of the teacher.
    Final(Role),
}

impl At {
    pub(super) fn new(l: usize, keep: bool) -> Self {
        if keep {
            Self { l, kept: Some(l), from: l, to: To::Stream(l + 1) }
        } else {
            Self { l, kept: None, from: l % 2, to: To::Stream((l + 1) % 2) }
        }
    }
}

impl<O: Ops> Model<O> {
    fn show<'a>(&'a self, ops: &O, b: usize, role: Role, scratch: &'a mut O::Act) -> View<'a, O> {
        ops.view(&self.params[b], role, scratch)
    }

    fn row_norm<'a>(&'a self, ops: &'a O, n: usize, blocks: NormBlocks) -> RowNorm<'a, O> {
        RowNorm { ops, n, config: &self.config, params: &self.params, blocks }
    }

    /// Runs the pack through the model; the final hidden rows land in `ws.h`, or in `ws.h_ref` for the teacher.
    ///
    /// A training workspace keeps what the backward pass needs when the role is the student.
    pub fn forward(&self, ops: &O, pack: &O::Pack, n: usize, role: Role, ws: &mut Workspace<O>) {
        self.run(Pass { ops, pack, n, role }, ws, Attend::Pack);
    }

    pub(super) fn run(&self, pass: Pass<'_, O>, ws: &mut Workspace<O>, mut attend: Attend<'_, O>) {
        let Pass { ops, n, role, .. } = pass;
        let cfg = &self.config;
        let keep = ws.trains() && role == Role::Student;
        self.embed(pass, ws);
        for l in 0..cfg.layers {
            self.layer(pass, ws, At::new(l, keep), &mut attend);
        }
        let last = if keep { cfg.layers } else { cfg.layers % 2 };
        let out = if role == Role::Teacher { &mut ws.h_ref } else { &mut ws.h };
        let (x, gains) = (&ws.x[last], &mut ws.scratch.gains);
        let norm = self.row_norm(ops, n, self.layout.norm);
        norm.forward(role, x, None, out, &mut ws.rstd, gains);
    }

    /// Runs the pack through the first `depth` layers, one at least; the rows behind them stay in the residual stream where
    /// they are kept for the backward pass, else they land in `ws.h`, or in `ws.h_ref` for the teacher.
    pub fn forward_to(
        &self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        role: Role,
        ws: &mut Workspace<O>,
        depth: usize,
    ) {
        let keep = ws.trains() && role == Role::Student;
        let pass = Pass { ops, pack, n, role };
        self.embed(pass, ws);
        for l in 0..depth {
            let mut at = At::new(l, keep);
            if l + 1 == depth && !keep {
                at.to = To::Final(role);
            }
            self.layer(pass, ws, at, &mut Attend::Pack);
        }
    }

    /// Measures how far the rows that [`Model::forward_to`] left of the student are from `steering`, or from the teacher's
    /// without it; with `grads` the gradient there is kept for [`Model::backward_from`]. Values land in `ws.stats`.
    pub fn pull(
        &self,
        ops: &O,
        (pack, n): (&O::Pack, usize),
        ws: &mut Workspace<O>,
        steering: Option<&O::Stat>,
        depth: usize,
        grads: bool,
    ) {
        let kept = ws.trains() && grads;
        let Workspace { x, h, h_ref, stats, flow, .. } = ws;
        let rows = if kept { &x[depth] } else { &*h };
        let toward = steering.map_or(Toward::Rows(&*h_ref), Toward::Vector);
        let dx = flow.as_mut().filter(|_| grads).map(|flow| &mut flow.dx);
        ops.mse(MseArgs { n, c: self.config.width, pack, x: rows }, toward, &mut stats.value, dx);
    }

    /// Starts the residual stream with the embedding of a packed batch.
    fn embed(&self, pass: Pass<'_, O>, ws: &mut Workspace<O>) {
        let Pass { ops, pack, n, role } = pass;
        debug_assert!(n <= ws.tokens());
        let cfg = &self.config;
        let table = self.show(ops, self.layout.embed, role, &mut ws.scratch.embed);
        ops.embed(pack, cfg.width, cfg.embed_scale, table, &mut ws.x[0]);
        if let (Some(Learned { rows, offset }), Some(b)) = (cfg.learned, self.layout.positions) {
            let table = self.show(ops, b, role, &mut ws.scratch.positions);
            ops.positions(pack, cfg.width, (rows, offset), table, &mut ws.x[0]);
        }
    }

    fn layer(&self, pass: Pass<'_, O>, ws: &mut Workspace<O>, at: At, attend: &mut Attend<'_, O>) {
        self.attention_half(pass, ws, at, attend);
        // Gate and up that are recomputed need not be stored now.
        self.gate_up(pass, ws, at, at.kept.is_some() && !ws.inner.again(at.l));
        self.down(pass, ws, at);
    }

    /// Computes the qkv rows of a layer, and leaves its normalized input in `ws.normed`.
    pub(super) fn qkv(
        &self,
        pass: Pass<'_, O>,
        ws: &mut Workspace<O>,
        At { l, kept, from, .. }: At,
    ) {
        let Pass { ops, pack, n, role } = pass;
        let (cfg, blocks, heads) = (&self.config, &self.layout.layers[l], self.config.heads(l));
        let Workspace { x, qkv, middle, normed, scratch, .. } = ws;
        let (qkv, middle) = (qkv.at(kept), middle.at(kept));
        let gains = &mut scratch.gains;
        let norm = self.row_norm(ops, n, blocks.norm1);
        norm.forward(role, &x[from], None, normed, &mut middle.rstd1, gains);
        let w = self.show(ops, blocks.qkv, role, &mut scratch.matrix);
        let bias = blocks.qkv_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = LinearShape { n, o: heads.qkv_width(), i: cfg.width };
        let args = LinearArgs { shape, x: &*normed, w, bias };
        if let (Some(raw), Some(rstd), Some(gains)) = (&mut qkv.raw, &mut qkv.rstd, blocks.qk_norm)
        {
            ops.linear(args, None, raw);
            let [q, k] = &mut scratch.gains;
            let gains = [self.show(ops, gains[0], role, q), self.show(ops, gains[1], role, k)];
            let args = QkNormArgs { n, heads, norm: of_heads(cfg), raw: &*raw, gains };
            ops.qk_norm(args, &mut qkv.rows, rstd);
            ops.rope(pack, heads, self.rope(l), Direction::Forward, &mut qkv.rows);
        } else {
            ops.linear_rope(args, Rotation { pack, heads, table: self.rope(l) }, &mut qkv.rows);
        }
    }

    pub(super) fn attention_half(
        &self,
        pass: Pass<'_, O>,
        ws: &mut Workspace<O>,
        at: At,
        attend: &mut Attend<'_, O>,
    ) {
        self.qkv(pass, ws, at);
        let Pass { ops, pack, n, role } = pass;
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
        let shape = LinearShape { n, o: cfg.width, i: heads.out_width() };
        let args = LinearArgs { shape, x: &s.attn, w, bias };
        let residual = Some(&x[at.from]);
        match (blocks.post, &mut s.made) {
            (Some([post, _]), Some(made)) => {
                ops.linear(args, None, &mut made.rows);
                let (norm, gains) = (self.row_norm(ops, n, post), &mut scratch.gains);
                norm.forward(role, &made.rows, residual, &mut s.rows, &mut made.rstd, gains);
            }
            _ => ops.linear(args, residual, &mut s.rows),
        }
    }

    /// Computes the activations of the MLP of a layer in `ws.act`, gate and up where they are to be kept, and leaves its
    /// normalized input in `ws.normed`.
    pub(super) fn gate_up(&self, pass: Pass<'_, O>, ws: &mut Workspace<O>, at: At, keep: bool) {
        let Pass { ops, n, role, .. } = pass;
        let (cfg, blocks) = (&self.config, &self.layout.layers[at.l]);
        let Workspace { x, middle, inner, normed, act, scratch, .. } = ws;
        let s = middle.at(at.kept);
        let rows = if cfg.residual.parallel() { &x[at.from] } else { &s.rows };
        let gains = &mut scratch.gains;
        let norm = self.row_norm(ops, n, blocks.norm2);
        norm.forward(role, rows, None, normed, &mut s.rstd2, gains);
        let w = self.show(ops, blocks.gate_up, role, &mut scratch.matrix);
        let bias = blocks.gate_up_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = LinearShape { n, o: cfg.mlp.width(cfg.ffn), i: cfg.width };
        let args = LinearArgs { shape, x: &*normed, w, bias };
        ops.linear_mlp(args, cfg.mlp, keep, &mut inner.at(at.kept).gate_up, act);
    }

    /// Applies the down projection of a layer to the activations in `ws.act`.
    pub(super) fn down(&self, pass: Pass<'_, O>, ws: &mut Workspace<O>, at: At) {
        let Pass { ops, n, role, .. } = pass;
        let (cfg, blocks) = (&self.config, &self.layout.layers[at.l]);
        let Workspace { x, h, h_ref, middle, inner, act, scratch, .. } = ws;
        let to = match at.to {
            To::Stream(i) => &mut x[i],
            To::Final(Role::Teacher) => h_ref,
            To::Final(_) => h,
        };
        let w = self.show(ops, blocks.down, role, &mut scratch.matrix);
        let bias = blocks.down_bias.map(|b| self.show(ops, b, role, &mut scratch.bias));
        let shape = LinearShape { n, o: cfg.width, i: cfg.ffn };
        let args = LinearArgs { shape, x: &*act, w, bias };
        let residual = Some(&middle.at(at.kept).rows);
        match (blocks.post, &mut inner.at(at.kept).made) {
            (Some([_, post]), Some(made)) => {
                ops.linear(args, None, &mut made.rows);
                let (norm, gains) = (self.row_norm(ops, n, post), &mut scratch.gains);
                norm.forward(role, &made.rows, residual, to, &mut made.rstd, gains);
            }
            _ => ops.linear(args, residual, to),
        }
    }

    /// Runs the head over rows of the last forward pass; their results land in `ws.stats`, or where the pass says.
    ///
    /// With a `sink` the gradient at these hidden states is kept for [`Model::backward`], and that of a trained head added
    /// to it; the forward pass must then have been the student's on a training workspace. Hidden states of the teacher's
    /// last forward pass are compared from the first one on.
    pub fn head(
        &mut self,
        ops: &O,
        ws: &mut Workspace<O>,
        pass: HeadPass<'_, O>,
        sink: Option<&mut Sink<'_, O>>,
    ) {
        let HeadPass { pack, rows, role, loss, stats } = pass;
        let stats = stats.unwrap_or(&mut ws.stats);
        let shape = HeadShape { n: rows.len(), c: self.config.width, v: self.config.vocab };
        let first = rows.start;
        let Self { config, layout, params, grads: own, .. } = self;
        let trained = layout.blocks[layout.head].trainable;
        let cap = config.logit_cap;
        let w = head_weight(ops, (layout, params, cap), role, &mut ws.scratch.head);
        let grads = match (&mut ws.flow, sink) {
            (Some(flow), Some(sink)) => {
                // The bias stands behind the matrix, also where that is the embedding.
                let (low, high) = sink.of(own).split_at_mut(layout.head + 1);
                let bias = layout.head_bias.map(|bias| bias - layout.head - 1);
                let db = bias.and_then(|bias| high[bias].as_mut());
                Some(HeadGrads { dh: &mut flow.dh, dw: low[layout.head].as_mut(), db })
            }
            _ => None,
        };
        match loss {
            HeadLoss::OneHot(weight) => {
                ops.head_onehot(HeadRows { shape, first, pack, h: &ws.h, w }, weight, stats, grads);
            }
            HeadLoss::Matched(target) | HeadLoss::Against(target, _) => {
                let w_ref = match loss {
                    HeadLoss::Against(_, other) => {
                        let other = (&other.layout, &other.params[..], cap);
                        Some(head_weight(ops, other, Role::Teacher, &mut ws.scratch.head_ref))
                    }
                    _ => (trained && target.compares()).then(|| {
                        let scratch = &mut ws.scratch.head_ref;
                        head_weight(ops, (layout, params, cap), Role::Teacher, scratch)
                    }),
                };
                let (h, h_ref) = (&ws.h, &ws.h_ref);
                ops.head_matched(
                    HeadRows { shape, first, pack, h, w },
                    HeadReference { h: h_ref, w: w_ref },
                    target,
                    stats,
                    grads,
                );
            }
        }
    }
}
