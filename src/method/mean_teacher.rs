//! One step of mean-teacher unlearning: both gradients, clip, and the fused update of student and teacher.

use std::collections::BTreeMap;

use serde::Serialize;

use super::combine::{Combine, Combined, Sum};
use super::passes::{Passes, Step, Task, marks};
use super::term::{Documents, Method, Term};
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::model::sink::InputHook;
use crate::ops::Ops;
use crate::optim::Schedule;
use crate::optim::{CustomRule, StepOutcome, StepSettings};

/// Settings of the update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The gradient norm above which everything is scaled down; infinite for never.
    pub clip: f64,
    /// Pull of the student to the teacher.
    pub damping: f64,
    /// delta: the share of the way the teacher goes to the student.
    pub teacher_rate: f64,
    /// Learning rate over steps.
    pub schedule: Schedule,
}

/// Report of a step, with the names of the reference's log.
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
    /// Weight of the penalty in this step, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_weight: Option<f64>,
    /// Cosine between the gradients of loss and penalty, where they are combined apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Factors of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factors: Option<[f64; 2]>,
    /// Factor of the second penalty's gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_factor: Option<f64>,
    /// Gradient norm before clipping and without damping.
    pub grad_norm: f64,
    /// Clip factor c.
    pub clip_coef: f64,
    /// Learning rate.
    pub lr: f64,
    /// True if the update was left out because the gradient was not finite.
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
    combined: Combined,
}

/// The training state of a run between steps.
pub struct MeanTeacher<O: Ops> {
    /// Student and teacher.
    pub model: Model<O>,
    /// The frozen model of terms that compare with one.
    pub base: Option<Model<O>>,
    /// Buffers.
    pub passes: Passes<O>,
    /// The terms of the objective.
    pub method: Method,
    /// Settings of the update.
    pub settings: Settings,
    /// The next step, counted from 0.
    pub step: u64,
    /// Weight of each term in the next step.
    pub weights: Vec<f64>,
    /// The way in which the terms' gradients become one.
    pub combine: Box<dyn Combine<O>>,
    /// Hook on the inputs of linear layers for the terms on forget documents.
    pub hook: Option<Box<dyn InputHook<O>>>,
    /// Numbers that methods found when they prepared for the run, by their names in summaries.
    pub prepared: BTreeMap<&'static str, f64>,
    bad: Option<(usize, u64)>,
    rule: Option<Box<dyn CustomRule>>,
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
        let weights = method.terms.iter().map(|term| term.weight.start()).collect();
        Self {
            model,
            base,
            passes,
            method,
            settings,
            step: 0,
            weights,
            combine: Box::new(Sum),
            hook: None,
            prepared: BTreeMap::new(),
            bad: None,
            rule: None,
        }
    }

    /// Moves the parameters by a rule of the caller's own; they must have been made for
    /// [`crate::optim::UpdateRule::custom`] of it.
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
        self.combine.clear(ops);
        let Self { model, base, passes, method, weights, combine, hook, .. } = self;
        let task = |(term, weight): (&Term, &f64)| Task {
            objective: term.objective,
            batches: match term.documents {
                Documents::Forget => forget,
                Documents::Retain => retain,
            },
            weight: Some(*weight),
            hooked: hook.is_some() && term.documents == Documents::Forget,
        };
        let tasks: Vec<Task<'_>> = method.terms.iter().zip(&*weights).map(task).collect();
        let step = Step {
            tasks: &tasks,
            knobs: &method.knobs,
            combine: &mut **combine,
            hook: hook.as_deref_mut(),
        };
        passes.start_step(ops, model, base.as_mut(), step)?;
        let combined = combine.combine(ops, &mut model.grads);
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
        Ok(Started { pending, lr, combined })
    }

    /// Waits for a step and tells what it did.
    ///
    /// A gradient with a NaN or an infinity never reaches the weights: the update is left out and the report
    /// says so.
    pub fn finish(&mut self, ops: &O, started: Started<O>) -> Result<StepReport> {
        let Started { pending, lr, combined: Combined { cosine, factors } } = started;
        let StepOutcome { grad_norm, clip, skipped, bad } = ops.outcome(pending)?;
        self.bad = bad;
        let sums = (0..self.method.terms.len()).map(|i| self.passes.sums(ops, i));
        let sums = sums.collect::<Result<Vec<_>>>()?;
        let value = |i: usize| sums.get(i).map(|sums| sums.value);
        let hidden = self.method.loss().rows(&self.method.knobs).hidden();
        let [time_loss, time_kl] = self.passes.seconds(ops);
        let report = StepReport {
            global_step: self.step,
            loss_tr: if hidden { sums[0].value } else { sums[0].nll },
            loss_kl: value(1).unwrap_or(0.0),
            loss_second: value(2),
            retain_weight: self.weights.get(1).copied(),
            cosine,
            factors: factors.get(..2).map(|both| [both[0], both[1]]),
            second_factor: factors.get(2).copied(),
            grad_norm,
            clip_coef: clip,
            lr,
            skipped,
            time_tr: time_loss + ops.seconds(marks::SHARED, marks::UPDATE),
            time_kl,
            tokens: sums.iter().map(|sums| sums.tokens).sum(),
        };
        self.step += 1;
        if !skipped {
            for ((weight, term), sums) in self.weights.iter_mut().zip(&self.method.terms).zip(&sums)
            {
                *weight = term.weight.next(*weight, sums.value);
            }
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
