//! Recorded runs of the reference: the same steps on any backend, and every figure beside the recorded one.
//!
//! A record holds the batches of forty steps, what each step logged in f64, and the state at the end. [`run`] repeats
//! it through the public interface of a training run; [`judge`] holds what a device makes of it to tolerances.

// Megabytes that only `doctor` and tests read.
#[cfg(any(feature = "cli", test))]
mod cases;
pub mod judge;

pub use judge::{Response, Row};

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::io::safetensors::Weights;
use crate::method::passes::{Passes, Task};
use crate::method::{self, Knobs, MeanTeacher, Method, Reference, Settings, WeightRule};
use crate::model::params::Keeping;
use crate::model::{Model, ModelConfig, Train};
use crate::ops::{Ops, Role, StateMode, TeacherForm};
use crate::optim::{OptimConfig, Optimizer, Shape};
use crate::rng::mix;

/// A recorded run.
pub struct Recorded {
    /// Its name.
    pub name: String,
    /// The reference's arguments.
    pub args: Value,
    /// The student and teacher that it starts from.
    pub initial: Weights,
    /// The state after the last step, keyed `GROUP.TENSOR`; groups are `student`, `teacher` and the moments.
    pub finals: Weights,
    train: Train,
    config: ModelConfig,
    batches: Weights,
    steps: Vec<Value>,
}

/// Storage of a run's state.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The state mode.
    pub mode: StateMode,
    /// Storage of the teacher.
    pub teacher: TeacherForm,
    /// Seed of the noise that the compact state rounds with.
    pub seed: u64,
}

/// A number of a step: what came out and what was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The step, counted from 0.
    pub step: usize,
    /// Its name in the reference's log.
    pub name: &'static str,
    /// The result.
    pub got: f64,
    /// The recorded value, in f64.
    pub want: f64,
}

/// The outcome of a run.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Every figure of every step, in order.
    pub figures: Vec<Figure>,
    /// The state after the last step, keyed as recorded.
    pub finals: BTreeMap<String, Vec<f64>>,
}

/// Relative L2 errors of a group of tensors at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// Of the values.
    pub whole: f64,
    /// Of their change since the start.
    pub change: f64,
}

impl Recorded {
    /// Opens the record `name` below `root`, as the golden data is laid out.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e));
        let folder = root.join("trajectories").join(name);
        let record = parse(name, &read(&folder.join("trajectory.json"))?)?;
        let model = root.join("models").join(word(&record, "model")?);
        let config = read(&model.join("config.json"))?;
        Self::new(
            name,
            record,
            &config,
            Weights::open(&model)?,
            Weights::open_file(&folder.join("batches.safetensors"))?,
            Weights::open_file(&folder.join("final_f64_rounded.safetensors"))?,
        )
    }

    fn new(
        name: &str,
        mut record: Value,
        config: &str,
        initial: Weights,
        batches: Weights,
        finals: Weights,
    ) -> Result<Self> {
        let wrong = || Error::data(format!("{name}: not the record of a trajectory"));
        let steps = match record["steps_f64"].take() {
            Value::Array(steps) if !steps.is_empty() => steps,
            _ => return Err(wrong()),
        };
        Ok(Self {
            name: name.to_owned(),
            args: record["args"].take(),
            train: if record["frozen"] == true { Train::Body } else { Train::All },
            config: ModelConfig::parse(config)?,
            initial,
            batches,
            finals,
            steps,
        })
    }

    /// Returns the number of recorded steps.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Measures how far the groups of a final state, read tensor by tensor as recorded, end from the record.
    pub fn gaps(&self, state: &dyn Fn(&str) -> Result<Vec<f64>>) -> Result<BTreeMap<String, Gap>> {
        let mut sums: BTreeMap<&str, [f64; 3]> = BTreeMap::new();
        for key in self.finals.names() {
            let (group, name) = key
                .split_once('.')
                .ok_or_else(|| Error::data(format!("{}: {key}: no group", self.name)))?;
            let want = self.finals.read_f64(key)?;
            let got = recorded_entries(state(key)?, want.len());
            let start = match group {
                "student" | "teacher" => recorded_entries(self.initial.read_f64(name)?, want.len()),
                _ => vec![0.0; want.len()],
            };
            if got.len() != want.len() || start.len() != want.len() {
                return Err(Error::data(format!(
                    "{}: {key}: {} entries are recorded, {} of the model belong to them",
                    self.name,
                    want.len(),
                    got.len()
                )));
            }
            let sum = sums.entry(group).or_default();
            for ((got, want), start) in got.iter().zip(&want).zip(&start) {
                sum[0] += (got - want).powi(2);
                sum[1] += want * want;
                sum[2] += (want - start).powi(2);
            }
        }
        let gap = |[off, whole, change]: [f64; 3]| Gap {
            whole: (off / whole).sqrt(),
            change: (off / change).sqrt(),
        };
        Ok(sums.into_iter().map(|(group, sum)| (group.to_owned(), gap(sum))).collect())
    }
}

