//! The fused update against a re-derivation in f64 that carries its own rounding bound along.

use approx::{abs_diff_eq, assert_abs_diff_eq};
use std::collections::BTreeMap;

use nepenthe::backend::cpu::{Cpu, Grad, Real};
use nepenthe::ops::format::{join, narrow_even, split, widen};
use nepenthe::ops::{
    Compute, GradScan, Memory, ParamSpec, Role, State, StateMode, TeacherForm, Transfer,
};
use nepenthe::optim::{UpdateRule, UpdateScalars};
use proptest::prelude::*;

use crate::support::{Dtype, Random, assert_near, tol};

/// A number with a bound on how far a computation in `unit` roundings may be from it.
#[derive(Debug, Clone, Copy)]
struct Bound {
    value: f64,
    error: f64,
    unit: f64,
}

impl Bound {
    fn exact(value: f64, unit: f64) -> Self {
        Self { value, error: 0.0, unit }
    }

    fn rounded(self, value: f64, error: f64) -> Self {
        // Below the normal numbers an error is absolute.
        let tiny = f64::from(f32::MIN_POSITIVE) * self.unit;
        // Where cancellation has eaten all digits in front of a division there is no bound any more.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        Self { value, error: error + self.unit * value.abs() + tiny, unit: self.unit }
    }

    fn add(self, other: Self) -> Self {
        self.rounded(self.value + other.value, self.error + other.error)
    }

    fn sub(self, other: Self) -> Self {
        self.rounded(self.value - other.value, self.error + other.error)
    }

    fn mul(self, other: Self) -> Self {
        let error = self.value.abs() * other.error + other.value.abs() * self.error;
        self.rounded(self.value * other.value, error + self.error * other.error)
    }

    fn by(self, factor: f64) -> Self {
        self.mul(Self::exact(factor, self.unit).rounded(factor, 0.0))
    }

    fn div(self, other: Self) -> Self {
        let floor = (other.value.abs() - other.error).max(f64::MIN_POSITIVE);
        let value = self.value / other.value;
        self.rounded(value, (self.error + value.abs() * other.error) / floor)
    }

    fn root(self) -> Self {
        let value = self.value.sqrt();
        // |sqrt(x + e) - sqrt(x)| is at most sqrt(e), and e / (2 sqrt(x)) to first order.
        let error = (self.error / value.max(f64::MIN_POSITIVE)).min(self.error.sqrt());
        self.rounded(value, error)
    }

    fn holds(self, what: &str, got: f64) {
        let off = (got - self.value).abs();
        assert!(
            off <= self.error,
            "{what}: got {got:e}, derived {:e}, off by {off:e}, bound {:e}",
            self.value,
            self.error
        );
    }
}

/// Steps 3 to 6 for one weight, as the reference has them: clip, damping, rule, teacher.
#[derive(Debug, Clone, Copy)]
struct Weight {
    theta: Bound,
    teacher: Bound,
    first: Bound,
    second: Bound,
}

impl Weight {
    fn new(theta: f64, teacher: f64, unit: f64) -> Self {
        let zero = Bound::exact(0.0, unit);
        let exact = |x| Bound::exact(x, unit);
        Self { theta: exact(theta), teacher: exact(teacher), first: zero, second: zero }
    }

