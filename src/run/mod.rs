//! A run from recipe to model folder: plan, loop, checkpoint, resume, signals.

pub mod export;
pub mod import;
pub mod page;
pub mod plan;
pub mod presets;
pub mod recipe;
pub mod signals;
pub mod train;

pub use recipe::Recipe;
