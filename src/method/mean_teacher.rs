//! One step of mean-teacher unlearning: both gradients, clip, and the fused update of student and teacher.

use serde::Serialize;

use super::passes::{Passes, Slot, Sums, Task, marks};
use super::{Combination, Knobs, Objective};
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::ops::{CustomRule, Ops, StepOutcome, StepSettings};
use crate::optim::Schedule;

/// What is minimised, by name already resolved.
#[derive(Clone, Copy)]
pub struct Method {
    /// The loss on forget documents.
    pub loss: &'static dyn Objective,
    /// The penalty on retain documents.
    pub penalty: Option<&'static dyn Objective>,
    /// A second one on the same documents; only beside a first.
    pub second: Option<&'static dyn Objective>,
    /// Their numbers.
    pub knobs: Knobs,
}

impl Method {
    /// Returns the penalties, the first one first.
    pub fn penalties(&self) -> impl Iterator<Item = &'static dyn Objective> + use<> {
        self.penalty.into_iter().chain(self.second)
    }
}

/// The numbers of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// alpha, the weight of the forget loss.
    pub forget_weight: f64,
    /// beta, the weight of the penalty; where it starts if there is a dual.
    pub retain_weight: f64,
    /// The weight of the second penalty.
    pub second_weight: f64,
    /// How the weight of the penalty follows it, if it does.
    pub dual: Option<Dual>,
    /// The gradient norm above which everything is scaled down; infinite for never.
    pub clip: f64,
    /// Pull of the student to the teacher.
    pub damping: f64,
    /// delta: the share of the way the teacher goes to the student.
    pub teacher_rate: f64,
    /// Learning rate over steps.
    pub schedule: Schedule,
}

/// A penalty's weight as the dual variable of a bound on it. Source: open-unlearning `pdu.py`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dual {
    /// The share of what the penalty exceeds its bound by that is added to its weight each step.
    pub rate: f64,
    /// The value that the penalty is to stay below.
    pub bound: f64,
}

impl Dual {
    /// Returns the weight after a step whose penalty came to `value`.
    pub fn follow(&self, weight: f64, value: f64) -> f64 {
        (weight + self.rate * (value - self.bound)).max(0.0)
    }
}

/// What a step did; the names are those of the reference's log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// The step, counted from 0.
    pub global_step: u64,
    /// Monitored NLL of the forget documents, nats per token; of a loss without logits its value.
    pub loss_tr: f64,
    /// Penalty before its weight (qkl: the whole variance).
    pub loss_kl: f64,
    /// The second penalty before its weight, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_second: Option<f64>,
    /// The penalty's weight in this step.
    pub retain_weight: f64,
    /// Cosine between the gradients of loss and penalty, where they are combined apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// What both were multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factors: Option<[f64; 2]>,
    /// What the gradient of the second penalty was multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_factor: Option<f64>,
    /// Gradient norm before clipping and without damping.
    pub grad_norm: f64,
    /// Clip factor c.
    pub clip_coef: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether the update was left out because the gradient was not finite.
    pub skipped: bool,
    /// Seconds in the forget pass and the update.
    pub time_tr: f64,
    /// Seconds in the penalty pass, teacher included.
    pub time_kl: f64,
    /// Student tokens of the step.
    pub tokens: usize,
}

/// A step that nobody has waited for.
#[must_use]
pub struct Started<O: Ops> {
    pending: O::Pending,
    lr: f64,
    cosine: Option<f64>,
    factors: Option<Vec<f64>>,
}

/// The training state of a run between steps.
pub struct MeanTeacher<O: Ops> {
    /// Student and teacher.
    pub model: Model<O>,
    /// The base model of losses that compare with one.
    pub base: Option<Model<O>>,
    /// Buffers.
    pub passes: Passes<O>,
    /// What is minimised.
    pub method: Method,
    /// The numbers.
    pub settings: Settings,
    /// The next step, counted from 0.
    pub step: u64,
    /// The penalty's weight in the next step.
    pub retain_weight: f64,
    /// The share of the squares of the matrices' inputs on retain documents that the loss leaves alone, where there is a
    /// shield.
    pub shielded: Option<f64>,
    bad: Option<(usize, u64)>,
    apart: Option<Apart<O>>,
    rule: Option<Box<dyn CustomRule>>,
}

