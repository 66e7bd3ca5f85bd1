//! Student and teacher as products, evaluation and checkpoints see them, made from 16-bit planes.

use pulp::{Arch, Simd, WithSimd};

use super::Split;
use crate::backend::cpu::Real;
use crate::backend::cpu::update::fold;
use crate::ops::format::{EVALUATION, from_f16, join, narrow, noise, widen};

/// Output of a pass over the 16-bit planes.
#[derive(Clone, Copy)]
pub(super) enum Show {
    /// The bf16 plane.
    Plane,
    /// The teacher in bf16, under the student's rounding bits.
    DitheredTeacher,
    /// The student in bf16, under the rounding bits of evaluation.
    Evaluated,
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
        let (hi, out) = (&hi[..n], self.out);
        let high = (self.offset as u64) & !0xffff_ffff;
        let low = self.offset as u32;
        let random = |i: usize, step: u64| {
            let index = high | u64::from(low.wrapping_add(i as u32));
            noise(self.seed, step, index) & 0xffff
        };
        let own = |i: usize| random(i, self.counter);
        macro_rules! each {
            (|$i:ident| $value:expr) => {
                for $i in 0..n {
                    out[$i] = O::from_f32($value);
                }
            };
        }
        if lo.is_empty() {
            // The plane is all there is of the student.
            let teacher = |i: usize| widen(hi[i]) - from_f16(drift[i]) * self.unscale;
            return match self.show {
                Show::DitheredTeacher => each!(|i| widen(narrow(teacher(i), own(i)))),
                Show::JoinedTeacher => each!(|i| teacher(i)),
                Show::Plane | Show::Evaluated | Show::Joined => each!(|i| widen(hi[i])),
            };
        }
        let lo = &lo[..n];
        match self.show {
            Show::Plane => each!(|i| widen(hi[i])),
            Show::Evaluated => {
                let theta = |i: usize| join(hi[i], lo[i], own(i));
                each!(|i| widen(narrow(theta(i), random(i, EVALUATION))));
            }
            Show::Joined => each!(|i| join(hi[i], lo[i], own(i))),
            Show::DitheredTeacher => {
                let drift = &drift[..n];
                each!(|i| {
                    let r = own(i);
                    let teacher = join(hi[i], lo[i], r) - from_f16(drift[i]) * self.unscale;
                    widen(narrow(teacher, r))
                });
            }
            Show::JoinedTeacher => {
                let drift = &drift[..n];
                each!(|i| join(hi[i], lo[i], own(i)) - from_f16(drift[i]) * self.unscale);
            }
        }
    }
}

impl Split {
    /// Writes what `show` asks for; without a drift the teacher is the student.
    pub(super) fn show<O: Real>(&self, (seed, counter): (u64, u64), show: Show, out: &mut [O]) {
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
