//! Parameters in Rust: how they are kept, shown, saved and measured.

mod custom;
mod saved;
mod show;

use pulp::{Arch, Simd, WithSimd};

use super::update::{Element, Numbers, Scale, fold, update_exact};
use super::update::{SplitBuffers, update_split};
use super::{Cpu, Grad, Real, filled};
use crate::error::Result;
use crate::ops::format::{
    EXPONENT_LIMIT, drift_exponent, from_f16, join, narrow_even, noise, noise_seed, split, to_f16,
    widen,
};
use crate::ops::state::{Distances, GradScan};
use crate::ops::{Memory, ParamSpec, Plane, Planes, Role, State, Stored, TeacherForm};
use crate::optim::custom::other_rule;
use crate::optim::{CustomRule, TensorPlace, UpdateRule, UpdateScalars};
use crate::optim::{StepOutcome, StepSettings};
pub(super) use saved::SCALAR_BYTES;
use show::Show;

/// A parameter on the CPU with its teacher and optimizer state.
#[derive(Debug, Clone)]
pub struct Param<T> {
    seed: u64,
    /// Updates so far; the planes carry the noise of this step.
    counter: u64,
    rule: UpdateRule,
    store: Store<T>,
}

#[derive(Debug, Clone)]
enum Store<T> {
    Frozen(Vec<T>),
    Exact(Exact<T>),
    Split(Split),
}

/// Absent buffers are empty.
#[derive(Debug, Clone)]
struct Exact<T> {
    theta: Vec<T>,
    form: TeacherForm,
    teacher: Vec<T>,
    first: Vec<T>,
    second: Vec<T>,
}

/// Compact, tiny and approx state. Absent buffers are empty.
#[derive(Debug, Clone)]
struct Split {
    hi: Vec<u16>,
    /// Absent in approx state.
    lo: Vec<u16>,
    drift: Vec<u16>,
    /// Absent in tiny state.
    first: Vec<u16>,
    second: Vec<u16>,
    /// The first moment of tiny state.
    bytes: Vec<i8>,
    /// The scale of each of its blocks.
    scales: Vec<f32>,
    scale: Scale,
}

impl<T> Param<T> {
    /// Returns seed and step of its rounding noise.
    pub(crate) fn noise_key(&self) -> (u64, u64) {
        (self.seed, self.counter)
    }

    fn len(&self) -> usize {
        match &self.store {
            Store::Frozen(theta) => theta.len(),
            Store::Exact(exact) => exact.theta.len(),
            Store::Split(split) => split.hi.len(),
        }
    }
}

impl<T: Real> Param<T> {
    /// Allocates a parameter and fills it by `init`; the teacher starts equal to it.
    pub(super) fn new(
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let name = spec.name.as_str();
        spec.check()?;
        let mut initial = filled(name, spec.len, 0f32)?;
        init(&mut initial)?;
        let seed = noise_seed(name, spec.seed);
        let planes = planes::<T>(spec);
        let plain = |plane: Plane| filled(name, plane.len, T::ZERO);
        let store = match spec.stored() {
            Stored::Split(_) => Store::Split(Split::new(name, planes, seed, &initial)?),
            stored => {
                let mut theta = plain(planes.theta)?;
                theta.iter_mut().zip(&initial).for_each(|(to, from)| *to = T::from_f32(*from));
                drop(initial);
                match stored {
                    Stored::Exact(form) => {
                        let mut teacher = plain(planes.teacher)?;
                        if form == TeacherForm::Full {
                            teacher.copy_from_slice(&theta);
                        }
                        let (first, second) = (plain(planes.first)?, plain(planes.second)?);
                        Store::Exact(Exact { theta, form, teacher, first, second })
                    }
                    _ => Store::Frozen(theta),
                }
            }
        };
        Ok(Self { seed, counter: 0, rule: spec.rule, store })
    }

    /// Returns how the weights are stored.
    pub(super) fn stored(&self) -> Stored {
        match &self.store {
            Store::Frozen(_) => Stored::Frozen,
            Store::Exact(exact) => Stored::Exact(exact.form),
            Store::Split(split) if split.drift.is_empty() => Stored::Split(TeacherForm::None),
            Store::Split(_) => Stored::Split(TeacherForm::Drift),
        }
    }

