//! Updates by rules that a caller brings: their kernels between the mixtures that pull, step and follow.

use super::step::trained;
use super::{Param, Store};
use crate::backend::gpu::driver::{Args, Launch};
use crate::backend::gpu::{Gpu, Grad};
use crate::error::{Error, Kind, Result};
use crate::ops::TeacherForm;
use crate::optim::StepSettings;
use crate::optim::custom::other_rule;
use crate::optim::{
    CustomRule, DeviceView, KernelArg, Kernels, TensorPlace, TensorView, UpdateRule, UpdateScalars,
};

/// Bytes that every buffer for a rule starts at a multiple of.
const ALIGN: u64 = 256;

impl Gpu {
    /// Adds the kernels of a PTX text to those that a [`CustomRule`] can launch.
    ///
    /// Errors: [`Kind::Device`] where the device refuses the text; the simulator refuses every one.
    pub fn load_ptx(&self, ptx: &str) -> Result<()> {
        self.first(self.driver.load_ptx(ptx))
    }

    /// See [`crate::ops::State::update_custom`].
    pub(super) fn follow(
        &self,
        params: &[Param],
        grads: &[Option<Grad>],
        tensors: &[Vec<TensorPlace<'_>>],
        settings: &StepSettings,
        rule: &mut dyn CustomRule,
    ) -> Result<()> {
        let wanted = UpdateRule::custom(rule)?;
        let trained = trained(params, grads);
        if trained.iter().any(|(_, param, _)| param.rule != wanted) {
            return Err(other_rule());
        }
        let (outcome, entries) = self.judge(&trained, &wanted, settings)?;
        if outcome.skipped {
            return Ok(());
        }
        let numbers = settings.clipped(outcome.clip);
        for (i, param, grad) in &trained {
            self.follow_one(param, grad, &tensors[*i], &numbers, rule)?;
        }
        self.launch_finish(entries, trained.len());
        Ok(())
    }

    fn follow_one(
        &self,
        param: &Param,
        grad: &Grad,
        tensors: &[TensorPlace<'_>],
        numbers: &UpdateScalars,
        rule: &mut dyn CustomRule,
    ) -> Result<()> {
        let Store::Exact { theta, form, teacher, first, second } = param.store else {
            return Ok(());
        };
        let n = param.len;
        let room = (4 * n as u64).next_multiple_of(ALIGN);
        let parts = if form == TeacherForm::Full { 3 } else { 2 };
        let gradient = self.scratch(parts * room);
        self.take_failure()?;
        let step = gradient + room;
        let drift = match form {
            TeacherForm::None => 0,
            TeacherForm::Drift => teacher,
            TeacherForm::Full => {
                self.mix_f32(step + room, (1.0, theta), (-1.0, teacher), n);
                step + room
            }
        };
        let g = if grad.is_written() { grad.at } else { 0 };
        let UpdateScalars { clip, damping, teacher_rate, .. } = *numbers;
        self.mix_f32(gradient, (clip as f32, g), ((damping * clip) as f32, drift), n);
        self.fill(step, 0, 4 * n as u64)?;
        let mut offset = 0;
        for TensorPlace { name, shape } in tensors {
            let len = shape.iter().product::<usize>();
            let from = |at: u64| if at == 0 { 0 } else { at + offset };
            let view = DeviceView {
                name,
                shape,
                len,
                gradient: from(gradient),
                weights: from(theta),
                drift: from(drift),
                state: [from(first), from(second)],
                step: from(step),
                device: self,
            };
            if !rule.launch(&view, numbers)? {
                self.on_host(&view, numbers, rule)?;
            }
            offset += 4 * len as u64;
        }
        self.mix_f32(theta, (1.0, theta), (1.0, step), n);
        let rate = teacher_rate * clip;
        let (rate, keep) = (rate as f32, (1.0 - rate) as f32);
        match form {
            TeacherForm::None => {}
            TeacherForm::Full => self.mix_f32(teacher, (keep, teacher), (rate, theta), n),
            TeacherForm::Drift => {
                self.mix_f32(teacher, (1.0, teacher), (1.0, step), n);
                self.mix_f32(teacher, (keep, teacher), (0.0, 0), n);
            }
        }
        self.take_failure()
    }

    /// Lets a rule without kernels work on copies.
    fn on_host(
        &self,
        view: &DeviceView<'_>,
        numbers: &UpdateScalars,
        rule: &mut dyn CustomRule,
    ) -> Result<()> {
        let read = |at: u64| {
            let mut out = vec![0f32; if at == 0 { 0 } else { view.len }];
            self.read_f32(at, 0, &mut out);
            out
        };
        let [gradient, weights, drift] = [view.gradient, view.weights, view.drift].map(read);
        let [mut first, mut second] = view.state.map(read);
        self.take_failure()?;
        let mut step = vec![0f32; view.len];
        let mut tensor = TensorView {
            name: view.name,
            shape: view.shape,
            gradient: &gradient,
            weights: &weights,
            drift: &drift,
            state: [&mut first, &mut second],
            step: &mut step,
        };
        rule.update(&mut tensor, numbers)?;
        let written = [(view.state[0], &first), (view.state[1], &second), (view.step, &step)];
        for (at, values) in written.into_iter().filter(|(at, _)| *at != 0) {
            self.upload(at, bytemuck::cast_slice(values))?;
        }
        Ok(())
    }
}

impl Kernels for Gpu {
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        args: &[KernelArg],
    ) -> Result<()> {
        if args.len() > Args::MAX {
            let (got, most) = (args.len(), Args::MAX);
            return Err(Error::new(
                Kind::Device,
                format!("{kernel}: {got} arguments, wanted at most {most}"),
            ));
        }
        let args = args.iter().fold(Args::new(), |list, arg| match *arg {
            KernelArg::Ptr(at) => list.ptr(at),
            KernelArg::U64(x) => list.u64(x),
            KernelArg::U32(x) => list.u32(x),
            KernelArg::I32(x) => list.i32(x),
            KernelArg::F32(x) => list.f32(x),
            KernelArg::F64(x) => list.f64(x),
        });
        // An empty grid is no work, and no driver takes it.
        if grid.contains(&0) {
            return Ok(());
        }
        self.first(self.driver.launch(Launch { kernel, grid, block, shared, args }))
    }
}
