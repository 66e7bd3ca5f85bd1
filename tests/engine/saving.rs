//! Gradients are the same bytes whatever is kept of the layers, on the CPU; and generation between steps borrows what
//! waits for the next one.

use crate::support::Random;
use crate::support::model::weights;
use nepenthe::backend::cpu::Cpu;
use nepenthe::data::MicroBatch;
use nepenthe::method::passes::{Passes, Task};
use nepenthe::method::{FORGET, Knobs, PENALTIES};
use nepenthe::model::generate::{Choice, Request, generate};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Level, Model, ModelConfig, Saving, Train};
use nepenthe::ops::{StateMode, TeacherForm};
use nepenthe::optim::UpdateRule;

const LLAMA: &str = r#"{"model_type":"llama","hidden_size":24,"num_attention_heads":4,"num_key_value_heads":2,
    "hidden_act":"silu","vocab_size":101,"num_hidden_layers":5,"intermediate_size":41,"rms_norm_eps":1e-5,
    "attention_bias":true,"mlp_bias":true}"#;
/// As many key heads as query heads, whose caches are wide.
const WIDE: &str = r#"{"model_type":"llama","hidden_size":24,"num_attention_heads":2,"hidden_act":"silu",
    "vocab_size":101,"num_hidden_layers":4,"intermediate_size":41,"rms_norm_eps":1e-5}"#;
const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":24,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":6,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":4,"intermediate_size":17,
    "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;
/// Learned positions and LayerNorm.
const GPT2: &str = r#"{"model_type":"gpt2","n_embd":24,"n_head":2,"n_layer":3,"n_inner":17,"n_positions":64,
    "activation_function":"gelu_new","vocab_size":101}"#;
/// Attention and MLP read the same rows.
const NEOX: &str = r#"{"model_type":"gpt_neox","hidden_size":24,"num_attention_heads":2,"hidden_act":"gelu",
    "vocab_size":101,"num_hidden_layers":4,"intermediate_size":41,"rotary_pct":0.5}"#;
/// Norms behind attention and MLP, layers of two kinds.
const GEMMA3: &str = r#"{"model_type":"gemma3_text","hidden_size":24,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":6,"hidden_activation":"gelu_pytorch_tanh","vocab_size":101,
    "num_hidden_layers":4,"intermediate_size":17,"query_pre_attn_scalar":9,"sliding_window":7,
    "_sliding_window_pattern":2}"#;

/// Capped scores and logits.
const GEMMA2: &str = r#"{"model_type":"gemma2","hidden_size":24,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":6,"hidden_activation":"gelu_pytorch_tanh","vocab_size":101,
    "num_hidden_layers":4,"intermediate_size":17,"query_pre_attn_scalar":9,"sliding_window":7,
    "attn_logit_softcapping":2.0,"final_logit_softcapping":3.0}"#;

fn load(ops: &Cpu<f32>, config: &str, train: Train) -> Model<Cpu<f32>> {
    let config = ModelConfig::parse(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [student, teacher] = [51, 52].map(|seed| weights(&config, seed, folder.path()));
    let keep = Keeping {
        train: Some(train),
        mode: StateMode::Compact,
        teacher: TeacherForm::Drift,
        rule: UpdateRule::Sgd { momentum: 0.9 },
        seed: 1,
    };
    let mut model = Model::load(ops, config, &student, &keep).unwrap();
    model.load_teacher(ops, &teacher).unwrap();
    model
}

/// Returns the bits of all gradients of a loss and a penalty over several packs.
fn gradients(config: &str, train: Train, saving: Saving) -> Vec<(String, Vec<u32>)> {
    let ops = Cpu::<f32>::new();
    let mut model = load(&ops, config, train);
    let mut random = Random::new(3);
    let mut row = |len: usize| (0..len).map(|_| random.below(101) as u32).collect::<Vec<_>>();
    let batches = [MicroBatch::new([row(30), row(1), row(3)]), MicroBatch::new([row(5), row(29)])];
    let mut passes = Passes::saving(&ops, &model, 40, Some(saving)).unwrap();
    let knobs = Knobs { beta_npo: 2.0, ..Knobs::default() };
    model.clear_grads(&ops);
    for objective in [FORGET[2], PENALTIES[1]] {
        passes
            .sweep(&ops, &mut model, None, &knobs, Task::new(objective, &batches, Some(1.0)))
            .unwrap();
    }
    let mut all = Vec::new();
    let mut visit = |name: &str, values: &[f32]| {
        assert!(values.iter().any(|x| *x != 0.0) || name.contains("k_proj.bias"), "{name}");
        all.push((name.to_owned(), values.iter().map(|x| x.to_bits()).collect()));
        Ok(())
    };
    model.visit_grads(&ops, &mut visit).unwrap();
    all
}

#[test]
fn gradients_are_the_same_bits_whatever_is_kept() {
    for (config, train) in [
        (LLAMA, Train::Body),
        (LLAMA, Train::All),
        (QWEN3, Train::All),
        (GPT2, Train::All),
        (NEOX, Train::All),
        (GEMMA3, Train::Body),
        (GEMMA3, Train::All),
        (GEMMA2, Train::All),
    ] {
        let want = gradients(config, train, Saving::same(Level::All));
        let layers = ModelConfig::parse(config).unwrap().layers;
        for saving in Saving::choices(layers) {
            let got = gradients(config, train, saving);
            assert_eq!(got.len(), want.len());
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                assert!(got == want, "{saving:?}: {name}");
            }
        }
    }
}

/// Continuations made in the rows of a training workspace are those made in buffers of their own, and steps around them
/// are not disturbed.
#[test]
fn generation_in_borrowed_rows_gives_the_same_tokens() {
    for config in [LLAMA, WIDE, QWEN3, GEMMA2] {
        let ops = Cpu::<f32>::new();
        let mut model = load(&ops, config, Train::Body);
        let mut random = Random::new(4);
        let mut prompt =
            |len: usize| (0..len).map(|_| random.below(101) as u32).collect::<Vec<_>>();
        let prompts: Vec<Vec<u32>> = [20, 1, 17, 3, 9, 12, 20].map(&mut prompt).to_vec();
        let request =
            Request { max_new_tokens: 11, end_tokens: vec![], choice: Choice::Greedy, batch: 4 };
        let want = generate(&ops, &mut model, &prompts, &request).unwrap();
        for saving in Saving::choices(model.config.layers) {
            let mut passes = Passes::saving(&ops, &model, 24, Some(saving)).unwrap();
            for batch in [1, 4, 100] {
                let request = Request { batch, ..request.clone() };
                let got = passes.generate(&ops, &mut model, &prompts, &request).unwrap();
                assert_eq!(got, want, "{saving:?}");
            }
        }
        let error = {
            let mut passes = Passes::new(&ops, &model, 16, true).unwrap();
            passes.generate(&ops, &mut model, &prompts, &request).unwrap_err()
        };
        assert!(error.message().contains("20 tokens do not fit a pack of 16"), "{error}");
    }
}
