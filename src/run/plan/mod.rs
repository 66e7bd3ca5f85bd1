//! Memory of a run before it starts: what is resident, what grows with the tokens, what fits.
//!
//! Bytes are counted, not calculated: the model and the buffers of a run are built on a backend that adds up what the real
//! one would allocate ([`Counter`]).

mod count;
mod models;

use std::marker::PhantomData;

use serde::Serialize;

use self::count::Count;
use super::Recipe;
use crate::backend::counter::Counter;
use crate::backend::cpu::CpuSizes;
use crate::backend::gpu::{self, GpuSizes, Precision};
use crate::error::{Error, Kind, Result};
use crate::model::{Level, ModelConfig, Saving};
use crate::ops::StateMode;

pub use self::models::{MODELS, model};

/// One gibibyte, in bytes.
pub const GIB: f64 = 1073741824.0;

/// The device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Activations and frozen weights in fp32, logits in fp32.
    Cpu,
    /// Activations and frozen weights in bf16, one GPU.
    Cuda,
    /// Activations and frozen weights in fp32, one GPU.
    #[serde(rename = "cuda fp32")]
    CudaFp32,
}

impl Target {
    /// Returns a GPU that stores activations in `precision`.
    pub fn gpu(precision: Precision) -> Self {
        match precision {
            Precision::Bf16 => Self::Cuda,
            Precision::Fp32 => Self::CudaFp32,
        }
    }

    /// Makes a counter of the bytes that are allocated there.
    fn counter(self) -> Counter {
        match self {
            Self::Cpu => Counter::new(CpuSizes::<f32>(PhantomData)),
            Self::Cuda => Counter::new(GpuSizes(Precision::Bf16)),
            Self::CudaFp32 => Counter::new(GpuSizes(Precision::Fp32)),
        }
    }
}

/// A category of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Category {
    /// Its name.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: u64,
}

/// One way to keep layers, and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Activations saved of each layer.
    pub saving: Saving,
    /// Bytes that each token of a pack adds.
    pub bytes_per_token: u64,
    /// The largest pack that fits, in tokens.
    pub max_tokens: u64,
    /// Operations of a step that are done a second time.
    pub again_flop: f64,
    /// The seconds that these take at the rates assumed for bf16 on an H100, [`PRODUCT_RATE`] and [`ATTENTION_RATE`].
    pub again_seconds: f64,
}

/// Needs of the smallest run of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The state mode.
    pub state: &'static str,
    /// Activations saved of each layer.
    pub save: Level,
    /// Tokens of a pack.
    pub tokens: u64,
    /// All bytes.
    pub bytes: u64,
}

/// The memory of a run in one state mode.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// `exact` or `compact`.
    pub mode: &'static str,
    /// Parameters that train.
    pub trainable: u64,
    /// All parameters.
    pub parameters: u64,
    /// Resident bytes, by category.
    pub resident: Vec<Category>,
    /// Sum of the resident bytes.
    pub resident_bytes: u64,
    /// The resident bytes of parameters: weights, teacher, optimizer state, gradients, base model.
    pub state_bytes: u64,
    /// Activations saved of each layer for the backward pass.
    pub saving: Saving,
    /// Bytes that each token of a micro-batch adds.
    pub bytes_per_token: u64,
    /// Bytes that generation inside the run takes beside the rows that it borrows.
    pub evaluation_bytes: u64,
    /// Operations of a step that are done a second time, because their results were not kept.
    pub again_flop: f64,
    /// The seconds that these take at the rates assumed.
    pub again_seconds: f64,
    /// Cost of each level alone.
    pub levels: Vec<Choice>,
    /// The memory planned for.
    pub memory_bytes: u64,
    /// The largest pack that fits at the level that the recipe names, or at any; 0 where not even the resident bytes fit.
    pub max_tokens: u64,
    /// Documents of the forget context in it.
    pub forget_documents: u64,
    /// Documents of the retain context in it.
    pub retain_documents: u64,
    /// True if one document of the longest context fits.
    pub fits: bool,
    /// The longest context that is trained on or measured, in tokens.
    pub context: u64,
    /// Tokens of a pack as the recipe says, at least one document.
    pub pack_tokens: u64,
    /// Bytes of a run with packs of one document that keeps inputs alone.
    #[serde(skip)]
    needed: u64,
    /// Bytes of a run that keeps as little as the recipe allows, with packs of one document and with those of the recipe.
    #[serde(skip)]
    least_bytes: [u64; 2],
    /// Bytes of the run as planned, with packs of `pack_tokens`.
    #[serde(skip)]
    pub pack_bytes: u64,
    #[serde(skip)]
    count: Count,
}

