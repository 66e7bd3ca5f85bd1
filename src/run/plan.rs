//! Bytes before a run: what is resident, what grows with the tokens, what fits.
//!
//! Activations are counted buffer by buffer as [`crate::model::Workspace`] allocates them ([`Saving::numbers`]), the
//! evaluation inside a run as what it takes beside them ([`generate::beside`]); state as DESIGN's table of modes does. A
//! change there must be made here.

use serde::Serialize;

use super::Recipe;
use crate::backend::gpu::{PARTS_BYTES, Precision, chunk_rows, scan_bytes};
use crate::error::{Error, Kind, Result};
use crate::method::Rows;
use crate::method::projection::layers_at_once;
use crate::model::workspace::gains;
use crate::model::{Layout, Level, ModelConfig, Saving, generate};
use crate::ops::{StateMode, TeacherForm};
use crate::optim::Optimizer;

/// One gibibyte, in bytes.
pub const GIB: f64 = 1073741824.0;

/// Rows of the head that the CPU sweeps at once; their logits never exist for a whole pack.
const HEAD_ROWS: u64 = 1024;
/// What driver context, kernels and allocator granularity take of a GPU, in bytes.
const DEVICE_RESERVE: u64 = 1 << 30;
/// What single ops take for themselves at most, in bytes: beside the parts of weight gradients, 16 MiB.
const OP_SCRATCH: u64 = (16 << 20) + PARTS_BYTES;
/// Ids, targets, positions, document numbers (4 bytes each), three factors (8 each) of a token in the host's pack, and
/// its row result as f64.
const HOST_TOKEN_BYTES: u64 = 16 + 24 + 8;
/// What a device keeps of a token in a pack: 15 numbers of 4 bytes in two packs that take turns and one of the teacher's; a draw
/// and a picked id.
const DEVICE_TOKEN_BYTES: u64 = 3 * 15 * 4 + 12;

/// What computes.
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
}

/// Bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Category {
    /// What they hold.
    pub name: &'static str,
    /// How many.
    pub bytes: u64,
}

/// One way to keep layers, and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// What is kept of each layer.
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

/// What the smallest run of a recipe takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The state mode.
    pub state: &'static str,
    /// What is kept of each layer.
    pub save: Level,
    /// Tokens of a pack.
    pub tokens: u64,
    /// All bytes.
    pub bytes: u64,
}

/// The memory of a run in one state mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// What is kept of each layer for the backward pass.
    pub saving: Saving,
    /// Bytes that each token of a micro-batch adds.
    pub bytes_per_token: u64,
    /// Bytes that generation inside the run takes beside the rows that it borrows.
    pub evaluation_bytes: u64,
    /// Operations of a step that are done a second time, because their results were not kept.
    pub again_flop: f64,
    /// The seconds that these take at the rates assumed.
    pub again_seconds: f64,
    /// What each level would cost alone.
    pub levels: Vec<Choice>,
    /// The memory planned for.
    pub memory_bytes: u64,
    /// The largest pack that fits at the level that the recipe names, or at any; 0 where not even the resident bytes fit.
    pub max_tokens: u64,
    /// Documents of the forget context in it.
    pub forget_documents: u64,
    /// Documents of the retain context in it.
    pub retain_documents: u64,
    /// Whether one document of the longest context fits.
    pub fits: bool,
    /// The longest context that is trained on or measured, in tokens.
    pub context: u64,
    /// Tokens of a pack as the recipe says, at least one document.
    pub pack_tokens: u64,
    /// What keeps least of what the recipe allows.
    #[serde(skip)]
    least: Saving,
    #[serde(skip)]
    count: Count,
}

/// Operations of a product in a second, assumed for bf16 on an H100 (the aim of docs/bench.md, not measured).
pub const PRODUCT_RATE: f64 = 680e12;
/// Operations of causal attention in a second, assumed likewise.
pub const ATTENTION_RATE: f64 = 400e12;

