//! The simulator's own tests: each instruction against plain formulas, and planted bugs that it must report.
//!
//! `instructions` knows a device by the trait `Driver` alone: on a GPU the same launches judge the simulator.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "sim")]

mod instructions;
mod planted;
mod planted_sm90;
mod sm90;

use std::sync::Arc;

use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::backend::gpu::driver::{Args, Driver, Launch, Matrix};

/// Opens the simulator; none (with the reason printed) where this build has none.
fn open(timing: Timing) -> Option<Arc<Simulator>> {
    match Simulator::open(timing) {
        Ok(driver) => Some(driver),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Opens the simulator as a device of compute capability 9.0.
fn open_sm90(timing: Timing) -> Option<Arc<Simulator>> {
    match Simulator::open_as(timing, (9, 0)) {
        Ok(driver) => Some(driver),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Device memory that is given back with its owner.
struct Buffer<'a> {
    driver: &'a dyn Driver,
    at: u64,
    bytes: usize,
}

impl<'a> Buffer<'a> {
    /// Allocates `bytes` that nobody wrote.
    fn new(driver: &'a dyn Driver, bytes: usize) -> Self {
        Self { driver, at: driver.alloc(bytes as u64).unwrap(), bytes }
    }

    fn of(driver: &'a dyn Driver, bytes: &[u8]) -> Self {
        let buffer = Self::new(driver, bytes.len());
        driver.upload(buffer.at, bytes).unwrap();
        buffer
    }

    fn of_words(driver: &'a dyn Driver, words: &[u32]) -> Self {
        Self::of(driver, bytemuck::cast_slice(words))
    }

    fn words(&self) -> Vec<u32> {
        let mut words = vec![0u32; self.bytes / 4];
        self.driver.download(self.at, bytemuck::cast_slice_mut(&mut words)).unwrap();
        words
    }

    fn floats(&self) -> Vec<f32> {
        self.words().into_iter().map(f32::from_bits).collect()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}

/// Starts one block.
fn start(
    driver: &dyn Driver,
    kernel: &'static str,
    block: u32,
    shared: u32,
    args: Args,
) -> nepenthe::error::Result<()> {
    driver.launch(Launch { kernel, grid: [1, 1, 1], block, shared, args })?;
    driver.sync()
}
