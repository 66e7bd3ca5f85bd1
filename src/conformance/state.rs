//! Parameters, scans, updates, views and checkpoints of the device against the CPU backend in fp32, bit by bit.
//!
//! The update has no tolerance: both backends do the same operations in the same order, and a checkpoint of one must
//! go on on the other.

use std::collections::BTreeMap;

use super::{Dtype, Random, Verdict, tol};
use crate::backend::cpu::{Cpu, Grad as CpuGrad, GradData, Param as CpuParam};
use crate::backend::gpu::{Act, Gpu, Grad, Param, Precision};
use crate::error::{Error, Result};
use crate::ops::format::{EVALUATION, narrow, narrow_even, noise, widen};
use crate::ops::{Memory, ParamSpec, Role, State, StateMode, TeacherForm, Transfer};
use crate::optim::{StepOutcome, StepSettings};
use crate::optim::{UpdateRule, UpdateScalars};

const SGD: UpdateRule = UpdateRule::BUILT_IN[0].1;
const FORMS: [(StateMode, TeacherForm); 9] = [
    (StateMode::Exact, TeacherForm::Full),
    (StateMode::Exact, TeacherForm::Drift),
    (StateMode::Exact, TeacherForm::None),
    (StateMode::Compact, TeacherForm::Drift),
    (StateMode::Compact, TeacherForm::None),
    (StateMode::Tiny, TeacherForm::Drift),
    (StateMode::Tiny, TeacherForm::None),
    (StateMode::Approx, TeacherForm::Drift),
    (StateMode::Approx, TeacherForm::None),
];
const LENGTHS: [usize; 7] = [1, 3, 8, 41, 401, 2049, 16393];

type Bytes = BTreeMap<String, Vec<u8>>;

/// Runs all cases of the family.
pub fn run(gpu: &Gpu) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (m, (mode, teacher)) in FORMS.into_iter().enumerate() {
        // Tiny state keeps no second moment.
        let kept = |rule: &UpdateRule| mode != StateMode::Tiny || rule.moments() < 2;
        let rules = UpdateRule::BUILT_IN.into_iter().map(|(_, rule)| rule).filter(kept);
        for (r, rule) in rules.enumerate() {
            for (i, len) in LENGTHS.into_iter().enumerate() {
                // Every length meets every mode, and every rule and mode a short, an odd and a long one.
                if (i + m + r) % 2 == 0 {
                    let spec = spec("block", len, mode, teacher, rule);
                    let case = |what: &str| format!("{what} {mode:?} {teacher:?} {rule:?} {len}");
                    verdicts.push(verdict(case("update"), || follow(gpu, &spec)));
                }
            }
            let spec = spec("block", 401, mode, teacher, rule);
            let case = |what: &str| format!("{what} {mode:?} {teacher:?} {rule:?}");
            verdicts.push(verdict(case("step"), || whole_step(gpu, &spec)));
            verdicts.push(verdict(case("huge drift"), || huge_drift(gpu, &spec)));
        }
    }
    for mode in [StateMode::Exact, StateMode::Compact] {
        for len in LENGTHS {
            let spec = spec("scan", len, mode, TeacherForm::None, SGD);
            verdicts.push(verdict(format!("scan {mode:?} {len}"), || scan(gpu, &spec)));
            verdicts.push(verdict(format!("mixture {mode:?} {len}"), || mixed(gpu, &spec)));
        }
    }
    for len in LENGTHS {
        verdicts.push(verdict(format!("frozen {len}"), || frozen(gpu, len)));
    }
    verdicts
}

fn verdict(case: String, run: impl Fn() -> Result<()>) -> Verdict {
    // Equality is all or nothing, so two runs that pass gave equal bytes.
    let failure = run().and_then(|()| run()).err().map(|error| error.to_string());
    let worst = if failure.is_some() { f64::INFINITY } else { 0.0 };
    Verdict { case, worst, failure }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) -> Result<()> {
    if got.len() != want.len() {
        return Err(Error::data(format!("{what}: {} of {} numbers", got.len(), want.len())));
    }
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(i) => {
            let (got, want) = (&got[i], &want[i]);
            Err(Error::data(format!("{what}: entry {i}: got {got:?}, want {want:?}")))
        }
        None => Ok(()),
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn spec(
    name: &str,
    len: usize,
    mode: StateMode,
    teacher: TeacherForm,
    rule: UpdateRule,
) -> ParamSpec {
    ParamSpec { name: name.into(), len, trainable: true, mode, teacher, rule, seed: 41 }
}

/// The same parameter on both backends.
struct Pair<'a> {
    gpu: &'a Gpu,
    cpu: Cpu<f32>,
    spec: ParamSpec,
    ours: Param,
    oracle: CpuParam<f32>,
    random: Random,
}