/// What bytes and operations follow from.
#[derive(Debug, Clone, PartialEq)]
struct Count {
    config: ModelConfig,
    /// Bytes of an activation.
    number: u64,
    /// Bytes of a token in packs.
    pack: u64,
    resident: u64,
    /// Tokens of the longest prompt that is measured with its continuation.
    prompt: Option<usize>,
    /// Tokens that a step takes gradients of, and how many there are in a document.
    steps: [(f64, usize); 2],
}

impl Count {
    fn per_token(&self, saving: Saving) -> u64 {
        let numbers = saving.numbers(&self.config);
        // The passes have rows of weights and the results of the frozen model's head.
        self.number * numbers.acts + 4 * (numbers.stats + 4) + self.pack
    }

    fn evaluation(&self, saving: Saving, tokens: u64) -> u64 {
        let beside = |prompt| generate::beside(&self.config, saving, tokens as usize, prompt);
        self.prompt.map_or(0, |prompt| self.number * beside(prompt) as u64)
    }

    fn bytes(&self, saving: Saving, tokens: u64) -> u64 {
        let rows = self.per_token(saving).saturating_mul(tokens);
        self.resident.saturating_add(rows).saturating_add(self.evaluation(saving, tokens))
    }

    /// Returns the largest pack that fits. Smaller packs may lend generation less and so need more beside them.
    fn max_tokens(&self, saving: Saving, memory: u64) -> u64 {
        let room = |beside: u64| {
            memory.saturating_sub(self.resident).saturating_sub(beside) / self.per_token(saving)
        };
        let mut tokens = room(0);
        while tokens > 0 && self.bytes(saving, tokens) > memory {
            tokens = room(self.evaluation(saving, tokens)).min(tokens - 1);
        }
        tokens
    }

    /// Returns the operations and the seconds of a step that are spent on making rows again.
    fn again(&self, saving: Saving) -> (f64, f64) {
        let each = self.steps.map(|(tokens, context)| {
            let [products, attention] = saving.again_flop(&self.config, context);
            let seconds = products / PRODUCT_RATE + attention / ATTENTION_RATE;
            (tokens * (products + attention), tokens * seconds)
        });
        (each[0].0 + each[1].0, each[0].1 + each[1].1)
    }

    fn choice(&self, saving: Saving, memory: u64) -> Choice {
        let (again_flop, again_seconds) = self.again(saving);
        Choice {
            saving,
            bytes_per_token: self.per_token(saving),
            max_tokens: self.max_tokens(saving, memory),
            again_flop,
            again_seconds,
        }
    }

    /// Returns the choice that spends least on making rows again, and of those the one of fewest bytes, among all whose
    /// packs of `tokens` tokens fit; the one that keeps least where none does.
    fn best(&self, tokens: u64, memory: u64) -> Saving {
        Saving::choices(self.config.layers)
            .map(|saving| (saving, self.again(saving).1, self.bytes(saving, tokens)))
            .filter(|(.., bytes)| *bytes <= memory)
            .min_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)))
            .map_or(Saving::same(Level::Input), |(saving, ..)| saving)
    }
}

/// Returns the bytes of a shield: both forms of each matrix' subspace, the sums of layers that they are found from, and
/// the rows that are projected.
fn shield_bytes(config: &ModelConfig, rank: u64, number: u64, tokens: u64) -> u64 {
    let hd = (config.heads * config.head_width) as u64;
    let (c, f) = (config.width as u64, config.ffn as u64);
    let widths = [c, hd, c, f];
    let bases: u64 = widths.iter().map(|width| 2 * number * width * rank.min(*width)).sum();
    let layers = layers_at_once(widths.map(|width| width as usize), config.layers) as u64;
    let sums: u64 = layers * widths.iter().map(|width| 4 * width * width).sum::<u64>();
    let widest = widths.into_iter().max().unwrap_or(0);
    config.layers as u64 * bases + sums + number * tokens * (rank.min(widest) + widest)
}

