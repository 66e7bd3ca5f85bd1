//! One whole mean-teacher step of small models in compact state, in the simulator and on the CPU: every loss and
//! every penalty, gradients, update and teacher.

use std::collections::BTreeMap;

use approx::{abs_diff_eq, relative_eq};

use crate::configs::{GEMMA2, GEMMA3, GPT2, LLAMA, NEOX, OPT, PHI, QWEN3, WIDE};
use crate::support::model::weights;
use crate::support::{Random, simulated, simulated_as};
use nepenthe::backend::cpu::Cpu;
use nepenthe::backend::gpu::driver::sim::{Simulator, Timing};
use nepenthe::backend::gpu::{Gpu, Precision};
use nepenthe::conformance::{Dtype, tol};
use nepenthe::data::MicroBatch;
use nepenthe::method::loss::rmu::steering;
use nepenthe::method::passes::Passes;
use nepenthe::method::projection::Projection;
use nepenthe::method::{
    Combination, FORGET, Knobs, MeanTeacher, Method, Objective, PENALTIES, Settings, StepReport,
    WeightRule,
};
use nepenthe::model::params::Keeping;
use nepenthe::model::{Level, Model, ModelConfig, Saving, Train};
use nepenthe::ops::{Memory, Ops, PackData, Role, StateMode, TeacherForm, Transfer};
use nepenthe::optim::Schedule;
use nepenthe::optim::UpdateRule;

pub const V: usize = 101;
const C: usize = 64;
const DAMPING: f64 = 0.3;

/// Description of a step.
#[derive(Clone, Copy)]
pub struct Job {
    /// Of the student's weights; one more for the teacher's, two for those of the base model.
    pub seed: u64,
    pub config: &'static str,
    pub train: Train,
    pub mode: StateMode,
    pub rule: UpdateRule,
    pub loss: &'static dyn Objective,
    pub penalty: Option<&'static dyn Objective>,
    pub second: Option<&'static dyn Objective>,
    /// Tokens of a pack.
    pub pack: usize,
    /// Activations saved of each layer.
    pub saving: Saving,
}

/// Results of a step: its report, per tensor the gradient, the student and the teacher, and both as they were before.
struct Outcome {
    report: StepReport,
    tensors: Tensors,
    before: [BTreeMap<String, Vec<f32>>; 2],
}

impl Outcome {
    /// Returns per tensor its name, the gradient, and the changes of student and teacher.
    fn changes(&self) -> impl Iterator<Item = (&str, [Vec<f32>; 3])> {
        self.tensors.iter().map(|(name, [grad, student, teacher])| {
            let change = |role: usize, after: &[f32]| {
                after.iter().zip(&self.before[role][name]).map(|(a, b)| a - b).collect()
            };
            (name.as_str(), [grad.clone(), change(0, student), change(1, teacher)])
        })
    }

    /// Returns the gradient of a tensor with the pull of the student to the teacher.
    fn pulled(&self, tensor: &str, grad: &[f32]) -> Vec<f32> {
        let [student, teacher] = self.before.each_ref().map(|all| &all[tensor]);
        let pulls = student.iter().zip(teacher).map(|(a, b)| DAMPING as f32 * (a - b));
        grad.iter().zip(pulls).map(|(grad, pull)| grad + pull).collect()
    }
}

/// Per tensor its name, the gradient, the student and the teacher.
type Tensors = Vec<(String, [Vec<f32>; 3])>;

/// The documents of a step: its forget and its retain micro-batches.
pub type Batches = ([MicroBatch; 2], [MicroBatch; 2]);

/// Draws documents of lengths that depend on `shape` alone.
pub fn batches(random: &mut Random, shape: usize) -> Batches {
    let mut row = |len: usize| (0..len).map(|_| random.below(V) as u32).collect::<Vec<_>>();
    (
        [MicroBatch::new([row(41), row(1), row(3)]), MicroBatch::new([row(5 + shape), row(2)])],
        [MicroBatch::new([row(7), row(39)]), MicroBatch::new([row(17)])],
    )
}

