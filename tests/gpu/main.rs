//! The device backend, in the simulator and on a GPU where there is one: every kernel, whole steps, generation, recorded
//! runs.

#![allow(clippy::unwrap_used)]

#[cfg(feature = "sim")]
mod configs;
#[cfg(feature = "sim")]
mod generate;
mod kernels;
#[cfg(feature = "sim")]
mod plan;
#[cfg(feature = "sim")]
mod saved;
#[cfg(feature = "sim")]
mod step;
#[path = "../support/mod.rs"]
mod support;
mod trajectory;
