//! One whole mean-teacher step of a small Llama in compact state, in the simulator and on the CPU: every loss and
//! every penalty, gradients, update and teacher.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod support;

use nepenthe::backend::cpu::Cpu;
use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::backend::gpu::{Gpu, Precision};
use nepenthe::data::MicroBatch;
use nepenthe::method::passes::Passes;
use nepenthe::method::{
    Combination, FORGET, Knobs, MeanTeacher, Method, Objective, PENALTIES, Settings, StepReport,
};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Model, ModelConfig, Train};
use nepenthe::ops::{Compute, Ops, PackData, Role, StateMode, TeacherForm, UpdateRule};
use nepenthe::optim::Schedule;
use nepenthe::run::Recipe;
use nepenthe::run::conformance::{Dtype, tol};
use nepenthe::run::plan::{Plan, Target};
use support::model::weights;
use support::{Random, simulated};

const V: usize = 101;
const C: usize = 64;

/// A head width that has tensor-core attention, grouped heads, and an ffn that fills no tile.
const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":2,"num_key_value_heads":1,
    "head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":88,
    "rms_norm_eps":1e-5}"#;
/// Biases, head norms, a head width without tensor-core attention, a tied head.
const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "head_dim":12,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":2,"intermediate_size":41,
    "rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;

/// What a step is to do.
#[derive(Clone, Copy)]
struct Job {
    config: &'static str,
    train: Train,
    mode: StateMode,
    rule: UpdateRule,
    loss: &'static dyn Objective,
    penalty: Option<&'static dyn Objective>,
    /// Tokens of a pack.
    pack: usize,
}

/// What a step left behind: its report, and per tensor the gradient, the student and the teacher.
struct Outcome {
    report: StepReport,
    tensors: Vec<(String, [Vec<f32>; 3])>,
}

/// The documents of a step: its forget and its retain micro-batches.
type Batches = ([MicroBatch; 2], [MicroBatch; 2]);

/// Draws documents of lengths that depend on `shape` alone.
fn batches(random: &mut Random, shape: usize) -> Batches {
    let mut row = |len: usize| (0..len).map(|_| random.below(V) as u32).collect::<Vec<_>>();
    (
        [MicroBatch::new([row(41), row(1), row(3)]), MicroBatch::new([row(5 + shape), row(2)])],
        [MicroBatch::new([row(7), row(39)]), MicroBatch::new([row(17)])],
    )
}

fn start<O: Ops>(ops: &O, job: Job) -> MeanTeacher<O> {
    let config = ModelConfig::parse(job.config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [student, teacher, other] =
        ["student", "teacher", "base"].map(|name| weights(&config, name, folder.path()));
    let keep = Keeping {
        train: Some(job.train),
        mode: job.mode,
        teacher: TeacherForm::Drift,
        rule: job.rule,
        seed: 1,
    };
    let mut model = Model::load(ops, config.clone(), &student, &keep).unwrap();
    model.load_teacher(ops, &teacher).unwrap();
    let base = Model::load(ops, config, &other, &Keeping::inference()).unwrap();
    let passes = Passes::new(ops, &model, job.pack, true).unwrap();
    let settings = Settings {
        forget_weight: 0.5,
        retain_weight: 1.0,
        dual: None,
        clip: 0.25,
        damping: 0.3,
        teacher_rate: 0.1,
        schedule: Schedule { lr: 0.05, warmup: None },
    };
    let knobs = Knobs { beta_npo: 2.0, ..Knobs::default() };
    let method = Method { loss: job.loss, penalty: job.penalty, knobs };
    MeanTeacher::new(model, Some(base), passes, method, settings)
}

fn step<O: Ops>(ops: &O, job: Job) -> Outcome {
    let mut run = start(ops, job);
    let (forget, retain) = batches(&mut Random::new("documents"), 0);
    let report = run.step(ops, &forget, &retain).unwrap();
    Outcome { report, tensors: tensors(ops, &run) }
}

/// Reads gradient, student and teacher of every tensor.
fn tensors<O: Ops>(ops: &O, run: &MeanTeacher<O>) -> Vec<(String, [Vec<f32>; 3])> {
    let mut tensors: Vec<(String, [Vec<f32>; 3])> = Vec::new();
    let mut add = |name: &str, values: &[f32]| {
        tensors.push((name.to_string(), [values.to_vec(), Vec::new(), Vec::new()]));
        Ok(())
    };
    run.model.visit_grads(ops, &mut add).unwrap();
    for (slot, role) in [(1, Role::Student), (2, Role::Teacher)] {
        let mut fill = |name: &str, values: &[f32]| {
            if let Some((_, all)) = tensors.iter_mut().find(|(n, _)| n == name) {
                all[slot] = values.to_vec();
            }
            Ok(())
        };
        run.model.visit_weights(ops, role, &mut fill).unwrap();
    }
    ops.sync().unwrap();
    tensors
}

/// Returns |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let length: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if off == 0.0 { 0.0 } else { (off / length).sqrt() }
}