impl Plan {
    /// Counts the bytes of `recipe` on a model of `config` with state in `mode`, and what fits into `memory` bytes.
    pub fn new(
        config: &ModelConfig,
        recipe: &Recipe,
        mode: StateMode,
        target: Target,
        memory: u64,
    ) -> Self {
        let layout = Layout::new(config, recipe.train());
        let (all, trained) = (layout.parameters() as u64, layout.trainable() as u64);
        let form = recipe.teacher(mode);
        let kept = mode.bytes();
        let trained_bytes = |each: f64| (each * trained as f64) as u64;
        let number = if target == Target::Cuda { 2 } else { 4 };
        let moments = if recipe.optim.optimizer == Optimizer::Adamw { 2.0 } else { 1.0 };
        let loss = recipe.method().ok().map(|method| method.loss().rows(&recipe.method.knobs));
        let has_base = loss.is_some_and(Rows::reads_base);
        let teacher = if form == TeacherForm::None { 0.0 } else { kept.teacher };
        let penalties = [&recipe.method.penalty, &recipe.method.second_penalty];
        let penalties = penalties.into_iter().filter(|name| *name != "none").count() as u64;
        let buffers = 1 + if recipe.method.combine == "sum" { 0 } else { penalties };
        let mut resident = vec![
            Category { name: "weights, trainable", bytes: trained_bytes(kept.weights) },
            Category { name: "weights, frozen", bytes: number * (all - trained) },
            Category { name: "teacher", bytes: trained_bytes(teacher) },
            Category { name: "optimizer state", bytes: trained_bytes(moments * kept.moment) },
            Category { name: "gradients", bytes: buffers * trained_bytes(kept.gradient) },
        ];
        if has_base {
            resident.push(Category { name: "base model", bytes: number * all });
        }
        let state_bytes = resident.iter().map(|c| c.bytes).sum();
        let (forget, retain) = (recipe.data.forget_context, recipe.data.retain_context);
        let retain_used = recipe.method.penalty != "none";
        let measured = recipe.measured_context().unwrap_or(0);
        let context = forget.max(measured).max(if retain_used { retain } else { 0 }) as u64;
        let pack_tokens = context.max(recipe.run.pack_tokens as u64);
        let (vocab, width) = (config.vocab as u64, config.width as u64);
        // Those of the student and of the teacher; a device keeps differences of hidden rows too.
        let logits = match target {
            Target::Cpu => HEAD_ROWS * vocab * 4 * if retain_used { 2 } else { 1 },
            _ => {
                let blocks = layout.blocks.iter().filter(|block| block.trainable);
                let bytes: u64 = blocks.map(|block| scan_bytes(block.len())).sum();
                let category =
                    Category { name: "partial scans of gradients", bytes: bytes * buffers };
                resident.push(category);
                let rows = (chunk_rows(config.vocab) as u64).min(pack_tokens);
                rows * (2 * 4 * vocab + number * width)
            }
        };
        resident.push(Category { name: "logits chunk", bytes: logits });
        if recipe.method.shield > 0.0 {
            let bytes = shield_bytes(config, recipe.method.shield_rank as u64, number, pack_tokens);
            resident.push(Category { name: "subspaces", bytes });
        }
        // Split weights and a teacher kept as drift are shown through a scratch, layer by layer; a device that computes
        // in bf16 shows all.
        let shown =
            mode != StateMode::Exact || form == TeacherForm::Drift || target == Target::Cuda;
        let block = |b: usize| layout.blocks[b].len() as u64;
        let mut scratch = 2 * gains(config) as u64;
        if shown {
            scratch += 2 * layout.longest_layer_block() as u64;
            // Student and teacher are shown at once at the head.
            let (head, bias) = (Some(layout.head), layout.head_bias);
            let ends = [Some(layout.embed), layout.positions, head, head, bias, bias];
            let shown = ends.into_iter().flatten().filter(|b| layout.blocks[*b].trainable);
            scratch += shown.map(block).sum::<u64>();
        }
        resident.push(Category { name: "scratch", bytes: number * scratch });
        if target != Target::Cpu {
            resident.push(Category { name: "driver and kernels", bytes: DEVICE_RESERVE });
        }
        let resident_bytes: u64 = resident.iter().map(|c| c.bytes).sum();
        let host = target == Target::Cpu;
        let run = &recipe.run;
        let tokens =
            |accum: usize, context: usize| ((run.micro_batch * accum * context) as f64, context);
        let retained = if retain_used { run.kl_accum_steps } else { 0 };
        let count = Count {
            config: config.clone(),
            number,
            pack: if host { HOST_TOKEN_BYTES } else { DEVICE_TOKEN_BYTES },
            resident: resident_bytes,
            // The CPU's caches are given back.
            prompt: recipe.longest_prompt().filter(|_| !host),
            steps: [tokens(run.forget_accum_steps, forget), tokens(retained, retain)],
        };
        // The CPU keeps all where the recipe does not say; the least that a device can do with is to keep inputs.
        let named = run.save.level().or(host.then_some(Level::All)).map(Saving::same);
        let saving = named.unwrap_or_else(|| count.best(pack_tokens, memory));
        let least = named.unwrap_or(Saving::same(Level::Input));
        let max_tokens = count.max_tokens(least, memory);
        let (again_flop, again_seconds) = count.again(saving);
        Self {
            mode: mode.name(),
            trainable: trained,
            parameters: all,
            resident,
            resident_bytes,
            state_bytes,
            saving,
            bytes_per_token: count.per_token(saving),
            evaluation_bytes: count.evaluation(saving, pack_tokens),
            again_flop,
            again_seconds,
            levels: Level::ALL.map(|level| count.choice(Saving::same(level), memory)).to_vec(),
            memory_bytes: memory,
            max_tokens,
            forget_documents: max_tokens / forget.max(1) as u64,
            retain_documents: max_tokens / retain.max(1) as u64,
            fits: max_tokens >= context,
            context,
            pack_tokens,
            least,
            count,
        }
    }

