//! Whole models against finite differences: every forget loss and penalty, body and all parameters, f64.

use approx::abs_diff_eq;
use std::collections::BTreeMap;

use nepenthe::backend::cpu::Cpu;
use nepenthe::data::MicroBatch;
use nepenthe::method::combine::Sum;
use nepenthe::method::loss::rmu::steering;
use nepenthe::method::passes::{Passes, Step, Task};
use nepenthe::method::projection::{Grams, Projection, directions, layers_at_once};
use nepenthe::method::{FORGET, Knobs, Nll, Objective, PENALTIES, Rows};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{State, StateMode, TeacherForm, Transfer};
use nepenthe::optim::UpdateRule;

use crate::support::model::weights;
use crate::support::{Dtype, Random, STEP, tol};

const V: usize = 401;
/// Longest document, tokens.
const T: usize = 41;

/// Differences between the families: biases, head norms, windows, a tied head, heads per kv head; norms, activations,
/// positions, and what the MLP reads.
const CONFIGS: [&str; 12] = [
    r#""model_type":"llama","hidden_size":12,"num_attention_heads":6,"num_key_value_heads":2"#,
    r#""model_type":"llama","hidden_size":12,"num_attention_heads":2,"num_key_value_heads":1,
       "tie_word_embeddings":true,"attention_bias":true,"mlp_bias":true"#,
    r#""model_type":"qwen2","hidden_size":12,"num_attention_heads":3,"num_key_value_heads":3"#,
    r#""model_type":"qwen3","hidden_size":12,"num_attention_heads":4,"num_key_value_heads":2,
       "head_dim":6,"tie_word_embeddings":true"#,
    r#""model_type":"mistral","hidden_size":12,"num_attention_heads":6,"num_key_value_heads":2,
       "sliding_window":3"#,
    r#""model_type":"gpt2","n_embd":12,"n_head":3,"n_layer":2,"n_inner":17,"n_positions":43,
       "activation_function":"gelu_new""#,
    r#""model_type":"gpt_neox","hidden_size":16,"num_attention_heads":2,"rotary_pct":0.5"#,
    r#""model_type":"gpt_neox","hidden_size":12,"num_attention_heads":3,"rotary_pct":1.0,
       "use_parallel_residual":false,"tie_word_embeddings":true"#,
    r#""model_type":"opt","hidden_size":12,"num_attention_heads":3,"ffn_dim":17,
       "max_position_embeddings":41,"activation_function":"silu""#,
    r#""model_type":"phi","hidden_size":12,"num_attention_heads":3,"num_key_value_heads":3"#,
    r#""model_type":"gemma3_text","hidden_size":12,"num_attention_heads":4,"num_key_value_heads":2,
       "head_dim":6,"query_pre_attn_scalar":9,"hidden_activation":"gelu_pytorch_tanh","sliding_window":3,
       "layer_types":["sliding_attention","full_attention"],"rope_local_base_freq":100.0"#,
    r#""model_type":"gemma2","hidden_size":12,"num_attention_heads":4,"num_key_value_heads":2,
       "head_dim":6,"query_pre_attn_scalar":9,"hidden_activation":"gelu_pytorch_tanh","sliding_window":3,
       "attn_logit_softcapping":1.5,"final_logit_softcapping":3.0"#,
];

fn config(special: &str) -> ModelConfig {
    let act = if special.contains("gpt_neox") { "gelu" } else { "silu" };
    let text = format!(
        r#"{{{special},"hidden_act":"{act}","vocab_size":{V},"num_hidden_layers":2,
            "intermediate_size":17,"rms_norm_eps":1e-5}}"#
    );
    ModelConfig::parse(&text).unwrap()
}

struct Setup {
    ops: Cpu<f64>,
    model: Model<Cpu<f64>>,
    base: Model<Cpu<f64>>,
    passes: Passes<Cpu<f64>>,
    batches: Vec<MicroBatch>,
    knobs: Knobs,
}

