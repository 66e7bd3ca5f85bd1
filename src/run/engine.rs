//! The device of a run: choosing it, planning its memory, and handing the work to its backend.

use std::sync::Arc;

use super::plan::{Plan, Target};
use super::recipe::Recipe;
use crate::backend::cpu::{Cpu, on_worker};
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::{self, Gpu, Precision};
use crate::error::{Error, Kind, Result};
use crate::model::{Layout, ModelConfig};
use crate::ops::Ops;
use crate::report::units::bytes;

/// A device in use.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Engine {
    /// All cores of this machine.
    Cpu,
    /// A GPU, or the simulator in its place: its driver, the precision of activations, and its name in results.
    Gpu(Arc<dyn Driver>, Precision, &'static str),
}

impl Engine {
    /// Takes the first NVIDIA GPU into use; CUDA_VISIBLE_DEVICES selects it.
    ///
    /// Errors: [`crate::Kind::Device`] with the reason and a way out.
    pub fn cuda(precision: Precision) -> Result<Self> {
        Ok(Self::Gpu(gpu::open()?, precision, "cuda"))
    }

    /// Takes the first NVIDIA GPU into use, or the CPU where there is none; then with the reason if the machine seems to
    /// have one.
    pub fn auto(precision: Precision) -> (Self, Option<Error>) {
        match Self::cuda(precision) {
            Ok(engine) => (engine, None),
            Err(error) => (Self::Cpu, gpu::probe::expected().then_some(error)),
        }
    }

    /// Returns the name of the device, as its driver tells it; `None` for the CPU.
    pub fn device(&self) -> Option<String> {
        match self {
            Self::Cpu => None,
            Self::Gpu(driver, ..) => Some(driver.identity().name.clone()),
        }
    }

    /// Returns the name of the backend.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(_, _, name) => name,
        }
    }

    /// Returns the name of what activations are stored in.
    pub fn precision_name(&self) -> &'static str {
        match self {
            Self::Gpu(_, Precision::Bf16, _) => "bf16",
            Self::Cpu | Self::Gpu(_, Precision::Fp32, _) => "fp32",
        }
    }

    /// Counts the bytes of a run on a GPU, before anything is loaded; `None` on the CPU.
    ///
    /// Errors: [`crate::Kind::Memory`] with the bytes of each category and ways to reduce them if free memory is too small.
    pub fn plan(&self, config: &ModelConfig, recipe: &Recipe) -> Result<Option<Plan>> {
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
pub trait Job {
    /// Its result.
    type Out;
    /// Counts the bytes it will take on a GPU, where it knows them.
    fn plan(&self, _engine: &Engine) -> Result<Option<Plan>> {
        Ok(None)
    }
    /// Does the work on `ops`, as planned where there is a plan.
    fn run<O: Ops>(self, ops: O, plan: Option<&Plan>) -> Result<Self::Out>;
}

/// Does `job` on `engine`.
pub fn compute<J>(engine: &Engine, job: J) -> Result<J::Out>
where
    J: Job + Send,
    J::Out: Send,
{
    match engine {
        Engine::Cpu => on_worker(|| job.run(Cpu::<f32>::new(), None)),
        Engine::Gpu(driver, precision, _) => {
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
