//! Parameters, their teacher, gradients and update on the device: kernels/{update,grad_norm,materialize,split_weights}.cu.
//!
//! Formats, names and bytes are those of the CPU backend: a checkpoint of either resumes on the other.

mod custom;
mod entry;
mod grad_mix;
mod grad_norm;
mod saved;
mod step;

use bytemuck::{Pod, Zeroable};

use super::buffer::scan_bytes;
use super::driver::Args;
use super::{Act, Gpu, Grad, Precision, Weight, blocks};
use crate::error::Result;
use crate::ops::format::{
    EXPONENT_LIMIT, drift_exponent, from_f16, narrow_even, noise_seed, to_f16, widen,
};
use crate::ops::state::{Distances, GradScan};
use crate::ops::{Memory, ParamSpec, Planes, Role, State, Stored, TeacherForm};
use crate::optim::{CustomRule, TensorPlace, UpdateRule, UpdateScalars};
use crate::optim::{StepOutcome, StepSettings};

pub(super) use step::StepBlock;

/// A parameter on the device with its teacher and optimizer state.
#[derive(Debug)]
pub struct Param {
    seed: u64,
    len: usize,
    rule: UpdateRule,
    /// struct Tensor of kernels/common.cuh; 0 where frozen.
    tensor: u64,
    store: Store,
}

/// Device addresses; absent buffers are 0.
#[derive(Debug)]
enum Store {
    /// In the precision of storage.
    Frozen(u64),
    Exact {
        theta: u64,
        form: TeacherForm,
        teacher: u64,
        first: u64,
        second: u64,
    },
    /// Compact, tiny and approx state.
    Split {
        hi: u64,
        /// Absent in approx state.
        lo: u64,
        drift: u64,
        first: u64,
        second: u64,
        /// The scale of each block of `first`, which has 8-bit numbers where there are scales.
        scales: u64,
    },
}

/// Per-tensor scalars stored next to the planes: struct Tensor of kernels/common.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
struct Tensor {
    counter: u64,
    max_drift: f64,
    max_moment: f64,
    max_theta: f64,
    exponent: i32,
    exponent_next: i32,
    seen: [u32; 3],
    reserved: u32,
}

/// Output of the materialize kernels: enum Show of kernels/materialize.cu.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Show {
    Plane,
    DitheredTeacher,
    Evaluated,
    Joined,
    JoinedTeacher,
}

/// Numbers that pass between host and device at once; a multiple of what a kernel's thread takes.
const PIECE: usize = 1 << 22;
/// Numbers a block of a view kernel or of an update of 16-bit planes takes.
const ROW: usize = 2048;

/// Cuts `len` numbers into pieces: first index and length of each.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(PIECE).map(move |start| (start, PIECE.min(len - start)))
}

/// Returns the device address of number `index` of a plane, or 0 for an absent one.
fn at(plane: u64, index: usize, size: u64) -> u64 {
    if plane == 0 { 0 } else { plane + index as u64 * size }
}

/// Returns the buffers of a parameter on a device that stores activations in `precision`.
pub(super) fn planes(spec: &ParamSpec, precision: Precision) -> Planes {
    spec.planes(precision.bytes() as usize, 4)
}

/// Returns the bytes of the scalars of a parameter; a frozen one has none.
pub(super) fn scalar_bytes(spec: &ParamSpec) -> u64 {
    if spec.trainable { size_of::<Tensor>() as u64 } else { 0 }
}

/// Tells whether showing weights of `role` writes them to a scratch.
pub(super) fn needs_scratch(stored: Stored, precision: Precision, role: Role) -> bool {
    match (stored, precision) {
        (Stored::Frozen, _) => false,
        (Stored::Exact(form), Precision::Fp32) => {
            role == Role::Teacher && form == TeacherForm::Drift
        }
        // Products in bf16 read fp32 state rounded: by the noise of the step in training, else by evaluation's.
        (Stored::Exact(_), Precision::Bf16) | (Stored::Split(_), Precision::Fp32) => true,
        // The plane is what products read; without a drift it is the teacher's too.
        (Stored::Split(form), Precision::Bf16) => match role {
            Role::Student => false,
            Role::Teacher => form == TeacherForm::Drift,
            Role::Evaluated => true,
        },
    }
}

