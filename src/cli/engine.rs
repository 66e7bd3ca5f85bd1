//! The one place that picks the backend and hands over to the layers that compute.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value;

use crate::backend::gpu;
use crate::error::{Error, Kind, Result};
use crate::ops::Ops;
use crate::run::Recipe;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    /// All cores of this machine.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// The option that picks the device.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// What computes
    #[arg(long, value_enum, default_value = "cpu")]
    pub(super) device: Device,
}

impl DeviceArgs {
    /// Fails where this version cannot use the device, before anything is read.
    pub(super) fn check(&self) -> Result<()> {
        match self.device {
            Device::Cpu => Ok(()),
            Device::Cuda => Err(gpu::refuse(&gpu::driver::probe())),
        }
    }
}

/// Work that any backend can do.
pub(super) trait Job {
    /// What comes out.
    type Out;
    /// Does the work on `ops`.
    fn run<O: Ops>(self, ops: &O) -> Result<Self::Out>;
}

/// Does `job` on the backend of `device`.
pub(super) fn compute<J: Job>(device: &DeviceArgs, _job: J) -> Result<J::Out> {
    device.check()?;
    // To be completed with the CPU ops: `job.run(&crate::backend::cpu::Cpu::<f32>::new())`.
    Err(absent("device cpu: the op catalogue is not in this build"))
}

/// A training run: what `unlearn` and `finetune` have in common.
#[derive(Debug)]
pub(super) struct Training {
    pub(super) recipe: Recipe,
    pub(super) out: PathBuf,
    pub(super) resume: bool,
}

impl Job for Training {
    type Out = Value;

    fn run<O: Ops>(self, _ops: &O) -> Result<Value> {
        // To be completed: `run::train::run(ops, &self.recipe, &self.out, &options)`.
        Err(absent("training is not in this build"))
    }
}

/// Turns the GGUF file `file` into the model folder `out`; returns what was written.
pub(super) fn import_gguf(_file: &Path, _out: &Path) -> Result<Value> {
    // To be completed: `io::gguf::import(file, out)`.
    Err(absent("import-gguf is not in this build"))
}

/// Runs the demo; returns the object of `demo --json`, and `sample_before` and `sample_after` where it has them.
pub(super) fn demo(_seed: u64, _out: Option<&Path>) -> Result<Value> {
    // To be completed: `run::demo::run(ops, seed, out)`.
    Err(absent("demo is not in this build"))
}

fn absent(what: &str) -> Error {
    Error::new(Kind::Device, what)
}
