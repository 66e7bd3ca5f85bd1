//! Buffers in device memory.

use super::arena::ALIGNMENT;
use super::buffer::{pack_bytes, scan_bytes};
use super::ops::head;
use super::sweep::{TALLY_BYTES, Tally};
use super::{Act, Gpu, Grad, Pack, Param, Precision, Stat, state};
use crate::error::Result;
use crate::ops::{
    HeadShape, Memory, PackData, ParamSpec, Plane, Planes, Role, Sizes, Tallied, Transfer,
};

impl Memory for Gpu {
    type Act = Act;
    type Stat = Stat;
    type Pack = Pack;
    type Tally = Tally;
    type Grad = Grad;
    type Param = Param;

    fn act(&self, len: usize) -> Result<Act> {
        self.new_act(len)
    }

    fn stat(&self, len: usize) -> Result<Stat> {
        self.new_stat(len)
    }

    fn pack(&self, tokens: usize) -> Result<Pack> {
        self.new_pack(tokens)
    }

    fn len(&self, act: &Act) -> usize {
        act.len
    }

    fn tally_room(&self) -> Result<Tally> {
        Ok(Tally { at: self.alloc(TALLY_BYTES)? })
    }

    fn param(
        &self,
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Param> {
        self.new_param(spec, init)
    }

    fn grad(&self, spec: &ParamSpec) -> Result<Grad> {
        self.new_grad(spec)
    }

    fn reserve(&self, shape: HeadShape, matched: bool) -> Result<()> {
        head::reserve(self, shape, matched)
    }

    fn needs_scratch(&self, param: &Param, role: Role) -> bool {
        state::needs_scratch(param.stored(), self.precision, role)
    }
}

impl Transfer for Gpu {
    fn load_pack(&self, pack: &mut Pack, data: &PackData) {
        self.keep(self.upload_pack(pack, data));
    }

    fn read_stat(&self, stat: &Stat, out: &mut [f64]) {
        let mut narrow = vec![0f32; out.len().min(stat.len)];
        self.keep(self.download(stat.at, bytemuck::cast_slice_mut(&mut narrow)));
        out.iter_mut().zip(narrow).for_each(|(to, from)| *to = f64::from(from));
    }

    fn write_stat(&self, values: &[f64], stat: &mut Stat) {
        let narrow: Vec<f32> = values.iter().take(stat.len).map(|v| *v as f32).collect();
        self.keep(self.upload(stat.at, bytemuck::cast_slice(&narrow)));
    }

    fn read_act(&self, act: &Act, out: &mut [f32]) {
        let n = out.len().min(act.len);
        self.keep(self.download_act(act.at, &mut out[..n]));
    }

    fn write_act(&self, values: &[f32], act: &mut Act) {
        let n = values.len().min(act.len);
        self.keep(self.upload_act(act.at, &values[..n]));
    }

    fn read_tally(&self, tally: &Tally) -> Tallied {
        let mut sums = [0f64; 3];
        self.keep(self.download(tally.at, bytemuck::cast_slice_mut(&mut sums)));
        let [value, nll, hit] = sums;
        Tallied { value, nll, hit }
    }

    fn read_grad(&self, grad: &Grad, out: &mut [f32]) {
        self.fetch_grad(grad, out);
    }

    fn read_param(&self, param: &Param, role: Role, out: &mut [f32]) {
        self.fetch_param(param, role, out);
    }

    fn read_moment(&self, param: &Param, name: &str, out: &mut [f32]) -> bool {
        self.moment(param, name, out)
    }

    fn set_teacher(&self, param: &mut Param, values: &[f32]) {
        self.give_teacher(param, values);
    }

    fn save_param(
        &self,
        param: &Param,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.save(param, write)
    }

    /// After an error the parameter holds a mixture of old and new state.
    fn load_param(
        &self,
        param: &mut Param,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.load(param, read)
    }

    fn sync(&self) -> Result<()> {
        let result = self.driver.sync();
        self.take_failure().and(result)
    }
}

/// Bytes of buffers of a GPU that stores activations in this precision.
#[derive(Debug, Clone, Copy)]
pub struct GpuSizes(pub Precision);

impl Sizes for GpuSizes {
    fn taken(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(ALIGNMENT)
    }

    fn act(&self) -> usize {
        self.0.bytes() as usize
    }

    fn stat(&self) -> usize {
        4
    }

    fn pack(&self, tokens: usize) -> Vec<u64> {
        pack_bytes(tokens).to_vec()
    }

    fn tally(&self) -> u64 {
        TALLY_BYTES
    }

    fn planes(&self, spec: &ParamSpec) -> Planes {
        state::planes(spec, self.0)
    }

    fn scalars(&self, spec: &ParamSpec) -> u64 {
        state::scalar_bytes(spec)
    }

    fn gradient(&self, spec: &ParamSpec) -> (Plane, u64) {
        let plane = spec.gradient(4);
        (plane, scan_bytes(plane.len))
    }

    fn head(&self, shape: HeadShape, matched: bool) -> Vec<u64> {
        head::room_bytes(shape, matched, self.0)
    }

    fn needs_scratch(&self, spec: &ParamSpec, role: Role) -> bool {
        state::needs_scratch(spec.stored(), self.0, role)
    }
}
