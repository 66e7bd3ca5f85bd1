//! A norm of rows, forth and back, whichever kind the model has.

use super::config::ModelConfig;
use super::layout::NormBlocks;
use crate::ops::{Ops, Rms, Role};

/// The norm of `n` rows in one pass.
pub(super) struct RowNorm<'a, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) n: usize,
    pub(super) config: &'a ModelConfig,
    pub(super) params: &'a [O::Param],
    pub(super) blocks: NormBlocks,
}

/// Returns the numbers of the RMS norms of a model.
pub(super) fn rms(config: &ModelConfig) -> Rms {
    Rms { eps: config.norm.eps, plus: config.norm.offset }
}

impl<O: Ops> RowNorm<'_, O> {
    /// Norms rows; `scratch` shows gain and bias.
    pub(super) fn forward(
        &self,
        role: Role,
        x: &O::Act,
        y: &mut O::Act,
        stats: &mut O::Stat,
        [for_gain, for_bias]: &mut [O::Act; 2],
    ) {
        let Self { ops, n, blocks, .. } = *self;
        let (c, eps) = (self.config.width, self.config.norm.eps);
        let gain = ops.view(&self.params[blocks.gain], role, for_gain);
        match blocks.bias {
            Some(bias) => {
                let bias = ops.view(&self.params[bias], role, for_bias);
                ops.layernorm(n, c, eps, x, [gain, bias], y, stats);
            }
            None => ops.rmsnorm(n, c, rms(self.config), x, gain, None, y, stats),
        }
    }

    /// Norms rows and adds them to others: `y = residual + norm(x)`; RMS norms alone.
    pub(super) fn join(
        &self,
        role: Role,
        x: &O::Act,
        residual: &O::Act,
        y: &mut O::Act,
        stats: &mut O::Stat,
        [for_gain, _]: &mut [O::Act; 2],
    ) {
        let (c, rms) = (self.config.width, rms(self.config));
        let gain = self.ops.view(&self.params[self.blocks.gain], role, for_gain);
        self.ops.rmsnorm(self.n, c, rms, x, gain, Some(residual), y, stats);
    }

    /// Adds the gradient at the rows to `dx`, and those of gain and bias where they train.
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
        let c = self.config.width;
        let gain = ops.view(&self.params[blocks.gain], Role::Student, for_gain);
        let dgain = grads[blocks.gain].as_mut();
        match blocks.bias {
            Some(bias) => {
                ops.layernorm_bwd(n, c, dy, x, gain, stats, dx, dgain);
                if let Some(dbias) = grads[bias].as_mut() {
                    ops.bias_grad(n, c, dy, dbias);
                }
            }
            None => ops.rmsnorm_bwd(n, c, rms(self.config), dy, x, gain, stats, dx, dgain),
        }
    }
}
