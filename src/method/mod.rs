//! The objective: forget losses, penalties, the mean teacher.
//!
//! A loss is one small file: a name, the formula a report prints, and [`Rows`], which family of loss rows it is.
//! No loss has code of its own on a device.

pub mod combine;
mod docs;
pub mod loss;
pub mod mean_teacher;
mod packs;
pub mod passes;
pub mod projection;
pub mod term;

pub use combine::Combination;
pub use docs::page;
pub use loss::{
    FORGET, Hidden, Kl, Knobs, Nll, Normaliser, Objective, PENALTIES, Qkl, Rows, Span, find,
};
pub use mean_teacher::{MeanTeacher, Settings, StepReport};
pub use term::{Documents, Method, Reference, Term, WeightRule};
