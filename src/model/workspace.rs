//! The buffers of forward and backward.

use super::params::{Model, head_weight};
use super::saving::{Part, Saving, dattn};
use crate::error::Result;
use crate::ops::{HeadShape, Memory, Ops, Role, RowStats, Sampling};

/// The qkv rows of a layer.
pub(super) struct Qkv<M: Memory> {
    /// From before the head norms, where there are some.
    pub(super) raw: Option<M::Act>,
    /// The statistics of these norms.
    pub(super) rstd: Option<M::Stat>,
    pub(super) rows: M::Act,
}

/// Activations of a layer between its qkv rows and its MLP.
pub(super) struct Middle<M: Memory> {
    pub(super) rstd1: M::Stat,
    pub(super) lse: M::Stat,
    pub(super) attn: M::Act,
    /// The residual stream after attention.
    pub(super) rows: M::Act,
    pub(super) rstd2: M::Stat,
    /// The output of attention before its own norm.
    pub(super) made: Option<Made<M>>,
}

/// Hidden states before the norm through which they join the residual stream, and its statistics.
pub(super) struct Made<M: Memory> {
    pub(super) rows: M::Act,
    pub(super) rstd: M::Stat,
}

/// Activations of an MLP.
pub(super) struct Inner<M: Memory> {
    /// Gate and up, or the input of the activation.
    pub(super) gate_up: M::Act,
    /// The output of the MLP before its own norm.
    pub(super) made: Option<Made<M>>,
}

/// Rooms for one part of every layer, of which layers may share one.
pub(super) struct Rooms<T> {
    rooms: Vec<T>,
    /// The room of each layer.
    of: Vec<usize>,
    /// For each layer, true if the backward pass recomputes this part.
    again: Vec<bool>,
}

impl<T> Rooms<T> {
    /// Makes the rooms of `saving`, or one for all layers without it.
    fn new(
        saving: Option<Saving>,
        layers: usize,
        part: Part,
        make: impl FnMut() -> Result<T>,
    ) -> Result<Self> {
        let of = saving.map_or(vec![0; layers], |saving| saving.rooms(layers, part));
        let again = (0..layers).map(|l| saving.is_some_and(|saving| saving.again(layers, l, part)));
        let count = of.iter().max().map_or(1, |last| last + 1);
        let again = again.collect();
        let rooms = std::iter::repeat_with(make).take(count).collect::<Result<_>>()?;
        Ok(Self { rooms, of, again })
    }

    /// Lends the room of a layer whose rows are kept, or that of passes which keep none.
    pub(super) fn at(&mut self, kept: Option<usize>) -> &mut T {
        &mut self.rooms[kept.map_or(0, |l| self.of[l])]
    }

    /// Tells whether the backward pass recomputes this part of layer `l`.
    pub(super) fn again(&self, l: usize) -> bool {
        self.again[l]
    }

    /// Returns the rooms that passes which keep nothing leave alone.
    fn idle(&mut self) -> &mut [T] {
        self.rooms.get_mut(1..).unwrap_or_default()
    }
}

/// Scratch for the weights of one layer in state modes that do not store them as the compute reads them.
pub(super) struct Scratch<M: Memory> {
    pub(super) matrix: M::Act,
    pub(super) bias: M::Act,
    /// A gain and a bias of a norm, or the gains of query and key heads.
    pub(super) gains: [M::Act; 2],
    pub(super) embed: M::Act,
    pub(super) positions: M::Act,
    /// The matrix and the bias of a head, and those of the one it is compared with.
    pub(super) head: [M::Act; 2],
    pub(super) head_ref: [M::Act; 2],
}

/// Gradients flowing down; made only for training.
pub(super) struct Flow<M: Memory> {
    pub(super) dx: M::Act,
    pub(super) dh: M::Act,
    pub(super) dqkv: M::Act,
    pub(super) dattn: M::Act,
}

/// All buffers of forward and backward for packs of up to a given number of tokens, allocated once.
pub struct Workspace<M: Memory> {
    tokens: usize,
    saving: Option<Saving>,
    /// Residual stream: one more than layers when training, two to alternate between otherwise.
    pub(super) x: Vec<M::Act>,
    pub(super) qkv: Rooms<Qkv<M>>,
    pub(super) middle: Rooms<Middle<M>>,
    pub(super) inner: Rooms<Inner<M>>,
    pub(super) normed: M::Act,
    pub(super) act: M::Act,
    pub(super) rstd: M::Stat,
    /// Final hidden rows [N, C].
    pub h: M::Act,
    /// Final hidden rows of the teacher [N, C]; empty without one.
    pub h_ref: M::Act,
    /// Per-row results of the last head sweep.
    pub stats: RowStats<M::Stat>,
    pub(super) scratch: Scratch<M>,
    pub(super) flow: Option<Flow<M>>,
    /// Room for caches beyond that of idle rows.
    spare: Vec<M::Act>,
}

