//! nepenthe makes language models forget.
//!
//! A Hugging Face model folder, a forget set and a retain set go in; a model that no longer carries the
//! forget set, and a report, come out. The method is the mean teacher with the negative log-unlikelihood
//! loss (arXiv 2504.13388). Layers, from the top: `cli` > `run` > `method`, `optim`, `eval`, `data`, `report`
//! > `model` > `backend` > `ops` > `io`, `rng`, `error`; a module uses only what stands below it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod backend;
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod conformance;
pub mod data;
pub mod edit;
pub mod error;
pub mod eval;
pub mod folder;
pub mod io;
pub mod method;
pub mod model;
pub mod ops;
pub mod optim;
pub mod probe;
pub mod report;
pub mod rng;
pub mod run;

pub use error::{Error, Kind, Result};
