//! Norms of hidden states with the weights of a model.

use super::config::ModelConfig;
use super::layout::NormBlocks;
use crate::ops::{Norm, NormArgs, NormGrads, Ops, Role};

/// The norm of `n` rows in one pass.
pub(super) struct RowNorm<'a, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) n: usize,
    pub(super) config: &'a ModelConfig,
    pub(super) params: &'a [O::Param],
    pub(super) blocks: NormBlocks,
}

/// Returns the norm of query and key heads.
pub(super) fn of_heads(config: &ModelConfig) -> Norm {
    Norm { width: config.head_width, ..config.norm }
}

impl<O: Ops> RowNorm<'_, O> {
    /// Normalizes rows: `y = norm(x) (+ residual)`; `scratch` shows weight and bias.
    pub(super) fn forward(
        &self,
        role: Role,
        x: &O::Act,
        residual: Option<&O::Act>,
        y: &mut O::Act,
        stats: &mut O::Stat,
        [for_gain, for_bias]: &mut [O::Act; 2],
    ) {
        let Self { ops, n, blocks, .. } = *self;
        let gain = ops.view(&self.params[blocks.gain], role, for_gain);
        let bias = blocks.bias.map(|bias| ops.view(&self.params[bias], role, for_bias));
        let args = NormArgs { n, norm: self.config.norm, x, gain, bias };
        ops.norm(args, residual, y, stats);
    }

    /// Adds the gradient at the rows to `dx`, and those of weight and bias where they train.
    pub(super) fn backward(
        &self,
        grads: &mut [Option<O::Grad>],
        dy: &O::Act,
        x: &O::Act,
        stats: &O::Stat,
        dx: &mut O::Act,
        [for_gain, _]: &mut [O::Act; 2],
    ) {
        let Self { ops, n, blocks, .. } = *self;
        let gain = ops.view(&self.params[blocks.gain], Role::Student, for_gain);
        // The bias follows the weight.
        let (low, high) = grads.split_at_mut(blocks.gain + 1);
        let grads = NormGrads {
            gain: low[blocks.gain].as_mut(),
            bias: blocks.bias.and_then(|bias| high[bias - blocks.gain - 1].as_mut()),
        };
        let args = NormArgs { n, norm: self.config.norm, x, gain, bias: None };
        ops.norm_bwd(args, dy, stats, dx, grads);
    }
}