impl Gpu {
    fn read_tensor(&self, param: &Param) -> Tensor {
        let mut tensor = Tensor::zeroed();
        if param.tensor != 0 {
            self.keep(self.download(param.tensor, bytemuck::bytes_of_mut(&mut tensor)));
        }
        tensor
    }

    /// Allocates `bytes` zeros.
    fn zeros(&self, bytes: u64) -> Result<u64> {
        let address = self.alloc(bytes)?;
        if bytes > 0 {
            self.fill(address, 0, bytes)?;
        }
        Ok(address)
    }

    /// Splits initial values into planes on the device, piece by piece.
    fn split(&self, param: &Param, (hi, lo): (u64, u64), values: &[f32]) -> Result<()> {
        let scratch = self.scratch(4 * PIECE.min(values.len()) as u64);
        for (start, n) in pieces(values.len()) {
            self.upload(scratch, bytemuck::cast_slice(&values[start..start + n]))?;
            let args = Args::new()
                .ptr(param.tensor)
                .ptr(scratch)
                .ptr(at(hi, start, 2))
                .ptr(at(lo, start, 2))
                .u64(n as u64)
                .u64(start as u64)
                .u64(param.seed);
            self.launch("split_weights", [blocks(n, ROW), 1, 1], 256, 0, args);
        }
        self.take_failure()?;
        let mut tensor = self.read_tensor(param);
        tensor.max_theta = f64::from(f32::from_bits(tensor.seen[2]));
        self.upload(param.tensor, bytemuck::bytes_of(&tensor))
    }

    /// Starts the kernel that shows numbers `start..start + n` of a split parameter at `out`.
    fn show(&self, wide: bool, param: &Param, show: Show, (start, n): (usize, usize), out: u64) {
        let Store::Split { hi, lo, drift, .. } = param.store else { return };
        let args = Args::new()
            .ptr(param.tensor)
            .u32(show as u32)
            .ptr(at(hi, start, 2))
            .ptr(at(lo, start, 2))
            .ptr(at(drift, start, 2))
            .ptr(out)
            .u64(n as u64)
            .u64(start as u64)
            .u64(param.seed);
        let kernel = if wide { "materialize_compact_f32" } else { "materialize_compact_bf16" };
        self.launch(kernel, [blocks(n, ROW), 1, 1], 256, 0, args);
    }

    /// Copies what `show` asks of a split parameter to the host.
    fn read_split(&self, param: &Param, show: Show, start: usize, out: &mut [f32]) {
        let scratch = self.scratch(4 * PIECE.min(out.len()) as u64);
        for (offset, n) in pieces(out.len()) {
            self.show(true, param, show, (start + offset, n), scratch);
            let to = bytemuck::cast_slice_mut(&mut out[offset..offset + n]);
            self.keep(self.download(scratch, to));
        }
    }

    fn read_f32(&self, plane: u64, start: usize, out: &mut [f32]) {
        if !out.is_empty() {
            let to = bytemuck::cast_slice_mut(out);
            self.keep(self.download(at(plane, start, 4), to));
        }
    }

    fn read_u16(&self, plane: u64, start: usize, n: usize) -> Vec<u16> {
        let mut out = vec![0u16; n];
        if n > 0 && plane != 0 {
            let to = bytemuck::cast_slice_mut(&mut out);
            self.keep(self.download(at(plane, start, 2), to));
        }
        out
    }

    /// Returns student and teacher of numbers `start..start + n` in f64, differences of drifts not rounded.
    fn read_pairs(&self, param: &Param, (start, n): (usize, usize)) -> Vec<(f64, f64)> {
        let wide = |x: &f32| f64::from(*x);
        let mut theta = vec![0f32; n];
        match param.store {
            Store::Frozen(plane) => {
                let bytes = self.precision.bytes();
                self.keep(self.download_act(at(plane, start, bytes), &mut theta));
                theta.iter().map(|t| (wide(t), wide(t))).collect()
            }
            Store::Exact { theta: plane, form, teacher, .. } => {
                let mut other = vec![0f32; n];
                self.read_f32(plane, start, &mut theta);
                if form != TeacherForm::None {
                    self.read_f32(teacher, start, &mut other);
                }
                let pair = |(t, o): (&f32, &f32)| match form {
                    TeacherForm::None => (wide(t), wide(t)),
                    TeacherForm::Full => (wide(t), wide(o)),
                    TeacherForm::Drift => (wide(t), wide(t) - wide(o)),
                };
                theta.iter().zip(&other).map(pair).collect()
            }
            Store::Split { drift, .. } => {
                let unscale = 2f64.powi(-self.read_tensor(param).exponent);
                self.read_split(param, Show::Joined, start, &mut theta);
                let drift = self.read_u16(drift, start, n);
                let pair =
                    |(t, d): (&f32, u16)| (wide(t), wide(t) - f64::from(from_f16(d)) * unscale);
                theta.iter().zip(drift).map(pair).collect()
            }
        }
    }