/// Operations of a product in a second, assumed for bf16 on an H100 (the aim of docs/bench.md, not measured).
pub const PRODUCT_RATE: f64 = 680e12;
/// Operations of causal attention in a second, assumed likewise.
pub const ATTENTION_RATE: f64 = 400e12;

impl Plan {
    /// Counts the bytes of `recipe` on a model of `config` with state in `mode`, and what fits into `memory` bytes.
    ///
    /// Errors: those of a recipe whose method is not valid.
    pub fn new(
        config: &ModelConfig,
        recipe: &Recipe,
        mode: StateMode,
        target: Target,
        memory: u64,
    ) -> Result<Self> {
        let (forget, retain) = (recipe.data.forget_context, recipe.data.retain_context);
        let retained = recipe.method.penalty != "none";
        let measured = recipe.measured_context().unwrap_or(0);
        let context = forget.max(measured).max(if retained { retain } else { 0 }) as u64;
        let pack_tokens = context.max(recipe.run.pack_tokens as u64);
        let count = Count::new(config, recipe, mode, target, pack_tokens)?;
        let resident = count.resident(pack_tokens)?;
        let layout = &count.model.layout;
        // The CPU keeps all where the recipe does not say; the least that a device can do with is to keep inputs.
        let host = target == Target::Cpu;
        let named = recipe.run.save.level().or(host.then_some(Level::All)).map(Saving::same);
        let saving = match named {
            Some(saving) => saving,
            None => count.best(pack_tokens, memory)?,
        };
        let least = named.unwrap_or(Saving::same(Level::Input));
        let max_tokens = count.max_tokens(least, memory)?;
        let (again_flop, again_seconds) = count.again(saving);
        let levels = Level::ALL.map(|level| count.choice(Saving::same(level), memory));
        Ok(Self {
            mode: mode.name(),
            trainable: layout.trainable() as u64,
            parameters: layout.parameters() as u64,
            resident_bytes: resident.iter().map(|c| c.bytes).sum(),
            resident,
            state_bytes: count.state_bytes(),
            saving,
            bytes_per_token: count.per_token(saving)?,
            evaluation_bytes: count.evaluation(saving, pack_tokens)?,
            again_flop,
            again_seconds,
            levels: levels.into_iter().collect::<Result<_>>()?,
            memory_bytes: memory,
            max_tokens,
            forget_documents: max_tokens / forget.max(1) as u64,
            retain_documents: max_tokens / retain.max(1) as u64,
            fits: max_tokens >= context,
            context,
            pack_tokens,
            needed: count.bytes(Saving::same(Level::Input), context)?,
            least_bytes: [count.bytes(least, context)?, count.bytes(least, pack_tokens)?],
            pack_bytes: count.bytes(saving, pack_tokens)?,
            count,
        })
    }

    /// Returns what the smallest run takes in this state mode: packs of one document, of which layers keep their input.
    pub fn need(&self) -> Need {
        Need { state: self.mode, save: Level::Input, tokens: self.context, bytes: self.needed }
    }

    /// Counts the bytes of a run with packs of `tokens` tokens.
    pub fn bytes(&self, tokens: u64) -> Result<u64> {
        self.count.bytes(self.saving, tokens)
    }

    /// Returns the bytes of a run's own buffers on a GPU: without what driver and kernels take.
    pub fn buffer_bytes(&self) -> u64 {
        self.pack_bytes.saturating_sub(gpu::RESERVE)
    }

    /// Returns the bytes that a run allocates on a GPU at once: its buffers and the scratch of single ops.
    pub fn arena_bytes(&self) -> u64 {
        self.buffer_bytes() + gpu::OP_SCRATCH
    }