impl Setup {
    fn new(special: &str, train: Train) -> Self {
        let ops = Cpu::new();
        let config = config(special);
        let folder = tempfile::tempdir().unwrap();
        let [student, teacher, other] =
            [51, 52, 53].map(|seed| weights(&config, seed, folder.path()));
        let rule = UpdateRule::Sgd { momentum: 0.0 };
        let keep = Keeping {
            train: Some(train),
            mode: StateMode::Exact,
            teacher: TeacherForm::Full,
            rule,
            seed: 1,
        };
        let mut model = Model::load(&ops, config.clone(), &student, &keep).unwrap();
        model.load_teacher(&ops, &teacher).unwrap();
        let base = Model::load(&ops, config, &other, &Keeping::inference()).unwrap();
        // Padded widths differ, one document is a single token, and one micro-batch has another normaliser.
        let mut random = Random::new(34);
        let mut row = |len: usize| (0..len).map(|_| random.below(V) as u32).collect::<Vec<_>>();
        let batches = vec![
            MicroBatch::new([row(T), row(1), row(3), row(4)]),
            MicroBatch::new([row(5), row(2)]),
        ];
        // All in one pack, which several micro-batches share.
        let mut passes = Passes::new(&ops, &model, 64, true).unwrap();
        let rmu_layer = usize::from(train == Train::Body);
        passes.steer(&ops, &steering(1, model.config.width, 2.0)).unwrap();
        let knobs = Knobs {
            beta_npo: 0.3,
            beta_wga: 0.5,
            beta_undial: 1.5,
            delta_simnpo: 4.0,
            rmu_layer,
            ..Knobs::default()
        };
        Self { ops, model, base, passes, batches, knobs }
    }

    /// The functional whose gradient the loss descends: detached weights have been integrated.
    fn functional(&mut self, objective: &dyn Objective) -> f64 {
        let Self { ops, model, base, passes, batches, knobs } = self;
        if matches!(objective.rows(knobs), Rows::Matched(_) | Rows::Hidden(_)) {
            let base = Some(base);
            let sums =
                passes.sweep(ops, model, base, knobs, Task::new(objective, batches, None)).unwrap();
            // qkl returns the whole variance and descends half of it.
            return if objective.name() == "qkl" { sums.value / 2.0 } else { sums.value };
        }
        let mut total = 0.0;
        for batch in batches.iter() {
            let rows: Vec<&[u32]> = (0..batch.rows()).map(|b| batch.row(b)).collect();
            let scores = passes.score(ops, model, &rows).unwrap();
            let others = passes.score(ops, base, &rows).unwrap();
            let targets = batch.target_tokens() as f64;
            let mean = |f: &dyn Fn(f64) -> f64| {
                scores.iter().flatten().map(|l| f(*l)).sum::<f64>() / targets
            };
            let documents = scores.iter().zip(&others).zip(&rows);
            let ratios = documents.map(|((own, other), row)| {
                let sum = |scores: &[f64]| scores.iter().sum::<f64>();
                (sum(own) - sum(other), sum(own), row.len() as f64)
            });
            let ratios: Vec<(f64, f64, f64)> = ratios.collect();
            let (count, positions) = (rows.len() as f64, (batch.width() - 1) as f64);
            let npo = 2.0 / knobs.beta_npo;
            let soft = |x: f64| x.exp().ln_1p();
            // A document of one token has no mean NLL and no gradient.
            let sim = |divisor: &dyn Fn(f64) -> f64| {
                let documents = ratios.iter().filter(|(.., n)| *n > 1.0);
                let values = documents.map(|(_, own, n)| {
                    soft(-knobs.beta_simnpo * (-own / divisor(*n) - knobs.delta_simnpo))
                });
                2.0 / knobs.beta_simnpo * values.sum::<f64>() / count
            };
            total += match objective.name() {
                "nll" => mean(&|l| -l),
                "ll" => mean(&|l| l),
                "nlul" => mean(&|l| -(1.0 + knobs.tol - l.exp()).ln()),
                "ceu" => mean(&|l| -(1.0 - l.exp()).ln()),
                "uce" => mean(&|l| -(1.0 - l.exp() / 2.0).ln()),
                "wga" => mean(&|l| (knobs.beta_wga * l).exp() / knobs.beta_wga),
                // The powers are 5 and 1: the integral of p^4 (1 - p).
                "satimp" => mean(&|l| (5.0 * l).exp() / 5.0 - (6.0 * l).exp() / 6.0),
                "npo" => {
                    npo * ratios.iter().map(|r| soft(knobs.beta_npo * r.0)).sum::<f64>() / count
                }
                "npo_mt" => {
                    let sum: f64 =
                        ratios.iter().map(|r| soft(knobs.beta_npo * r.0 / positions)).sum();
                    npo * positions / targets * sum
                }
                "simnpo" => sim(&|n| n - 1.0),
                "simnpo_ou" => sim(&|n| n),
                "dpo" => {
                    let pair =
                        |pair: &[(f64, f64, f64)]| soft(-knobs.beta_npo * (pair[1].0 - pair[0].0));
                    npo * ratios.chunks(2).map(pair).sum::<f64>() / (count / 2.0)
                }
                name => unreachable!("{name}"),
            };
        }
        total / batches.len() as f64
    }

