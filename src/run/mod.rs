//! A run from recipe to model folder: plan, loop, checkpoint, resume, signals.

pub mod bench;
pub mod compare;
pub mod conformance;
#[cfg(feature = "cli")]
pub mod demo;
pub mod evaluate;
pub mod export;
pub mod folder;
pub mod import;
pub mod notices;
pub mod page;
pub mod plan;
pub mod presets;
pub mod probe;
pub mod recipe;
pub mod recorded;
pub mod resume;
mod signals;
pub mod slug;
pub mod suite;
pub mod task_vector;
pub mod train;
pub mod watch;

pub use folder::Folder;
pub use recipe::Recipe;
pub use slug::Slug;
pub use task_vector::TaskVector;
