//! The update of compact, tiny and approx state: weights, drift and moments in 16-bit planes and 8-bit blocks.

use pulp::{Arch, Simd, WithSimd};

use super::{CHUNK, Element, Numbers, Part, Pull, Rule, fold};
use crate::backend::cpu::Real;
use crate::ops::GradScan;
use crate::ops::format::{
    EXPONENT_LIMIT, MOMENT_BLOCK, block_scale, ceil_bf16, drift_exponent, from_block, from_f16,
    join, narrow, noise, remix, split, to_block, to_f16, widen,
};
use crate::ops::state::moments_bound;
use crate::optim::{UpdateRule, UpdateScalars};

/// The buffers of a parameter; absent ones are empty.
pub(in crate::backend::cpu) struct SplitBuffers<'a> {
    pub hi: &'a mut [u16],
    pub lo: &'a mut [u16],
    pub drift: &'a mut [u16],
    pub first: &'a mut [u16],
    pub second: &'a mut [u16],
    pub bytes: &'a mut [i8],
    /// One for each [`MOMENT_BLOCK`] of `bytes`.
    pub scales: &'a mut [f32],
}

impl Part for SplitBuffers<'_> {
    fn cut(self, mid: usize) -> (Self, Self) {
        let (hi, lo, drift) = (self.hi.cut(mid), self.lo.cut(mid), self.drift.cut(mid));
        let (first, second) = (self.first.cut(mid), self.second.cut(mid));
        let (bytes, scales) = (self.bytes.cut(mid), self.scales.cut(mid / MOMENT_BLOCK));
        let part = |hi, lo, drift, first, second, bytes, scales| SplitBuffers {
            hi,
            lo,
            drift,
            first,
            second,
            bytes,
            scales,
        };
        (
            part(hi.0, lo.0, drift.0, first.0, second.0, bytes.0, scales.0),
            part(hi.1, lo.1, drift.1, first.1, second.1, bytes.1, scales.1),
        )
    }
}

/// The few numbers of a parameter in 16-bit planes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::backend::cpu) struct Scale {
    /// The drift is stored times 2^exponent.
    pub exponent: i32,
    /// max |d|.
    pub max_drift: f64,
    /// max |u| of the first moment as stored.
    pub max_moment: f64,
    /// max |theta|.
    pub max_theta: f64,
}

impl Scale {
    /// Bounds |s| of the coming step: for AdamW the clamp of the moments' part, and the whole.
    fn step_bound(
        &self,
        rule: &UpdateRule,
        scan: &GradScan,
        scalars: &UpdateScalars,
    ) -> (f64, f64) {
        let lr = scalars.lr.abs();
        match *rule {
            UpdateRule::Sgd { momentum } => {
                let pull = (scalars.damping * self.max_drift).abs();
                let force = scalars.clip.abs() * (scan.max_abs + pull);
                (f64::INFINITY, lr * (momentum.abs() * self.max_moment + force))
            }
            UpdateRule::AdamW { betas, weight_decay, .. } => {
                let moments = moments_bound(betas, scalars.lr, scalars.step);
                (moments, moments + lr * weight_decay.abs() * self.max_theta)
            }
            // Never in 16-bit planes.
            UpdateRule::Custom { .. } => (f64::INFINITY, f64::INFINITY),
        }
    }
}

/// Settings shared by all chunks of a pass, and the offset of this chunk.
#[derive(Clone, Copy)]
struct Run {
    offset: usize,
    seed: u64,
    counter: u64,
    rule: Rule<f32>,
    pull: Pull<f32>,
    /// 2^-k of the drift as it is and 2^k of the drift as it will be.
    scales: (f32, f32),
    /// Largest part of an AdamW step that its moments make.
    clamp: f32,
}

/// DRIFTS: whether there is a teacher. LOW: whether weights have a low plane.
struct SplitPass<'a, G, const DRIFTS: bool, const LOW: bool> {
    buffers: SplitBuffers<'a>,
    grad: &'a [G],
    with: Run,
}

/// Maxima of stored bits: drift, first moment, theta.
type Seen = (u16, u16, u32);