/// Holds a step in the simulator to that of the CPU; activations are bf16 there and fp32 here.
fn compare(name: &str, job: Job, precision: Precision) {
    let [Some(first), Some(second)] =
        [Timing::ALL[0], Timing::ALL[3]].map(|timing| simulated(timing, precision))
    else {
        return;
    };
    let got = step(&first, job);
    let again = step(&second, job);
    let want = step(&Cpu::<f32>::new(), job);
    let allowed = match precision {
        Precision::Bf16 => tol(Dtype::Bf16, C),
        Precision::Fp32 => tol(Dtype::Tf32, C),
    };
    let near = |what: &str, got: f64, want: f64| {
        assert!(
            (got - want).abs() <= allowed * want.abs(),
            "{name}: {what}: got {got:e}, want {want:e}, allowed {allowed:.3}"
        );
    };
    near("loss_tr", got.report.loss_tr, want.report.loss_tr);
    near("loss_kl", got.report.loss_kl, want.report.loss_kl);
    near("grad_norm", got.report.grad_norm, want.report.grad_norm);
    near("clip_coef", got.report.clip_coef, want.report.clip_coef);
    assert_eq!(got.report.skipped, want.report.skipped, "{name}");
    assert_eq!(got.tensors.len(), want.tensors.len(), "{name}");
    let mut worst = 0.0f64;
    for (((tensor, got), (_, again)), (other, want)) in
        got.tensors.iter().zip(&again.tensors).zip(&want.tensors)
    {
        assert_eq!(tensor, other, "{name}");
        for (k, what) in ["gradient", "student", "teacher"].iter().enumerate() {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got[k]), bits(&again[k]), "{name}: {tensor}: {what}: two runs differ");
            let off = distance(&got[k], &want[k]);
            worst = worst.max(off / allowed);
            assert!(
                off <= allowed,
                "{name}: {tensor}: {what}: off by {off:.4}, allowed {allowed:.4}"
            );
        }
    }
    eprintln!("{name}: {precision:?}: worst tensor at {worst:.3} of the tolerance {allowed:.4}");
}

const SGD: UpdateRule = UpdateRule::Sgd { momentum: 0.9 };
const ADAMW: UpdateRule = UpdateRule::AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.01 };

fn job(config: &'static str, loss: usize, penalty: Option<usize>) -> Job {
    Job {
        config,
        train: Train::Body,
        mode: StateMode::Compact,
        rule: SGD,
        loss: FORGET[loss],
        penalty: penalty.map(|p| PENALTIES[p]),
        pack: 64,
    }
}

