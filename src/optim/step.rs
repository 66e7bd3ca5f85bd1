//! One update of all parameters: what it is given and what becomes of it.

/// Numbers that change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateScalars {
    /// The step, counted from 0.
    pub step: u64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Clip factor c in (0, 1]; scales gradient, damping and teacher rate alike.
    pub clip: f64,
    /// Damping: pull of the student to its teacher.
    pub damping: f64,
    /// Teacher rate delta.
    pub teacher_rate: f64,
}

/// Settings of an update of all parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// The step, counted from 0.
    pub step: u64,
    /// Learning rate of this step.
    pub lr: f64,
    /// The gradient norm above which everything is scaled down; infinite for never.
    pub max_norm: f64,
    /// Damping: pull of the student to its teacher.
    pub damping: f64,
    /// Teacher rate delta.
    pub teacher_rate: f64,
}

impl StepSettings {
    /// Returns what the update of one parameter is given once the clip factor is known.
    pub fn clipped(&self, clip: f64) -> UpdateScalars {
        let Self { step, lr, damping, teacher_rate, .. } = *self;
        UpdateScalars { step, lr, clip, damping, teacher_rate }
    }
}

/// Outcome of an update of all parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepOutcome {
    /// L2 norm of all gradients together.
    pub grad_norm: f64,
    /// Clip factor c in (0, 1].
    pub clip: f64,
    /// True if a gradient that is not finite kept the update from changing anything.
    pub skipped: bool,
    /// The first parameter with such a gradient, by its place, and how many of its entries are not finite.
    pub bad: Option<(usize, u64)>,
}

/// Returns c = min(1, clip / norm); 1 for a norm that is not finite (such a step is left out anyway).
pub fn clip_factor(norm: f64, clip: f64) -> f64 {
    if norm > clip && norm.is_finite() { clip / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_factor_caps_the_norm() {
        assert_eq!(clip_factor(4.0, 1.0), 0.25);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
    }
}
