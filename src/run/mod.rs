//! A run from recipe to report: plan, loop, checkpoint, resume, signals.

pub mod plan;
pub mod presets;
pub mod recipe;

pub use recipe::Recipe;
