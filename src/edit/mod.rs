//! Edits of a model in one pass: SLUG and task vectors.

pub mod slug;
pub mod task_vector;

pub use slug::{Slug, SlugSummary};
pub use task_vector::{TaskVector, TaskVectorSummary};