    fn backward(&mut self, objective: &dyn Objective) {
        let Self { ops, model, base, passes, batches, knobs } = self;
        model.clear_grads(ops);
        passes
            .sweep(ops, model, Some(base), knobs, Task::new(objective, batches, Some(1.0)))
            .unwrap();
    }

    /// Moves weight `i` of block `b` by `by`, in f64 and around the f32 door of the weights.
    fn shift(&mut self, b: usize, i: usize, by: f64) {
        let mut state: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        self.ops
            .save_param(&self.model.params[b], &mut |name, bytes| {
                state.insert(name.to_owned(), bytes.to_vec());
                Ok(())
            })
            .unwrap();
        let at = &mut state.get_mut("theta").unwrap()[8 * i..8 * i + 8];
        let old = f64::from_le_bytes((&*at).try_into().unwrap());
        at.copy_from_slice(&(old + by).to_le_bytes());
        self.ops
            .load_param(&mut self.model.params[b], &mut |name, bytes| {
                bytes.copy_from_slice(&state[name]);
                Ok(())
            })
            .unwrap();
    }
}

fn check(special: &str, train: Train) {
    let mut setup = Setup::new(special, train);
    let mut random = Random::new(35);
    let mut moved = 0;
    for objective in FORGET.iter().chain(&PENALTIES) {
        setup.backward(*objective);
        // Differences of a sum over documents round as the sum does.
        let size = setup.functional(*objective).abs();
        for b in 0..setup.model.params.len() {
            let Some(grad) = setup.model.grads[b].as_ref() else { continue };
            let mut gradient = vec![0.0; grad.len()];
            grad.read(&mut gradient);
            let largest = (0..gradient.len())
                .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
            // The largest entry says most, a random one covers the rest over losses and configurations.
            for i in [largest.unwrap(), random.below(gradient.len())] {
                let mut at = |steps: f64| {
                    setup.shift(b, i, steps * STEP);
                    let value = setup.functional(*objective);
                    setup.shift(b, i, -steps * STEP);
                    value
                };
                let first = at(1.0) - at(-1.0);
                let second = at(2.0) - at(-2.0);
                let slope = (8.0 * first - second) / (12.0 * STEP);
                // Where two logits are about to change places as the largest, there is no derivative.
                let kink = (second / 2.0 - first).abs() > 1e-4 * first.abs();
                let flattens = objective.name().starts_with("pdu");
                if flattens && kink {
                    continue;
                }
                // Squares of logits bend more than logarithms of probabilities do, and rows that are normed again
                // behind every product more than those that are not; an embedding that is enlarged by the root of the
                // width bends by the fourth power of that.
                let bent = match (flattens, special.contains("gemma")) {
                    (_, true) => 1000.0,
                    (true, false) => 100.0,
                    (false, false) => 1.0,
                };
                let block = &setup.model.layout.blocks[b].name;
                let off = (slope - gradient[i]).abs();
                let scale = bent * (1.0 + size + gradient[i].abs());
                assert!(
                    off <= tol(Dtype::F64, V) / STEP * scale,
                    "{} {train:?} {special}: {block}[{i}]: backward {:e}, difference {slope:e}",
                    objective.name(),
                    gradient[i]
                );
                moved += usize::from(gradient[i].abs() > tol(Dtype::F64, V) / STEP);
            }
        }
    }
    // Differences that are all lost in the tolerance would say nothing.
    assert!(2 * moved > setup.model.grads.iter().flatten().count() * 7, "{moved}");
}

