//! Corpora: reading, tokenising, caching, sampling.
//!
//! A source file ([`source`]) becomes documents, a [`Tokenizer`] turns them into ids, [`chunk`] cuts them to
//! the context.

pub mod chunk;
pub mod sampler;
pub mod source;
pub mod tokenizer;

pub use chunk::Chunking;
pub use sampler::{Order, Sampler};
pub use source::{Document, Report};
pub use tokenizer::{Tokenizer, clean_up_tokenization};