    fn step(&mut self, grad: f64, rule: &UpdateRule, s: &UpdateScalars, has_teacher: bool) {
        let unit = self.theta.unit;
        let mut g = Bound::exact(grad, unit).by(s.clip);
        if has_teacher {
            g = g.add(self.theta.sub(self.teacher).by(s.damping * s.clip));
        }
        let steps = s.step as f64 + 1.0;
        match *rule {
            UpdateRule::Sgd { momentum } => {
                // torch: the buffer begins as the first gradient, not as (1 - m) of it.
                self.first = if s.step == 0 { g } else { self.first.by(momentum).add(g) };
                self.theta = self.theta.sub(self.first.by(s.lr));
            }
            UpdateRule::AdamW { betas: (b1, b2), eps, weight_decay } => {
                // torch's lerp: the same number as b1 m + (1 - b1) g, with the rounding of a difference.
                self.first = self.first.add(g.sub(self.first).by(1.0 - b1));
                self.second = self.second.by(b2).add(g.mul(g).by(1.0 - b2));
                let first = self.first.by(1.0 / (1.0 - b1.powf(steps)));
                let second = self.second.by(1.0 / (1.0 - b2.powf(steps)));
                let floor = second.root().add(Bound::exact(eps, unit));
                let decayed = self.theta.by(1.0 - s.lr * weight_decay);
                self.theta = decayed.sub(first.div(floor).by(s.lr));
            }
            UpdateRule::Custom { .. } => unreachable!("tests/engine/custom_rule.rs has those"),
        }
        if has_teacher {
            let rate = s.teacher_rate * s.clip;
            self.teacher = self.teacher.add(self.theta.sub(self.teacher).by(rate));
        }
    }
}

fn spec(len: usize, mode: StateMode, teacher: TeacherForm, rule: UpdateRule) -> ParamSpec {
    ParamSpec { name: "block".into(), len, trainable: true, mode, teacher, rule, seed: 41 }
}

type Param<T> = <Cpu<T> as Memory>::Param;

fn make<T: Real>(ops: &Cpu<T>, spec: &ParamSpec, values: &[f32]) -> Param<T> {
    let init = &mut |out: &mut [f32]| {
        out.copy_from_slice(values);
        Ok(())
    };
    ops.param(spec, init).unwrap()
}

/// A gradient with the given entries: written by the op that adds up rows, of one row.
fn fill<T: Real>(ops: &Cpu<T>, spec: &ParamSpec, values: &[f64]) -> Grad<T> {
    let mut grad = ops.grad(spec).unwrap();
    let row = values.iter().map(|x| T::from_f64(*x)).collect();
    ops.bias_grad(1, values.len(), &row, &mut grad);
    grad
}

type Bytes = BTreeMap<String, Vec<u8>>;

fn save<T: Real>(ops: &Cpu<T>, param: &Param<T>) -> Bytes {
    let mut all = Bytes::new();
    ops.save_param(param, &mut |name, bytes| {
        all.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    })
    .unwrap();
    all
}

fn numbers<T: Real>(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(|c| bytemuck::pod_read_unaligned::<T>(c).to_f64())
        .collect()
}

/// A run: start, teacher, and per step a gradient with its scalars.
#[derive(Debug, Clone)]
struct Run {
    rule: UpdateRule,
    theta: Vec<f32>,
    teacher: Vec<f32>,
    steps: Vec<(Vec<f64>, UpdateScalars)>,
}

fn exact_follows<T: Real>(run: &Run, form: TeacherForm, dtype: Dtype) {
    let ops = Cpu::<T>::new();
    let spec = spec(run.theta.len(), StateMode::Exact, form, run.rule);
    let mut param = make(&ops, &spec, &run.theta);
    ops.set_teacher(&mut param, &run.teacher);
    let unit = tol(dtype, 1);
    let mut want: Vec<Weight> = run
        .theta
        .iter()
        .zip(&run.teacher)
        .map(|(t, r)| Weight::new(f64::from(*t), f64::from(*r), unit))
        .collect();
    if form == TeacherForm::Drift {
        // The drift is rounded once when the teacher is given.
        for w in &mut want {
            w.teacher.error = unit * (w.theta.value - w.teacher.value).abs();
        }
    }
    for (gradient, scalars) in &run.steps {
        let grad = fill(&ops, &spec, gradient);
        let scan = ops.scan_grad(&grad);
        ops.update(&mut param, &grad, &scan, scalars);
        let state = save(&ops, &param);
        let read = |name: &str| state.get(name).map(|b| numbers::<T>(b)).unwrap_or_default();
        let (theta, full, drift) = (read("theta"), read("teacher"), read("drift"));
        let sgd = matches!(run.rule, UpdateRule::Sgd { .. });
        let (first, second) =
            (read(if sgd { "momentum_buffer" } else { "exp_avg" }), read("exp_avg_sq"));
        for (i, w) in want.iter_mut().enumerate() {
            let g = T::from_f64(gradient[i]).to_f64();
            w.step(g, &run.rule, scalars, form != TeacherForm::None);
            let what = |of: &str| format!("{dtype:?} {form:?} step {}: {of}[{i}]", scalars.step);
            w.theta.holds(&what("theta"), theta[i]);
            w.first.holds(&what("first"), first[i]);
            if !sgd {
                w.second.holds(&what("second"), second[i]);
            }
            match form {
                TeacherForm::Full => w.teacher.holds(&what("teacher"), full[i]),
                TeacherForm::Drift => {
                    // theta and ref share the rounding of theta, which the drift does not see.
                    w.theta.sub(w.teacher).holds(&what("drift"), drift[i]);
                }
                TeacherForm::None => {}
            }
        }
    }
}