    /// Gives a split parameter the drift to `values`.
    fn set_drift(&self, param: &Param, drift: u64, values: &[f32]) {
        let mut theta = vec![0f32; PIECE.min(values.len())];
        let mut each = |visit: &mut dyn FnMut(usize, &[f32])| {
            for (start, n) in pieces(values.len()) {
                self.read_split(param, Show::Joined, start, &mut theta[..n]);
                let pairs = theta[..n].iter_mut().zip(&values[start..start + n]);
                pairs.for_each(|(t, v)| *t -= v);
                visit(start, &theta[..n]);
            }
        };
        let mut max = 0f64;
        each(&mut |_, d| max = d.iter().fold(max, |a, d| a.max(f64::from(d.abs()))));
        let exponent = drift_exponent(max).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
        let scale = 2f32.powi(exponent);
        each(&mut |start, d| {
            let stored: Vec<u16> = d.iter().map(|d| to_f16(d * scale)).collect();
            let bytes = bytemuck::cast_slice(&stored);
            self.keep(self.upload(at(drift, start, 2), bytes));
        });
        let tensor = Tensor { exponent, max_drift: max, ..self.read_tensor(param) };
        self.keep(self.upload(param.tensor, bytemuck::bytes_of(&tensor)));
    }
}

impl Gpu {
    /// Allocates a parameter and fills it by `init`; the teacher starts equal to it.
    pub(super) fn new_param(
        &self,
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Param> {
        let len = spec.len;
        spec.check()?;
        let mut initial = vec![0f32; len];
        init(&mut initial)?;
        let seed = noise_seed(&spec.name, spec.seed);
        let tensor = self.zeros(scalar_bytes(spec))?;
        let Planes { theta, low, teacher, first, second, scales } = planes(spec, self.precision);
        let theta = self.alloc(theta.bytes())?;
        let store = match spec.stored() {
            Stored::Frozen => Store::Frozen(theta),
            Stored::Exact(form) => Store::Exact {
                theta,
                form,
                teacher: self.zeros(teacher.bytes())?,
                first: self.zeros(first.bytes())?,
                second: self.zeros(second.bytes())?,
            },
            Stored::Split(_) => Store::Split {
                hi: theta,
                lo: self.alloc(low.bytes())?,
                drift: self.zeros(teacher.bytes())?,
                first: self.zeros(first.bytes())?,
                second: self.zeros(second.bytes())?,
                scales: self.zeros(scales.bytes())?,
            },
        };
        let param = Param { seed, len, rule: spec.rule, tensor, store };
        match param.store {
            _ if len == 0 => {}
            Store::Frozen(plane) => {
                for (start, n) in pieces(len) {
                    let to = at(plane, start, self.precision.bytes());
                    self.upload_act(to, &initial[start..start + n])?;
                }
            }
            Store::Exact { theta, form, teacher, .. } => {
                self.upload(theta, bytemuck::cast_slice(&initial))?;
                if form == TeacherForm::Full {
                    self.copy(theta, teacher, 4 * len as u64)?;
                }
            }
            Store::Split { hi, lo, .. } => self.split(&param, (hi, lo), &initial)?,
        }
        Ok(param)
    }

    /// Allocates the gradient of a parameter.
    pub(super) fn new_grad(&self, spec: &ParamSpec) -> Result<Grad> {
        let plane = spec.gradient(4);
        let (at, scans) = (self.alloc(plane.bytes())?, self.alloc(scan_bytes(plane.len))?);
        Ok(Grad { at, len: plane.len, wide: plane.size == 4, scans, marks: Default::default() })
    }

    pub(super) fn give_teacher(&self, param: &mut Param, values: &[f32]) {
        match param.store {
            Store::Exact { theta, form: TeacherForm::Drift, teacher, .. } => {
                let mut drift = vec![0f32; PIECE.min(param.len)];
                for (start, n) in pieces(param.len) {
                    self.read_f32(theta, start, &mut drift[..n]);
                    let pairs = drift[..n].iter_mut().zip(&values[start..start + n]);
                    pairs.for_each(|(t, v)| *t -= v);
                    let bytes = bytemuck::cast_slice(&drift[..n]);
                    self.keep(self.upload(at(teacher, start, 4), bytes));
                }
            }
            Store::Exact { form: TeacherForm::Full, teacher, .. } if param.len > 0 => {
                let bytes = bytemuck::cast_slice(&values[..param.len]);
                self.keep(self.upload(teacher, bytes));
            }
            Store::Split { drift, .. } if drift != 0 => self.set_drift(param, drift, values),
            _ => {}
        }
    }

    pub(super) fn fetch_grad(&self, grad: &Grad, out: &mut [f32]) {
        if !grad.is_written() {
            out.fill(0.0);
        } else if grad.wide {
            self.read_f32(grad.at, 0, out);
        } else {
            let narrow = self.read_u16(grad.at, 0, out.len());
            out.iter_mut().zip(narrow).for_each(|(to, from)| *to = widen(from));
        }
    }

    pub(super) fn fetch_param(&self, param: &Param, role: Role, out: &mut [f32]) {
        let out = &mut out[..param.len];
        match (&param.store, role) {
            (Store::Frozen(plane), _) => {
                for (start, n) in pieces(param.len) {
                    let from = at(*plane, start, self.precision.bytes());
                    self.keep(self.download_act(from, &mut out[start..start + n]));
                }
            }
            (Store::Exact { theta, form, teacher, .. }, Role::Teacher) => match form {
                TeacherForm::None => self.read_f32(*theta, 0, out),
                TeacherForm::Full => self.read_f32(*teacher, 0, out),
                TeacherForm::Drift => {
                    self.read_f32(*theta, 0, out);
                    let mut drift = vec![0f32; PIECE.min(param.len)];
                    for (start, n) in pieces(param.len) {
                        self.read_f32(*teacher, start, &mut drift[..n]);
                        let pairs = out[start..start + n].iter_mut().zip(&drift);
                        pairs.for_each(|(to, d)| *to -= d);
                    }
                }
            },
            (Store::Exact { theta, .. }, _) => self.read_f32(*theta, 0, out),
            (Store::Split { .. }, role) => {
                let show = match role {
                    Role::Teacher => Show::JoinedTeacher,
                    Role::Student => Show::Joined,
                    // As evaluation views it, so that a saved model has the figures it was saved with.
                    Role::Evaluated => Show::Evaluated,
                };
                self.read_split(param, show, 0, out);
            }
        }
    }
}

/// Test access: what no op shows.
impl Gpu {
    /// Writes a gradient as an op would that finds it empty.
    pub(crate) fn write_grad(&self, grad: &mut Grad, values: &[f32]) -> Result<()> {
        self.adds(grad);
        if grad.wide {
            return self.upload(grad.at, bytemuck::cast_slice(values));
        }
        let narrow: Vec<u16> = values.iter().map(|x| narrow_even(*x)).collect();
        self.upload(grad.at, bytemuck::cast_slice(&narrow))
    }