impl<'a> Pair<'a> {
    fn new(gpu: &'a Gpu, spec: &ParamSpec) -> Result<Self> {
        let mut random = Random::new(28);
        let start: Vec<f32> = random.vec(spec.len).iter().map(|x| 0.1 * *x as f32).collect();
        let fill = &mut |out: &mut [f32]| {
            out.copy_from_slice(&start);
            Ok(())
        };
        let cpu = Cpu::new();
        let ours = gpu.param(spec, fill)?;
        let oracle = cpu.param(spec, fill)?;
        Ok(Self { gpu, cpu, spec: spec.clone(), ours, oracle, random })
    }

    fn set_teacher(&mut self, values: &[f32]) {
        self.gpu.set_teacher(&mut self.ours, values);
        self.cpu.set_teacher(&mut self.oracle, values);
    }

    /// The same gradient on both; `None` leaves it empty.
    fn grads(&self, values: Option<&[f32]>) -> Result<(Grad, CpuGrad<f32>)> {
        let (mut ours, mut oracle) = (self.gpu.grad(&self.spec)?, self.cpu.grad(&self.spec)?);
        if let Some(values) = values {
            self.gpu.write_grad(&mut ours, values)?;
            oracle.empty = false;
            match &mut oracle.data {
                GradData::Wide(to) => to.copy_from_slice(values),
                GradData::Bf16(to) => {
                    to.iter_mut().zip(values).for_each(|(to, x)| *to = narrow_even(*x));
                }
            }
        }
        Ok((ours, oracle))
    }

    fn values(&mut self, scale: f32) -> Vec<f32> {
        self.random.vec(self.spec.len).iter().map(|x| scale * *x as f32).collect()
    }

    fn saved(&self) -> Result<(Bytes, Bytes)> {
        let (mut ours, mut oracle) = (Bytes::new(), Bytes::new());
        self.gpu.save_param(&self.ours, &mut |name, bytes| {
            ours.insert(name.into(), bytes.to_vec());
            Ok(())
        })?;
        self.cpu.save_param(&self.oracle, &mut |name, bytes| {
            oracle.insert(name.into(), bytes.to_vec());
            Ok(())
        })?;
        Ok((ours, oracle))
    }

    /// Holds every byte of state and every view of the device to the CPU's.
    fn check(&self, what: &str) -> Result<()> {
        let (ours, oracle) = self.saved()?;
        let names = |all: &Bytes| all.keys().cloned().collect::<Vec<_>>();
        same(&format!("{what}: names"), &names(&ours), &names(&oracle))?;
        for (name, bytes) in &ours {
            same(&format!("{what}: {name}"), bytes, &oracle[name])?;
        }
        for role in [Role::Student, Role::Teacher, Role::Evaluated] {
            let mut got = vec![f32::NAN; self.spec.len];
            let mut want = got.clone();
            self.gpu.read_param(&self.ours, role, &mut got);
            self.cpu.read_param(&self.oracle, role, &mut want);
            same(&format!("{what}: {role:?} read"), &bits(&got), &bits(&want))?;
            let shown = self.shown(role)?;
            let want = self.wanted(role);
            same(&format!("{what}: {role:?} shown"), &bits(&shown), &bits(&want))?;
        }
        for name in ["momentum_buffer", "exp_avg", "exp_avg_sq", ""] {
            let mut got = vec![0f32; self.spec.len];
            let mut want = got.clone();
            let found = self.gpu.read_moment(&self.ours, name, &mut got);
            if found != self.cpu.read_moment(&self.oracle, name, &mut want) {
                return Err(Error::data(format!("{what}: {name}: found by one backend only")));
            }
            same(&format!("{what}: {name} read"), &bits(&got), &bits(&want))?;
        }
        self.gpu.sync()
    }

