//! Parameters in Rust: how they are kept, shown, saved and measured.

mod custom;
mod saved;

use pulp::{Arch, Simd, WithSimd};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::update::{Element, Numbers, Scale, fold, update_compact, update_exact};
use super::{Cpu, Grad, GradData, Real};
use crate::error::{Error, Kind, Result};
use crate::ops::format::{
    EXPONENT_LIMIT, NEAREST, drift_exponent, from_f16, join, narrow, noise, split, to_f16, widen,
};
use crate::ops::rule::{not_exact, other_rule};
use crate::ops::state::{Distances, GradScan, StepOutcome, StepSettings};
use crate::ops::{
    CustomRule, ParamSpec, Role, State, StateMode, TeacherForm, TensorPlace, UpdateRule,
    UpdateScalars,
};
use saved::{SCALAR_BYTES, restore_scalars, scalar_bytes};

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
    Compact(Compact),
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

#[derive(Debug, Clone)]
struct Compact {
    hi: Vec<u16>,
    lo: Vec<u16>,
    drift: Vec<u16>,
    first: Vec<u16>,
    second: Vec<u16>,
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
            Store::Compact(compact) => compact.hi.len(),
        }
    }
}

fn filled<X: Copy>(name: &str, len: usize, value: X) -> Result<Vec<X>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(size_of::<X>());
        Error::new(Kind::Memory, format!("{name}: cannot allocate {bytes} bytes"))
    })?;
    out.resize(len, value);
    Ok(out)
}

/// What a pass over the planes makes of them.
#[derive(Clone, Copy)]
enum Show {
    /// The bf16 plane.
    Plane,
    /// The teacher in bf16, under the student's rounding bits.
    DitheredTeacher,
    /// The student rounded to the nearest bf16.
    Nearest,
    /// The student in fp32.
    Joined,
    /// The teacher in fp32.
    JoinedTeacher,
}

struct ShowPass<'a, O> {
    planes: (&'a [u16], &'a [u16], &'a [u16]),
    out: &'a mut [O],
    show: Show,
    offset: usize,
    seed: u64,
    counter: u64,
    /// 2^-k of the drift.
    unscale: f32,
}

impl<O: Real> WithSimd for ShowPass<'_, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (hi, lo, drift) = self.planes;
        let n = self.out.len();
        let (hi, lo, out) = (&hi[..n], &lo[..n], self.out);
        let high = (self.offset as u64) & !0xffff_ffff;
        let low = self.offset as u32;
        let random = |i: usize| {
            let index = high | u64::from(low.wrapping_add(i as u32));
            noise(self.seed, self.counter, index) & 0xffff
        };
        macro_rules! each {
            (|$i:ident| $value:expr) => {
                for $i in 0..n {
                    out[$i] = O::from_f32($value);
                }
            };
        }
        match self.show {
            Show::Plane => each!(|i| widen(hi[i])),
            Show::Nearest => each!(|i| widen(narrow(join(hi[i], lo[i], random(i)), NEAREST))),
            Show::Joined => each!(|i| join(hi[i], lo[i], random(i))),
            Show::DitheredTeacher => {
                let drift = &drift[..n];
                each!(|i| {
                    let r = random(i);
                    let teacher = join(hi[i], lo[i], r) - from_f16(drift[i]) * self.unscale;
                    widen(narrow(teacher, r))
                });
            }
            Show::JoinedTeacher => {
                let drift = &drift[..n];
                each!(|i| join(hi[i], lo[i], random(i)) - from_f16(drift[i]) * self.unscale);
            }
        }
    }
}

