//! A run from recipe to model folder: plan, loop, checkpoint, resume, signals.

pub(crate) mod checks;
pub mod compare;
#[cfg(feature = "cli")]
pub mod demo;
pub mod engine;
pub mod monitor;
mod page;
pub mod plan;
pub mod recipe;
pub mod recorded;
pub mod resume;
pub mod setup;
mod signals;
pub mod stream;
mod summary;
pub mod train;
mod unlearner;
pub mod watch;

pub use recipe::Recipe;
pub use summary::{Continuations, Summary};
pub use unlearner::{Builder, Unlearner};