    fn shown(&self, role: Role) -> Result<Vec<f32>> {
        let needed = self.gpu.needs_scratch(&self.ours, role);
        let mut scratch: Act = self.gpu.act(if needed { self.spec.len } else { 0 })?;
        let weight = self.gpu.view(&self.ours, role, &mut scratch);
        self.gpu.read_weight(weight, self.spec.len)
    }

    /// The CPU's weights; exact state under bf16 products is rounded with the noise of compact state.
    fn wanted(&self, role: Role) -> Vec<f32> {
        let mut scratch = vec![0f32; self.spec.len];
        let shown = self.cpu.view(&self.oracle, role, &mut scratch).to_vec();
        if self.gpu.precision() == Precision::Fp32 || self.spec.is_split() {
            return shown;
        }
        let (seed, counter) = self.oracle.noise_key();
        let step = if role == Role::Evaluated { EVALUATION } else { counter };
        let rounded =
            |(i, x): (usize, &f32)| widen(narrow(*x, noise(seed, step, i as u64) & 0xffff));
        shown.iter().enumerate().map(rounded).collect()
    }
}

fn scalars(step: u64) -> UpdateScalars {
    let clip = if step.is_multiple_of(2) { 1.0 } else { 0.3 };
    UpdateScalars { step, lr: 1e-3, clip, damping: 0.5, teacher_rate: 0.03 }
}

/// Several updates in a row, each checked whole, with an empty, a zero and a non-finite gradient among them.
fn follow(gpu: &Gpu, spec: &ParamSpec) -> Result<()> {
    let mut pair = Pair::new(gpu, spec)?;
    pair.check("start")?;
    let apart = pair.values(0.1);
    pair.set_teacher(&apart);
    pair.check("teacher")?;
    for step in 0..6 {
        let values = match step {
            2 => None,
            3 => Some(vec![0.0; spec.len]),
            _ => Some(pair.values(if step == 5 { 1e-12 } else { 1.0 })),
        };
        let (ours, oracle) = pair.grads(values.as_deref())?;
        let (scan, want) = (gpu.scan_grad(&ours), pair.cpu.scan_grad(&oracle));
        same("scan", &[scan.max_abs.to_bits()], &[want.max_abs.to_bits()])?;
        gpu.update(&mut pair.ours, &ours, &want, &scalars(step));
        pair.cpu.update(&mut pair.oracle, &oracle, &want, &scalars(step));
        pair.check(&format!("step {step}"))?;
    }
    let initial = pair.values(0.1);
    let got = gpu.distances(&pair.ours, &initial);
    let want = pair.cpu.distances(&pair.oracle, &initial);
    near("student to teacher", got.student_teacher, want.student_teacher, spec.len)?;
    near("student to start", got.student_initial, want.student_initial, spec.len)?;
    near("teacher to start", got.teacher_initial, want.teacher_initial, spec.len)?;
    exchange(&mut pair)
}

fn near(what: &str, got: f64, want: f64, len: usize) -> Result<()> {
    // A sum of squares: two more roundings an entry.
    if (got - want).abs() > tol(Dtype::F64, 2 * len) * want.abs() {
        return Err(Error::data(format!("{what}: got {got:e}, want {want:e}")));
    }
    Ok(())
}

/// A checkpoint of either backend goes on on the other.
fn exchange(pair: &mut Pair<'_>) -> Result<()> {
    let (ours, oracle) = pair.saved()?;
    let spec = ParamSpec { name: pair.spec.name.clone(), ..pair.spec.clone() };
    let mut fresh = Pair::new(pair.gpu, &spec)?;
    let read = |from: &Bytes, name: &str, to: &mut [u8]| {
        let bytes = from.get(name).filter(|bytes| bytes.len() == to.len());
        let bytes = bytes.ok_or_else(|| Error::data(format!("{name}: not saved alike")))?;
        to.copy_from_slice(bytes);
        Ok(())
    };
    fresh.gpu.load_param(&mut fresh.ours, &mut |name, to| read(&oracle, name, to))?;
    fresh.cpu.load_param(&mut fresh.oracle, &mut |name, to| read(&ours, name, to))?;
    fresh.check("exchanged")?;
    let values = fresh.values(1.0);
    let (ours, oracle) = fresh.grads(Some(&values))?;
    let scan = fresh.cpu.scan_grad(&oracle);
    fresh.gpu.update(&mut fresh.ours, &ours, &scan, &scalars(7));
    fresh.cpu.update(&mut fresh.oracle, &oracle, &scan, &scalars(7));
    fresh.check("exchanged and updated")
}

