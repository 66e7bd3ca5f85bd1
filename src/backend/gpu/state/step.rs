//! The update of all parameters: its scalars live in device memory, the host writes them and reads the outcome.

use std::sync::{Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use xxhash_rust::xxh3::xxh3_64;

use super::entry::{ENTRY, Entry, SCAN, Scan, Trained};
use super::grad_norm::partials;
use super::{Param, ROW, Store};
use crate::backend::gpu::arena::Arena;
use crate::backend::gpu::driver::Args;
use crate::backend::gpu::{Gpu, Grad, blocks};
use crate::error::{Error, Result};
use crate::ops::state::{GradScan, moments_bound};
use crate::ops::{TeacherForm, WorkKey};
use crate::optim::custom::other_rule;
use crate::optim::{AdamNumbers, StepOutcome, StepSettings};
use crate::optim::{UpdateRule, UpdateScalars};

/// Numbers a block of an exact update takes.
const EXACT_ROW: usize = 1024;

/// The scalars of a step: struct Step of kernels/common.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Step {
    lr: f64,
    damping: f64,
    teacher_rate: f64,
    max_grad_norm: f64,
    momentum: f64,
    moments_bound: f64,
    decay_bound: f64,
    sgd: [f32; 2],
    adam_numbers: [f32; 8],
    clamp: f32,
    adam: u32,
    grad_norm: f64,
    clip: f64,
    pull: [f32; 4],
    apply: u32,
    first_bad: u32,
    nonfinite: u64,
}

/// The device memory of steps.
#[derive(Debug)]
pub(in crate::backend::gpu) struct StepBlock {
    /// [`Step`].
    pub(super) at: u64,
    roster: Mutex<Roster>,
}

/// The entries of the last step and where they lie; uploaded again only when they change.
#[derive(Debug, Default)]
struct Roster {
    entries: Vec<Entry>,
    room: usize,
    at: u64,
    scans: u64,
}

/// Picks the parameters that a step moves.
pub(super) fn trained<'a>(params: &'a [Param], grads: &'a [Option<Grad>]) -> Vec<Trained<'a>> {
    params
        .iter()
        .zip(grads)
        .enumerate()
        .filter_map(|(i, (param, grad))| grad.as_ref().map(|grad| (i, param, grad)))
        .filter(|(_, param, _)| param.tensor != 0)
        .collect()
}

/// Lists the entries of a step.
fn entries(trained: &[Trained<'_>]) -> Vec<Entry> {
    let entry = |(index, param, grad): &Trained<'_>| Entry {
        tensor: param.tensor,
        scans: grad.scans,
        partials: partials(grad),
        index: *index as u32,
        kept: param.kept(),
        scanned: u32::from(grad.scanned() > 0),
    };
    trained.iter().map(entry).collect()
}

impl StepBlock {
    pub(in crate::backend::gpu) fn new(arena: &Arena) -> Result<Self> {
        Ok(Self { at: arena.alloc(size_of::<Step>() as u64)?, roster: Mutex::default() })
    }
}

impl Step {
    fn new(rule: &UpdateRule, settings: &StepSettings) -> Self {
        let StepSettings { step, lr, max_norm, damping, teacher_rate } = *settings;
        let mut out = Self { lr, damping, teacher_rate, max_grad_norm: max_norm, ..Self::zeroed() };
        match *rule {
            UpdateRule::Sgd { momentum } => {
                out.momentum = momentum;
                out.sgd = [lr as f32, momentum as f32];
            }
            UpdateRule::AdamW { betas, eps, weight_decay } => {
                let n = AdamNumbers::new(betas, eps, weight_decay, lr, step);
                out.adam = 1;
                out.adam_numbers = [
                    n.one_minus_b1,
                    n.b2,
                    n.one_minus_b2,
                    n.root_correction,
                    n.eps,
                    n.step_size,
                    n.decay,
                    n.keep,
                ]
                .map(|x| x as f32);
                out.moments_bound = moments_bound(betas, lr, step);
                out.clamp = out.moments_bound as f32;
                out.decay_bound = lr.abs() * weight_decay.abs();
            }
            UpdateRule::Custom { .. } => {}
        }
        out
    }

