//! nepenthe makes language models forget.
//!
//! ```
//! # #[cfg(feature = "cli")] {
//! use nepenthe::Unlearner;
//!
//! # let dir = tempfile::tempdir()?;
//! # let (input, out) = (dir.path().join("input"), dir.path().join("run"));
//! # nepenthe::run::demo::unpack(&input, 1, &[])?;
//! let summary = Unlearner::builder(input.join("target"))
//!     .forget(input.join("data/forget.jsonl"))
//!     .retain(input.join("data/retain.jsonl"))
//!     .loss("nlul")
//!     .penalty("qkl")
//!     .set("optim.lr", 5e-3)
//!     .steps(2)
//!     .on_step(|step| println!("step {}: NLL of forget texts {:.3}", step.global_step, step.loss_tr))
//!     .out(out)
//!     .build()?
//!     .run()?;
//! println!("{} steps, written to {}", summary.steps, summary.model.display());
//! # assert_eq!(summary.steps, 2);
//! # assert!(summary.model.join("model.safetensors").is_file());
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A Hugging Face model folder, a forget set and a retain set go in; a model that has forgotten the forget set, and a report,
//! come out. The method is the mean teacher with the negative log-unlikelihood loss (arXiv 2504.13388). Update rules of your
//! own are an [`optim::CustomRule`]; [`probe`] looks inside a run. docs/architecture.md shows the layers: a module uses only
//! those below its own.
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
pub use run::Unlearner;