#[test]
fn body_gradients_match_differences() {
    CONFIGS.iter().for_each(|special| check(special, Train::Body));
}

#[test]
fn all_gradients_match_differences() {
    CONFIGS.iter().for_each(|special| check(special, Train::All));
}

#[test]
fn a_document_without_targets_adds_nothing() {
    let mut setup = Setup::new(CONFIGS[0], Train::All);
    setup.batches = vec![MicroBatch::new([[7u32]])];
    // The others count the last position, which has no target.
    for objective in FORGET.into_iter().filter(|o| o.normaliser().shifted()) {
        setup.backward(objective);
        for grad in setup.model.grads.iter().flatten() {
            let scan = setup.ops.scan_grad(grad);
            assert_eq!((scan.nonfinite, scan.max_abs), (0, 0.0), "{}", objective.name());
        }
    }
}

/// Returns the gradient of every block.
fn gradients(setup: &Setup) -> Vec<Vec<f64>> {
    let read = |grad: &Option<nepenthe::backend::cpu::Grad<f64>>| {
        grad.as_ref().map_or(Vec::new(), |grad| {
            let mut out = vec![0.0; grad.len()];
            grad.read(&mut out);
            out
        })
    };
    setup.model.grads.iter().map(read).collect()
}

/// Finds the leading directions of all matrices' inputs on the setup's own documents.
fn bases(setup: &mut Setup, share: f64, most: usize) -> Vec<Option<(Vec<f32>, usize)>> {
    let Setup { ops, model, passes, batches, knobs, .. } = setup;
    directions(ops, model, passes, knobs, batches, share, most).unwrap().bases
}

/// A block, the width of its matrix' inputs, and the sums of their x^T x.
type Gram = (usize, usize, Vec<f32>);

/// Makes the sums of all matrices, those of so many layers in a pass.
fn grams(setup: &mut Setup, at_once: usize) -> Vec<Gram> {
    let Setup { ops, model, passes, batches, knobs, .. } = setup;
    let mut made = Vec::new();
    let mut grams = Grams::new(ops, model, at_once).unwrap();
    for first in (0..model.config.layers).step_by(at_once) {
        grams.open(ops, model, first..model.config.layers.min(first + at_once));
        passes.observe(ops, model, knobs, batches, &mut grams).unwrap();
        made.extend(grams.read(ops));
    }
    made
}

#[test]
fn sums_of_layers_taken_together_are_those_of_each_alone() {
    let mut setup = Setup::new(CONFIGS[0], Train::Body);
    let layers = setup.model.config.layers;
    assert!(layers > 1);
    let (each, all) = (grams(&mut setup, 1), grams(&mut setup, layers));
    assert_eq!(each.len(), 4 * layers);
    assert!(each.iter().all(|(.., sums)| sums.iter().any(|x| *x != 0.0)));
    assert_eq!(each, all);
    // Room for more than the last pass wants.
    assert_eq!(each, grams(&mut setup, layers + 1));
}