/// A 10-bit significand with the exponents of one fp16 quantum: decoded by the crate `half`.
fn drift(state: &Bytes) -> (Vec<f64>, i32, Vec<u16>) {
    let stored: Vec<u16> =
        state["drift"].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
    let exponent = i64::from_le_bytes(state["scalars"][8..16].try_into().unwrap()) as i32;
    let scale = 2f64.powi(-exponent);
    let wide = stored.iter().map(|h| half::f16::from_bits(*h).to_f64() * scale).collect();
    (wide, exponent, stored)
}

/// Compact state is checked step by step from what it holds: every rounding it makes is then a bound by itself.
fn compact_follows(run: &Run) {
    let ops = Cpu::<f32>::new();
    let n = run.theta.len();
    let spec = spec(n, StateMode::Compact, TeacherForm::Drift, run.rule);
    let mut param = make(&ops, &spec, &run.theta);
    let shown = |param: &_| {
        let mut out = vec![0f32; n];
        ops.read_param(param, Role::Student, &mut out);
        out
    };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&shown(&param)), bits(&run.theta), "joined at the start");
    ops.set_teacher(&mut param, &run.teacher);
    let sgd = matches!(run.rule, UpdateRule::Sgd { .. });
    let moment = |param: &_, name: &str| {
        let mut out = vec![0f32; n];
        assert!(ops.read_moment(param, name, &mut out));
        out.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()
    };
    let unit = tol(Dtype::F32, 1);
    // One step between neighbouring bf16 numbers: stochastic rounding goes to either side.
    let bf16 = |x: f64| f64::from(half::bf16::EPSILON) * x.abs() + f64::from(f32::MIN_POSITIVE);
    for (gradient, scalars) in &run.steps {
        let grad = fill(&ops, &spec, gradient);
        let mut seen = vec![0f32; n];
        ops.read_grad(&grad, &mut seen);
        let before = shown(&param);
        let (drift_before, ..) = drift(&save(&ops, &param));
        let name = if sgd { "momentum_buffer" } else { "exp_avg" };
        let first = moment(&param, name);
        let second = if sgd { vec![0.0; n] } else { moment(&param, "exp_avg_sq") };
        let scan = ops.scan_grad(&grad);
        ops.update(&mut param, &grad, &scan, scalars);
        let after = shown(&param);
        let (drift_after, exponent, stored) = drift(&save(&ops, &param));
        let first_after = moment(&param, name);
        // The quantum of fp16 subnormals, and 11 bits above; the exponent leaves room for neither to saturate.
        let quantum = 2f64.powi(-24 - exponent);
        assert!(stored.iter().all(|h| h & 0x7fff <= 0x7bff), "an infinite drift");
        assert!(exponent.abs() <= 120, "{exponent}");
        for i in 0..n {
            let theta = f64::from(before[i]);
            let mut w = Weight::new(theta, 0.0, unit);
            w.first.value = first[i];
            w.second.value = second[i];
            // Damping reads the drift itself, not a difference of weights.
            let g = f64::from(seen[i]);
            let pull = Bound::exact(drift_before[i], unit).by(scalars.damping * scalars.clip);
            let force = Bound::exact(g, unit).by(scalars.clip).add(pull);
            let plain = UpdateScalars { clip: 1.0, ..*scalars };
            w.step(force.value, &run.rule, &plain, false);
            let gain = match run.rule {
                UpdateRule::Sgd { .. } => scalars.lr,
                // The slope of m / (sqrt(v) + eps) in g is at most (1 - b1) / (sqrt(1 - b2) |g| + eps).
                UpdateRule::AdamW { eps, .. } => {
                    2.0 * scalars.lr / (force.value.abs() - force.error).max(eps)
                }
                UpdateRule::Custom { .. } => unreachable!("tests/engine/custom_rule.rs has those"),
            };
            w.theta.error += gain * force.error;
            w.first.error += force.error;
            let what = |of: &str| format!("compact step {}: {of}[{i}] {run:?}", scalars.step);
            w.theta.holds(&what("theta"), f64::from(after[i]));
            w.first.error += bf16(w.first.value);
            w.first.holds(&what("first"), first_after[i]);
            // s as it was meant to be: theta may round some of it away, the drift must not.
            let step = w.theta.value - theta;
            let keep = 1.0 - scalars.teacher_rate * scalars.clip;
            let want = keep * (drift_before[i] + step);
            let rounding = unit * (drift_before[i].abs() + step.abs()) + f64::EPSILON * theta.abs();
            let movement =
                (w.theta.error - unit * w.theta.value.abs()).max(0.0) + unit * step.abs();
            let room =
                f64::from(half::f16::EPSILON) / 2.0 * want.abs() + quantum + rounding + movement;
            let off = (drift_after[i] - want).abs();
            assert!(off <= room, "{}: off by {off:e}, room {room:e}", what("drift"));
        }
    }
}

