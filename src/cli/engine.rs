//! The one place that picks the backend and hands over to the layers that compute.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::Value;

use crate::backend::cpu::{Cpu, on_worker};
use crate::backend::gpu;
use crate::error::Result;
use crate::ops::Ops;
use crate::run::{Recipe, train};

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
    /// Returns the name of the backend.
    pub(super) fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }

    /// Fails where this version cannot use the device, before anything is read.
    pub(super) fn check(&self) -> Result<()> {
        match self.device {
            Device::Cpu => Ok(()),
            Device::Cuda => Err(gpu::refuse(&gpu::probe::probe())),
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
pub(super) fn compute<J>(device: &DeviceArgs, job: J) -> Result<J::Out>
where
    J: Job + Send,
    J::Out: Send,
{
    device.check()?;
    on_worker(|| job.run(&Cpu::<f32>::new()))
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

    fn run<O: Ops>(self, ops: &O) -> Result<Value> {
        train::run(ops, &self.recipe, &self.out, self.resume)
    }
}
