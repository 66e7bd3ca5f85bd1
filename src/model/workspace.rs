//! The buffers of forward and backward.

use super::config::ModelConfig;
use super::params::{Model, head_weight};
use super::saving::{Part, Saving, dattn};
use crate::error::Result;
use crate::ops::{HeadShape, Ops, Role, RowStats, Sampling};

/// The qkv rows of a layer.
pub(super) struct Qkv<O: Ops> {
    /// From before the head norms, where there are some.
    pub(super) raw: Option<O::Act>,
    /// The statistics of these norms.
    pub(super) rstd: Option<O::Stat>,
    pub(super) rows: O::Act,
}

/// Activations of a layer between its qkv rows and its MLP.
pub(super) struct Middle<O: Ops> {
    pub(super) rstd1: O::Stat,
    pub(super) lse: O::Stat,
    pub(super) attn: O::Act,
    /// The residual stream after attention.
    pub(super) rows: O::Act,
    pub(super) rstd2: O::Stat,
    /// The output of attention before its own norm.
    pub(super) made: Option<Made<O>>,
}

/// Hidden states before the norm through which they join the residual stream, and its statistics.
pub(super) struct Made<O: Ops> {
    pub(super) rows: O::Act,
    pub(super) rstd: O::Stat,
}

/// Activations of an MLP.
pub(super) struct Inner<O: Ops> {
    /// Gate and up, or the input of the activation.
    pub(super) gate_up: O::Act,
    /// The output of the MLP before its own norm.
    pub(super) made: Option<Made<O>>,
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
pub(super) struct Scratch<O: Ops> {
    pub(super) matrix: O::Act,
    pub(super) bias: O::Act,
    /// A gain and a bias of a norm, or the gains of query and key heads.
    pub(super) gains: [O::Act; 2],
    pub(super) embed: O::Act,
    pub(super) positions: O::Act,
    /// The matrix and the bias of a head, and those of the one it is compared with.
    pub(super) head: [O::Act; 2],
    pub(super) head_ref: [O::Act; 2],
}

/// Returns the numbers of each scratch for gains: a norm's gain and bias, or the gains of query and key heads.
pub fn gains(config: &ModelConfig) -> usize {
    config.width.max(config.head_width)
}

/// Gradients flowing down; made only for training.
pub(super) struct Flow<O: Ops> {
    pub(super) dx: O::Act,
    pub(super) dh: O::Act,
    pub(super) dqkv: O::Act,
    pub(super) dattn: O::Act,
}

/// All buffers of forward and backward for packs of up to a given number of tokens, allocated once.
pub struct Workspace<O: Ops> {
    tokens: usize,
    saving: Option<Saving>,
    /// Residual stream: one more than layers when training, two to alternate between otherwise.
    pub(super) x: Vec<O::Act>,
    pub(super) qkv: Rooms<Qkv<O>>,
    pub(super) middle: Rooms<Middle<O>>,
    pub(super) inner: Rooms<Inner<O>>,
    pub(super) normed: O::Act,
    pub(super) act: O::Act,
    pub(super) rstd: O::Stat,
    /// Final hidden rows [N, C].
    pub h: O::Act,
    /// Final hidden rows of the teacher [N, C]; empty without one.
    pub h_ref: O::Act,
    /// Per-row results of the last head sweep.
    pub stats: RowStats<O::Stat>,
    pub(super) scratch: Scratch<O>,
    pub(super) flow: Option<Flow<O>>,
    /// Room for caches that no idle row had; how many numbers, and they.
    spare: Vec<(usize, O::Act)>,
}

impl<O: Ops> Workspace<O> {
    /// Allocates buffers for packs of up to `tokens` tokens of `model`; for training with those of the backward pass,
    /// which finds the activations that `saving` keeps.
    pub fn new(ops: &O, model: &Model<O>, tokens: usize, saving: Option<Saving>) -> Result<Self> {
        let cfg = &model.config;
        let (heads, layers) = (cfg.heads(0), cfg.layers);
        let training = saving.is_some();
        let act = |width: usize| ops.act(tokens * width);
        let stat = |width: usize| ops.stat(tokens * width);
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
            let make = || -> Result<Made<O>> {
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
        let gains = gains(cfg);
        let scratch_of = |block: Option<usize>| match block {
            Some(block) => model.block_scratch(ops, block),
            None => ops.act(0),
        };
        let layout = &model.layout;
        let head = || -> Result<[O::Act; 2]> {
            Ok([scratch_of(Some(layout.head))?, scratch_of(layout.head_bias)?])
        };
        let trained_head = model.layout.blocks[model.layout.head].trainable;
        ops.reserve(HeadShape { n: tokens, c: cfg.width, v: cfg.vocab }, training)?;
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
                matrix: model.layer_scratch(ops)?,
                bias: model.layer_scratch(ops)?,
                gains: [ops.act(gains)?, ops.act(gains)?],
                embed: model.block_scratch(ops, model.layout.embed)?,
                positions: scratch_of(model.layout.positions)?,
                head: head()?,
                head_ref: if trained_head { head()? } else { [ops.act(0)?, ops.act(0)?] },
            },
            flow,
            spare: Vec::new(),
        })
    }

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

    /// Returns the longest pack it takes, tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tells whether it has buffers of the backward pass.
    pub(super) fn trains(&self) -> bool {
        self.saving.is_some()
    }

    /// Returns the numbers that each lent room holds, in the order of [`Workspace::lend`].
    pub(super) fn lent(&self, config: &ModelConfig) -> Vec<usize> {
        let widths = self.saving.map_or(Vec::new(), |saving| saving.idle(config));
        let idle = widths.into_iter().map(|width| width * self.tokens);
        idle.chain(self.spare.iter().map(|(numbers, _)| *numbers)).collect()
    }

    /// Allocates one more room for caches, to be lent with the idle ones.
    pub(super) fn add_room(&mut self, ops: &O, numbers: usize) -> Result<()> {
        self.spare.push((numbers, ops.act(numbers)?));
        Ok(())
    }

    /// Lends the rows that passes which keep nothing leave alone; nothing else may be done with it before
    /// [`Workspace::take_back`] but such passes.
    pub(super) fn lend(&mut self, ops: &O) -> Result<Vec<O::Act>> {
        self.idle().into_iter().map(|act| Ok(std::mem::replace(act, ops.act(0)?))).collect()
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, lent: Vec<O::Act>) {
        self.idle().into_iter().zip(lent).for_each(|(act, lent)| *act = lent);
    }

    /// Returns what is idle, in the order of [`Saving::idle`], and the spare rooms.
    fn idle(&mut self) -> Vec<&mut O::Act> {
        let Self { x, qkv, middle, inner, flow, h_ref, spare, .. } = self;
        let mut idle: Vec<&mut O::Act> = x.iter_mut().skip(2).collect();
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
        idle.extend(spare.iter_mut().map(|(_, room)| room));
        idle
    }
}
