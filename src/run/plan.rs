//! Bytes before a run: what is resident, what grows with the tokens, what fits.
//!
//! Activations are counted buffer by buffer as [`crate::model::Workspace`] allocates them; state as DESIGN's table of
//! modes does. A change there must be made here.

use serde::Serialize;

use super::Recipe;
use crate::backend::gpu::{Precision, chunk_rows};
use crate::error::{Error, Kind, Result};
use crate::method::Rows;
use crate::model::{Layout, ModelConfig};
use crate::ops::{StateMode, TeacherForm};
use crate::optim::Optimizer;

/// One gibibyte, in bytes.
pub const GIB: f64 = 1073741824.0;

/// Rows of the head that the CPU sweeps at once; their logits never exist for a whole pack.
const HEAD_ROWS: u64 = 1024;
/// What driver context, kernels and allocator granularity take of a GPU, in bytes.
const DEVICE_RESERVE: u64 = 1 << 30;
/// What single ops take for themselves at most, in bytes.
const OP_SCRATCH: u64 = 16 << 20;
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
    /// Bytes that each token of a micro-batch adds.
    pub bytes_per_token: u64,
    /// The memory planned for.
    pub memory_bytes: u64,
    /// The largest pack that fits, in tokens; 0 where not even the resident bytes fit.
    pub max_tokens: u64,
    /// Documents of the forget context in it.
    pub forget_documents: u64,
    /// Documents of the retain context in it.
    pub retain_documents: u64,
    /// Whether one document of the longer context fits.
    pub fits: bool,
    /// The longer of both contexts, in tokens.
    pub context: u64,
    /// Tokens of a pack as the recipe says, at least one document.
    pub pack_tokens: u64,
}