/// A drift as large as the weights, which then shrinks: the exponent moves both ways and nothing saturates.
fn huge_drift(gpu: &Gpu, spec: &ParamSpec) -> Result<()> {
    let mut pair = Pair::new(gpu, spec)?;
    let far = pair.values(3e4);
    pair.set_teacher(&far);
    pair.check("far teacher")?;
    for step in 0..3 {
        let values = pair.values(10f32.powi(3 - 4 * step));
        let (ours, oracle) = pair.grads(Some(&values))?;
        let scan = pair.cpu.scan_grad(&oracle);
        let scalars = UpdateScalars { teacher_rate: 0.9, ..scalars(step as u64) };
        gpu.update(&mut pair.ours, &ours, &scan, &scalars);
        pair.cpu.update(&mut pair.oracle, &oracle, &scan, &scalars);
        pair.check(&format!("step {step}"))?;
    }
    Ok(())
}

/// The update of several parameters together: norm, clip, refusal, and the same bytes as the CPU by that clip factor.
fn whole_step(gpu: &Gpu, spec: &ParamSpec) -> Result<()> {
    let mut pairs = Vec::new();
    for (name, len) in [("a", 401), ("b", 2049), ("c", 7)] {
        pairs.push(Pair::new(gpu, &ParamSpec { name: name.into(), len, ..spec.clone() })?);
    }
    for step in 0..4u64 {
        let max_norm = if step == 0 { f64::INFINITY } else { 0.7 };
        let settings = StepSettings { step, lr: 1e-3, max_norm, damping: 0.5, teacher_rate: 0.03 };
        let (mut ours, mut oracles) = (Vec::new(), Vec::new());
        for (p, pair) in pairs.iter_mut().enumerate() {
            let mut values = pair.values(0.5);
            if step == 2 && p > 0 {
                values[3] = if p == 1 { f32::NAN } else { f32::INFINITY };
                values[5] = f32::NEG_INFINITY;
            }
            let empty = step == 3 && p == 0;
            let (a, b) = pair.grads((!empty).then_some(&values[..]))?;
            ours.push(Some(a));
            oracles.push(b);
        }
        let (mut params, rest): (Vec<_>, Vec<_>) =
            pairs.into_iter().map(|p| (p.ours, (p.cpu, p.spec, p.oracle, p.random))).unzip();
        let outcome = gpu.update_all(&mut params, &ours, &settings).and_then(|p| gpu.outcome(p))?;
        pairs = params
            .into_iter()
            .zip(rest)
            .map(|(ours, (cpu, spec, oracle, random))| Pair {
                gpu,
                cpu,
                spec,
                ours,
                oracle,
                random,
            })
            .collect();
        judge_step(&mut pairs, &oracles, &settings, outcome)?;
    }
    Ok(())
}

