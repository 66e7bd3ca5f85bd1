//! Corpora: reading, tokenising, caching, sampling.

pub mod batch;
pub use batch::MicroBatch;