/// Magnitudes from nothing to huge, both signs.
fn value(huge: f64) -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -1.0..1.0f64,
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => (-45.0..huge, any::<bool>()).prop_map(|(e, neg)| {
            let x = f64::from(10f64.powf(e) as f32);
            if neg { -x } else { x }
        }),
        1 => Just(f64::from(f32::from_bits(1))),
    ]
}

fn rule() -> impl Strategy<Value = UpdateRule> {
    prop_oneof![
        (0.0..0.999f64).prop_map(|momentum| UpdateRule::Sgd { momentum }),
        Just(UpdateRule::Sgd { momentum: 0.0 }),
        (0.0..0.99f64, 0.5..0.999f64, prop_oneof![Just(1e-8), Just(1e-3)], 0.0..0.1f64).prop_map(
            |(b1, b2, eps, weight_decay)| UpdateRule::AdamW {
                betas: (b1, b2.max(b1)),
                eps,
                weight_decay
            }
        ),
    ]
}

fn scalars(step: u64) -> impl Strategy<Value = UpdateScalars> {
    let rates = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
    let dampings = prop_oneof![Just(0.0), 0.0..10.0f64];
    (1e-6..0.5f64, prop_oneof![Just(1.0), 1e-6..1.0f64], dampings, rates).prop_map(
        move |(lr, clip, damping, teacher_rate)| UpdateScalars {
            step,
            lr,
            clip,
            damping,
            teacher_rate,
        },
    )
}

const LEN: usize = 19;

