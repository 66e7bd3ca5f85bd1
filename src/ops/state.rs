//! Parameters, their teacher, gradients and optimizer state, and the fused update.

use super::compute::Compute;
use super::format::adam_bound;
use super::param::Role;
use crate::error::Result;
use crate::optim::{CustomRule, StepOutcome, StepSettings, TensorPlace, UpdateScalars};

/// Bounds the part of AdamW's step `step` (counted from 0) that its moments make; compact updates are cut to it.
///
/// Twice the bound of exact moments: rounding of the stored ones never reaches it in practice, and the cut makes it
/// hold even where the second moment underflows.
pub fn moments_bound(betas: (f64, f64), lr: f64, step: u64) -> f64 {
    2.0 * lr.abs() * adam_bound(betas, step as f64 + 1.0)
}

/// Results of one pass over a gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradScan {
    /// Sum of squares, accumulated in f64.
    pub sum_sq: f64,
    /// Largest magnitude.
    pub max_abs: f64,
    /// Number of entries that are NaN or infinite.
    pub nonfinite: u64,
}

/// Squared distances of one parameter, for logs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distances {
    /// |theta - ref|^2.
    pub student_teacher: f64,
    /// |theta - initial|^2.
    pub student_initial: f64,
    /// |ref - initial|^2.
    pub teacher_initial: f64,
}

/// Parameters and their update.
pub trait State: Compute {
    /// An update of all parameters whose outcome nobody has read yet.
    type Pending;

    /// Marks a gradient as empty, so that its next write overwrites.
    fn clear_grad(&self, grad: &mut Self::Grad);
    /// Shows the weights of `role`; `scratch` takes them where they are not stored as the compute reads them,
    /// and must be at least as long as the parameter (or empty where [`needs_scratch`](super::Memory::needs_scratch) is false).
    fn view<'a>(
        &self,
        param: &'a Self::Param,
        role: Role,
        scratch: &'a mut Self::Act,
    ) -> Self::Weight<'a>;
    /// Scans a gradient in a fixed order; an empty gradient is all zeros.
    fn scan_grad(&self, grad: &Self::Grad) -> GradScan;
    /// Returns the sum of products of two gradients of one parameter, in f64 and a fixed order; an empty one is all zeros.
    ///
    /// Waits for the work before it.
    fn grad_dot(&self, a: &Self::Grad, b: &Self::Grad) -> f64;
    /// Mixes two gradients of one parameter: `y = keep y + add x`, products and sum in fp32, rounded once to how `y` is
    /// stored; empty ones are all zeros.
    fn grad_mix(&self, y: &mut Self::Grad, keep: f64, x: &Self::Grad, add: f64);
    /// Moves student, optimizer state and teacher by one step, in one pass:
    /// `g = c g + damping c (theta - ref)`, the rule, `ref += teacher_rate c (theta_new - ref)`.
    ///
    /// `scan` is that of `grad`; compact drift scales are derived from it so that they cannot saturate. A parameter of a
    /// [`CustomRule`] stays as it is.
    fn update(
        &self,
        param: &mut Self::Param,
        grad: &Self::Grad,
        scan: &GradScan,
        scalars: &UpdateScalars,
    );
    /// Does a whole update without waiting for it: norm of all gradients, clip factor, [`State::update`] of each
    /// parameter that has a gradient. A gradient that is not finite changes no byte of any parameter.
    ///
    /// `grads` are those of `params` by place; `None` for a frozen one. All parameters follow one rule, and not a
    /// [`CustomRule`].
    fn update_all(
        &self,
        params: &mut [Self::Param],
        grads: &[Option<Self::Grad>],
        settings: &StepSettings,
    ) -> Result<Self::Pending>;
    /// Does a whole update by a rule of the caller's own: norm of all gradients and clip factor, then of each parameter
    /// that has a gradient `g = c g + damping c (theta - ref)`, the rule's step, `theta += step`, and the teacher as in
    /// [`State::update`]. A gradient that is not finite changes no byte, and the rule is not called.
    ///
    /// `tensors` are those of `params` by place. Waits for the norm. Errors: [`crate::Kind::Config`] where the parameters
    /// are not of [`custom`](crate::optim::UpdateRule::custom); what the rule returns.
    fn update_custom(
        &self,
        params: &mut [Self::Param],
        grads: &[Option<Self::Grad>],
        tensors: &[Vec<TensorPlace<'_>>],
        settings: &StepSettings,
        rule: &mut dyn CustomRule,
    ) -> Result<Self::Pending>;
    /// Waits for an update and tells what became of it; the last one started is the only one that can be asked.
    fn outcome(&self, pending: Self::Pending) -> Result<StepOutcome>;
    /// Measures how far student and teacher are from each other and from `initial`.
    fn distances(&self, param: &Self::Param, initial: &[f32]) -> Distances;
}