    /// Fails like [`Plan::require`], and also where a document fits and the recipe's packs do not.
    pub fn require_packs(&self) -> Result<()> {
        self.require()?;
        if self.max_tokens >= self.pack_tokens {
            return Ok(());
        }
        let [_, bytes] = self.least_bytes;
        let [needed, free] = apart(bytes, self.memory_bytes);
        Err(Error::new(
            Kind::Memory,
            format!(
                "plan: state {}: packs of {} tokens need {needed} GiB, memory is {free} GiB",
                self.mode, self.pack_tokens
            ),
        )
        .hint(format!(
            "ways out: --set run.pack_tokens={}; --set model.state=compact where not yet so; or a device with at \
             least {:.0} GiB",
            self.max_tokens,
            (bytes as f64 / GIB).ceil()
        )))
    }

    /// Fails with [`Kind::Memory`] and three ways out where not even one document fits.
    pub fn require(&self) -> Result<()> {
        if self.fits {
            return Ok(());
        }
        let [bytes, _] = self.least_bytes;
        let [needed, free] = apart(bytes, self.memory_bytes);
        let shorter = if self.max_tokens >= 2 {
            format!(
                "contexts of at most {} tokens (data.forget_context, data.retain_context, eval.context)",
                self.max_tokens
            )
        } else {
            "a smaller model".to_owned()
        };
        let first = if self.mode == "exact" {
            "--set model.state=compact (10 instead of 16 bytes a parameter)"
        } else {
            "--set model.train=body and --set optim.optimizer=sgd where not yet so"
        };
        Err(Error::new(
            Kind::Memory,
            format!(
                "plan: state {}: one document of {} tokens needs {needed} GiB, memory is {free} GiB",
                self.mode, self.context
            ),
        )
        .hint(format!(
            "ways out: {first}; {shorter}; or a device with at least {:.0} GiB",
            (bytes as f64 / GIB).ceil()
        )))
    }
}

