//! The update of parameters: clip, learning-rate schedule, optimizer settings. A custom rule is a
//! [`CustomRule`].

mod schedule;

pub mod custom;
mod rule;
mod step;

use serde::{Deserialize, Serialize};

pub use custom::{CustomRule, DeviceView, KernelArg, Kernels, TensorPlace, TensorView};
pub use rule::{AdamNumbers, UpdateRule};
pub use step::{StepOutcome, StepSettings, UpdateScalars, clip_factor};

pub use schedule::{Schedule, Shape};

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Optimizer {
    /// SGD with momentum; torch's, without dampening or Nesterov.
    Sgd,
    /// AdamW; torch's defaults unless said otherwise.
    Adamw,
}

/// Optimizer settings of a recipe; `nepenthe settings optim` has their meanings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// `sgd` or `adamw`.
    pub optimizer: Optimizer,
    /// Learning rate.
    pub lr: f64,
    /// The learning rate over steps.
    pub schedule: Shape,
    /// Warm-up steps (see [`Schedule`]).
    pub warmup: u64,
    /// The rate at the end of a decay.
    pub lr_min: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// AdamW: decay of the first moment.
    pub b1: f64,
    /// AdamW: decay of the second moment.
    pub b2: f64,
    /// AdamW: added to the root of the second moment.
    pub eps: f64,
    /// AdamW: decoupled decay towards zero.
    pub weight_decay: f64,
    /// The gradient norm above which a step is scaled down.
    pub clip: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::Sgd,
            lr: 5e-4,
            schedule: Shape::Constant,
            warmup: 0,
            lr_min: 0.0,
            momentum: 0.95,
            b1: 0.9,
            b2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
            clip: 1.0,
        }
    }
}

impl OptimConfig {
    /// Returns the rule the update op carries out.
    pub fn rule(&self) -> UpdateRule {
        match self.optimizer {
            Optimizer::Sgd => UpdateRule::Sgd { momentum: self.momentum },
            Optimizer::Adamw => UpdateRule::AdamW {
                betas: (self.b1, self.b2),
                eps: self.eps,
                weight_decay: self.weight_decay,
            },
        }
    }

    /// Returns the learning rate over the steps of a run of `steps`.
    pub fn schedule(&self, steps: u64) -> Schedule {
        Schedule {
            shape: self.schedule,
            lr: self.lr,
            lr_min: self.lr_min,
            warmup: self.warmup,
            steps,
            adamw: self.optimizer == Optimizer::Adamw,
        }
    }
}