    /// Returns what the smallest run takes in this state mode: packs of one document, of which layers keep their input.
    pub fn need(&self) -> Need {
        let bytes = self.count.bytes(Saving::same(Level::Input), self.context);
        Need { state: self.mode, save: Level::Input, tokens: self.context, bytes }
    }

    /// Returns the bytes a run with packs of `tokens` tokens takes.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.count.bytes(self.saving, tokens)
    }

    /// Returns the bytes of a run that keeps as little of its layers as it may.
    fn least_bytes(&self, tokens: u64) -> u64 {
        self.count.bytes(self.least, tokens)
    }

    /// Returns the bytes of a run's own buffers on a GPU: without what driver and kernels take.
    pub fn buffer_bytes(&self) -> u64 {
        self.bytes(self.pack_tokens).saturating_sub(DEVICE_RESERVE)
    }

    /// Returns the bytes that a run takes on a GPU at once: its buffers, the rounding of their sizes and the scratch of
    /// single ops, for which what is left to driver and kernels has room.
    pub fn arena_bytes(&self) -> u64 {
        self.buffer_bytes() + self.buffer_bytes() / 512 + OP_SCRATCH
    }

    /// Fails like [`Plan::require`], and also where a document fits and the recipe's packs do not.
    pub fn require_packs(&self) -> Result<()> {
        self.require()?;
        if self.max_tokens >= self.pack_tokens {
            return Ok(());
        }
        let bytes = self.least_bytes(self.pack_tokens);
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
        let bytes = self.least_bytes(self.context);
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

/// Models whose shape is known without a folder, by name, as config.json.
pub const MODELS: [(&str, &str); 5] = [
    (
        "llama-2-7b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":32000,"hidden_size":4096,
        "num_hidden_layers":32,"num_attention_heads":32,"intermediate_size":11008}"#,
    ),
    (
        "llama-3-8b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":128256,"hidden_size":4096,
        "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":128256,"hidden_size":2048,
        "num_hidden_layers":16,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,
        "intermediate_size":8192,"tie_word_embeddings":true}"#,
    ),
    (
        "smollm2-135m",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":49152,"hidden_size":576,
        "num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"intermediate_size":1536,
        "tie_word_embeddings":true}"#,
    ),
    (
        "tiny",
        r#"{"model_type":"llama","hidden_act":"silu","vocab_size":1024,"hidden_size":128,
        "num_hidden_layers":5,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,
        "intermediate_size":384,"tie_word_embeddings":true}"#,
    ),
];

