//! A run from recipe to model folder: plan, loop, checkpoint, resume, signals.

pub mod compare;
#[cfg(feature = "cli")]
pub mod demo;
pub mod monitor;
pub mod page;
pub mod plan;
pub mod recipe;
pub mod recorded;
pub mod resume;
pub mod setup;
mod signals;
pub mod stream;
pub mod train;
pub mod watch;

pub use recipe::Recipe;
