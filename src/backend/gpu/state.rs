//! Parameters, their teacher, gradients and update on the device: kernels/{update,norm,teacher,cast}.cu.

use super::arena::Arena;
use super::{Act, Gpu, Grad, Weight};
use crate::error::{Error, Kind, Result};
use crate::ops::state::{Distances, GradScan};
use crate::ops::{ParamSpec, Role, State, UpdateScalars};

/// The scalars of a step in device memory: struct Step of kernels/common.cuh.
#[derive(Debug)]
pub(super) struct StepBlock {
    #[allow(dead_code)]
    at: u64,
}

impl StepBlock {
    pub(super) fn new(arena: &Arena) -> Result<Self> {
        Ok(Self { at: arena.alloc(80)? })
    }
}

/// A parameter on the device with its teacher and optimizer state.
#[derive(Debug)]
pub struct Param {}

impl State for Gpu {
    type Param = Param;

    fn param(
        &self,
        _spec: &ParamSpec,
        _init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Param> {
        Err(Error::new(Kind::Device, "state: not written"))
    }

    fn set_teacher(&self, _param: &mut Param, _values: &[f32]) {}

    fn grad(&self, spec: &ParamSpec) -> Result<Grad> {
        let len = if spec.trainable { spec.len } else { 0 };
        let wide = spec.mode == crate::ops::StateMode::Exact;
        let at = self.arena.alloc(len as u64 * if wide { 4 } else { 2 })?;
        Ok(Grad { at, len, wide, written: false.into() })
    }

    fn clear_grad(&self, grad: &mut Grad) {
        *grad.written.get_mut() = false;
    }

    fn view<'a>(&self, _param: &'a Param, _role: Role, _scratch: &'a mut Act) -> Weight<'a> {
        Weight::new(0)
    }

    fn needs_scratch(&self, _param: &Param, _role: Role) -> bool {
        true
    }

    fn scan_grad(&self, _grad: &Grad) -> GradScan {
        GradScan::default()
    }

    fn read_grad(&self, grad: &Grad, out: &mut [f32]) {
        if !grad.is_written() {
            out.fill(0.0);
        } else if grad.wide {
            self.keep(self.driver.download(grad.at, bytemuck::cast_slice_mut(out)));
        } else {
            let mut narrow = vec![0u16; out.len()];
            self.keep(self.driver.download(grad.at, bytemuck::cast_slice_mut(&mut narrow)));
            out.iter_mut().zip(narrow).for_each(|(to, from)| *to = crate::ops::format::widen(from));
        }
    }

    fn update(&self, _: &mut Param, _: &Grad, _: &GradScan, _: &UpdateScalars) {}

    fn read_param(&self, _param: &Param, _role: Role, _out: &mut [f32]) {}

    fn distances(&self, _param: &Param, _initial: &[f32]) -> Distances {
        Distances::default()
    }

    fn save_param(
        &self,
        _param: &Param,
        _write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }

    fn load_param(
        &self,
        _param: &mut Param,
        _read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        Ok(())
    }

    fn read_moment(&self, _param: &Param, _name: &str, _out: &mut [f32]) -> bool {
        false
    }
}
