//! Training on the CPU backend, called as a library: update rules, what is kept for the way back, saving, probes.

#![allow(missing_docs, clippy::unwrap_used)]

mod compact_drift;
mod custom_rule;
mod probe;
mod saved;
mod saving;
#[path = "../support/mod.rs"]
mod support;
mod update_rule;