impl Compact {
    /// Writes what `show` asks for; without a drift the teacher is the student.
    fn show<O: Real>(&self, (seed, counter): (u64, u64), show: Show, out: &mut [O]) {
        let show = match (self.drift.is_empty(), show) {
            (true, Show::DitheredTeacher) => Show::Plane,
            (true, Show::JoinedTeacher) => Show::Joined,
            _ => show,
        };
        let unscale = 2f32.powi(-self.scale.exponent);
        let planes = (&self.hi[..], &self.lo[..], &self.drift[..]);
        let leaf = |(planes, out), offset, _| {
            Arch::new().dispatch(ShowPass { planes, out, show, offset, seed, counter, unscale });
        };
        fold((planes, out), 0, self.hi.len(), &leaf, &|(), ()| ());
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
    type Param = Param<T>;
    type Pending = StepOutcome;

    fn param(
        &self,
        spec: &ParamSpec,
        init: &mut dyn FnMut(&mut [f32]) -> Result<()>,
    ) -> Result<Param<T>> {
        let (name, len) = (spec.name.as_str(), spec.len);
        let compact = spec.trainable && spec.mode == StateMode::Compact;
        if compact && spec.teacher == TeacherForm::Full {
            return Err(Error::config(format!(
                "{name}: compact state keeps a teacher as drift, got a full one"
            )));
        }
        let mut initial = filled(name, len, 0f32)?;
        init(&mut initial)?;
        if compact && matches!(spec.rule, UpdateRule::Custom { .. }) {
            return Err(not_exact(name));
        }
        let [first, second] =
            spec.rule.moment_names().map(|name| if name.is_empty() { 0 } else { len });
        let seed = xxh3_64_with_seed(name.as_bytes(), spec.seed);
        let store = if compact {
            let (mut hi, mut lo) = (filled(name, len, 0u16)?, filled(name, len, 0u16)?);
            let mut max_theta = 0f32;
            for (i, theta) in initial.iter().enumerate() {
                (hi[i], lo[i]) = split(*theta, noise(seed, 0, i as u64) & 0xffff);
                max_theta = max_theta.max(theta.abs());
            }
            let drift = if spec.teacher == TeacherForm::Drift { len } else { 0 };
            Store::Compact(Compact {
                hi,
                lo,
                drift: filled(name, drift, 0u16)?,
                first: filled(name, first, 0u16)?,
                second: filled(name, second, 0u16)?,
                scale: Scale {
                    exponent: 0,
                    max_drift: 0.0,
                    max_moment: 0.0,
                    max_theta: f64::from(max_theta),
                },
            })
        } else {
            let mut theta = filled(name, len, T::ZERO)?;
            theta.iter_mut().zip(&initial).for_each(|(to, from)| *to = T::from_f32(*from));
            drop(initial);
            if spec.trainable {
                let mut teacher = Vec::new();
                if spec.teacher != TeacherForm::None {
                    teacher = filled(name, len, T::ZERO)?;
                }
                if spec.teacher == TeacherForm::Full {
                    teacher.copy_from_slice(&theta);
                }
                Store::Exact(Exact {
                    theta,
                    form: spec.teacher,
                    teacher,
                    first: filled(name, first, T::ZERO)?,
                    second: filled(name, second, T::ZERO)?,
                })
            } else {
                Store::Frozen(theta)
            }
        };
        Ok(Param { seed, counter: 0, rule: spec.rule, store })
    }

    fn set_teacher(&self, param: &mut Param<T>, values: &[f32]) {
        let (seed, counter) = (param.seed, param.counter);
        match &mut param.store {
            Store::Frozen(_) => {}
            Store::Exact(exact) => {
                let pairs = exact.teacher.iter_mut().zip(&exact.theta).zip(values);
                for ((teacher, theta), value) in pairs {
                    let value = T::from_f32(*value);
                    *teacher = if exact.form == TeacherForm::Full { value } else { *theta - value };
                }
            }
            Store::Compact(compact) => {
                let drift = |i: usize| {
                    let r = noise(seed, counter, i as u64) & 0xffff;
                    join(compact.hi[i], compact.lo[i], r) - values[i]
                };
                let all = 0..compact.drift.len();
                let max = all.clone().map(|i| f64::from(drift(i).abs())).fold(0.0, f64::max);
                let exponent = drift_exponent(max).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
                let stored: Vec<u16> =
                    all.map(|i| to_f16(drift(i) * 2f32.powi(exponent))).collect();
                compact.drift = stored;
                compact.scale.exponent = exponent;
                compact.scale.max_drift = max;
            }
        }
    }

    fn grad(&self, spec: &ParamSpec) -> Result<Grad<T>> {
        let len = if spec.trainable { spec.len } else { 0 };
        let data = match spec.mode {
            StateMode::Exact => GradData::Wide(filled(&spec.name, len, T::ZERO)?),
            StateMode::Compact => GradData::Bf16(filled(&spec.name, len, 0u16)?),
        };
        Ok(Grad { data, empty: true })
    }

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
            (Store::Compact(compact), role) => {
                let show = match role {
                    Role::Student => Show::Plane,
                    Role::Teacher => Show::DitheredTeacher,
                    Role::Evaluated => Show::Nearest,
                };
                compact.show((param.seed, param.counter), show, &mut scratch[..n]);
                &scratch[..n]
            }
        }
    }

    fn needs_scratch(&self, param: &Param<T>, role: Role) -> bool {
        match &param.store {
            Store::Frozen(_) => false,
            Store::Exact(exact) => role == Role::Teacher && exact.form == TeacherForm::Drift,
            Store::Compact(_) => true,
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

    fn read_grad(&self, grad: &Grad<T>, out: &mut [f32]) {
        match grad.into() {
            Numbers::<T>::Zeros => out.fill(0.0),
            Numbers::Wide(x) => out.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_f32()),
            Numbers::Bf16(x) => out.iter_mut().zip(x).for_each(|(to, x)| *to = widen(*x)),
        }
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
            Store::Compact(Compact { hi, lo, drift, first, second, scale }) => {
                let moments = (&mut first[..], &mut second[..]);
                let buffers = (&mut hi[..], &mut lo[..], &mut drift[..], moments.0, moments.1);
                let key = (param.seed, param.counter);
                update_compact(buffers, scale, key, numbers, scan, &param.rule, scalars);
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

    fn read_param(&self, param: &Param<T>, role: Role, out: &mut [f32]) {
        let out = &mut out[..param.len()];
        let fill = |out: &mut [f32], from: &[T]| {
            out.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
        };
        match (&param.store, role) {
            (Store::Frozen(theta), _) => fill(out, theta),
            (Store::Exact(exact), Role::Teacher) => {
                out.iter_mut().enumerate().for_each(|(i, to)| *to = exact.teacher_at(i).to_f32());
            }
            (Store::Exact(exact), _) => fill(out, &exact.theta),
            (Store::Compact(compact), role) => {
                let show = match role {
                    Role::Teacher => Show::JoinedTeacher,
                    Role::Student => Show::Joined,
                    // As evaluation views it, so that a saved model has the figures it was saved with.
                    Role::Evaluated => Show::Nearest,
                };
                compact.show((param.seed, param.counter), show, out);
            }
        }
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
            Store::Compact(compact) => {
                let unscale = 2f64.powi(-compact.scale.exponent);
                measure(initial, |i| {
                    let r = noise(param.seed, param.counter, i as u64) & 0xffff;
                    let theta = f64::from(join(compact.hi[i], compact.lo[i], r));
                    let drift = compact.drift.get(i).map_or(0.0, |d| f64::from(from_f16(*d)));
                    (theta, theta - drift * unscale)
                })
            }
        }
    }

    fn save_param(
        &self,
        param: &Param<T>,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let [first, second] = param.rule.moment_names();
        match &param.store {
            Store::Frozen(_) => return Ok(()),
            Store::Exact(exact) => {
                let teacher = if exact.form == TeacherForm::Full { "teacher" } else { "drift" };
                let named = [
                    ("theta", &exact.theta),
                    (teacher, &exact.teacher),
                    (first, &exact.first),
                    (second, &exact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    write(name, bytemuck::cast_slice(buffer))?;
                }
            }
            Store::Compact(compact) => {
                let named = [
                    ("theta_hi", &compact.hi),
                    ("theta_lo", &compact.lo),
                    ("drift", &compact.drift),
                    (first, &compact.first),
                    (second, &compact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    write(name, bytemuck::cast_slice(buffer))?;
                }
            }
        }
        write("scalars", &scalar_bytes(param))
    }

    /// After an error the parameter holds a mixture of old and new state.
    fn load_param(
        &self,
        param: &mut Param<T>,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let [first, second] = param.rule.moment_names();
        match &mut param.store {
            Store::Frozen(_) => return Ok(()),
            Store::Exact(exact) => {
                let teacher = if exact.form == TeacherForm::Full { "teacher" } else { "drift" };
                let named = [
                    ("theta", &mut exact.theta),
                    (teacher, &mut exact.teacher),
                    (first, &mut exact.first),
                    (second, &mut exact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    read(name, bytemuck::cast_slice_mut(buffer))?;
                }
            }
            Store::Compact(compact) => {
                let named = [
                    ("theta_hi", &mut compact.hi),
                    ("theta_lo", &mut compact.lo),
                    ("drift", &mut compact.drift),
                    (first, &mut compact.first),
                    (second, &mut compact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    read(name, bytemuck::cast_slice_mut(buffer))?;
                }
            }
        }
        let mut bytes = [0u8; SCALAR_BYTES];
        read("scalars", &mut bytes)?;
        restore_scalars(param, &bytes)
    }

    fn read_moment(&self, param: &Param<T>, name: &str, out: &mut [f32]) -> bool {
        let Some(which) = param.rule.moment_names().iter().position(|n| *n == name) else {
            return false;
        };
        if name.is_empty() {
            return false;
        }
        match &param.store {
            Store::Frozen(_) => return false,
            Store::Exact(exact) => {
                let moment = [&exact.first, &exact.second][which];
                out.iter_mut().zip(moment).for_each(|(to, x)| *to = x.to_f32());
            }
            Store::Compact(compact) => {
                let moment = [&compact.first, &compact.second][which];
                out.iter_mut().zip(moment).for_each(|(to, x)| *to = widen(*x));
            }
        }
        true
    }
}