#[test]
fn as_many_layers_go_together_as_their_sums_have_room_for() {
    // SmolLM2-135M, Llama-2-7B, and a model that is small.
    assert_eq!(layers_at_once([576, 576, 576, 1536], 30), 20);
    assert_eq!(layers_at_once([4096, 4096, 4096, 11008], 32), 1);
    assert_eq!(layers_at_once([12, 12, 12, 17], 2), 2);
}

/// Makes the gradient of a step's loss anew, which is what a shield is for.
fn step_backward(setup: &mut Setup, hook: &mut Projection<Cpu<f64>>) {
    let Setup { ops, model, base, passes, batches, knobs } = setup;
    model.clear_grads(ops);
    let tasks = [Task { objective: &Nll, batches, weight: Some(1.0), hooked: true }];
    let step = Step { tasks: &tasks, knobs, combine: &mut Sum, hook: Some(hook) };
    passes.start_step(ops, model, Some(base), step).unwrap();
}

#[test]
fn a_shield_takes_its_subspace_off_weight_gradients_and_off_nothing_else() {
    for special in CONFIGS {
        let mut setup = Setup::new(special, Train::All);
        setup.backward(&Nll);
        let free = gradients(&setup);
        let bases = bases(&mut setup, 1.0, 3);
        let mut hook = Projection::new(&setup.ops, 64, bases.clone()).unwrap();
        step_backward(&mut setup, &mut hook);
        let shielded = gradients(&setup);
        for (b, (free, shielded)) in free.iter().zip(&shielded).enumerate() {
            let name = &setup.model.layout.blocks[b].name;
            let largest = free.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let Some((rows, width)) = &bases[b] else {
                assert_eq!(free, shielded, "{special}: {name}");
                continue;
            };
            assert_eq!(rows.len(), 3 * width, "{special}: {name}");
            for (free, got) in free.chunks_exact(*width).zip(shielded.chunks_exact(*width)) {
                let mut want = free.to_vec();
                for row in rows.chunks_exact(*width) {
                    let part: f64 = free.iter().zip(row).map(|(g, u)| g * f64::from(*u)).sum();
                    want.iter_mut().zip(row).for_each(|(w, u)| *w -= part * f64::from(*u));
                }
                for (got, want) in got.iter().zip(&want) {
                    assert!(
                        abs_diff_eq!(got, want, epsilon = 1e-12 * (1.0 + largest)),
                        "{special}: {name}"
                    );
                }
            }
        }
    }
}

/// What is known of a matrix is what it makes of its inputs: where a shield holds all of them, no step changes it.
#[test]
fn a_shield_of_all_inputs_leaves_no_gradient() {
    let mut setup = Setup::new(CONFIGS[0], Train::Body);
    let bases = bases(&mut setup, 1.0, 64);
    setup.backward(&Nll);
    let free = gradients(&setup);
    let mut hook = Projection::new(&setup.ops, 64, bases).unwrap();
    step_backward(&mut setup, &mut hook);
    for (free, left) in free.iter().zip(gradients(&setup)) {
        let largest = |of: &[f64]| of.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        assert!(largest(&left) <= 1e-5 * largest(free), "{} {}", largest(&left), largest(free));
    }
}

#[test]
fn layers_that_do_not_train_have_no_gradient_and_the_others_theirs() {
    let special = CONFIGS[0];
    let mut whole = Setup::new(special, Train::Body);
    whole.backward(&Nll);
    let all = gradients(&whole);
    for train in [
        Train::Layers { first: 1, last: 1, down: false },
        Train::Layers { first: 0, last: 1, down: true },
    ] {
        let mut some = Setup::new(special, train);
        some.backward(&Nll);
        for (b, gradient) in gradients(&some).iter().enumerate() {
            let name = &some.model.layout.blocks[b].name;
            let trains = match train {
                Train::Layers { down: true, .. } => name.contains("down"),
                _ => name.contains(".1.") && !all[b].is_empty(),
            };
            assert_eq!(gradient.is_empty(), !trains, "{train:?}: {name}");
            if trains {
                assert_eq!(gradient, &all[b], "{train:?}: {name}");
            }
        }
    }
}