    /// Gives the teacher weights of its own; frozen parameters have none.
    pub(super) fn set_teacher(&mut self, values: &[f32]) {
        let (seed, counter) = (self.seed, self.counter);
        match &mut self.store {
            Store::Frozen(_) => {}
            Store::Exact(exact) => {
                let pairs = exact.teacher.iter_mut().zip(&exact.theta).zip(values);
                for ((teacher, theta), value) in pairs {
                    let value = T::from_f32(*value);
                    *teacher = if exact.form == TeacherForm::Full { value } else { *theta - value };
                }
            }
            Store::Split(split) => {
                let drift = |i: usize| split.theta((seed, counter), i) - values[i];
                let all = 0..split.drift.len();
                let max = all.clone().map(|i| f64::from(drift(i).abs())).fold(0.0, f64::max);
                let exponent = drift_exponent(max).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
                let stored: Vec<u16> =
                    all.map(|i| to_f16(drift(i) * 2f32.powi(exponent))).collect();
                split.drift = stored;
                split.scale.exponent = exponent;
                split.scale.max_drift = max;
            }
        }
    }

    /// Copies the weights of `role` to `out`.
    pub(super) fn read(&self, role: Role, out: &mut [f32]) {
        let out = &mut out[..self.len()];
        let fill = |out: &mut [f32], from: &[T]| {
            out.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
        };
        match (&self.store, role) {
            (Store::Frozen(theta), _) => fill(out, theta),
            (Store::Exact(exact), Role::Teacher) => {
                out.iter_mut().enumerate().for_each(|(i, to)| *to = exact.teacher_at(i).to_f32());
            }
            (Store::Exact(exact), _) => fill(out, &exact.theta),
            (Store::Split(split), role) => {
                let show = match role {
                    Role::Teacher => Show::JoinedTeacher,
                    Role::Student => Show::Joined,
                    // As evaluation views it, so that a saved model has the figures it was saved with.
                    Role::Evaluated => Show::Evaluated,
                };
                split.show((self.seed, self.counter), show, out);
            }
        }
    }
}

impl Split {
    /// Makes the planes of `initial`; the teacher starts equal to it.
    fn new(name: &str, planes: Planes, seed: u64, initial: &[f32]) -> Result<Self> {
        let narrow = |plane: Plane| filled(name, plane.len, 0u16);
        let (mut hi, mut lo) = (narrow(planes.theta)?, narrow(planes.low)?);
        let mut max_theta = 0f32;
        for (i, theta) in initial.iter().enumerate() {
            match lo.get_mut(i) {
                Some(lo) => (hi[i], *lo) = split(*theta, noise(seed, 0, i as u64) & 0xffff),
                None => hi[i] = narrow_even(*theta),
            }
            max_theta = max_theta.max(theta.abs());
        }
        let tiny = planes.scales.len > 0;
        let of = |wanted: bool, plane: Plane| if wanted { plane.len } else { 0 };
        Ok(Self {
            hi,
            lo,
            drift: narrow(planes.teacher)?,
            first: filled(name, of(!tiny, planes.first), 0u16)?,
            second: narrow(planes.second)?,
            bytes: filled(name, of(tiny, planes.first), 0i8)?,
            scales: filled(name, planes.scales.len, 0f32)?,
            scale: Scale {
                exponent: 0,
                max_drift: 0.0,
                max_moment: 0.0,
                max_theta: f64::from(max_theta),
            },
        })
    }

    /// Returns the student's number `i` as it is stored, under seed and step of its noise.
    fn theta(&self, (seed, counter): (u64, u64), i: usize) -> f32 {
        match self.lo.get(i) {
            Some(lo) => join(self.hi[i], *lo, noise(seed, counter, i as u64) & 0xffff),
            None => widen(self.hi[i]),
        }
    }
}

/// Returns the buffers of a parameter computed in `T`.
pub(super) fn planes<T>(spec: &ParamSpec) -> Planes {
    spec.planes(size_of::<T>(), size_of::<T>())
}

/// Tells whether showing weights of `role` writes them to a scratch.
pub(super) fn needs_scratch(stored: Stored, role: Role) -> bool {
    match stored {
        Stored::Frozen => false,
        Stored::Exact(form) => role == Role::Teacher && form == TeacherForm::Drift,
        Stored::Split(_) => true,
    }
}

struct ScanPass<'a, G, T>(&'a [G], std::marker::PhantomData<T>);

/// Independent accumulators of a scan, so that it vectorises in a fixed order.
const LANES: usize = 16;