    /// Fills in what grad_norm_step finds, for a clip factor that is known.
    fn clipped(mut self, clip: f64) -> Self {
        let rate = self.teacher_rate * clip;
        self.clip = clip;
        self.pull = [clip, self.damping * clip, rate, 1.0 - rate].map(|x| x as f32);
        self.apply = 1;
        self
    }
}

impl Gpu {
    /// Starts the update of one parameter by the scalars in device memory; `idle`: its teacher neither pulls nor moves.
    fn launch_update(&self, param: &Param, grad: &Grad, idle: bool) {
        let g = if grad.is_written() { grad.at } else { 0 };
        let sgd = matches!(param.rule, UpdateRule::Sgd { .. });
        let n = param.len as u64;
        match param.store {
            Store::Frozen(_) => {}
            Store::Exact { theta, form, teacher, first, second } => {
                let full = form == TeacherForm::Full;
                let teacher = if full && idle { 0 } else { teacher };
                let args = Args::new().ptr(self.step.at).ptr(g).ptr(theta).ptr(teacher).ptr(first);
                let args = args.ptr(second).u64(n).u32(u32::from(full));
                let kernel = if sgd { "update_sgd_exact_f32" } else { "update_adamw_exact_f32" };
                self.launch(kernel, [blocks(param.len, EXACT_ROW), 1, 1], 256, 0, args);
            }
            Store::Split { hi, lo, drift, first, second, scales } => {
                let args = Args::new().ptr(self.step.at).ptr(param.tensor).ptr(g).ptr(hi).ptr(lo);
                let last = if scales == 0 { second } else { scales };
                let args = args.ptr(drift).ptr(first).ptr(last).u64(n).u64(param.seed);
                let kernel = match (sgd, scales != 0, lo != 0) {
                    (_, true, _) => "update_sgd_tiny_bf16",
                    (true, _, true) => "update_sgd_compact_bf16",
                    (true, _, false) => "update_sgd_approx_bf16",
                    (false, _, true) => "update_adamw_compact_bf16",
                    (false, _, false) => "update_adamw_approx_bf16",
                };
                self.launch(kernel, [blocks(param.len, ROW), 1, 1], 256, 0, args);
            }
        }
    }

    fn launch_plan(&self, entries: u64, scans: u64, count: usize) {
        let args = Args::new().ptr(self.step.at).ptr(entries).ptr(scans).u32(count as u32);
        self.launch("update_plan", [blocks(count, 256), 1, 1], 256, 0, args);
    }

    pub(super) fn launch_finish(&self, entries: u64, count: usize) {
        let args = Args::new().ptr(self.step.at).ptr(entries).u32(count as u32);
        self.launch("update_finish", [blocks(count, 256), 1, 1], 256, 0, args);
    }

    /// Updates one parameter by a clip factor and a scan that the host knows.
    pub(super) fn update_one(
        &self,
        param: &Param,
        grad: &Grad,
        scan: &GradScan,
        scalars: &UpdateScalars,
    ) {
        if param.tensor == 0 {
            return;
        }
        let UpdateScalars { step, lr, clip, damping, teacher_rate } = *scalars;
        let settings = StepSettings { step, lr, max_norm: f64::INFINITY, damping, teacher_rate };
        let step = Step::new(&param.rule, &settings).clipped(clip);
        let entry = Entry { tensor: param.tensor, kept: param.kept(), ..Entry::zeroed() };
        let max_bits = (scan.max_abs as f32).to_bits();
        let scan = Scan { sum_sq: scan.sum_sq, nonfinite: 0, max_bits, reserved: 0 };
        let entries = self.scratch(ENTRY + SCAN);
        let scans = entries + ENTRY;
        self.keep(self.upload(self.step.at, bytemuck::bytes_of(&step)));
        self.keep(self.upload(entries, bytemuck::bytes_of(&entry)));
        self.keep(self.upload(scans, bytemuck::bytes_of(&scan)));
        self.launch_plan(entries, scans, 1);
        self.launch_update(param, grad, damping == 0.0 && teacher_rate == 0.0);
        self.launch_finish(entries, 1);
    }

