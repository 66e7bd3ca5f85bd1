//! The one place that picks the backend and hands over to the layers that compute.

use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use serde_json::Value;

use super::output::{bytes, note};
use crate::backend::cpu::{Cpu, on_worker};
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::{self, Gpu, Precision};
use crate::error::{Error, Kind, Result};
use crate::folder;
use crate::model::{Layout, Level, ModelConfig, Saving};
use crate::ops::Ops;
use crate::run::plan::{Plan, Target};
use crate::run::{Recipe, train};

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

/// What a GPU stores activations in.
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

/// A device in hand.
#[derive(Debug)]
pub(super) enum Engine {
    /// All cores of this machine.
    Cpu,
    /// A GPU, or the simulator in its place.
    Gpu(Arc<dyn Driver>, Precision, &'static str),
}

impl DeviceArgs {
    /// Takes the device into use, before anything is read.
    ///
    /// Errors: [`crate::Kind::Device`] where a device was named and cannot be used.
    pub(super) fn open(&self) -> Result<Engine> {
        let precision = self.precision.into();
        match self.device {
            Device::Cpu => Ok(Engine::Cpu),
            Device::Cuda => Ok(Engine::Gpu(gpu::open()?, precision, "cuda")),
            // Which GPU it became is said when the work starts, behind all errors of the command line.
            Device::Auto => Ok(match gpu::open() {
                Ok(driver) => Engine::Gpu(driver, precision, "cuda"),
                Err(error) => {
                    if gpu::probe::expected() {
                        note(&fallback(&error));
                    }
                    Engine::Cpu
                }
            }),
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

impl Engine {
    /// Returns the name of the backend.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(_, _, name) => name,
        }
    }

    /// Returns the name of what activations are stored in.
    pub(super) fn precision_name(&self) -> &'static str {
        match self {
            Self::Gpu(_, Precision::Bf16, _) => "bf16",
            Self::Cpu | Self::Gpu(_, Precision::Fp32, _) => "fp32",
        }
    }

    /// Counts the bytes of a run on a GPU, before anything is loaded; `None` on the CPU.
    ///
    /// Errors: [`crate::Kind::Memory`] with the bytes of each category and ways to reduce them if free memory is too small.
    pub(super) fn plan(&self, config: &ModelConfig, recipe: &Recipe) -> Result<Option<Plan>> {
        let Self::Gpu(driver, precision, _) = self else { return Ok(None) };
        let identity = driver.identity();
        let heads = (config.head_width, config.score_cap.is_some());
        let (capability, shared) = (identity.capability, identity.shared_bytes);
        if let Some(why) = gpu::obstacle(capability, shared, *precision, heads) {
            return Err(Error::new(
                Kind::Device,
                format!("{} cannot run this model: {why}", identity.name),
            )
            .hint("use --device cpu"));
        }
        let trained = Layout::new(config, recipe.train()).trainable();
        let target = Target::gpu(*precision);
        // A device that does not tell is believed to hold the run.
        let free = driver.free_bytes().unwrap_or(u64::MAX);
        let plan = Plan::new(config, recipe, recipe.state_mode(trained), target, free)?;
        plan.require_packs().map_err(|error| error.at(parts(&plan)))?;
        Ok(Some(plan))
    }
}

/// Names the bytes of each category.
fn parts(plan: &Plan) -> String {
    let mut parts: Vec<String> =
        plan.resident.iter().map(|c| format!("{} {}", c.name, bytes(c.bytes))).collect();
    let activations = plan.bytes_per_token.saturating_mul(plan.pack_tokens);
    parts.push(format!("activations {}", bytes(activations)));
    format!("device cuda: {}", parts.join(", "))
}

/// Work that any backend can do.
pub(super) trait Job {
    /// What comes out.
    type Out;
    /// Counts the bytes it will take on a GPU, where it knows them.
    fn plan(&self, _engine: &Engine) -> Result<Option<Plan>> {
        Ok(None)
    }
    /// Does the work on `ops`, as planned where there is a plan.
    fn run<O: Ops>(self, ops: O, plan: Option<&Plan>) -> Result<Self::Out>;
}

/// Does `job` on `engine`.
pub(super) fn compute<J>(engine: &Engine, job: J) -> Result<J::Out>
where
    J: Job + Send,
    J::Out: Send,
{
    match engine {
        Engine::Cpu => on_worker(|| job.run(Cpu::<f32>::new(), None)),
        Engine::Gpu(driver, precision, _) => {
            note(&format!("device: {}", driver.identity().name));
            let plan = job.plan(engine)?;
            let work = || {
                let planned = plan.as_ref().map_or(0, Plan::arena_bytes);
                job.run(Gpu::new(driver.clone(), *precision, planned)?, plan.as_ref())
            };
            work().map_err(|error: Error| match &plan {
                Some(plan) if error.kind() == Kind::Memory => error.at(parts(plan)),
                _ => error,
            })
        }
    }
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

    fn plan(&self, engine: &Engine) -> Result<Option<Plan>> {
        engine.plan(&folder::config(&self.recipe.model.path)?, &self.recipe)
    }

    fn run<O: Ops>(self, ops: O, plan: Option<&Plan>) -> Result<Value> {
        // The CPU's memory is not counted: it keeps all where the recipe does not say.
        let named = Saving::same(self.recipe.run.save.level().unwrap_or(Level::All));
        let saving = plan.map_or(named, |plan| plan.saving);
        train::run(ops, &self.recipe, saving, &self.out, self.resume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallback_says_why_and_what_to_do_in_one_line() {
        let error = Error::new(Kind::Device, "device cuda: too old").hint("update it");
        assert_eq!(
            fallback(&error),
            "note: --device auto uses the CPU: device cuda: too old; hint: update it"
        );
    }
}