impl<G: Element, T: Real> WithSimd for ScanPass<'_, G, T> {
    type Output = GradScan;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> GradScan {
        let infinity = T::from_f64(f64::INFINITY);
        let (mut sums, mut maxima, mut bad) = ([0f64; LANES], [T::ZERO; LANES], [0u32; LANES]);
        let mut add = |lane: usize, x: G| {
            let x: T = x.wide();
            let magnitude = if x < T::ZERO { -x } else { x };
            let wide = x.to_f64();
            sums[lane] += wide * wide;
            maxima[lane] = if magnitude > maxima[lane] { magnitude } else { maxima[lane] };
            bad[lane] += u32::from(!matches!(
                magnitude.partial_cmp(&infinity),
                Some(std::cmp::Ordering::Less)
            ));
        };
        let mut blocks = self.0.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, x) in block.iter().enumerate() {
                add(lane, *x);
            }
        }
        for (lane, x) in blocks.remainder().iter().enumerate() {
            add(lane, *x);
        }
        GradScan {
            sum_sq: sums.iter().sum(),
            max_abs: maxima.iter().fold(0.0, |a, b| b.to_f64().max(a)),
            nonfinite: bad.iter().map(|b| u64::from(*b)).sum(),
        }
    }
}

fn scan<T: Real, G: Element>(numbers: &[G]) -> GradScan {
    let leaf =
        |part: &[G], _, _| Arch::new().dispatch(ScanPass::<_, T>(part, std::marker::PhantomData));
    let merge = |a: GradScan, b: GradScan| GradScan {
        sum_sq: a.sum_sq + b.sum_sq,
        max_abs: a.max_abs.max(b.max_abs),
        nonfinite: a.nonfinite + b.nonfinite,
    };
    fold(numbers, 0, numbers.len(), &leaf, &merge)
}

/// Sums squared distances over pairs (student, teacher) given by index.
fn measure(initial: &[f32], pair: impl Fn(usize) -> (f64, f64) + Sync) -> Distances {
    let leaf = |part: &[f32], offset: usize, _| {
        let mut sum = Distances::default();
        for (i, initial) in part.iter().enumerate() {
            let (theta, teacher) = pair(offset + i);
            let initial = f64::from(*initial);
            sum.student_teacher += (theta - teacher) * (theta - teacher);
            sum.student_initial += (theta - initial) * (theta - initial);
            sum.teacher_initial += (teacher - initial) * (teacher - initial);
        }
        sum
    };
    let merge = |a: Distances, b: Distances| Distances {
        student_teacher: a.student_teacher + b.student_teacher,
        student_initial: a.student_initial + b.student_initial,
        teacher_initial: a.teacher_initial + b.teacher_initial,
    };
    fold(initial, 0, initial.len(), &leaf, &merge)
}

impl<T: Real> Exact<T> {
    fn teacher_at(&self, i: usize) -> T {
        match self.form {
            TeacherForm::None => self.theta[i],
            TeacherForm::Full => self.teacher[i],
            TeacherForm::Drift => self.theta[i] - self.teacher[i],
        }
    }
}

impl<T: Real> State for Cpu<T> {
    type Pending = StepOutcome;

    fn clear_grad(&self, grad: &mut Grad<T>) {
        grad.empty = true;
    }

    fn view<'a>(&self, param: &'a Param<T>, role: Role, scratch: &'a mut Vec<T>) -> &'a [T] {
        let n = param.len();
        if self.needs_scratch(param, role) && scratch.len() < n {
            scratch.resize(n, T::ZERO);
        }
        match (&param.store, role) {
            (Store::Frozen(theta), _) => theta,
            (Store::Exact(exact), Role::Teacher) => match exact.form {
                TeacherForm::None => &exact.theta,
                TeacherForm::Full => &exact.teacher,
                TeacherForm::Drift => {
                    let leaf = |((theta, drift), out): ((&[T], &[T]), &mut [T]), _, _| {
                        out.iter_mut()
                            .zip(theta.iter().zip(drift))
                            .for_each(|(out, (theta, drift))| *out = *theta - *drift);
                    };
                    let source = (&exact.theta[..], &exact.teacher[..]);
                    fold((source, &mut scratch[..n]), 0, n, &leaf, &|(), ()| ());
                    &scratch[..n]
                }
            },
            (Store::Exact(exact), Role::Student | Role::Evaluated) => &exact.theta,
            (Store::Split(split), role) => {
                let show = match role {
                    Role::Student => Show::Plane,
                    Role::Teacher => Show::DitheredTeacher,
                    Role::Evaluated => Show::Evaluated,
                };
                split.show((param.seed, param.counter), show, &mut scratch[..n]);
                &scratch[..n]
            }
        }
    }