fn at(table: &[&'static dyn Objective], name: &str) -> usize {
    table.iter().position(|o| o.name() == name).unwrap()
}

/// Each kind of loss rows with each kind of penalty rows: what else losses are is coefficients.
#[test]
fn every_kind_of_loss_with_every_kind_of_penalty_steps_as_on_the_cpu() {
    let compared = |l: &str, penalty: Option<&str>| {
        let penalty = penalty.map(|p| at(&PENALTIES, p));
        let job = job(LLAMA, at(&FORGET, l), penalty);
        let name = format!("{l} + {}", job.penalty.map_or("none", |p| p.name()));
        compare(&name, job, Precision::Bf16);
    };
    for loss in ["nlul", "npo", "undial"] {
        for penalty in [None, Some("nll"), Some("kl"), Some("qkl"), Some("kl_muse")] {
            compared(loss, penalty);
        }
    }
    for loss in ["ll", "satimp", "npo_mt", "npo_muse", "simnpo", "dpo", "pdu", "mismatch"] {
        compared(loss, Some("kl"));
    }
}

/// Gradients kept apart and projected, step after step, so that recorded work finds its buffers again.
#[test]
fn combined_gradients_step_as_on_the_cpu() {
    fn reports<O: Ops>(ops: &O) -> Vec<StepReport> {
        let job = Job {
            mode: StateMode::Exact,
            train: Train::All,
            ..job(LLAMA, at(&FORGET, "ll"), Some(at(&PENALTIES, "nll")))
        };
        let mut run = start(ops, job);
        let keep = Keeping {
            train: Some(job.train),
            mode: job.mode,
            teacher: TeacherForm::Full,
            rule: job.rule,
            seed: 1,
        };
        let more = run.model.more_grads(ops, &keep).unwrap();
        run.combine(Combination::Project, more);
        let mut random = Random::new("documents");
        let steps = (0..4).map(|_| {
            // Texts that are both forgotten and kept, so that the gradients go against each other.
            let (forget, _) = batches(&mut random, 0);
            run.step(ops, &forget, &forget[..1]).unwrap()
        });
        steps.collect()
    }
    let Some(gpu) = simulated(Timing::ALL[0], Precision::Fp32) else { return };
    let want = reports(&Cpu::<f32>::new());
    for (got, want) in reports(&gpu).iter().zip(&want) {
        let (got_cosine, cosine) = (got.cosine.unwrap(), want.cosine.unwrap());
        assert!(cosine < -0.1, "the gradients of ascent and descent agree: {cosine}");
        assert!((got_cosine - cosine).abs() < 1e-3, "{got_cosine} {cosine}");
        let near = |a: f64, b: f64| (a - b).abs() <= 2e-3 * b.abs();
        assert!(near(got.grad_norm, want.grad_norm), "{got:?} {want:?}");
        assert!(near(got.factors.unwrap()[1], want.factors.unwrap()[1]), "{got:?} {want:?}");
    }
}

#[test]
fn other_families_rules_and_precisions_step_as_on_the_cpu() {
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    let base = job(QWEN3, nlul, Some(1));
    compare("qwen3", base, Precision::Bf16);
    compare("qwen3 all", Job { train: Train::All, ..base }, Precision::Bf16);
    compare("qwen3 adamw", Job { rule: ADAMW, ..base }, Precision::Bf16);
    let exact = Job { mode: StateMode::Exact, train: Train::All, ..base };
    compare("qwen3 exact", exact, Precision::Fp32);
    compare("llama exact", Job { config: LLAMA, ..exact }, Precision::Fp32);
}

#[test]
fn packing_changes_rounding_only() {
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    let Some(ops) = simulated(Timing::ALL[0], Precision::Fp32) else { return };
    let wide = Job { mode: StateMode::Exact, pack: 128, ..job(LLAMA, nlul, Some(1)) };
    let (all, split) = (step(&ops, wide), step(&ops, Job { pack: 41, ..wide }));
    let allowed = tol(Dtype::Tf32, C);
    for ((name, a), (_, b)) in all.tensors.iter().zip(&split.tensors) {
        let off = distance(&a[0], &b[0]);
        assert!(off <= allowed, "{name}: gradients of packed and split rows differ by {off:.2e}");
    }
}

/// Steps whose packs come again in shape are started from recordings, with the bytes of steps started op by op.
#[test]
fn recorded_work_gives_the_bytes_of_work_started_op_by_op() {
    for (loss, config) in [("nlul", LLAMA), ("npo_mt", QWEN3)] {
        let loss = FORGET.iter().position(|o| o.name() == loss).unwrap();
        let [Some(recorded), Some(alone)] =
            [Timing::ALL[0], Timing::ALL[0]].map(|timing| simulated(timing, Precision::Bf16))
        else {
            return;
        };
        alone.record_work(false);
        let job = Job { train: Train::All, pack: 48, ..job(config, loss, Some(1)) };
        let run = |ops: &Gpu| {
            let (mut run, mut random) = (start(ops, job), Random::new("documents"));
            let reports: Vec<[f64; 3]> = [0, 0, 0, 0, 1, 0, 0, 0]
                .into_iter()
                .map(|shape| {
                    let (forget, retain) = batches(&mut random, shape);
                    let report = run.step(ops, &forget, &retain).unwrap();
                    [report.loss_tr, report.loss_kl, report.grad_norm]
                })
                .collect();
            (reports, tensors(ops, &run))
        };
        let (got, want) = (run(&recorded), run(&alone));
        assert_eq!(got.0, want.0);
        assert!(got.0.windows(2).all(|pair| pair[0] != pair[1]), "each step has its own documents");
        for ((name, got), (_, want)) in got.1.iter().zip(&want.1) {
            let bits =
                |all: &[Vec<f32>; 3]| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(got) == bits(want), "{name}");
        }
        let (recordings, replays) = recorded.replays();
        assert!(recordings >= 5 && replays > 20, "{recordings} recordings, {replays} replays");
        assert_eq!(alone.replays(), (0, 0));
    }
}