    /// Reads a weight as the kernels read it.
    pub(crate) fn read_weight(&self, weight: Weight<'_>, len: usize) -> Result<Vec<f32>> {
        let mut out = vec![0f32; len];
        self.download_act(weight.at, &mut out)?;
        Ok(out)
    }
}

impl Param {
    /// Returns the kernels' code for its storage: `Entry` of kernels/common.cuh.
    fn kept(&self) -> u32 {
        match self.store {
            Store::Frozen(_) | Store::Exact { .. } => 0,
            Store::Split { lo: 0, .. } => 2,
            Store::Split { .. } => 1,
        }
    }

    fn is_split(&self) -> bool {
        matches!(self.store, Store::Split { .. })
    }

    /// Returns how the weights are stored.
    pub(super) fn stored(&self) -> Stored {
        match self.store {
            Store::Frozen(_) => Stored::Frozen,
            Store::Exact { form, .. } => Stored::Exact(form),
            Store::Split { drift: 0, .. } => Stored::Split(TeacherForm::None),
            Store::Split { .. } => Stored::Split(TeacherForm::Drift),
        }
    }
}

impl State for Gpu {
    type Pending = ();

    fn clear_grad(&self, grad: &mut Grad) {
        grad.clear();
    }

    fn view<'a>(&self, param: &'a Param, role: Role, scratch: &'a mut Act) -> Weight<'a> {
        let direct = match (&param.store, role) {
            (Store::Frozen(plane), _) => *plane,
            (Store::Exact { form: TeacherForm::Full, teacher, .. }, Role::Teacher) => *teacher,
            (Store::Exact { theta, .. }, _) => *theta,
            (Store::Split { hi, .. }, _) => *hi,
        };
        if !self.needs_scratch(param, role) {
            return Weight::new(direct);
        }
        if scratch.len < param.len {
            self.refuse(format!("a scratch of {} for {} weights", scratch.len, param.len));
            return Weight::new(scratch.at);
        }
        let show = match role {
            Role::Student => Show::Plane,
            Role::Teacher => Show::DitheredTeacher,
            Role::Evaluated => Show::Evaluated,
        };
        if param.is_split() {
            let wide = self.precision == Precision::Fp32;
            self.show(wide, param, show, (0, param.len), scratch.at);
        } else {
            let drift = match param.store {
                Store::Exact { form: TeacherForm::Drift, teacher, .. } if role == Role::Teacher => {
                    teacher
                }
                _ => 0,
            };
            let args = Args::new()
                .ptr(param.tensor)
                .u32(show as u32)
                .ptr(direct)
                .ptr(drift)
                .ptr(scratch.at)
                .u64(param.len as u64)
                .u64(param.seed);
            let kernel = self.pick("materialize_exact_bf16", "materialize_exact_f32");
            self.launch(kernel, [blocks(param.len, ROW), 1, 1], 256, 0, args);
        }
        Weight::new(scratch.at)
    }