/// Writes two numbers of bytes, of which the first is larger, in GiB with as many digits as it takes to tell them apart.
fn apart(larger: u64, smaller: u64) -> [String; 2] {
    let write = |digits: usize| [larger, smaller].map(|n| format!("{:.digits$}", n as f64 / GIB));
    // A byte is a billionth of a GiB.
    (1..9).map(write).find(|[a, b]| a != b).unwrap_or_else(|| write(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str, mode: StateMode, sets: &[&str]) -> Plan {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let recipe = Recipe::assemble(None, None, &sets).unwrap();
        Plan::new(&model(name).unwrap(), &recipe, mode, Target::Cuda, 80 << 30).unwrap()
    }

    #[test]
    fn llama_2_7b_compact_is_ten_bytes_a_trainable_parameter_and_two_a_frozen_one() {
        let plan = plan("llama-2-7b", StateMode::Compact, &[]);
        assert_eq!(plan.trainable, 6_476_005_376);
        assert_eq!(plan.parameters, 6_738_415_616);
        assert_eq!(plan.state_bytes, 10 * 6_476_005_376 + 2 * (6_738_415_616 - 6_476_005_376));
        assert_eq!(format!("{:.1}", plan.state_bytes as f64 / GIB), "60.8");
        assert!(plan.fits && plan.forget_documents >= 4, "{plan:?}");
    }

    #[test]
    fn llama_2_7b_exact_does_not_fit_and_says_three_ways_out() {
        let plan = plan("llama-2-7b", StateMode::Exact, &[]);
        assert_eq!(plan.state_bytes, 16 * plan.trainable + 2 * (plan.parameters - plan.trainable));
        assert_eq!(plan.max_tokens, 0);
        let error = plan.require().unwrap_err();
        assert_eq!(error.kind(), Kind::Memory);
        assert!(error.hint_text().is_some_and(|hint| hint.matches(';').count() == 2));
    }

    #[test]
    fn bytes_of_a_token_of_tiny_are_counted_by_hand() {
        // bf16 activations: C 128, qkv 256, HD 128, F 384, 5 layers.
        let all = 6 * 128 + 5 * (256 + 128 + 128 + 768) + (256 + 256 + 128) + 3 * 128 + 384;
        // fp32 statistics: two norms and 4 heads of each layer, the last norm, three results of rows, those of the base
        // model, and weights of documents. Packs: 15 words of three packs.
        let rows = |kept: u64| 4 * (kept * (2 + 4) + 1 + 3 + 3 + 1) + 3 * 15 * 4;
        let plan = plan("tiny", StateMode::Compact, &[]);
        let of = |level| plan.levels.iter().find(|c| c.saving.rest == level).unwrap();
        let counted = Level::ALL.map(|level| of(level).bytes_per_token);
        let words = |acts: u64, kept| 2 * acts + rows(kept);
        assert_eq!(
            counted,
            [
                words(all, 5),
                words(all - 4 * 768, 5),
                words(all - 4 * (768 + 256), 5),
                words(all - 4 * (768 + 256 + 256), 1)
            ]
        );
    }

    /// docs/gpu.md tells these figures.
    #[test]
    fn one_80_gb_gpu_runs_7b_without_a_second_product_and_8b_with_few() {
        let of = |name, mode, memory: u64| {
            let sets = ["run.pack_tokens=4096".to_owned()];
            let recipe = Recipe::assemble(Some("muse-news"), None, &sets).unwrap();
            Plan::new(&model(name).unwrap(), &recipe, mode, Target::Cuda, memory << 30).unwrap()
        };
        let plan = of("llama-2-7b", StateMode::Compact, 78);
        assert_eq!((plan.saving, plan.again_flop), (Saving::same(Level::All), 0.0));
        assert!(plan.require_packs().is_ok() && plan.evaluation_bytes == 0, "{plan:?}");
        let plan = of("llama-3-8b", StateMode::Compact, 78);
        assert!(plan.require_packs().is_ok() && plan.bytes(4096).unwrap() <= 78 << 30, "{plan:?}");
        assert!(plan.again_flop > 0.0 && plan.again_flop < plan.levels[1].again_flop, "{plan:?}");
        for name in ["llama-2-7b", "llama-3-8b"] {
            let plan = of(name, StateMode::Exact, 139);
            assert_eq!(plan.saving, Saving::same(Level::All), "{plan:?}");
            assert!(plan.require_packs().is_ok());
            let least = of(name, StateMode::Compact, 24);
            assert!(!least.fits && least.need().bytes > 60 << 30, "{least:?}");
            assert!(of(name, StateMode::Compact, least.need().bytes.div_ceil(1 << 30)).fits);
        }
    }

    #[test]
    fn less_memory_makes_more_again_until_nothing_fits() {
        let config = model("llama-2-7b").unwrap();
        let recipe = Recipe::assemble(None, None, &["run.pack_tokens=4096".into()]).unwrap();
        let mut last = 0.0;
        let mut kinds = std::collections::BTreeSet::new();
        for mib in (62 << 10..76 << 10).rev().step_by(256) {
            let plan =
                Plan::new(&config, &recipe, StateMode::Compact, Target::Cuda, mib << 20).unwrap();
            if plan.require_packs().is_err() {
                assert!(plan.levels[3].max_tokens < 4096);
                continue;
            }
            assert!(plan.bytes(4096).unwrap() <= mib << 20);
            assert!(plan.again_seconds >= last, "{mib} MiB: {plan:?}");
            last = plan.again_seconds;
            kinds.insert(plan.saving.rest);
        }
        assert!(kinds.len() >= 2, "{kinds:?}");
    }

    #[test]
    fn max_tokens_fit_and_one_more_does_not() {
        let plan = plan("llama-3.2-1b", StateMode::Exact, &["run.save=all"]);
        assert!(plan.bytes(plan.max_tokens).unwrap() <= plan.memory_bytes);
        assert!(plan.bytes(plan.max_tokens + 1).unwrap() > plan.memory_bytes);
    }

    #[test]
    fn adamw_adds_a_moment_npo_a_base_and_no_penalty_drops_the_teacher() {
        let of = |sets: &[&str], name: &str| {
            let plan = plan("smollm2-135m", StateMode::Exact, sets);
            plan.resident.iter().find(|c| c.name == name).map(|c| c.bytes)
        };
        let one = of(&[], "optimizer state").unwrap();
        assert_eq!(of(&["optim.optimizer=adamw"], "optimizer state"), Some(2 * one));
        // 61 gains of 576 bf16 numbers take 128 bytes more than they have.
        let base = 2 * 134_515_008 + 61 * 128;
        assert_eq!(of(&["method.loss=npo"], "base model"), Some(base));
        assert_eq!(of(&["method.penalty=none", "method.damping=0"], "teacher"), Some(0));
    }
}