impl Trace {
    /// Returns a tensor of the final state.
    pub fn tensor(&self, key: &str) -> Result<Vec<f64>> {
        self.finals.get(key).cloned().ok_or_else(|| Error::data(format!("{key}: not in the state")))
    }
}

/// Returns the entries of a tensor that a record of `recorded` entries holds: all, or the one in four that
/// `tests/golden/generate/thin.py` keeps.
fn recorded_entries(mut values: Vec<f64>, recorded: usize) -> Vec<f64> {
    if values.len() != recorded {
        let mut index = 0;
        values.retain(|_| {
            index += 1;
            mix(index - 1).is_multiple_of(4)
        });
    }
    values
}

fn parse(name: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|e| Error::data(format!("{name}: not valid JSON: {e}")).with_source(e))
}

fn word<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().ok_or_else(|| Error::data(format!("no text at {key}")))
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().ok_or_else(|| Error::data(format!("no number at {key}")))
}

/// Reads the numbers of the losses by the reference's names.
pub fn knobs(args: &Value) -> Knobs {
    let default = Knobs::default();
    let get = |key: &str, default| args[key].as_f64().unwrap_or(default);
    Knobs {
        tol: get("tol", default.tol),
        nlul_threshold: get("nlul_threshold", default.nlul_threshold),
        beta_npo: get("beta_npo", default.beta_npo),
        ..default
    }
}

/// Returns what a loss of the reference is called here.
pub fn loss_name(reference: &str) -> &str {
    if reference == "npo" { "npo_mt" } else { reference }
}

/// Reads padded batches `PREFIXinput_ids` and `PREFIXattention_mask` of any number of leading axes, one behind the
/// other; `masked` false takes padding for text.
pub fn batches(file: &Weights, prefix: &str, masked: bool) -> Result<Vec<MicroBatch>> {
    let name = format!("{prefix}input_ids");
    let shape = file.info(&name).map(|info| info.shape.as_slice());
    let Some(&[.., rows, width]) = shape else {
        return Err(Error::data(format!("{name}: shape {shape:?}, wanted rows and columns")));
    };
    let ids: Vec<u32> = file.read_i64(&name)?.iter().map(|&i| i as u32).collect();
    let mask = file.read_i64(&format!("{prefix}attention_mask"))?;
    let mask: Vec<u8> = mask.iter().map(|&m| if masked { m as u8 } else { 1 }).collect();
    ids.chunks(rows * width)
        .zip(mask.chunks(rows * width))
        .map(|(ids, mask)| MicroBatch::from_padded(ids, mask, rows, width))
        .collect()
}

/// The optimizer, the loss, the penalty and their numbers by the reference's arguments.
fn settings(args: &Value) -> Result<(OptimConfig, Method, Settings)> {
    let arg = |key: &str| number(args, key);
    let optim = OptimConfig {
        optimizer: match word(args, "optimizer")? {
            "sgd" => Optimizer::Sgd,
            _ => Optimizer::Adamw,
        },
        lr: arg("lr")?,
        momentum: arg("momentum")?,
        b1: arg("b1")?,
        b2: arg("b2")?,
        schedule: Shape::Paper,
        warmup: arg("warmup")? as u64,
        clip: arg("clip")?,
        ..OptimConfig::default()
    };
    let loss = method::find(&method::FORGET, "loss", loss_name(word(args, "loss")?))?;
    let penalty = method::find(&method::PENALTIES, "penalty", word(args, "penalty")?)?;
    let beta = WeightRule::Constant(arg("beta")?);
    let method = Method::new((loss, arg("alpha")?), [(penalty, beta)], knobs(args));
    let settings = Settings {
        clip: optim.clip,
        damping: arg("damp")?,
        teacher_rate: arg("delta")?,
        // The paper's schedule does not depend on the length of a run.
        schedule: optim.schedule(0),
    };
    Ok((optim, method, settings))
}

/// The batches that a record evaluates on: with padding left out, and with padding as text.
struct Evaluation {
    forget: Vec<MicroBatch>,
    retain: Vec<MicroBatch>,
}

