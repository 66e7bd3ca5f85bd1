//! Buffers in host memory.

use std::marker::PhantomData;

use super::compute::Pack;
use super::head;
use super::params::{self, SCALAR_BYTES};
use super::update::Numbers;
use super::{Cpu, Grad, Param, Real};
use crate::error::Result;
use crate::ops::format::widen;
use crate::ops::{
    HeadShape, Memory, PackData, ParamSpec, Plane, Planes, Role, Sizes, Tallied, Transfer,
};

impl<T: Real> Memory for Cpu<T> {
    type Act = Vec<T>;
    type Stat = Vec<T>;
    type Pack = Pack;
    type Tally = Tallied;
    type Grad = Grad<T>;
    type Param = Param<T>;

    fn act(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::ZERO; len])
    }

    fn stat(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::ZERO; len])
    }

    fn pack(&self, _tokens: usize) -> Result<Pack> {
        Ok(Pack::default())
    }

    fn len(&self, act: &Vec<T>) -> usize {
        act.len()
    }

    fn tally_room(&self) -> Result<Tallied> {
        Ok(Tallied::default())
    }

    fn param(
        &self,
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Param<T>> {
        Param::new(spec, init)
    }

    fn grad(&self, spec: &ParamSpec) -> Result<Grad<T>> {
        Grad::new(spec)
    }

    fn reserve(&self, _shape: HeadShape, _matched: bool) -> Result<()> {
        // The pool keeps what the first sweep lends.
        Ok(())
    }

    fn needs_scratch(&self, param: &Param<T>, role: Role) -> bool {
        params::needs_scratch(param.stored(), role)
    }
}

impl<T: Real> Transfer for Cpu<T> {
    fn load_pack(&self, pack: &mut Pack, data: &PackData) {
        pack.data.clone_from(data);
    }

    fn read_stat(&self, stat: &Vec<T>, out: &mut [f64]) {
        out.iter_mut().zip(stat).for_each(|(o, s)| *o = s.to_f64());
    }

    fn write_stat(&self, values: &[f64], stat: &mut Vec<T>) {
        stat.iter_mut().zip(values).for_each(|(s, v)| *s = T::from_f64(*v));
    }

    fn read_act(&self, act: &Vec<T>, out: &mut [f32]) {
        out.iter_mut().zip(act).for_each(|(o, a)| *o = a.to_f32());
    }

    fn write_act(&self, values: &[f32], act: &mut Vec<T>) {
        act.iter_mut().zip(values).for_each(|(a, v)| *a = T::from_f32(*v));
    }

    fn read_tally(&self, tally: &Tallied) -> Tallied {
        *tally
    }

    fn read_grad(&self, grad: &Grad<T>, out: &mut [f32]) {
        match grad.into() {
            Numbers::<T>::Zeros => out.fill(0.0),
            Numbers::Wide(x) => out.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_f32()),
            Numbers::Bf16(x) => out.iter_mut().zip(x).for_each(|(to, x)| *to = widen(*x)),
        }
    }

    fn read_param(&self, param: &Param<T>, role: Role, out: &mut [f32]) {
        param.read(role, out);
    }

    fn read_moment(&self, param: &Param<T>, name: &str, out: &mut [f32]) -> bool {
        param.read_moment(name, out)
    }

    fn set_teacher(&self, param: &mut Param<T>, values: &[f32]) {
        param.set_teacher(values);
    }

    fn save_param(
        &self,
        param: &Param<T>,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        param.save(write)
    }

    fn load_param(
        &self,
        param: &mut Param<T>,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        param.load(read)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// Bytes of buffers of the CPU computing in `T`.
#[derive(Debug, Clone, Copy)]
pub struct CpuSizes<T>(pub PhantomData<T>);

impl<T: Real> Sizes for CpuSizes<T> {
    fn act(&self) -> usize {
        size_of::<T>()
    }

    fn stat(&self) -> usize {
        size_of::<T>()
    }

    fn pack(&self, tokens: usize) -> Vec<u64> {
        vec![PackData::BYTES * tokens as u64]
    }

    fn tally(&self) -> u64 {
        size_of::<Tallied>() as u64
    }

    fn planes(&self, spec: &ParamSpec) -> Planes {
        params::planes::<T>(spec)
    }

    fn scalars(&self, _spec: &ParamSpec) -> u64 {
        SCALAR_BYTES as u64
    }

    fn gradient(&self, spec: &ParamSpec) -> (Plane, u64) {
        (spec.gradient(size_of::<T>()), 0)
    }

    fn head(&self, shape: HeadShape, matched: bool) -> Vec<u64> {
        head::chunk_bytes::<T>(shape, matched)
    }

    fn needs_scratch(&self, spec: &ParamSpec, role: Role) -> bool {
        params::needs_scratch(spec.stored(), role)
    }
}