/// Returns the configuration of one of [`MODELS`].
pub fn model(name: &str) -> Result<ModelConfig> {
    match MODELS.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => ModelConfig::parse(text),
        None => Err(Error::config(format!("--params-preset {name}: unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str, mode: StateMode, sets: &[&str]) -> Plan {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let recipe = Recipe::assemble(None, None, &sets).unwrap();
        Plan::new(&model(name).unwrap(), &recipe, mode, Target::Cuda, 80 << 30)
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
    fn numbers_of_tiny_are_counted_by_hand() {
        // C 128, qkv 256, hd 128, F 384, L 5: 6*128 + 5*(256+128+128+768) + (256+256+128) + 3*128 + 384
        let numbers = |level| Saving::same(level).numbers(&model("tiny").unwrap());
        assert_eq!((numbers(Level::All).acts, numbers(Level::All).stats), (8576, 5 * 6 + 4));
        assert_eq!(numbers(Level::Attention).acts, 8576 - 4 * 768);
        assert_eq!(numbers(Level::Residual).acts, 8576 - 4 * (768 + 256));
        let input = numbers(Level::Input);
        assert_eq!((input.acts, input.stats), (8576 - 4 * (768 + 256 + 256), 6 + 4));
    }

    /// docs/gpu.md tells these figures.
    #[test]
    fn one_80_gb_gpu_runs_7b_without_a_second_product_and_8b_with_few() {
        let of = |name, mode, memory: u64| {
            let sets = ["run.pack_tokens=4096".to_owned()];
            let recipe = Recipe::assemble(Some("muse-news"), None, &sets).unwrap();
            Plan::new(&model(name).unwrap(), &recipe, mode, Target::Cuda, memory << 30)
        };
        let plan = of("llama-2-7b", StateMode::Compact, 78);
        assert_eq!((plan.saving, plan.again_flop), (Saving::same(Level::All), 0.0));
        assert!(plan.require_packs().is_ok() && plan.evaluation_bytes == 0, "{plan:?}");
        let plan = of("llama-3-8b", StateMode::Compact, 78);
        assert!(plan.require_packs().is_ok() && plan.bytes(4096) <= 78 << 30, "{plan:?}");
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
            let plan = Plan::new(&config, &recipe, StateMode::Compact, Target::Cuda, mib << 20);
            if plan.require_packs().is_err() {
                assert!(plan.levels[3].max_tokens < 4096);
                continue;
            }
            assert!(plan.bytes(4096) <= mib << 20);
            assert!(plan.again_seconds >= last, "{mib} MiB: {plan:?}");
            last = plan.again_seconds;
            kinds.insert(plan.saving.rest);
        }
        assert!(kinds.len() >= 2, "{kinds:?}");
    }

    #[test]
    fn max_tokens_fit_and_one_more_does_not() {
        let plan = plan("llama-3.2-1b", StateMode::Exact, &["run.save=all"]);
        assert!(plan.bytes(plan.max_tokens) <= plan.memory_bytes);
        assert!(plan.bytes(plan.max_tokens + 1) > plan.memory_bytes);
    }

    #[test]
    fn adamw_adds_a_moment_npo_a_base_and_no_penalty_drops_the_teacher() {
        let of = |sets: &[&str], name: &str| {
            let plan = plan("smollm2-135m", StateMode::Exact, sets);
            plan.resident.iter().find(|c| c.name == name).map(|c| c.bytes)
        };
        let one = of(&[], "optimizer state").unwrap();
        assert_eq!(of(&["optim.optimizer=adamw"], "optimizer state"), Some(2 * one));
        assert_eq!(of(&["method.loss=npo"], "base model"), Some(2 * 134_515_008));
        assert_eq!(of(&["method.penalty=none", "method.damping=0"], "teacher"), Some(0));
    }
}