/// The penalties' own gradients, and how they and the loss's become one.
struct Apart<O: Ops> {
    combination: Combination,
    grads: Vec<Vec<Option<O::Grad>>>,
}

impl<O: Ops> MeanTeacher<O> {
    /// Puts the parts together; `passes` must be made for training.
    pub fn new(
        model: Model<O>,
        base: Option<Model<O>>,
        passes: Passes<O>,
        method: Method,
        settings: Settings,
    ) -> Self {
        let retain_weight = settings.retain_weight;
        Self {
            model,
            base,
            passes,
            method,
            settings,
            step: 0,
            retain_weight,
            shielded: None,
            bad: None,
            apart: None,
            rule: None,
        }
    }

    /// Keeps the gradient of each penalty in one of `grads` ([`Model::more_grads`]) and combines them with that of the
    /// loss.
    pub fn combine(&mut self, combination: Combination, grads: Vec<Vec<Option<O::Grad>>>) {
        self.apart = Some(Apart { combination, grads });
    }

    /// Moves the parameters by a rule of the caller's own; they must have been made for
    /// [`crate::ops::UpdateRule::custom`] of it.
    pub fn follow(&mut self, rule: Box<dyn CustomRule>) {
        self.rule = Some(rule);
    }

    /// Does one step: [`MeanTeacher::start`], then [`MeanTeacher::finish`].
    pub fn step(
        &mut self,
        ops: &O,
        forget: &[MicroBatch],
        retain: &[MicroBatch],
    ) -> Result<StepReport> {
        let started = self.start(ops, forget, retain)?;
        self.finish(ops, started)
    }

    /// Starts a step and waits for nothing: the host is free to prepare the next one. (A rule of the caller's own waits
    /// for the gradient's norm.)
    pub fn start(
        &mut self,
        ops: &O,
        forget: &[MicroBatch],
        retain: &[MicroBatch],
    ) -> Result<Started<O>> {
        self.model.clear_grads(ops);
        let Self { model, base, passes, method, settings, retain_weight, apart, .. } = self;
        let task = |objective, batches, weight| Task { objective, batches, weight: Some(weight) };
        let loss = task(method.loss, forget, settings.forget_weight);
        let penalties = [(method.penalty, *retain_weight), (method.second, settings.second_weight)];
        let penalties: Vec<Task<'_>> = penalties
            .into_iter()
            .filter_map(|(penalty, weight)| Some(task(penalty?, retain, weight)))
            .collect();
        let mut apart = apart.as_mut().filter(|_| !penalties.is_empty());
        let own = apart.as_mut().map(|apart| &mut apart.grads[..]);
        passes.start_step(ops, model, base.as_mut(), &method.knobs, loss, &penalties, own)?;
        let (mut cosine, mut factors) = (None, None);
        if let Some(Apart { combination, grads }) = apart {
            let gram = gram::<O>(ops, &model.grads, grads);
            let all = combination.factors(&gram);
            for (i, grads) in grads.iter().enumerate() {
                // The loss's own factor once, the sum so far unchanged from then on.
                let keep = if i == 0 { all[0] } else { 1.0 };
                for (own, other) in model.grads.iter_mut().zip(grads) {
                    if let (Some(own), Some(other)) = (own, other) {
                        ops.grad_mix(own, keep, other, all[i + 1]);
                    }
                }
            }
            let (ff, fr, rr) = (gram[0][0], gram[0][1], gram[1][1]);
            cosine = (ff > 0.0 && rr > 0.0).then(|| fr / (ff * rr).sqrt());
            factors = Some(all);
        }
        let lr = self.settings.schedule.rate(self.step);
        let settings = StepSettings {
            step: self.step,
            lr,
            max_norm: self.settings.clip,
            damping: self.settings.damping,
            teacher_rate: self.settings.teacher_rate,
        };
        let Model { params, grads, layout, .. } = &mut self.model;
        let pending = match &mut self.rule {
            None => ops.update_all(params, grads, &settings)?,
            Some(rule) => {
                ops.update_custom(params, grads, &layout.places(), &settings, rule.as_mut())?
            }
        };
        ops.mark(marks::UPDATE);
        Ok(Started { pending, lr, cosine, factors })
    }