/// A run takes one slab of the size that the plan counts, and fills it.
#[test]
fn plan_counts_the_memory_of_a_run() {
    const MEDIUM: &str = r#"{"model_type":"llama","hidden_size":128,"num_attention_heads":2,
        "num_key_value_heads":1,"head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":3,
        "intermediate_size":384,"rms_norm_eps":1e-5}"#;
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    for (mode, precision, optimizer) in [
        (StateMode::Compact, Precision::Bf16, "sgd"),
        (StateMode::Exact, Precision::Bf16, "adamw"),
        (StateMode::Exact, Precision::Fp32, "sgd"),
    ] {
        let Ok(driver) = Simulator::open(Timing::ALL[0]) else { return };
        let sets = [format!("optim.optimizer={optimizer}"), "run.pack_tokens=2048".to_owned()];
        let recipe = Recipe::assemble(None, None, &sets).unwrap();
        let config = ModelConfig::parse(MEDIUM).unwrap();
        let plan = Plan::new(&config, &recipe, mode, Target::gpu(precision), u64::MAX);
        let (planned, slab) = (plan.buffer_bytes(), plan.arena_bytes());
        let ops = Gpu::new(driver, precision, slab).unwrap();
        let job = Job {
            config: MEDIUM,
            mode,
            rule: recipe.optim.rule(),
            pack: plan.pack_tokens as usize,
            ..job(MEDIUM, nlul, Some(1))
        };
        let keep = recipe.keeping(mode);
        let folder = tempfile::tempdir().unwrap();
        let student = weights(&config, "student", folder.path());
        let model = Model::load(&ops, config, &student, &keep).unwrap();
        let passes = Passes::new(&ops, &model, job.pack, true).unwrap();
        let method = Method { loss: job.loss, penalty: job.penalty, knobs: Knobs::default() };
        let mut run = MeanTeacher::new(model, None, passes, method, recipe.settings());
        let (forget, retain) = batches(&mut Random::new("documents"), 0);
        run.step(&ops, &forget, &retain).unwrap();
        let (held, used) = ops.bytes();
        let share = used as f64 / planned as f64;
        eprintln!(
            "{mode:?} {precision:?}: planned {planned}, used {used} ({share:.4}), held {held}"
        );
        assert_eq!(held, slab, "{mode:?} {precision:?}: the run took more than its slab");
        assert!(
            (0.97..=1.03).contains(&share),
            "{mode:?} {precision:?}: {used} of {planned} bytes"
        );
    }
}

/// An op that failed makes reading a model fail, so that no file is written from it.
#[test]
fn failed_work_surfaces_before_weights_are_read() {
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    let Some(ops) = simulated(Timing::ALL[0], Precision::Bf16) else { return };
    let run = start(&ops, job(LLAMA, nlul, None));
    let visit = |ops: &Gpu| run.model.visit_weights(ops, Role::Evaluated, &mut |_, _| Ok(()));
    visit(&ops).unwrap();
    let mut data = PackData::default();
    data.push(&[1, 2, 3], |_| 1.0);
    ops.load_pack(&mut ops.pack(2).unwrap(), &data);
    let error = visit(&ops).unwrap_err();
    assert!(error.message().contains("a pack of 3 tokens does not fit"), "{error}");
    visit(&ops).unwrap();
}
