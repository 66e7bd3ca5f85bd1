//! Updates by rules that a caller brings.

use rayon::prelude::*;

use super::{Exact, Param, Store};
use crate::backend::cpu::update::{CHUNK, Numbers};
use crate::backend::cpu::{Cpu, Grad, Real};
use crate::error::{Error, Result};
use crate::ops::format::widen;
use crate::ops::state::GradScan;
use crate::ops::{State, TeacherForm};
use crate::optim::custom::other_rule;
use crate::optim::{CustomRule, TensorPlace, TensorView, UpdateRule, UpdateScalars};
use crate::optim::{StepOutcome, StepSettings, clip_factor};

impl<T: Real> Cpu<T> {
    /// Scans all gradients and says what is to become of the update.
    pub(super) fn judge(
        &self,
        grads: &[Option<Grad<T>>],
        settings: &StepSettings,
    ) -> (Vec<GradScan>, StepOutcome) {
        let scan = |grad: &Option<Grad<T>>| grad.as_ref().map(|grad| self.scan_grad(grad));
        let scans: Vec<GradScan> =
            grads.iter().map(|grad| scan(grad).unwrap_or_default()).collect();
        let norm = scans.iter().map(|scan| scan.sum_sq).sum::<f64>().sqrt();
        let bad = scans.iter().position(|s| s.nonfinite > 0).map(|i| (i, scans[i].nonfinite));
        let skipped = bad.is_some() || !norm.is_finite();
        let clip = if skipped { 1.0 } else { clip_factor(norm, settings.max_norm) };
        (scans, StepOutcome { grad_norm: norm, clip, skipped, bad })
    }

    /// See [`State::update_custom`].
    pub(super) fn follow(
        &self,
        params: &mut [Param<T>],
        grads: &[Option<Grad<T>>],
        tensors: &[Vec<TensorPlace<'_>>],
        settings: &StepSettings,
        rule: &mut dyn CustomRule,
    ) -> Result<StepOutcome> {
        let wanted = UpdateRule::custom(rule)?;
        let (_, outcome) = self.judge(grads, settings);
        if outcome.skipped {
            return Ok(outcome);
        }
        let numbers = settings.clipped(outcome.clip);
        let mut room = Room::default();
        for ((param, grad), tensors) in params.iter_mut().zip(grads).zip(tensors) {
            let (Some(grad), Store::Exact(exact)) = (grad, &mut param.store) else { continue };
            if param.rule != wanted {
                return Err(other_rule());
            }
            update(exact, grad.into(), tensors, &numbers, rule, &mut room)?;
            param.counter += 1;
        }
        Ok(outcome)
    }
}

/// Scratch buffers for a custom rule, reused for every parameter.
#[derive(Default)]
struct Room {
    gradient: Vec<f32>,
    drift: Vec<f32>,
    step: Vec<f32>,
}

/// Shows the numbers of a buffer as the fp32 that they are.
fn fp32<T: Real>(buffer: &mut [T]) -> Result<&mut [f32]> {
    if size_of::<T>() != size_of::<f32>() {
        return Err(Error::config(
            "a rule of the caller's own works in fp32, got a backend in f64",
        )
        .hint("--device cpu, or Cpu::<f32> in the library"));
    }
    Ok(bytemuck::cast_slice_mut(buffer))
}

fn update<T: Real>(
    exact: &mut Exact<T>,
    grad: Numbers<'_, T>,
    tensors: &[TensorPlace<'_>],
    numbers: &UpdateScalars,
    rule: &mut dyn CustomRule,
    room: &mut Room,
) -> Result<()> {
    let form = exact.form;
    let theta = fp32(&mut exact.theta)?;
    let teacher = fp32(&mut exact.teacher)?;
    let (first, second) = (fp32(&mut exact.first)?, fp32(&mut exact.second)?);
    let (len, clip) = (theta.len(), numbers.clip as f32);
    let Room { gradient, drift, step } = room;
    drift.clear();
    match form {
        TeacherForm::None => {}
        TeacherForm::Full => drift.extend(theta.iter().zip(&*teacher).map(|(t, r)| t - r)),
        TeacherForm::Drift => drift.extend_from_slice(teacher),
    }
    gradient.clear();
    match grad {
        Numbers::Zeros => gradient.resize(len, 0.0),
        Numbers::Wide(g) => gradient.extend(g.iter().map(|g| g.to_f32() * clip)),
        Numbers::Bf16(g) => gradient.extend(g.iter().map(|g| widen(*g) * clip)),
    }
    // The order of operations is that of the rules built in.
    let damping = (numbers.damping * numbers.clip) as f32;
    gradient.iter_mut().zip(&*drift).for_each(|(g, d)| *g += damping * d);
    step.clear();
    step.resize(len, 0.0);
    let mut start = 0;
    for TensorPlace { name, shape } in tensors {
        let range = start..start + shape.iter().product::<usize>();
        start = range.end;
        let absent = 0..0;
        let pick = |buffer: &[f32]| if buffer.is_empty() { absent.clone() } else { range.clone() };
        let (of_drift, of_first, of_second) = (pick(drift), pick(first), pick(second));
        let mut view = TensorView {
            name,
            shape,
            gradient: &gradient[range.clone()],
            weights: &theta[range.clone()],
            drift: &drift[of_drift],
            state: [&mut first[of_first], &mut second[of_second]],
            step: &mut step[range.clone()],
        };
        rule.update(&mut view, numbers)?;
    }
    let rate = numbers.teacher_rate * numbers.clip;
    let (rate, keep) = (rate as f32, (1.0 - rate) as f32);
    theta.par_chunks_mut(CHUNK).zip(step.par_chunks(CHUNK)).for_each(|(theta, step)| {
        theta.iter_mut().zip(step).for_each(|(theta, step)| *theta += step);
    });
    let moved = theta.par_chunks(CHUNK).zip(step.par_chunks(CHUNK));
    teacher.par_chunks_mut(CHUNK).zip(moved).for_each(|(teacher, (theta, step))| {
        for ((teacher, theta), step) in teacher.iter_mut().zip(theta).zip(step) {
            *teacher = match form {
                TeacherForm::Full => *teacher * keep + rate * theta,
                _ => keep * (*teacher + step),
            };
        }
    });
    Ok(())
}
