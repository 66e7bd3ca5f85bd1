//! How parameters move: clip, learning-rate schedule, optimizer settings. A rule of one's own is a
//! [`crate::ops::CustomRule`].

use serde::{Deserialize, Serialize};

use crate::ops::UpdateRule;

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

/// Optimizer settings of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// `sgd` or `adamw`.
    pub optimizer: Optimizer,
    /// Learning rate.
    pub lr: f64,
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
    /// AdamW: warm-up steps w (see [`Schedule`]).
    pub warmup: u64,
    /// The gradient norm above which a step is scaled down.
    pub clip: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::Sgd,
            lr: 5e-4,
            momentum: 0.95,
            b1: 0.9,
            b2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
            warmup: 0,
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

    /// Returns the learning-rate schedule: the reference warms up AdamW only.
    pub fn schedule(&self) -> Schedule {
        let warmup = (self.optimizer == Optimizer::Adamw).then_some(self.warmup);
        Schedule { lr: self.lr, warmup }
    }
}

/// The learning rate over steps.
///
/// With warm-up w: steps 0 to w at one percent, then a ramp `lr (s - w)/w` up to step 2w, then lr; so w = 0 still
/// has step 0 at one percent. Source: mt-unlearn `run_mt.py`, `run_epoch`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The full rate.
    pub lr: f64,
    /// w, or `None` for a constant rate.
    pub warmup: Option<u64>,
}

impl Schedule {
    /// Returns the rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        match self.warmup {
            None => self.lr,
            Some(w) if step <= w => 0.01 * self.lr,
            Some(w) if step <= 2 * w => self.lr * (step - w) as f64 / w as f64,
            Some(_) => self.lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_follows_the_reference_in_both_phases() {
        let schedule = Schedule { lr: 1.0, warmup: Some(10) };
        let rates: Vec<f64> = [0, 10, 11, 20, 21].map(|s| schedule.rate(s)).to_vec();
        assert_eq!(rates, [0.01, 0.01, 0.1, 1.0, 1.0]);
        assert_eq!(Schedule { lr: 2.0, warmup: Some(0) }.rate(0), 0.02);
    }
}