/// Repeats a recorded run on `ops`.
pub fn run<O: Ops>(ops: &O, case: &Recorded, plan: Plan) -> Result<Trace> {
    let (optim, method, settings) = settings(&case.args)?;
    let keep = Keeping {
        train: Some(case.train),
        mode: plan.mode,
        teacher: plan.teacher,
        rule: optim.rule(),
        seed: plan.seed,
    };
    let load = |keep: &Keeping| Model::load(ops, case.config.clone(), &case.initial, keep);
    let model = load(&keep)?;
    let compares = method.reads(Reference::Frozen);
    let base = compares.then(|| load(&Keeping::inference())).transpose()?;
    let forget = batches(&case.batches, "forget.", true)?;
    let retain = batches(&case.batches, "penalty.", true)?;
    let evaluation = Evaluation {
        forget: batches(&case.batches, "eval_forget.", true)?,
        retain: batches(&case.batches, "eval_penalty.", false)?,
    };
    let count = |key: &str| number(&case.args, key).map(|n| n as usize);
    let (a, k) = (count("forget_accum_steps")?, count("kl_accum_steps")?);
    let missing = || Error::data(format!("{}: fewer batches than steps", case.name));
    let tokens = |of: &[MicroBatch]| of.iter().map(MicroBatch::tokens).sum::<usize>();
    let longest = [&forget, &retain, &evaluation.forget, &evaluation.retain]
        .map(|of| of.chunks(a.max(k)).map(tokens).max().unwrap_or(0));
    let passes = Passes::new(ops, &model, longest.iter().sum(), true)?;
    let mut state = MeanTeacher::new(model, base, passes, method, settings);
    let mut trace = Trace::default();
    let mut evaluated = 0;
    for (step, want) in case.steps.iter().enumerate() {
        let f = forget.get(step * a..(step + 1) * a).ok_or_else(missing)?;
        let r = retain.get(step * k..(step + 1) * k).ok_or_else(missing)?;
        let report = state.step(ops, f, r)?;
        let distances = state.model.distances(ops, &case.initial)?;
        let mut put = |name, got| {
            trace.figures.push(Figure { step, name, got, want: number(want, name)? });
            Ok::<_, Error>(())
        };
        put("loss_tr", report.loss_tr)?;
        put("loss_kl", report.loss_kl)?;
        put("grad_norm", report.grad_norm)?;
        put("clip_coef", report.clip_coef)?;
        put("lr", report.lr)?;
        put("dist_student_teacher", distances.student_teacher)?;
        put("dist_student_initial", distances.student_initial)?;
        put("dist_teacher_initial", distances.teacher_initial)?;
        if want.get("eval_loss").is_some() {
            let of = |set: &[MicroBatch]| set.get(evaluated).cloned().ok_or_else(missing);
            let sets = [of(&evaluation.forget)?, of(&evaluation.retain)?];
            let [loss, accuracy, background] = evaluate(ops, &mut state, &sets)?;
            put("eval_loss_pt", background)?;
            put("eval_loss", loss)?;
            put("eval_acc", accuracy)?;
            evaluated += 1;
        }
    }
    trace.finals = finals(ops, &state.model)?;
    Ok(trace)
}

/// Returns NLL and accuracy on the forget batch, and the NLL of the other one.
fn evaluate<O: Ops>(
    ops: &O,
    state: &mut MeanTeacher<O>,
    [forget, retain]: &[MicroBatch; 2],
) -> Result<[f64; 3]> {
    let loss = method::find(&method::FORGET, "loss", "nll")?;
    let MeanTeacher { model, passes, method, .. } = state;
    let mut sweep = |batch: &MicroBatch| {
        passes.sweep(
            ops,
            model,
            None,
            &method.knobs,
            Task::new(loss, std::slice::from_ref(batch), None),
        )
    };
    let (forget, retain) = (sweep(forget)?, sweep(retain)?);
    Ok([forget.nll, forget.accuracy, retain.nll])
}

/// Reads every tensor of student, teacher and optimizer state, keyed as recorded.
fn finals<O: Ops>(ops: &O, model: &Model<O>) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut all = BTreeMap::new();
    let mut put = |group: &str, name: &str, values: &[f32]| {
        let values = values.iter().map(|x| f64::from(*x)).collect();
        all.insert(format!("{group}.{name}"), values);
        Ok(())
    };
    // The student as it is stored: in compact state both planes joined.
    for (group, role) in [("student", Role::Student), ("teacher", Role::Teacher)] {
        model.visit_weights(ops, role, &mut |name, values| put(group, name, values))?;
    }
    for group in ["momentum_buffer", "exp_avg", "exp_avg_sq"] {
        model.visit_moments(ops, group, &mut |name, values| put(group, name, values))?;
    }
    Ok(all)
}
