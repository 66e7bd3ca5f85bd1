//! Description of a parameter: its state mode, its teacher, and whose weights are shown.

use super::format::MOMENT_BLOCK;
use crate::error::{Error, Result};
use crate::optim::UpdateRule;
use crate::optim::custom::not_exact;

/// Storage of a trainable parameter and its state.
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

/// Storage of the teacher.
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

/// Description of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Its name, which also seeds its rounding noise.
    pub name: String,
    /// Number of elements.
    pub len: usize,
    /// True if it is updated; a frozen one is stored once and shared by student and teacher.
    pub trainable: bool,
    /// Storage of its state.
    pub mode: StateMode,
    /// Storage of its teacher.
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
