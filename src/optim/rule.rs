//! The built-in update rules and their numbers.

/// The optimizer's rule; the numbers are constant over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpdateRule {
    /// `u = m u + g` (`u = g` at the first step), `theta -= lr u`.
    Sgd {
        /// m.
        momentum: f64,
    },
    /// Decoupled weight decay; torch's AdamW.
    AdamW {
        /// Decay of the first and second moment.
        betas: (f64, f64),
        /// Added to the root of the second moment.
        eps: f64,
        /// Weights shrink by `lr * weight_decay` a step.
        weight_decay: f64,
    },
    /// A [`super::CustomRule`], which [`crate::ops::State::update_custom`] is given; made by [`UpdateRule::custom`].
    Custom {
        /// The names of its state tensors; empty for none.
        state: [&'static str; 2],
    },
}

impl UpdateRule {
    /// The built-in rules by name, with usual numbers: those that checks, benchmarks and predictions go through.
    pub const BUILT_IN: [(&'static str, Self); 2] = [
        ("sgd", Self::Sgd { momentum: 0.95 }),
        ("adamw", Self::AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.01 }),
    ];

    /// Returns the number of its moments.
    pub fn moments(&self) -> usize {
        self.moment_names().iter().filter(|name| !name.is_empty()).count()
    }

    /// Returns the names of its moments, as [`crate::ops::Transfer::save_param`] uses them; empty for none.
    pub fn moment_names(&self) -> [&'static str; 2] {
        match self {
            Self::Sgd { .. } => ["momentum_buffer", ""],
            Self::AdamW { .. } => ["exp_avg", "exp_avg_sq"],
            Self::Custom { state } => *state,
        }
    }
}

/// AdamW's numbers of one step, before a backend rounds them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamNumbers {
    /// 1 - b1.
    pub one_minus_b1: f64,
    /// b2.
    pub b2: f64,
    /// 1 - b2.
    pub one_minus_b2: f64,
    /// sqrt(1 - b2^t).
    pub root_correction: f64,
    /// eps.
    pub eps: f64,
    /// lr / (1 - b1^t).
    pub step_size: f64,
    /// lr weight_decay.
    pub decay: f64,
    /// 1 - lr weight_decay.
    pub keep: f64,
}

impl AdamNumbers {
    /// Makes the numbers of step `step`, counted from 0.
    pub fn new((b1, b2): (f64, f64), eps: f64, weight_decay: f64, lr: f64, step: u64) -> Self {
        let t = step as f64 + 1.0;
        Self {
            one_minus_b1: 1.0 - b1,
            b2,
            one_minus_b2: 1.0 - b2,
            root_correction: (1.0 - b2.powf(t)).sqrt(),
            eps,
            step_size: lr / (1.0 - b1.powf(t)),
            decay: lr * weight_decay,
            keep: 1.0 - lr * weight_decay,
        }
    }
}