fn runs(gradients: f64, apart: bool) -> impl Strategy<Value = Run> {
    let vec = |huge| prop::collection::vec(value(huge), LEN);
    let theta = vec(4.0);
    let steps = (0..4u64).map(|s| (vec(gradients), scalars(s))).collect::<Vec<_>>();
    (rule(), theta, vec(1.0), prop_oneof![Just(0.0), Just(1e-38), Just(1e-3), Just(1.0)], steps)
        .prop_map(move |(rule, theta, drift, scale, steps)| {
            let theta: Vec<f32> = theta.iter().map(|x| *x as f32).collect();
            // Teachers equal, apart by denormals, near and far.
            let scale = if apart { scale } else { 0.0 };
            let teacher =
                theta.iter().zip(drift).map(|(t, d)| (f64::from(*t) - scale * d) as f32).collect();
            Run { rule, theta, teacher, steps }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exact_state_follows_the_derivation(run in runs(12.0, true)) {
        for form in [TeacherForm::None, TeacherForm::Full, TeacherForm::Drift] {
            exact_follows::<f64>(&run, form, Dtype::F64);
            exact_follows::<f32>(&run, form, Dtype::F32);
        }
    }

    #[test]
    fn compact_state_follows_the_derivation(run in runs(12.0, true)) {
        compact_follows(&run);
    }

    #[test]
    fn split_joins_back_for_every_bit_pattern(bits in any::<u32>(), r in 0u32..0x1_0000) {
        joins_back(bits, r);
    }

    #[test]
    fn nonfinite_gradients_change_no_byte(
        run in runs(3.0, true),
        bad in prop_oneof![
            Just(f32::NAN), Just(-f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY),
            (1u32..0x80_0000).prop_map(|m| f32::from_bits(0x7f80_0000 | m)),
            (1u32..0x80_0000).prop_map(|m| f32::from_bits(0xff80_0000 | m)),
        ],
        at in prop::collection::btree_set(0..LEN, 1..4),
        mode in prop_oneof![Just(StateMode::Exact), Just(StateMode::Compact)],
    ) {
        let ops = Cpu::<f32>::new();
        let spec = spec(LEN, mode, TeacherForm::Drift, run.rule);
        let mut param = make(&ops, &spec, &run.theta);
        for (gradient, scalars) in &run.steps {
            let grad = fill(&ops, &spec, gradient);
            let scan = ops.scan_grad(&grad);
            prop_assert_eq!(scan.nonfinite, 0);
            ops.update(&mut param, &grad, &scan, scalars);
            let before = save(&ops, &param);
            let mut row: Vec<f32> = gradient.iter().map(|x| *x as f32).collect();
            at.iter().for_each(|i| row[*i] = bad);
            let mut grad = ops.grad(&spec).unwrap();
            ops.bias_grad(1, LEN, &row, &mut grad);
            let scan = ops.scan_grad(&grad);
            prop_assert_eq!(scan.nonfinite, at.len() as u64);
            ops.update(&mut param, &grad, &scan, scalars);
            prop_assert_eq!(&save(&ops, &param), &before);
        }
    }
}

fn joins_back(bits: u32, r: u32) {
    let (hi, lo) = split(f32::from_bits(bits), r);
    assert_eq!(join(hi, lo, r).to_bits(), bits, "{bits:#x} under {r:#x}");
}

#[test]
fn split_joins_back_at_the_edges() {
    let edges = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 0.0, f32::INFINITY, f32::NAN];
    let bits = edges.iter().flat_map(|x| [x.to_bits(), (-x).to_bits()]);
    for bits in bits.chain([1, 0xffff, 0x7fff_ffff, 0x8000_0001, u32::MAX]) {
        [0, 1, 0x7fff, 0x8000, 0xffff].into_iter().for_each(|r| joins_back(bits, r));
    }
}

#[test]
fn bf16_gradients_keep_what_is_not_a_number() {
    for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff, 0x7fc0_0000u32] {
        assert!(widen(narrow_even(f32::from_bits(bits))).is_nan(), "{bits:#x}");
    }
    assert_eq!(widen(narrow_even(f32::INFINITY)), f32::INFINITY);
    assert_eq!(widen(narrow_even(f32::MAX)), f32::INFINITY);
}