/// Numbers of activations and statistics that [`crate::model::Workspace`] keeps for one token when training.
pub fn workspace_per_token(config: &ModelConfig) -> (u64, u64) {
    let heads = config.heads(0);
    let (c, f, l) = (config.width as u64, config.ffn as u64, config.layers as u64);
    let (qkv, hd) = (heads.qkv_width() as u64, heads.out_width() as u64);
    let (h, g) = (heads.h as u64, heads.g as u64);
    let norm = u64::from(config.qk_norm);
    let saved = (1 + norm) * qkv + hd + c + 2 * f;
    let saved_stats = 2 + h + norm * (h + g);
    let flow = 2 * c + qkv + hd;
    // normed, h, h_ref; act; rstd and three row results, and the two rows of Passes.
    let acts = (l + 1) * c + l * saved + flow + 3 * c + f;
    (acts, l * saved_stats + 6)
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
        let exact = mode == StateMode::Exact;
        let form = recipe.teacher(mode);
        let number = if target == Target::Cuda { 2 } else { 4 };
        let moments = if recipe.optim.optimizer == Optimizer::Adamw { 2 } else { 1 };
        let loss = recipe.method().ok().map(|method| method.loss.rows(&recipe.method.knobs));
        let has_base = loss.is_some_and(Rows::reads_base);
        let teacher = match form {
            TeacherForm::None => 0,
            _ if exact => 4,
            _ => 2,
        };
        let kept = if exact { 4 } else { 2 };
        let buffers = if recipe.method.combine == "sum" { 1 } else { 2 };
        let mut resident = vec![
            Category { name: "weights, trainable", bytes: 4 * trained },
            Category { name: "weights, frozen", bytes: number * (all - trained) },
            Category { name: "teacher", bytes: teacher * trained },
            Category { name: "optimizer state", bytes: moments * kept * trained },
            Category { name: "gradients", bytes: kept * trained * buffers },
        ];
        if has_base {
            resident.push(Category { name: "base model", bytes: number * all });
        }
        let state_bytes = resident.iter().map(|c| c.bytes).sum();
        let (forget, retain) = (recipe.data.forget_context, recipe.data.retain_context);
        let retain_used = recipe.method.penalty != "none";
        let context = if retain_used { forget.max(retain) } else { forget } as u64;
        let pack_tokens = context.max(recipe.run.pack_tokens as u64);
        let (vocab, width) = (config.vocab as u64, config.width as u64);
        // Those of the student and of the teacher; a device keeps differences of hidden rows too.
        let logits = match target {
            Target::Cpu => HEAD_ROWS * vocab * 4 * if retain_used { 2 } else { 1 },
            _ => {
                let rows = (chunk_rows(config.vocab) as u64).min(pack_tokens);
                rows * (2 * 4 * vocab + number * width)
            }
        };
        resident.push(Category { name: "logits chunk", bytes: logits });
        // Split weights and a teacher kept as drift are shown through a scratch, layer by layer; a device that computes
        // in bf16 shows all.
        let shown = !exact || form == TeacherForm::Drift || target == Target::Cuda;
        let block = |b: usize| layout.blocks[b].len() as u64;
        let mut scratch = 2 * config.head_width as u64;
        if shown {
            scratch += 2 * layout.longest_layer_block() as u64;
            if layout.blocks[layout.embed].trainable {
                scratch += block(layout.embed) + 2 * block(layout.head);
            }
        }
        resident.push(Category { name: "scratch", bytes: number * scratch });
        if target != Target::Cpu {
            resident.push(Category { name: "driver and kernels", bytes: DEVICE_RESERVE });
        }
        let resident_bytes: u64 = resident.iter().map(|c| c.bytes).sum();
        let (acts, stats) = workspace_per_token(config);
        let host = target == Target::Cpu;
        let pack = if host { HOST_TOKEN_BYTES } else { DEVICE_TOKEN_BYTES };
        let bytes_per_token = number * acts + 4 * stats + pack;
        let max_tokens = memory.saturating_sub(resident_bytes) / bytes_per_token;
        Self {
            mode: if exact { "exact" } else { "compact" },
            trainable: trained,
            parameters: all,
            resident,
            resident_bytes,
            state_bytes,
            bytes_per_token,
            memory_bytes: memory,
            max_tokens,
            forget_documents: max_tokens / forget.max(1) as u64,
            retain_documents: max_tokens / retain.max(1) as u64,
            fits: max_tokens >= context,
            context,
            pack_tokens,
        }
    }

    /// Returns the bytes a run with packs of `tokens` tokens takes.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.resident_bytes.saturating_add(self.bytes_per_token.saturating_mul(tokens))
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
        let [needed, free] =
            [self.bytes(self.pack_tokens), self.memory_bytes].map(|bytes| bytes as f64 / GIB);
        Err(Error::new(
            Kind::Memory,
            format!(
                "plan: state {}: packs of {} tokens need {needed:.1} GiB, memory is {free:.1} GiB",
                self.mode, self.pack_tokens
            ),
        )
        .hint(format!(
            "ways out: --set run.pack_tokens={}; --set model.state=compact where not yet so; or a device with at \
             least {:.0} GiB",
            self.max_tokens,
            needed.ceil()
        )))
    }

    /// Fails with [`Kind::Memory`] and three ways out where not even one document fits.
    pub fn require(&self) -> Result<()> {
        if self.fits {
            return Ok(());
        }
        let needed = self.bytes(self.context) as f64 / GIB;
        let shorter = if self.max_tokens >= 2 {
            format!(
                "contexts of at most {} tokens (data.forget_context, data.retain_context)",
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
                "plan: state {}: one document of {} tokens needs {needed:.1} GiB, memory is {:.1} GiB",
                self.mode,
                self.context,
                self.memory_bytes as f64 / GIB
            ),
        )
        .hint(format!(
            "ways out: {first}; {shorter}; or a device with at least {:.0} GiB",
            needed.ceil()
        )))
    }
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
    fn workspace_per_token_of_tiny_is_counted_by_hand() {
        // C 128, qkv 256, hd 128, F 384, L 5: 6*128 + 5*(256+128+128+768) + (256+256+128) + 3*128 + 384
        assert_eq!(workspace_per_token(&model("tiny").unwrap()), (8576, 5 * 6 + 6));
    }

    #[test]
    fn max_tokens_fit_and_one_more_does_not() {
        let plan = plan("llama-3.2-1b", StateMode::Exact, &[]);
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
