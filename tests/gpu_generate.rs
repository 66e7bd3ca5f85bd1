//! Generation with a small model, in the simulator and on the CPU: the same tokens, greedy and drawn.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod support;

use nepenthe::backend::cpu::Cpu;
use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::backend::gpu::{Gpu, Precision};
use nepenthe::model::generate::{Choice, Request, generate};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig};
use nepenthe::ops::{Ops, Sampling};
use support::Random;
use support::model::weights;

/// Grouped heads, a head that is no matrix of whole tiles, an ffn that fills no tile.
const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":2,"num_key_value_heads":1,
    "head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":88,
    "rms_norm_eps":1e-5}"#;
/// Biases, head norms, a head width without tensor-core attention, a tied head.
const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":12,"hidden_act":"silu","vocab_size":404,"num_hidden_layers":2,"intermediate_size":41,
    "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;

fn continued<O: Ops>(ops: &O, config: &str, request: &Request) -> Vec<Vec<u32>> {
    let config = ModelConfig::parse(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = weights(&config, "generation", folder.path());
    let mut random = Random::new("prompts");
    let prompts: Vec<Vec<u32>> = [5, 1, 17, 3, 9]
        .map(|len| (0..len).map(|_| random.below(config.vocab) as u32).collect())
        .to_vec();
    let mut model = Model::load(ops, config, &file, &Keeping::inference()).unwrap();
    generate(ops, &mut model, &prompts, request).unwrap()
}

fn gpu(precision: Precision) -> Option<Gpu> {
    match Simulator::open(Timing::ALL[0]) {
        Ok(driver) => Some(Gpu::guarded(driver, precision).unwrap()),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Holds the tokens of the simulator to those of the CPU, in one batch and in several.
fn compare(config: &str, choice: Choice, precision: Precision) {
    let Some(first) = gpu(precision) else { return };
    let request = Request { max_new_tokens: 12, end_tokens: vec![], choice, batch: 2 };
    let want = continued(&Cpu::<f32>::new(), config, &request);
    assert!(want.iter().all(|ids| ids.len() == 12), "{want:?}");
    assert_eq!(continued(&first, config, &request), want, "{choice:?} {precision:?}");
    // Ends in the middle of one of them, while others go on.
    let request = Request { end_tokens: vec![want[2][4]], batch: 5, ..request };
    let want = continued(&Cpu::<f32>::new(), config, &request);
    assert!(want[2].len() <= 5);
    assert_eq!(continued(&first, config, &request), want, "{choice:?} {precision:?} {request:?}");
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    for config in [LLAMA, QWEN3] {
        compare(config, Choice::Greedy, Precision::Fp32);
        compare(config, Choice::Greedy, Precision::Bf16);
    }
}

#[test]
fn drawn_tokens_are_those_of_the_cpu() {
    for (temperature, top_p) in [(1.0, 1.0), (0.7, 0.8)] {
        let choice = Choice::Sample { sampling: Sampling { temperature, top_p }, seed: 3 };
        compare(LLAMA, choice, Precision::Fp32);
        compare(QWEN3, choice, Precision::Fp32);
    }
}