#[test]
fn first_momentum_is_the_whole_gradient() {
    let rule = UpdateRule::Sgd { momentum: 0.9 };
    let scalars = UpdateScalars { step: 0, lr: 0.1, clip: 1.0, damping: 5.0, teacher_rate: 0.1 };
    for (mode, form) in [
        (StateMode::Exact, TeacherForm::Full),
        (StateMode::Exact, TeacherForm::Drift),
        (StateMode::Compact, TeacherForm::Drift),
    ] {
        let ops = Cpu::<f32>::new();
        let spec = spec(3, mode, form, rule);
        let mut param = make(&ops, &spec, &vec![1.0; spec.len]);
        let grad = fill(&ops, &spec, &[1.0, -0.5, 0.25]);
        ops.update(&mut param, &grad, &ops.scan_grad(&grad), &scalars);
        let mut u = [0f32; 3];
        assert!(ops.read_moment(&param, "momentum_buffer", &mut u));
        assert_eq!(u, [1.0, -0.5, 0.25], "{mode:?} {form:?}");
    }
}

#[test]
fn a_teacher_within_denormals_fits_its_drift() {
    let ops = Cpu::<f32>::new();
    let rule = UpdateRule::Sgd { momentum: 0.9 };
    let spec = spec(3, StateMode::Compact, TeacherForm::Drift, rule);
    for apart in [1e-30f32, 1e-36, 1e-40, f32::from_bits(1)] {
        let mut param = make(&ops, &spec, &vec![0.0; spec.len]);
        ops.set_teacher(&mut param, &[apart, -apart, 0.0]);
        let state = save(&ops, &param);
        let mut shown = [0f32; 3];
        ops.read_param(&param, Role::Teacher, &mut shown);
        let room = 2f64.powi(-144) + f64::from(apart) * 2f64.powi(-11);
        for (got, want) in shown.iter().zip([apart, -apart, 0.0]) {
            assert!(
                abs_diff_eq!(f64::from(*got), f64::from(want), epsilon = room),
                "{got:e} {want:e}"
            );
        }
        // What is saved can be loaded again.
        ops.load_param(&mut param, &mut |name, bytes| {
            bytes.copy_from_slice(&state[name]);
            Ok(())
        })
        .unwrap();
        assert_eq!(save(&ops, &param), state);
    }
}

#[test]
fn scan_counts_and_sums_in_any_place() {
    let ops = Cpu::<f32>::new();
    let rule = UpdateRule::Sgd { momentum: 0.0 };
    // Several chunks and a ragged end.
    let len = 3 * (1 << 14) + 41;
    for mode in [StateMode::Exact, StateMode::Compact] {
        let spec = spec(len, mode, TeacherForm::None, rule);
        let mut values = Random::new(5).vec(len);
        let grad = fill(&ops, &spec, &values);
        let mut seen = vec![0f32; len];
        ops.read_grad(&grad, &mut seen);
        let scan = ops.scan_grad(&grad);
        let want: f64 = seen.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert_near("sum of squares", &[scan.sum_sq], &[want], tol(Dtype::F64, len));
        let largest = seen.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert_eq!((scan.max_abs, scan.nonfinite), (f64::from(largest), 0));
        for at in [0, 15, 16, (1 << 14) - 1, 1 << 14, len - 1] {
            values[at] = f64::NAN;
        }
        assert_eq!(ops.scan_grad(&fill(&ops, &spec, &values)).nonfinite, 6);
        assert_eq!(ops.scan_grad(&ops.grad(&spec).unwrap()), GradScan::default());
    }
}

/// Bound on the mean of `n` independent errors within `span`, but for one chance in 2^40 (Hoeffding).
fn chance(span: f64, n: usize) -> f64 {
    span * (41.0 * std::f64::consts::LN_2 / (2.0 * n as f64)).sqrt()
}