impl<G: Element, const DRIFTS: bool, const LOW: bool> WithSimd for SplitPass<'_, G, DRIFTS, LOW> {
    type Output = Seen;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Seen {
        let SplitBuffers { hi, lo, drift, first: m, second: v, bytes, scales: block_scales } =
            self.buffers;
        let n = hi.len();
        let grad = &self.grad[..n];
        let lo = if LOW { &mut lo[..n] } else { &mut [] };
        let drift = if DRIFTS { &mut drift[..n] } else { &mut [] };
        let Run { offset, seed, counter, rule, pull, scales, clamp } = self.with;
        let high = (offset as u64) & !0xffff_ffff;
        let low = offset as u32;
        let index = |i: usize| high | u64::from(low.wrapping_add(i as u32));
        let (mut max_drift, mut max_moment, mut max_theta) = (0u16, 0u16, 0u32);
        // Student, drift and gradient of number $i as they are.
        macro_rules! read {
            ($i:ident, $theta:ident, $d:ident, $g:ident) => {
                let $theta = if LOW {
                    join(hi[$i], lo[$i], noise(seed, counter, index($i)) & 0xffff)
                } else {
                    widen(hi[$i])
                };
                let $d = if DRIFTS { from_f16(drift[$i]) * scales.0 } else { 0.0 };
                let $g = grad[$i].wide::<f32>() * pull.clip + pull.damping * $d;
            };
        }
        // Student and drift of number $i after a step.
        macro_rules! write {
            ($i:ident, $theta:ident, $d:ident, $step:expr, $random:ident) => {
                let step: f32 = $step;
                let mut theta = $theta + step;
                let mut moved = step;
                if LOW {
                    (hi[$i], lo[$i]) = split(theta, $random & 0xffff);
                } else {
                    hi[$i] = narrow(theta, $random & 0xffff);
                    // The drift is to the student that there is.
                    theta = widen(hi[$i]);
                    moved = theta - $theta;
                }
                max_theta = max_theta.max(theta.to_bits() & 0x7fff_ffff);
                if DRIFTS {
                    let stored = to_f16(pull.keep * ($d + moved) * scales.1);
                    drift[$i] = stored;
                    max_drift = max_drift.max(stored & 0x7fff);
                }
            };
        }
        match rule {
            Rule::Sgd { momentum, lr } if !bytes.is_empty() => {
                let mut moments = [0f32; MOMENT_BLOCK];
                for (block, scale) in block_scales.iter_mut().enumerate() {
                    let start = block * MOMENT_BLOCK;
                    let end = (start + MOMENT_BLOCK).min(n);
                    let mut top = 0u32;
                    for (u, i) in moments.iter_mut().zip(start..end) {
                        read!(i, _theta, d, g);
                        *u = momentum * from_block(bytes[i], *scale) + g;
                        top = top.max(u.to_bits() & 0x7fff_ffff);
                    }
                    let top = f32::from_bits(top);
                    *scale = block_scale(top);
                    max_moment = max_moment.max(ceil_bf16(top));
                    for (u, i) in moments.iter().zip(start..end) {
                        let random = noise(seed, counter + 1, index(i));
                        bytes[i] = to_block(*u, *scale, random >> 16);
                        read!(i, theta, d, _g);
                        write!(i, theta, d, -lr * *u, random);
                    }
                }
            }
            Rule::Sgd { momentum, lr } => {
                let m = &mut m[..n];
                for i in 0..n {
                    let random = noise(seed, counter + 1, index(i));
                    read!(i, theta, d, g);
                    let u = momentum * widen(m[i]) + g;
                    m[i] = narrow(u, random >> 16);
                    max_moment = max_moment.max(m[i] & 0x7fff);
                    write!(i, theta, d, -lr * u, random);
                }
            }
            Rule::AdamW(adam) => {
                let (m, v) = (&mut m[..n], &mut v[..n]);
                for i in 0..n {
                    let random = noise(seed, counter + 1, index(i));
                    read!(i, theta, d, g);
                    let first = widen(m[i]);
                    let first = first + adam.one_minus_b1 * (g - first);
                    let second = adam.b2 * widen(v[i]) + adam.one_minus_b2 * g * g;
                    m[i] = narrow(first, random >> 16);
                    v[i] = narrow(second, remix(random));
                    max_moment = max_moment.max(m[i] & 0x7fff);
                    // Kept off zero so that 0 / 0 is 0 with eps = 0.
                    let scale =
                        (second.sqrt() / adam.root_correction + adam.eps).max(f32::MIN_POSITIVE);
                    let move_by = (adam.step_size * (first / scale)).max(-clamp).min(clamp);
                    write!(i, theta, d, -(move_by + adam.decay * theta), random);
                }
            }
        }
        (max_drift, max_moment, max_theta)
    }
}

/// Updates a parameter and its scale; `counter` is the number of updates before this one.
pub(in crate::backend::cpu) fn update_split<T: Real>(
    buffers: SplitBuffers<'_>,
    scale: &mut Scale,
    (seed, counter): (u64, u64),
    grad: Numbers<'_, T>,
    scan: &GradScan,
    rule: &UpdateRule,
    scalars: &UpdateScalars,
) {
    let Some(step_rule) = Rule::new(rule, scalars) else { return };
    let keep = 1.0 - scalars.teacher_rate * scalars.clip;
    let (clamp, mut step) = scale.step_bound(rule, scan, scalars);
    if buffers.lo.is_empty() {
        // A rounded student moves by up to a unit in the last place more.
        step += (scale.max_theta + step) / 128.0;
    }
    let exponent = drift_exponent(keep.abs() * (scale.max_drift + step))
        .clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
    let scales = (2f32.powi(-scale.exponent), 2f32.powi(exponent));
    let pull = Pull::new(scalars);
    let clamp = clamp as f32;
    let run = Run { offset: 0, seed, counter, rule: step_rule, pull, scales, clamp };
    let len = buffers.hi.len();
    let (drift, moment, theta) = fold(
        (buffers, grad),
        0,
        len,
        &|(buffers, grad), offset, _| {
            let run = Run { offset, ..run };
            match grad {
                Numbers::Zeros => run.pass(buffers, T::zeros(CHUNK)),
                Numbers::Wide(grad) => run.pass(buffers, grad),
                Numbers::Bf16(grad) => run.pass(buffers, grad),
            }
        },
        &|a: Seen, b: Seen| (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2)),
    );
    *scale = Scale {
        exponent,
        max_drift: f64::from(from_f16(drift)) * 2f64.powi(-exponent),
        max_moment: f64::from(widen(moment)),
        max_theta: f64::from(f32::from_bits(theta)),
    };
}

impl Run {
    fn pass<G: Element>(self, buffers: SplitBuffers<'_>, grad: &[G]) -> Seen {
        let arch = Arch::new();
        let with = self;
        match (buffers.drift.is_empty(), buffers.lo.is_empty()) {
            (true, false) => arch.dispatch(SplitPass::<_, false, true> { buffers, grad, with }),
            (false, false) => arch.dispatch(SplitPass::<_, true, true> { buffers, grad, with }),
            (true, true) => arch.dispatch(SplitPass::<_, false, false> { buffers, grad, with }),
            (false, true) => arch.dispatch(SplitPass::<_, true, false> { buffers, grad, with }),
        }
    }
}
