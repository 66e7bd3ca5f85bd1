//! A run from recipe to report: plan, loop, checkpoint, resume, signals.

pub mod presets;
pub mod recipe;

pub use recipe::Recipe;
