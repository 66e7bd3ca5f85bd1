//! Corpora: reading, tokenising, caching, sampling.
//!
//! A source file ([`source`]) becomes documents, a [`Tokenizer`] turns them into ids, [`chunk`] cuts them to
//! the context, a [`Corpus`] keeps them in a memory-mapped cache, a [`Sampler`] picks rows by step number,
//! and [`draw`] packs those into [`MicroBatch`]es. Evaluation files are read whole, as a [`Table`].

pub mod batch;
mod cache;
pub mod chunk;
pub mod corpus;
pub mod document;
pub(crate) mod json;
mod json_list;
mod other_keys;
mod parquet;
mod record;
pub mod records;
mod report;
pub mod sampler;
pub mod source;
pub mod table;
pub mod tokenizer;

pub use batch::{MicroBatch, draw, first};
pub use chunk::Chunking;
pub use corpus::{Corpus, CorpusOptions};
pub use document::Document;
pub use report::Report;
pub use sampler::{Order, Sampler};

pub use table::Table;
pub use tokenizer::{Tokenizer, clean_up_tokenization};