pub fn start<O: Ops>(ops: &O, job: Job) -> MeanTeacher<O> {
    let config = ModelConfig::parse(job.config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [student, teacher, other] =
        [0, 1, 2].map(|k| weights(&config, job.seed + k, folder.path()));
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
    let mut passes = Passes::saving(ops, &model, job.pack, Some(job.saving)).unwrap();
    passes.steer(ops, &steering(1, model.config.width, 3.0)).unwrap();
    let settings = Settings {
        clip: 0.25,
        damping: DAMPING,
        teacher_rate: 0.1,
        schedule: Schedule::constant(0.05),
    };
    let knobs = Knobs { beta_npo: 2.0, rmu_layer: 0, ..Knobs::default() };
    let weight = |weight| move |penalty| (penalty, WeightRule::Constant(weight));
    let penalties = job.penalty.map(weight(1.0)).into_iter().chain(job.second.map(weight(0.7)));
    let method = Method::new((job.loss, 0.5), penalties, knobs);
    MeanTeacher::new(model, Some(base), passes, method, settings)
}

/// Gives each term a gradient of its own.
fn separate<O: Ops>(ops: &O, run: &mut MeanTeacher<O>, job: Job, combination: Combination) {
    let keep = Keeping {
        train: Some(job.train),
        mode: job.mode,
        teacher: TeacherForm::Full,
        rule: job.rule,
        seed: 1,
    };
    let terms = run.method.terms.len();
    run.combine = combination.prepare(ops, &run.model, &keep, terms).unwrap();
}

fn step<O: Ops>(ops: &O, job: Job) -> Outcome {
    let mut run = start(ops, job);
    let before = [Role::Student, Role::Teacher].map(|role| {
        let mut all = BTreeMap::new();
        let mut add = |name: &str, values: &[f32]| {
            all.insert(name.to_owned(), values.to_vec());
            Ok(())
        };
        run.model.visit_weights(ops, role, &mut add).unwrap();
        all
    });
    let (forget, retain) = batches(&mut Random::new(job.seed + 3), 0);
    let report = run.step(ops, &forget, &retain).unwrap();
    Outcome { report, tensors: tensors(ops, &run), before }
}

/// Reads gradient, student and teacher of every tensor.
fn tensors<O: Ops>(ops: &O, run: &MeanTeacher<O>) -> Tensors {
    let mut tensors = Tensors::new();
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

/// Returns how far the stored `change` of a teacher may be off, as a share of its length, where its own error is `error`.
///
/// A teacher in compact state is the student less the drift, which is rounded to fp16 by the same noise on both sides. Of two
/// drifts that differ by x the rounded ones differ by a unit u of the last place with probability x / u, so that the square of
/// their distance is x u on average. Over a tensor that is at most |x| |u| = error |change| |u| (Cauchy-Schwarz), which
/// Bernstein's inequality bounds but for one tensor in e^14.
fn rounded_drift(error: f64, change: &[f32], drift: &[f32]) -> f64 {
    let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    // The last of 11 bits is at most 2^-10 of a number.
    let unit = |x: f64| x * 2f64.powi(-10);
    let largest = drift.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs())));
    let (change, most) = (length(change), unit(largest).powi(2));
    let mean = error * change * unit(length(drift));
    let square = mean + (2.0 * mean * most * 14.0).sqrt() + 2.0 / 3.0 * most * 14.0;
    ((error * change).powi(2) + square).sqrt() / change
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
            abs_diff_eq!(got, want, epsilon = allowed * want.abs()),
            "{name}: {what}: got {got:e}, want {want:e}, allowed {allowed:.3}"
        );
    };
    near("loss_tr", got.report.loss_tr, want.report.loss_tr);
    near("loss_kl", got.report.loss_kl, want.report.loss_kl);
    near("grad_norm", got.report.grad_norm, want.report.grad_norm);
    near("clip_coef", got.report.clip_coef, want.report.clip_coef);
    assert_eq!(got.report.skipped, want.report.skipped, "{name}");
    assert_eq!(got.tensors.len(), want.tensors.len(), "{name}");
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for ((tensor, got), (_, again)) in got.tensors.iter().zip(&again.tensors) {
        for (k, what) in ["gradient", "student", "teacher"].iter().enumerate() {
            assert_eq!(bits(&got[k]), bits(&again[k]), "{name}: {tensor}: {what}: two runs differ");
        }
    }
    // Of student and teacher the changes: beside the weights themselves a wrong update would be too small to be seen.
    let mut worst = 0.0f64;
    let drifts = want.tensors.iter().map(|(_, [_, student, teacher])| {
        student.iter().zip(teacher).map(|(student, teacher)| student - teacher).collect::<Vec<_>>()
    });
    let changes = got.changes().zip(want.changes());
    for (((tensor, mut got_all), (other, mut want_all)), drift) in changes.zip(drifts) {
        assert_eq!(tensor, other, "{name}");
        if job.rule == ADAMW {
            // The first step of AdamW is the sign of the gradient: where rounding turns one, the steps are opposite.
            let grads = [got.pulled(tensor, &got_all[0]), want.pulled(tensor, &want_all[0])];
            for i in (0..drift.len()).filter(|i| grads[0][*i] * grads[1][*i] <= 0.0) {
                (got_all[1][i], want_all[1][i]) = (0.0, 0.0);
            }
        }
        let (got, want) = (&got_all, &want_all);
        for (k, what) in
            ["gradient", "change of the student", "change of the teacher"].iter().enumerate()
        {
            // Where nothing rotates it (all of OPT's, half of Phi's) a key's bias moves all scores of a query alike: its
            // gradient is rounding alone.
            let unrotated = [OPT, PHI].contains(&job.config);
            let nothing = k == 0 && unrotated && tensor.ends_with("k_proj.bias");
            let off = if nothing { 0.0 } else { distance(&got[k], &want[k]) };
            let bound = match k {
                2 if job.mode == StateMode::Compact => rounded_drift(allowed, &want[2], &drift),
                _ => allowed,
            };
            worst = worst.max(off / bound);
            assert!(off <= bound, "{name}: {tensor}: {what}: off by {off:.4}, allowed {bound:.4}");
        }
    }
    eprintln!("{name}: {precision:?}: worst tensor at {worst:.3} of what is allowed");
}

