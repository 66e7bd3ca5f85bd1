//! The options that pick the device.

use clap::ValueEnum;

use super::output::note;
use crate::backend::gpu::Precision;
use crate::error::{Error, Result};
use crate::run::engine;

pub(super) use crate::run::engine::{Engine, Job};

/// Compute device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    /// An NVIDIA GPU if one is usable, else the CPU.
    Auto,
    /// All cores of this machine.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// The kernels on this CPU, for tests.
    #[cfg(feature = "sim")]
    #[value(hide = true)]
    Sim,
    /// Those of compute capability 9.0.
    #[cfg(feature = "sim")]
    #[value(hide = true)]
    Sim90,
}

/// Storage format of activations on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Storage {
    /// bf16 storage and GEMMs.
    Bf16,
    /// fp32 storage, TF32 GEMMs.
    Fp32,
}

impl From<Storage> for Precision {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::Bf16 => Self::Bf16,
            Storage::Fp32 => Self::Fp32,
        }
    }
}

/// The options that pick the device.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Compute device
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Activation precision on a GPU; the CPU computes in fp32
    #[arg(long, value_enum, default_value = "bf16")]
    precision: Storage,
}

impl DeviceArgs {
    /// Takes the device into use, before anything is read.
    ///
    /// Errors: [`crate::Kind::Device`] where a device was named and cannot be used.
    pub(super) fn open(&self) -> Result<Engine> {
        let precision = self.precision.into();
        match self.device {
            Device::Cpu => Ok(Engine::Cpu),
            Device::Cuda => Engine::cuda(precision),
            // Which GPU it became is said when the work starts, behind all errors of the command line.
            Device::Auto => {
                let (engine, why) = Engine::auto(precision);
                why.iter().for_each(|error| note(&fallback(error)));
                Ok(engine)
            }
            #[cfg(feature = "sim")]
            Device::Sim | Device::Sim90 => {
                use crate::backend::gpu::driver::sim::{Simulator, Timing};
                let capability = if self.device == Device::Sim90 { (9, 0) } else { (8, 0) };
                let driver = Simulator::open_as(Timing::ALL[0], capability)?;
                Ok(Engine::Gpu(driver, precision, "sim"))
            }
        }
    }
}

/// Says why a machine that seems to have a GPU computes on its CPU, and what to do about it.
fn fallback(error: &Error) -> String {
    let hint = error.hint_text().map_or(String::new(), |hint| format!("; hint: {hint}"));
    format!("note: --device auto uses the CPU: {}{hint}", error.message())
}

impl DeviceArgs {
    /// Like [`DeviceArgs::open`], but says with the CPU why there is no GPU, even if one was named.
    pub(super) fn open_or_why(&self) -> Result<(Engine, Option<Error>)> {
        match self.device {
            Device::Auto | Device::Cuda => match (Self { device: Device::Cuda, ..*self }).open() {
                Ok(engine) => Ok((engine, None)),
                Err(error) => Ok((Engine::Cpu, Some(error))),
            },
            _ => Ok((self.open()?, None)),
        }
    }
}

/// Does `job` on `engine`, and names the GPU first.
pub(super) fn compute<J>(engine: &Engine, job: J) -> Result<J::Out>
where
    J: Job + Send,
    J::Out: Send,
{
    if let Some(device) = engine.device() {
        note(&format!("device: {device}"));
    }
    engine::compute(engine, job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn fallback_says_why_and_what_to_do_in_one_line() {
        let error = Error::new(Kind::Device, "device cuda: too old").hint("update it");
        assert_eq!(
            fallback(&error),
            "note: --device auto uses the CPU: device cuda: too old; hint: update it"
        );
    }
}
