//! The memory that a plan counts against what a run takes.

use crate::step::{Job, V, batches, job};
use crate::support::Random;
use crate::support::model::weights;
use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::backend::gpu::{Gpu, Precision};
use nepenthe::method::passes::Passes;
use nepenthe::method::{FORGET, Knobs, MeanTeacher, Method, WeightRule};
use nepenthe::model::generate::{Choice, Request};
use nepenthe::model::{Model, ModelConfig};
use nepenthe::ops::StateMode;
use nepenthe::run::Recipe;
use nepenthe::run::plan::{Plan, Target};

/// A run with an evaluation inside takes one slab of the size that the plan counts, and fills it, at every level of what
/// is kept.
#[test]
fn plan_counts_the_memory_of_a_run() {
    const MEDIUM: &str = r#"{"model_type":"llama","hidden_size":128,"num_attention_heads":2,
        "num_key_value_heads":1,"head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":3,
        "intermediate_size":384,"rms_norm_eps":1e-5}"#;
    // Caches as wide as the residual stream: where only inputs are kept, rows cannot lend what a prompt needs.
    const WIDE: &str = r#"{"model_type":"llama","hidden_size":128,"num_attention_heads":2,
        "head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":8,
        "intermediate_size":128,"rms_norm_eps":1e-5}"#;
    // Tables that train, norms of two statistics, and a head that is the embedding.
    const OLDER: &str = r#"{"model_type":"gpt2","n_embd":128,"n_head":2,"n_layer":3,"n_positions":128,
        "activation_function":"gelu_new","vocab_size":101}"#;
    // An embedding that trains below a head that does not.
    const BESIDE: &str = r#"{"model_type":"gpt_neox","hidden_size":128,"num_attention_heads":2,
        "hidden_act":"gelu","vocab_size":101,"num_hidden_layers":3,"intermediate_size":384}"#;
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    let mut beside = Vec::new();
    for (config, mode, precision, optimizer, save, tokens) in [
        (MEDIUM, StateMode::Compact, Precision::Bf16, "sgd", "all", 2048),
        (MEDIUM, StateMode::Exact, Precision::Bf16, "adamw", "attention", 2048),
        (MEDIUM, StateMode::Exact, Precision::Fp32, "sgd", "residual", 2048),
        (MEDIUM, StateMode::Compact, Precision::Bf16, "sgd", "input", 2048),
        (MEDIUM, StateMode::Compact, Precision::Bf16, "sgd", "auto", 2048),
        (OLDER, StateMode::Compact, Precision::Bf16, "sgd", "attention", 2048),
        (BESIDE, StateMode::Compact, Precision::Bf16, "sgd", "residual", 2048),
        (WIDE, StateMode::Compact, Precision::Bf16, "sgd", "input", 64),
    ] {
        let Ok(driver) = Simulator::open(Timing::ALL[0]) else { return };
        let sets = [
            format!("optim.optimizer={optimizer}"),
            format!("run.pack_tokens={tokens}"),
            format!("run.save={save}"),
            "data.forget_context=48".to_owned(),
            "data.retain_context=48".to_owned(),
            "eval.verbmem_forget=prompts.json".to_owned(),
            "eval.context=64".to_owned(),
            "eval.max_new_tokens=40".to_owned(),
        ];
        let recipe = Recipe::assemble(None, None, &sets).unwrap();
        let parsed = ModelConfig::parse(config).unwrap();
        // The middle between what all and what least takes, for `auto`.
        let of =
            |memory| Plan::new(&parsed, &recipe, mode, Target::gpu(precision), memory).unwrap();
        let all = of(u64::MAX).bytes(tokens).unwrap();
        let memory =
            if save == "auto" { (all + of(0).bytes(tokens).unwrap()) / 2 } else { u64::MAX };
        let plan = of(memory);
        if save == "auto" {
            assert!(plan.saving.first > 0 && plan.bytes(tokens).unwrap() <= memory, "{plan:?}");
        }
        beside.push(plan.evaluation_bytes);
        let (planned, slab) = (plan.buffer_bytes(), plan.arena_bytes());
        let ops = Gpu::new(driver, precision, slab).unwrap();
        let job = Job {
            config,
            mode,
            rule: recipe.optim.rule(),
            pack: plan.pack_tokens as usize,
            ..job(config, nlul, Some(1))
        };
        let keep = recipe.keeping(mode);
        let folder = tempfile::tempdir().unwrap();
        let student = weights(&parsed, 51, folder.path());
        let model = Model::load(&ops, parsed.clone(), &student, &keep).unwrap();
        let passes = Passes::saving(&ops, &model, job.pack, Some(plan.saving)).unwrap();
        let beta = WeightRule::Constant(recipe.method.retain_weight);
        let penalty = job.penalty.map(|penalty| (penalty, beta));
        let loss = (job.loss, recipe.method.forget_weight);
        let method = Method::new(loss, penalty, Knobs::default());
        let mut run = MeanTeacher::new(model, None, passes, method, recipe.settings());
        let mut random = Random::new(13);
        let prompts: Vec<Vec<u32>> =
            [64, 3].map(|len| (0..len).map(|_| random.below(V) as u32).collect()).to_vec();
        let request = Request {
            max_new_tokens: recipe.eval.max_new_tokens,
            end_tokens: vec![],
            choice: Choice::Greedy,
            batch: recipe.eval.batch,
        };
        for _ in 0..2 {
            let (forget, retain) = batches(&mut random, 0);
            run.step(&ops, &forget, &retain).unwrap();
            let MeanTeacher { model, passes, .. } = &mut run;
            let outputs = passes.generate(&ops, model, &prompts, &request).unwrap();
            assert!(outputs.iter().all(|ids| ids.len() == 40));
        }
        let (held, used) = ops.bytes();
        let name = format!("{mode:?} {precision:?} {save}");
        eprintln!("{name}: planned {planned}, used {used}, held {held}");
        assert_eq!(held, slab, "{name}: the run took more than its slab");
        // Every buffer is counted to the byte; single ops of these shapes take less than 1 MiB beside them.
        assert!((planned..planned + (1 << 20)).contains(&used), "{name}: {used} of {planned}");
    }
    assert!(beside[..7].iter().all(|bytes| *bytes == 0) && beside[7] > 0, "{beside:?}");
}