    /// Waits for a step and tells what it did.
    ///
    /// A gradient with a NaN or an infinity never reaches the weights: the update is left out and the report
    /// says so.
    pub fn finish(&mut self, ops: &O, started: Started<O>) -> Result<StepReport> {
        let Started { pending, lr, cosine, factors } = started;
        let StepOutcome { norm, clip, skipped, bad } = ops.outcome(pending)?;
        self.bad = bad;
        let tr = self.passes.sums(ops, Slot::Loss)?;
        let kl = match self.method.penalty {
            Some(_) => self.passes.sums(ops, Slot::Penalty)?,
            None => Sums::default(),
        };
        let second = self.method.second.map(|_| self.passes.sums(ops, Slot::Second)).transpose()?;
        let hidden = self.method.loss.rows(&self.method.knobs).hidden();
        let [time_loss, time_kl] = self.passes.seconds(ops);
        let report = StepReport {
            global_step: self.step,
            loss_tr: if hidden { tr.value } else { tr.nll },
            loss_kl: kl.value,
            loss_second: second.map(|sums| sums.value),
            retain_weight: self.retain_weight,
            cosine,
            factors: factors.as_ref().map(|all| [all[0], all[1]]),
            second_factor: factors.as_ref().and_then(|all| all.get(2).copied()),
            grad_norm: norm,
            clip_coef: clip,
            lr,
            skipped,
            time_tr: time_loss + ops.seconds(marks::SHARED, marks::UPDATE),
            time_kl,
            tokens: tr.tokens + kl.tokens + second.map_or(0, |sums| sums.tokens),
        };
        self.step += 1;
        if let Some(dual) = self.settings.dual.filter(|_| !skipped) {
            self.retain_weight = dual.follow(self.retain_weight, kl.value);
        }
        Ok(report)
    }

    /// Returns the error for a gradient that is not finite, naming the first tensor of the model folder that holds one.
    pub fn nonfinite(&self, ops: &O, step: u64) -> Error {
        let place = self.bad.and_then(|(b, _)| {
            let block = &self.model.layout.blocks[b];
            let mut values = vec![0.0; block.len()];
            ops.read_grad(self.model.grads[b].as_ref()?, &mut values);
            ops.sync().ok()?;
            let mut rest = values.as_slice();
            block.parts.iter().find_map(|part| {
                let (own, after) = rest.split_at(part.len());
                rest = after;
                let count = own.iter().filter(|x| !x.is_finite()).count();
                (count > 0).then_some((part.name.as_str(), count))
            })
        });
        let what = match (place, self.bad) {
            (Some((name, count)), _) => format!("{name}: {count} gradient entries are not finite"),
            (None, Some((b, count))) => {
                let name = &self.model.layout.blocks[b].parts[0].name;
                format!("{name}: {count} gradient entries are not finite")
            }
            (None, None) => "the gradient norm is not finite".to_owned(),
        };
        // The start weights are finite, or they had not been loaded.
        let hint = match step {
            0 => {
                "the loss overflows on the start model: check the forget set, or lower method.kl_weight"
            }
            _ => {
                "the weights are those of the last good step; lower the learning rate or the loss weight"
            }
        };
        Error::new(Kind::Numeric, format!("step {step}: {what}")).hint(hint)
    }
}

/// Returns the inner products over all parameters of the gradients of loss and penalties; waits for the passes.
fn gram<O: Ops>(
    ops: &O,
    loss: &[Option<O::Grad>],
    penalties: &[Vec<Option<O::Grad>>],
) -> Vec<Vec<f64>> {
    let all: Vec<&[Option<O::Grad>]> =
        [loss].into_iter().chain(penalties.iter().map(Vec::as_slice)).collect();
    let mut gram = vec![vec![0.0; all.len()]; all.len()];
    for i in 0..all.len() {
        for j in i..all.len() {
            let pairs = all[i].iter().flatten().zip(all[j].iter().flatten());
            let product: f64 = pairs.map(|(a, b)| ops.grad_dot(a, b)).sum();
            gram[i][j] = product;
            gram[j][i] = product;
        }
    }
    gram
}