impl<M: Memory> Workspace<M> {
    /// Allocates buffers for packs of up to `tokens` tokens of `model`; for training with those of the backward pass,
    /// which finds the activations that `saving` keeps.
    pub fn new(
        memory: &M,
        model: &Model<M>,
        tokens: usize,
        saving: Option<Saving>,
    ) -> Result<Self> {
        let cfg = &model.config;
        let (heads, layers) = (cfg.heads(0), cfg.layers);
        let training = saving.is_some();
        let act = |width: usize| memory.act(tokens * width);
        let stat = |width: usize| memory.stat(tokens * width);
        let x = (0..if training { layers + 1 } else { 2 })
            .map(|_| act(cfg.width))
            .collect::<Result<_>>()?;
        let qkv = Rooms::new(saving, layers, Part::Qkv, || {
            Ok(Qkv {
                raw: cfg.qk_norm.then(|| act(heads.qkv_width())).transpose()?,
                rstd: cfg.qk_norm.then(|| stat(heads.h + heads.g)).transpose()?,
                rows: act(heads.qkv_width())?,
            })
        })?;
        let made = || {
            let make = || -> Result<Made<M>> {
                Ok(Made { rows: act(cfg.width)?, rstd: stat(cfg.norm.statistics())? })
            };
            cfg.post_norms.then(make).transpose()
        };
        let middle = Rooms::new(saving, layers, Part::Middle, || {
            Ok(Middle {
                rstd1: stat(cfg.norm.statistics())?,
                lse: stat(heads.h)?,
                attn: act(heads.out_width())?,
                rows: act(cfg.width)?,
                rstd2: stat(cfg.norm.statistics())?,
                made: made()?,
            })
        })?;
        let inner = Rooms::new(saving, layers, Part::GateUp, || {
            Ok(Inner { gate_up: act(cfg.mlp.width(cfg.ffn))?, made: made()? })
        })?;
        let flow = if training {
            Some(Flow {
                dx: act(cfg.width)?,
                dh: act(cfg.width)?,
                dqkv: act(heads.qkv_width())?,
                dattn: act(dattn(cfg))?,
            })
        } else {
            None
        };
        // A norm's gain and bias, or the gains of query and key heads.
        let gains = cfg.width.max(cfg.head_width);
        let scratch_of = |block: Option<usize>| match block {
            Some(block) => model.block_scratch(memory, block),
            None => memory.act(0),
        };
        let layout = &model.layout;
        let head = || -> Result<[M::Act; 2]> {
            Ok([scratch_of(Some(layout.head))?, scratch_of(layout.head_bias)?])
        };
        let trained_head = model.layout.blocks[model.layout.head].trainable;
        memory.reserve(HeadShape { n: tokens, c: cfg.width, v: cfg.vocab }, training)?;
        Ok(Self {
            tokens,
            saving,
            x,
            qkv,
            middle,
            inner,
            normed: act(cfg.width)?,
            act: act(cfg.ffn)?,
            rstd: stat(cfg.norm.statistics())?,
            h: act(cfg.width)?,
            h_ref: act(if training { cfg.width } else { 0 })?,
            stats: RowStats { nll: stat(1)?, value: stat(1)?, hit: stat(1)? },
            scratch: Scratch {
                matrix: model.layer_scratch(memory)?,
                bias: model.layer_scratch(memory)?,
                gains: [memory.act(gains)?, memory.act(gains)?],
                embed: model.block_scratch(memory, model.layout.embed)?,
                positions: scratch_of(model.layout.positions)?,
                head: head()?,
                head_ref: if trained_head { head()? } else { [memory.act(0)?, memory.act(0)?] },
            },
            flow,
            spare: Vec::new(),
        })
    }

    /// Returns the longest pack it takes, tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tells whether it has buffers of the backward pass.
    pub(super) fn trains(&self) -> bool {
        self.saving.is_some()
    }

    /// Returns the numbers that each lent room holds, in the order of [`Workspace::lend`].
    pub(super) fn lent(&mut self, memory: &M) -> Vec<usize> {
        self.idle().into_iter().map(|act| memory.len(act)).collect()
    }

    /// Allocates one more room for caches, to be lent with the idle ones.
    pub(super) fn add_room(&mut self, memory: &M, numbers: usize) -> Result<()> {
        self.spare.push(memory.act(numbers)?);
        Ok(())
    }

    /// Lends the rows that passes which keep nothing leave alone; nothing else may be done with it before
    /// [`Workspace::take_back`] but such passes.
    pub(super) fn lend(&mut self, memory: &M) -> Result<Vec<M::Act>> {
        self.idle().into_iter().map(|act| Ok(std::mem::replace(act, memory.act(0)?))).collect()
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, lent: Vec<M::Act>) {
        self.idle().into_iter().zip(lent).for_each(|(act, lent)| *act = lent);
    }

    /// Returns the rows that a pass without a backward pass does not use, and the spare rooms.
    fn idle(&mut self) -> Vec<&mut M::Act> {
        let Self { x, qkv, middle, inner, flow, h_ref, spare, .. } = self;
        let mut idle: Vec<&mut M::Act> = x.iter_mut().skip(2).collect();
        for Qkv { raw, rows, .. } in qkv.idle() {
            idle.extend(raw.iter_mut().chain([rows]));
        }
        for Middle { attn, rows, made, .. } in middle.idle() {
            idle.extend([attn, rows].into_iter().chain(made.as_mut().map(|made| &mut made.rows)));
        }
        for Inner { gate_up, made } in inner.idle() {
            idle.push(gate_up);
            idle.extend(made.as_mut().map(|made| &mut made.rows));
        }
        if let Some(Flow { dx, dh, dqkv, dattn }) = flow {
            idle.extend([dx, dh, dqkv, dattn, h_ref]);
        }
        idle.extend(spare);
        idle
    }
}

impl<O: Ops> Workspace<O> {
    /// Picks a token after each of `shape.n` rows that lie in `normed`: drawn where `draws` says how and with what, else
    /// the most probable one.
    pub(super) fn choose(
        &mut self,
        ops: &O,
        model: &Model<O>,
        shape: HeadShape,
        draws: Option<(Sampling, &[f64])>,
        ids: &mut [u32],
    ) {
        let of = (&model.layout, &model.params[..], model.config.logit_cap);
        let w = head_weight(ops, of, Role::Evaluated, &mut self.scratch.head);
        match draws {
            Some((sampling, draws)) => {
                ops.head_sample(shape, &self.normed, w, sampling, draws, ids);
            }
            None => ops.head_argmax(shape, &self.normed, w, ids),
        }
    }
}