    fn scan_grad(&self, grad: &Grad) -> GradScan {
        self.scan(grad)
    }

    fn grad_dot(&self, a: &Grad, b: &Grad) -> f64 {
        self.dot(a, b)
    }

    fn grad_mix(&self, y: &mut Grad, keep: f64, x: &Grad, add: f64) {
        self.mix(y, keep, x, add);
    }

    fn update(&self, param: &mut Param, grad: &Grad, scan: &GradScan, scalars: &UpdateScalars) {
        if scan.nonfinite == 0 && !matches!(param.rule, UpdateRule::Custom { .. }) {
            self.update_one(param, grad, scan, scalars);
        }
    }

    fn update_all(
        &self,
        params: &mut [Param],
        grads: &[Option<Grad>],
        settings: &StepSettings,
    ) -> Result<()> {
        self.launch_step(params, grads, settings)
    }

    fn update_custom(
        &self,
        params: &mut [Param],
        grads: &[Option<Grad>],
        tensors: &[Vec<TensorPlace<'_>>],
        settings: &StepSettings,
        rule: &mut dyn CustomRule,
    ) -> Result<()> {
        self.follow(params, grads, tensors, settings, rule)
    }

    fn outcome(&self, (): ()) -> Result<StepOutcome> {
        self.read_outcome()
    }

    fn distances(&self, param: &Param, initial: &[f32]) -> Distances {
        let mut sum = Distances::default();
        for (start, n) in pieces(param.len.min(initial.len())) {
            let pairs = self.read_pairs(param, (start, n));
            for ((theta, teacher), initial) in pairs.into_iter().zip(&initial[start..start + n]) {
                let initial = f64::from(*initial);
                sum.student_teacher += (theta - teacher) * (theta - teacher);
                sum.student_initial += (theta - initial) * (theta - initial);
                sum.teacher_initial += (teacher - initial) * (teacher - initial);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        assert_eq!(pieces(0).count(), 0);
        let cut: Vec<_> = pieces(PIECE + 3).collect();
        assert_eq!(cut, [(0, PIECE), (PIECE, 3)]);
        assert_eq!((at(0, 5, 2), at(256, 5, 2)), (0, 266));
    }
}