fn judge_step(
    pairs: &mut [Pair<'_>],
    grads: &[CpuGrad<f32>],
    settings: &StepSettings,
    outcome: StepOutcome,
) -> Result<()> {
    let StepSettings { step, lr, damping, teacher_rate, max_norm } = *settings;
    let bad = (step == 2).then_some((1, 2));
    if outcome.bad != bad || outcome.skipped != bad.is_some() {
        return Err(Error::data(format!("step {step}: {outcome:?}")));
    }
    let scans: Vec<_> =
        pairs.iter().zip(grads).map(|(pair, grad)| pair.cpu.scan_grad(grad)).collect();
    if !outcome.skipped {
        let norm = scans.iter().map(|scan| scan.sum_sq).sum::<f64>().sqrt();
        near("grad_norm", outcome.grad_norm, norm, 2457)?;
        let clip = if outcome.grad_norm > max_norm { max_norm / outcome.grad_norm } else { 1.0 };
        same("clip", &[outcome.clip.to_bits()], &[clip.to_bits()])?;
        let scalars = UpdateScalars { step, lr, clip, damping, teacher_rate };
        for ((pair, grad), scan) in pairs.iter_mut().zip(grads).zip(&scans) {
            pair.cpu.update(&mut pair.oracle, grad, scan, &scalars);
        }
    }
    pairs.iter().try_for_each(|pair| pair.check(&format!("whole step {step}")))
}

/// Scans of ordinary, huge, tiny and broken gradients.
fn scan(gpu: &Gpu, spec: &ParamSpec) -> Result<()> {
    let mut pair = Pair::new(gpu, spec)?;
    for scale in [1.0, 1e30, 1e-30, f32::NAN] {
        let mut values = pair.values(if scale.is_nan() { 1.0 } else { scale });
        if scale.is_nan() {
            values[0] = f32::NAN;
            values[spec.len / 2] = f32::INFINITY;
        }
        let (ours, oracle) = pair.grads(Some(&values))?;
        let (got, want) = (gpu.scan_grad(&ours), pair.cpu.scan_grad(&oracle));
        same("max", &[got.max_abs.to_bits()], &[want.max_abs.to_bits()])?;
        same("not finite", &[got.nonfinite], &[want.nonfinite])?;
        if want.nonfinite == 0 {
            near("sum", got.sum_sq, want.sum_sq, spec.len)?;
        }
        let (mut got, mut want) = (vec![0f32; spec.len], vec![0f32; spec.len]);
        gpu.read_grad(&ours, &mut got);
        pair.cpu.read_grad(&oracle, &mut want);
        let kept = |x: &[f32]| x.iter().map(|x| (x.is_nan(), x.max(-1e38))).collect::<Vec<_>>();
        same("read", &kept(&got), &kept(&want))?;
    }
    gpu.sync()
}

/// Products and mixtures of gradients, empty ones among them; mixtures equal to the bit.
fn mixed(gpu: &Gpu, spec: &ParamSpec) -> Result<()> {
    let mut pair = Pair::new(gpu, spec)?;
    for (first, second) in [(true, true), (true, false), (false, true), (false, false)] {
        let (a, b) = (pair.values(1.0), pair.values(0.3));
        let (mut y, mut y_want) = pair.grads(first.then_some(&a[..]))?;
        let (x, x_want) = pair.grads(second.then_some(&b[..]))?;
        near("square", gpu.grad_dot(&y, &y), pair.cpu.grad_dot(&y_want, &y_want), spec.len)?;
        let (got, want) = (gpu.grad_dot(&y, &x), pair.cpu.grad_dot(&y_want, &x_want));
        // Terms of both signs: their size is that of the numbers.
        near("product", got + spec.len as f64, want + spec.len as f64, spec.len)?;
        gpu.grad_mix(&mut y, 0.75, &x, -1.3);
        pair.cpu.grad_mix(&mut y_want, 0.75, &x_want, -1.3);
        let (mut got, mut want) = (vec![0f32; spec.len], vec![0f32; spec.len]);
        gpu.read_grad(&y, &mut got);
        pair.cpu.read_grad(&y_want, &mut want);
        // 0 and -0 are one number.
        let plain = |x: &[f32]| bits(&x.iter().map(|x| x + 0.0).collect::<Vec<_>>());
        same("mixture", &plain(&got), &plain(&want))?;
    }
    gpu.sync()
}

/// A frozen parameter is stored as products read it, and nothing changes it.
fn frozen(gpu: &Gpu, len: usize) -> Result<()> {
    let mut spec = spec("frozen", len, StateMode::Compact, TeacherForm::Drift, SGD);
    spec.trainable = false;
    let mut values = Vec::new();
    let mut random = Random::new(29);
    let param = gpu.param(&spec, &mut |out| {
        out.iter_mut().for_each(|to| *to = random.unit() as f32);
        values = out.to_vec();
        Ok(())
    })?;
    let want: Vec<f32> = match gpu.precision() {
        Precision::Fp32 => values.clone(),
        Precision::Bf16 => values.iter().map(|x| widen(narrow_even(*x))).collect(),
    };
    for role in [Role::Student, Role::Teacher, Role::Evaluated] {
        let mut got = vec![0f32; len];
        gpu.read_param(&param, role, &mut got);
        same("read", &bits(&got), &bits(&want))?;
        let mut none = gpu.act(0)?;
        let shown = gpu.read_weight(gpu.view(&param, role, &mut none), len)?;
        same("shown", &bits(&shown), &bits(&want))?;
    }
    let far = gpu.distances(&param, &values).student_teacher;
    same("distance to its teacher", &[far.to_bits()], &[0])?;
    gpu.sync()
}