    fn scan_grad(&self, grad: &Grad<T>) -> GradScan {
        match grad.into() {
            Numbers::<T>::Zeros => GradScan::default(),
            Numbers::Wide(x) => scan::<T, _>(x),
            Numbers::Bf16(x) => scan::<f32, _>(x),
        }
    }

    fn grad_dot(&self, a: &Grad<T>, b: &Grad<T>) -> f64 {
        a.dot(b)
    }

    fn grad_mix(&self, y: &mut Grad<T>, keep: f64, x: &Grad<T>, add: f64) {
        y.mix(keep, x, add);
    }

    /// A gradient with NaN or infinite entries (by `scan`) and a frozen parameter change nothing.
    fn update(
        &self,
        param: &mut Param<T>,
        grad: &Grad<T>,
        scan: &GradScan,
        scalars: &UpdateScalars,
    ) {
        if scan.nonfinite > 0 || matches!(param.rule, UpdateRule::Custom { .. }) {
            return;
        }
        let numbers = grad.into();
        match &mut param.store {
            Store::Frozen(_) => return,
            Store::Exact(Exact { theta, form, teacher, first, second }) => {
                let full = *form == TeacherForm::Full;
                let buffers = (&mut theta[..], &mut teacher[..], &mut first[..], &mut second[..]);
                update_exact(buffers, full, numbers, &param.rule, scalars);
            }
            Store::Split(split) => {
                let key = (param.seed, param.counter);
                let Split { hi, lo, drift, first, second, bytes, scales, scale } = split;
                let buffers = SplitBuffers { hi, lo, drift, first, second, bytes, scales };
                update_split(buffers, scale, key, numbers, scan, &param.rule, scalars);
            }
        }
        param.counter += 1;
    }

    fn update_all(
        &self,
        params: &mut [Param<T>],
        grads: &[Option<Grad<T>>],
        settings: &StepSettings,
    ) -> Result<StepOutcome> {
        if params.iter().any(|param| matches!(param.rule, UpdateRule::Custom { .. })) {
            return Err(other_rule());
        }
        let (scans, outcome) = self.judge(grads, settings);
        if !outcome.skipped {
            let scalars = settings.clipped(outcome.clip);
            for ((param, grad), scan) in params.iter_mut().zip(grads).zip(&scans) {
                if let Some(grad) = grad {
                    self.update(param, grad, scan, &scalars);
                }
            }
        }
        Ok(outcome)
    }

    fn update_custom(
        &self,
        params: &mut [Param<T>],
        grads: &[Option<Grad<T>>],
        tensors: &[Vec<TensorPlace<'_>>],
        settings: &StepSettings,
        rule: &mut dyn CustomRule,
    ) -> Result<StepOutcome> {
        self.follow(params, grads, tensors, settings, rule)
    }

    fn outcome(&self, pending: StepOutcome) -> Result<StepOutcome> {
        Ok(pending)
    }

    fn distances(&self, param: &Param<T>, initial: &[f32]) -> Distances {
        match &param.store {
            Store::Frozen(theta) => measure(initial, |i| (theta[i].to_f64(), theta[i].to_f64())),
            Store::Exact(exact) => {
                // f64 differences of drifts, so that a teacher near its start does not round away.
                measure(initial, |i| {
                    let theta = exact.theta[i].to_f64();
                    match exact.form {
                        TeacherForm::None => (theta, theta),
                        TeacherForm::Full => (theta, exact.teacher[i].to_f64()),
                        TeacherForm::Drift => (theta, theta - exact.teacher[i].to_f64()),
                    }
                })
            }
            Store::Split(split) => {
                let unscale = 2f64.powi(-split.scale.exponent);
                measure(initial, |i| {
                    let theta = f64::from(split.theta((param.seed, param.counter), i));
                    let drift = split.drift.get(i).map_or(0.0, |d| f64::from(from_f16(*d)));
                    (theta, theta - drift * unscale)
                })
            }
        }
    }
}