    /// Starts scan, clip, refusal and update of all parameters that have a gradient.
    pub(super) fn launch_step(
        &self,
        params: &[Param],
        grads: &[Option<Grad>],
        settings: &StepSettings,
    ) -> Result<()> {
        let trained = trained(params, grads);
        let rule = trained.first().map_or(UpdateRule::Sgd { momentum: 0.0 }, |(_, p, _)| p.rule);
        if trained.iter().any(|(_, param, _)| param.rule != rule) {
            return Err(Error::config("the parameters of one step follow different rules"));
        }
        let mut key = WorkKey::new("update");
        match rule {
            UpdateRule::Sgd { momentum } => key.name("sgd").numbers(&[momentum]),
            UpdateRule::AdamW { betas: (b1, b2), eps, weight_decay } => {
                key.name("adamw").numbers(&[b1, b2, eps, weight_decay])
            }
            UpdateRule::Custom { .. } => return Err(other_rule()),
        };
        let entries = entries(&trained);
        let step = Step::new(&rule, settings);
        self.upload(self.step.at, bytemuck::bytes_of(&step))?;
        let (at, scans) = self.roster(&entries)?;
        let idle = settings.damping == 0.0 && settings.teacher_rate == 0.0;
        // The scalars are read from device memory; all else follows from the entries and from where they lie.
        let places: Vec<u64> = trained.iter().map(|(_, _, grad)| grad.at).collect();
        let [rows, places] = [bytemuck::cast_slice(&entries), bytemuck::cast_slice(&places)]
            .map(|bytes: &[u8]| xxh3_64(bytes));
        key.word(at).word(u64::from(idle)).word(rows).word(places);
        self.replay_as(key, &mut || self.launch_all(&trained, (at, scans), idle));
        Ok(())
    }

    /// Starts the kernels of a step on entries that are in device memory.
    fn launch_all(&self, trained: &[Trained<'_>], (at, scans): (u64, u64), idle: bool) {
        self.launch_grad_norm(trained, (at, scans));
        let count = trained.len();
        self.launch_plan(at, scans, count);
        trained.iter().for_each(|(_, param, grad)| self.launch_update(param, grad, idle));
        self.launch_finish(at, count);
    }

    /// Decides on an update whose rule the host calls, and waits for it. Returns the outcome, and where the entries are.
    pub(super) fn judge(
        &self,
        trained: &[Trained<'_>],
        rule: &UpdateRule,
        settings: &StepSettings,
    ) -> Result<(StepOutcome, u64)> {
        let entries = entries(trained);
        let step = Step::new(rule, settings);
        self.upload(self.step.at, bytemuck::bytes_of(&step))?;
        let (at, scans) = self.roster(&entries)?;
        self.launch_grad_norm(trained, (at, scans));
        Ok((self.read_outcome()?, at))
    }

    /// Puts the entries into device memory where they are not those of the last step; returns them and the scans.
    fn roster(&self, entries: &[Entry]) -> Result<(u64, u64)> {
        let mut roster = self.step.roster.lock().unwrap_or_else(PoisonError::into_inner);
        if roster.room < entries.len() {
            let count = entries.len() as u64;
            *roster = Roster {
                entries: Vec::new(),
                room: entries.len(),
                at: self.alloc(count * ENTRY)?,
                scans: self.alloc(count * SCAN)?,
            };
        }
        if roster.entries != entries {
            self.upload(roster.at, bytemuck::cast_slice(entries))?;
            roster.entries = entries.to_vec();
        }
        Ok((roster.at, roster.scans))
    }

    /// Waits for the step and reads what became of it.
    pub(super) fn read_outcome(&self) -> Result<StepOutcome> {
        let mut step = Step::zeroed();
        self.download(self.step.at, bytemuck::bytes_of_mut(&mut step))?;
        self.take_failure()?;
        let bad = (step.first_bad != u32::MAX).then_some((step.first_bad as usize, step.nonfinite));
        Ok(StepOutcome {
            grad_norm: step.grad_norm,
            clip: step.clip,
            skipped: step.apply == 0,
            bad,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_sizes() {
        assert_eq!((size_of::<Step>(), size_of::<Scan>(), size_of::<Entry>()), (152, 24, 32));
        assert_eq!(size_of::<super::super::Tensor>(), 56);
    }
}
