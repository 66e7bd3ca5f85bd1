//! Parameters, their teacher, gradients and optimizer state, and the fused update.

use super::compute::Compute;
use super::format::{MOMENT_BLOCK, adam_bound};
use crate::error::{Error, Result};
use crate::optim::custom::not_exact;
use crate::optim::{CustomRule, StepOutcome, StepSettings, TensorPlace, UpdateRule, UpdateScalars};

/// How a trainable parameter and its state are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateMode {
    /// Everything in fp32: 16 bytes per parameter with a full teacher and momentum.
    Exact,
    /// Dithered bf16 pair 4, fp16 drift 2, bf16 momentum 2, bf16 gradient 2: 10 bytes per parameter.
    Compact,
    /// As compact, with the momentum in blocks of 8-bit numbers: 9 bytes per parameter. SGD only.
    Tiny,
    /// As compact, with the weights in one bf16 that is rounded stochastically at every step: 8 bytes per parameter, and
    /// most of a small step is lost in the rounding.
    Approx,
}

/// The name under which checkpoints keep the scales of an 8-bit moment.
pub(crate) const MOMENT_SCALES: &str = "moment_scales";

/// Bytes per parameter of what a state mode keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StateBytes {
    /// The student's weights.
    pub weights: f64,
    /// The teacher's, or the drift.
    pub teacher: f64,
    /// A moment of the optimizer.
    pub moment: f64,
    /// The gradient.
    pub gradient: f64,
}

impl StateMode {
    /// All modes, the largest first.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Compact, Self::Tiny, Self::Approx];

    /// Returns the mode's name, as recipes have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Compact => "compact",
            Self::Tiny => "tiny",
            Self::Approx => "approx",
        }
    }

    /// Returns what the mode keeps of a parameter.
    pub const fn bytes(self) -> StateBytes {
        let (weights, moment) = match self {
            Self::Exact => {
                return StateBytes { weights: 4.0, teacher: 4.0, moment: 4.0, gradient: 4.0 };
            }
            Self::Compact => (4.0, 2.0),
            // A byte, and an fp32 scale for each block.
            Self::Tiny => (4.0, 1.0 + 4.0 / MOMENT_BLOCK as f64),
            Self::Approx => (2.0, 2.0),
        };
        StateBytes { weights, teacher: 2.0, moment, gradient: 2.0 }
    }
}

/// How the teacher is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeacherForm {
    /// There is none: no penalty, no damping.
    None,
    /// Its own weights.
    Full,
    /// The drift d = theta - ref.
    Drift,
}

/// Whose weights a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The student as training sees it (in 16-bit planes the dithered bf16 plane of this step).
    Student,
    /// The teacher, dithered with the student's own random bits.
    Teacher,
    /// The student as evaluation and export see it: from 16-bit planes rounded to bf16 by the noise of
    /// [`super::format::EVALUATION`].
    Evaluated,
}

/// Bounds the part of AdamW's step `step` (counted from 0) that its moments make; compact updates are cut to it.
///
/// Twice the bound of exact moments: rounding of the stored ones never reaches it in practice, and the cut makes it
/// hold even where the second moment underflows.
pub fn moments_bound(betas: (f64, f64), lr: f64, step: u64) -> f64 {
    2.0 * lr.abs() * adam_bound(betas, step as f64 + 1.0)
}

/// What a parameter is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Its name, which also seeds its rounding noise.
    pub name: String,
    /// Number of elements.
    pub len: usize,
    /// Whether it is updated; a frozen one is stored once and shared by student and teacher.
    pub trainable: bool,
    /// How its state is kept.
    pub mode: StateMode,
    /// How its teacher is kept.
    pub teacher: TeacherForm,
    /// The optimizer whose state it carries.
    pub rule: UpdateRule,
    /// Root seed of dithering and stochastic rounding.
    pub seed: u64,
}

impl ParamSpec {
    /// Tells whether its state is kept in 16-bit planes.
    pub(crate) fn is_split(&self) -> bool {
        self.trainable && self.mode != StateMode::Exact
    }

    /// Refuses what its mode cannot keep.
    ///
    /// Errors: [`crate::Kind::Config`] for a full teacher, a custom rule or (in tiny state) a rule with two moments.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.is_split() {
            return Ok(());
        }
        let (name, mode) = (&self.name, self.mode.name());
        if self.teacher == TeacherForm::Full {
            return Err(Error::config(format!(
                "{name}: {mode} state keeps a teacher as drift, got a full one"
            )));
        }
        match self.rule {
            UpdateRule::Custom { .. } => Err(not_exact(name, mode)),
            UpdateRule::AdamW { .. } if self.mode == StateMode::Tiny => Err(Error::config(format!(
                "{name}: tiny state keeps the momentum of SGD, got AdamW, whose second moment 8 bits do not hold"
            ))
            .hint("--set optim.optimizer=sgd, or --set model.state=compact")),
            _ => Ok(()),
        }
    }
}

/// What one pass over a gradient finds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradScan {
    /// Sum of squares, accumulated in f64.
    pub sum_sq: f64,
    /// Largest magnitude.
    pub max_abs: f64,
    /// How many entries are NaN or infinite.
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
    /// and must be at least as long as the parameter (or empty where [`State::needs_scratch`] is false).
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
    /// are not of [`UpdateRule::custom`]; what the rule returns.
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