#[test]
fn stochastic_rounding_of_moments_is_unbiased() {
    let ops = Cpu::<f32>::new();
    let n = 1 << 16;
    let rules = [
        (UpdateRule::Sgd { momentum: 0.95 }, &["momentum_buffer"][..]),
        (
            UpdateRule::AdamW { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.0 },
            &["exp_avg", "exp_avg_sq"][..],
        ),
    ];
    for ((rule, names), g) in rules.into_iter().flat_map(|r| [(r, 0.1), (r, -3.0)]) {
        let spec = spec(n, StateMode::Compact, TeacherForm::Drift, rule);
        let mut param = make(&ops, &spec, &vec![0.02; spec.len]);
        let grad = fill(&ops, &spec, &vec![g; n]);
        let scan = ops.scan_grad(&grad);
        let g = f64::from(widen(narrow_even(g as f32)));
        let read = |param: &_, name: &str| {
            let mut out = vec![0f32; n];
            assert!(ops.read_moment(param, name, &mut out));
            out
        };
        let mut rounded = 0;
        for step in 0..8 {
            let before: Vec<Vec<f32>> = names.iter().map(|name| read(&param, name)).collect();
            let scalars =
                UpdateScalars { step, lr: 1e-3, clip: 1.0, damping: 0.0, teacher_rate: 0.0 };
            ops.update(&mut param, &grad, &scan, &scalars);
            for (name, before) in names.iter().zip(before) {
                let next = |m: f64| match (rule, *name) {
                    (UpdateRule::Sgd { momentum }, _) => momentum * m + g,
                    (UpdateRule::AdamW { betas, .. }, "exp_avg") => {
                        betas.0 * m + (1.0 - betas.0) * g
                    }
                    (UpdateRule::AdamW { betas, .. }, _) => betas.1 * m + (1.0 - betas.1) * g * g,
                    (UpdateRule::Custom { .. }, _) => {
                        unreachable!("tests/engine/custom_rule.rs has those")
                    }
                };
                let (mut sum, mut largest) = (0.0, 0.0f64);
                for (m, got) in before.iter().zip(read(&param, name)) {
                    let want = next(f64::from(*m));
                    sum += f64::from(got) - want;
                    largest = largest.max(want.abs());
                    rounded += usize::from(f64::from(got) != want);
                }
                // A bf16 step is at most 2^-7 of its number; errors lie within one on either side.
                let allowed = chance(2.0 * largest / 128.0, n) + tol(Dtype::F32, 1) * largest;
                assert!(
                    (sum / n as f64).abs() <= allowed,
                    "{name} {g} step {step}: {}",
                    sum / n as f64
                );
            }
        }
        assert!(rounded > n, "{rounded}");
    }
}

#[test]
fn views_of_compact_state_are_unbiased_and_share_their_dither() {
    let ops = Cpu::<f32>::new();
    let n = 1 << 16;
    let rule = UpdateRule::Sgd { momentum: 0.0 };
    let spec = spec(n, StateMode::Compact, TeacherForm::Drift, rule);
    let theta = 0.020_013f32;
    let mut param = make(&ops, &spec, &vec![theta; spec.len]);
    let show = |param: &_, role| ops.view(param, role, &mut Vec::new()).to_vec();
    assert_eq!(show(&param, Role::Student), show(&param, Role::Teacher));
    let drift = 1e-6f32;
    ops.set_teacher(&mut param, &vec![theta - drift; n]);
    let mean = |role| show(&param, role).iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
    let allowed = chance(f64::from(theta) / 128.0, n);
    assert_abs_diff_eq!(mean(Role::Student), f64::from(theta), epsilon = allowed);
    // Under common dither two planes differ in a share drift / step of their numbers, or not at all.
    let apart = mean(Role::Student) - mean(Role::Teacher);
    assert!(
        abs_diff_eq!(apart, f64::from(drift), epsilon = chance(f64::from(theta) / 128.0, n)),
        "{apart:e}"
    );
    assert!(apart > 0.0);
    // Evaluation rounds by a noise of its own, the same whatever the step.
    assert_abs_diff_eq!(mean(Role::Evaluated), f64::from(theta), epsilon = allowed);
    let evaluated = show(&param, Role::Evaluated);
    assert_ne!(evaluated, show(&param, Role::Student));
    let (still, grad) = (show(&param, Role::Student), ops.grad(&spec).unwrap());
    let scalars = UpdateScalars { step: 0, lr: 0.0, clip: 1.0, damping: 0.0, teacher_rate: 0.0 };
    ops.update(&mut param, &grad, &ops.scan_grad(&grad), &scalars);
    assert_ne!(still, show(&param, Role::Student));
    assert_eq!(evaluated, show(&param, Role::Evaluated));
}