const SGD: UpdateRule = UpdateRule::Sgd { momentum: 0.9 };
const ADAMW: UpdateRule = UpdateRule::AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.01 };

pub fn job(config: &'static str, loss: usize, penalty: Option<usize>) -> Job {
    Job {
        seed: 51,
        config,
        train: Train::Body,
        mode: StateMode::Compact,
        rule: SGD,
        loss: FORGET[loss],
        penalty: penalty.map(|p| PENALTIES[p]),
        second: None,
        pack: 64,
        saving: Saving::same(Level::All),
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
    for (loss, penalty) in [("rmu", "rmu_retain"), ("rmu", "qkl"), ("nlul", "rmu_retain")] {
        compared(loss, Some(penalty));
    }
    for loss in ["ll", "satimp", "npo_mt", "npo_muse", "simnpo", "dpo", "pdu", "mismatch"] {
        compared(loss, Some("kl"));
    }
}

/// Gradients kept apart and projected, step after step, so that recorded work finds its buffers again.
#[test]
fn combined_gradients_step_as_on_the_cpu() {
    fn reports<O: Ops>(ops: &O, combination: Combination) -> Vec<StepReport> {
        let second = (combination == Combination::MinNorm).then(|| PENALTIES[at(&PENALTIES, "kl")]);
        let job = Job {
            mode: StateMode::Exact,
            train: Train::All,
            second,
            ..job(LLAMA, at(&FORGET, "ll"), Some(at(&PENALTIES, "nll")))
        };
        let mut run = start(ops, job);
        separate(ops, &mut run, job, combination);
        let mut random = Random::new(8);
        let steps = (0..4).map(|_| {
            // Texts that are both forgotten and kept, so that the gradients go against each other.
            let (forget, _) = batches(&mut random, 0);
            run.step(ops, &forget, &forget[..1]).unwrap()
        });
        steps.collect()
    }
    let Some(gpu) = simulated(Timing::ALL[0], Precision::Fp32) else { return };
    for combination in [Combination::Project, Combination::MinNorm] {
        let want = reports(&Cpu::<f32>::new(), combination);
        compare_reports(&reports(&gpu, combination), &want);
    }
}

fn compare_reports(got: &[StepReport], want: &[StepReport]) {
    for (got, want) in got.iter().zip(want) {
        let (got_cosine, cosine) = (got.cosine.unwrap(), want.cosine.unwrap());
        assert!(cosine < -0.1, "the gradients of ascent and descent agree: {cosine}");
        assert!(abs_diff_eq!(got_cosine, cosine, epsilon = 1e-3), "{got_cosine} {cosine}");
        let near = |a: f64, b: f64| (a - b).abs() <= 2e-3 * b.abs();
        assert!(near(got.grad_norm, want.grad_norm), "{got:?} {want:?}");
        // Factors of a mixture are shares: small ones are differences of larger ones.
        for (got, want) in got.factors.unwrap().iter().zip(want.factors.unwrap()) {
            assert!(abs_diff_eq!(*got, want, epsilon = 2e-3 * want.max(1.0)), "{got:?} {want:?}");
        }
        assert_eq!(got.second_factor.is_some(), want.second_factor.is_some());
        if let (Some(got_second), Some(second)) = (got.second_factor, want.second_factor) {
            assert!(abs_diff_eq!(got_second, second, epsilon = 2e-3), "{got:?} {want:?}");
            assert!(near(got.loss_second.unwrap(), want.loss_second.unwrap()), "{got:?} {want:?}");
        }
    }
}

/// A shield over the loss, found from activations on each side alike, beside a penalty that is free.
#[test]
fn a_shielded_loss_steps_as_on_the_cpu() {
    fn steps<O: Ops>(ops: &O) -> (Vec<StepReport>, Tensors) {
        let job = Job {
            mode: StateMode::Exact,
            ..job(LLAMA, at(&FORGET, "nlul"), Some(at(&PENALTIES, "kl")))
        };
        let mut run = start(ops, job);
        // Fixed directions: eigenvectors of close eigenvalues would turn with the rounding of activations.
        let blocks = run.model.layout.blocks.len();
        let mut bases = vec![None; blocks];
        for layer in &run.model.layout.layers {
            for (block, width) in layer.matrices(&run.model.config) {
                let unit =
                    |k: usize, i: usize| if i % 4 == k { (4.0 / width as f32).sqrt() } else { 0.0 };
                let rows = (0..2 * width).map(|at| unit(at / width, at % width)).collect();
                bases[block] = Some((rows, width));
            }
        }
        run.hook = Some(Box::new(Projection::new(ops, job.pack, bases).unwrap()));
        let mut random = Random::new(9);
        let reports = (0..3).map(|_| {
            let (forget, retain) = batches(&mut random, 0);
            run.step(ops, &forget, &retain).unwrap()
        });
        (reports.collect(), tensors(ops, &run))
    }
    let Some(gpu) = simulated(Timing::ALL[0], Precision::Fp32) else { return };
    let (got, want) = (steps(&gpu), steps(&Cpu::<f32>::new()));
    for (got, want) in got.0.iter().zip(&want.0) {
        assert!(
            relative_eq!(got.grad_norm, want.grad_norm, max_relative = 2e-3),
            "{got:?} {want:?}"
        );
    }
    for ((name, got), (_, want)) in got.1.iter().zip(&want.1) {
        for (got, want) in got.iter().zip(want) {
            let off = distance(got, want);
            assert!(off < tol(Dtype::Tf32, C), "{name}: {off}");
        }
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
fn further_families_step_as_on_the_cpu() {
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    let all = [GPT2, NEOX, OPT, PHI, GEMMA2, GEMMA3];
    for (name, config) in
        ["gpt2", "gpt_neox", "opt", "phi", "gemma2", "gemma3"].into_iter().zip(all)
    {
        let base = job(config, nlul, Some(1));
        compare(name, base, Precision::Bf16);
        let all = Job { train: Train::All, ..base };
        compare(&format!("{name} all"), all, Precision::Bf16);
        compare(&format!("{name} exact"), Job { mode: StateMode::Exact, ..all }, Precision::Fp32);
    }
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

/// Steps whose packs come again in shape are started from recordings, with the bytes of steps started op by op; also where
/// the device stops recording halfway.
#[test]
fn recorded_work_gives_the_bytes_of_work_started_op_by_op() {
    for (loss, config) in [("nlul", LLAMA), ("npo_mt", QWEN3), ("nlul", GPT2), ("nlul", NEOX)] {
        let loss = FORGET.iter().position(|o| o.name() == loss).unwrap();
        let device = |recordings: usize| {
            let driver = Simulator::open(Timing::ALL[0]).ok()?;
            driver.limit_recordings(recordings);
            Some(Gpu::guarded(driver, Precision::Bf16).unwrap())
        };
        let [Some(recorded), Some(stopped), Some(alone)] = [usize::MAX, 2, 0].map(device) else {
            eprintln!("skipped: no simulator");
            return;
        };
        alone.record_work(false);
        let job = Job { train: Train::All, pack: 48, ..job(config, loss, Some(1)) };
        let run = |ops: &Gpu| {
            let (mut run, mut random) = (start(ops, job), Random::new(10));
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
        let want = run(&alone);
        for got in [run(&recorded), run(&stopped)] {
            assert_eq!(got.0, want.0);
            let apart = got.0.windows(2).all(|pair| pair[0] != pair[1]);
            assert!(apart, "each step has its own documents");
            for ((name, got), (_, want)) in got.1.iter().zip(&want.1) {
                let bits = |all: &[Vec<f32>; 3]| {
                    all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                assert!(bits(got) == bits(want), "{name}");
            }
        }
        let (recordings, replays) = recorded.replays();
        assert!(recordings >= 5 && replays > 20, "{recordings} recordings, {replays} replays");
        assert_eq!(alone.replays(), (0, 0));
        let (recordings, replays) = stopped.replays();
        assert!(recordings == 2 && replays > 2, "{recordings} recordings, {replays} replays");
    }
}

/// Where the last products of a step scan what they write, the norm is still that of all gradients, started op by op and
/// from recordings; gradients that are combined afterwards are scanned when they are.
#[test]
fn the_norm_that_products_leave_is_that_of_the_gradients() {
    let Some(gpu) = simulated_as(Timing::ALL[3], Precision::Bf16, (9, 0)) else {
        return;
    };
    let loss = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    for combined in [false, true] {
        let job = Job { pack: 64, ..job(WIDE, loss, Some(1)) };
        let (mut run, mut random) = (start(&gpu, job), Random::new(11));
        if combined {
            separate(&gpu, &mut run, job, Combination::MinNorm);
        }
        for step in 0..4 {
            let (forget, retain) = batches(&mut random, 0);
            let report = run.step(&gpu, &forget, &retain).unwrap();
            let tensors = tensors(&gpu, &run);
            let all = tensors.iter().flat_map(|(_, [grad, ..])| grad);
            let norm = all.map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
            let off = (report.grad_norm / norm - 1.0).abs();
            assert!(off < 1e-6, "step {step}: {} for {norm}", report.grad_norm);
            let scanned = run.model.grads.iter().flatten().filter(|grad| grad.scanned() > 0);
            // Rows of queries, keys and values; output; gates and ups; down.
            assert_eq!(scanned.count(), if combined { 0 } else { 4 }, "step {step}");
        }
    }
}

/// A step gives the same bytes whatever is kept of its layers, started op by op and from recordings.
#[test]
fn a_step_is_the_same_bytes_whatever_is_kept() {
    const THREE: &str = r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":2,
        "num_key_value_heads":1,"head_dim":64,"hidden_act":"silu","vocab_size":101,"num_hidden_layers":3,
        "intermediate_size":88,"rms_norm_eps":1e-5}"#;
    let nlul = FORGET.iter().position(|o| o.name() == "nlul").unwrap();
    for (config, train) in
        [(THREE, Train::Body), (QWEN3, Train::All), (NEOX, Train::All), (GEMMA3, Train::All)]
    {
        let run = |saving: Saving| {
            let ops = simulated(Timing::ALL[0], Precision::Bf16)?;
            let job = Job { train, pack: 48, saving, ..job(config, nlul, Some(1)) };
            let (mut run, mut random) = (start(&ops, job), Random::new(12));
            let reports: Vec<[f64; 3]> = (0..3)
                .map(|_| {
                    let (forget, retain) = batches(&mut random, 0);
                    let report = run.step(&ops, &forget, &retain).unwrap();
                    [report.loss_tr, report.loss_kl, report.grad_norm]
                })
                .collect();
            assert!(ops.replays().1 > 0, "nothing was started from a recording");
            let tensors = tensors(&ops, &run);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let bits = tensors.into_iter().map(|(name, all)| (name, all.map(|x| bits(&x))));
            Some((reports, bits.collect::<Vec<_>>()))
        };
        let Some(want) = run(Saving::same(Level::All)) else { return };
        let mixed = Saving { first: 1, level: Level::All, rest: Level::Input };
        for saving in Level::ALL[1..].iter().map(|level| Saving::same(*level)).chain([mixed]) {
            let Some(got) = run(saving) else { return };
            assert_eq!(got.0, want.0, "{saving:?}");
            for ((name, got), (_, want)) in got.1.iter().zip(&want.1) {
                assert!(got == want, "{saving:?}: {name}");
            }
        }
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
