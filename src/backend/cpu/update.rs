//! Passes over parameters: update, view, scan. Each touches memory once, in chunks of fixed size.
//!
//! Chunks are cut by length alone and joined in a fixed tree, so results do not depend on the threads.

mod split;

use pulp::{Arch, Simd, WithSimd};

use super::{Grad, GradData, Real};
use crate::ops::format::widen;
use crate::optim::AdamNumbers;
use crate::optim::{UpdateRule, UpdateScalars};
pub(super) use split::{Scale, SplitBuffers, update_split};

/// Elements per chunk; a power of two, so that a chunk never straddles 2^32.
pub(super) const CHUNK: usize = 1 << 14;

/// A number of a gradient.
pub(super) trait Element: Copy + Send + Sync {
    /// Converts to the type of the computation.
    fn wide<T: Real>(self) -> T;
}

impl<T: Real> Element for T {
    #[inline(always)]
    fn wide<U: Real>(self) -> U {
        U::from_f64(self.to_f64())
    }
}

impl Element for u16 {
    #[inline(always)]
    fn wide<U: Real>(self) -> U {
        U::from_f32(widen(self))
    }
}

/// A view that can be split at an index; an absent (empty) slice stays absent.
pub(super) trait Part: Sized + Send {
    /// Cuts at `mid`.
    fn cut(self, mid: usize) -> (Self, Self);
}

impl<X: Sync> Part for &[X] {
    fn cut(self, mid: usize) -> (Self, Self) {
        self.split_at(mid.min(self.len()))
    }
}

impl<X: Send> Part for &mut [X] {
    fn cut(self, mid: usize) -> (Self, Self) {
        let mid = mid.min(self.len());
        self.split_at_mut(mid)
    }
}

macro_rules! tuple_part {
    ($($part:ident)+) => {
        impl<$($part: Part),+> Part for ($($part,)+) {
            #[allow(non_snake_case)]
            fn cut(self, mid: usize) -> (Self, Self) {
                let ($($part,)+) = self;
                $(let $part = $part.cut(mid);)+
                (($($part.0,)+), ($($part.1,)+))
            }
        }
    };
}
tuple_part!(A B);
tuple_part!(A B C);
tuple_part!(A B C D);
tuple_part!(A B C D E);

impl Part for () {
    fn cut(self, _: usize) -> (Self, Self) {
        ((), ())
    }
}

/// The numbers of a gradient, or of a part of it.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a, T> {
    Zeros,
    Wide(&'a [T]),
    Bf16(&'a [u16]),
}

impl<T: Real> Part for Numbers<'_, T> {
    fn cut(self, mid: usize) -> (Self, Self) {
        match self {
            Self::Zeros => (Self::Zeros, Self::Zeros),
            Self::Wide(x) => {
                let (a, b) = x.cut(mid);
                (Self::Wide(a), Self::Wide(b))
            }
            Self::Bf16(x) => {
                let (a, b) = x.cut(mid);
                (Self::Bf16(a), Self::Bf16(b))
            }
        }
    }
}

impl<'a, T> From<&'a Grad<T>> for Numbers<'a, T> {
    fn from(grad: &'a Grad<T>) -> Self {
        match &grad.data {
            _ if grad.empty => Self::Zeros,
            GradData::Wide(x) => Self::Wide(x),
            GradData::Bf16(x) => Self::Bf16(x),
        }
    }
}

/// Calls `leaf(part, offset, len)` for each chunk in parallel and joins the results in a fixed tree.
pub(super) fn fold<P: Part, R: Send>(
    part: P,
    offset: usize,
    len: usize,
    leaf: &(impl Fn(P, usize, usize) -> R + Sync),
    merge: &(impl Fn(R, R) -> R + Sync),
) -> R {
    if len <= CHUNK {
        return leaf(part, offset, len);
    }
    let mid = len.div_ceil(CHUNK) / 2 * CHUNK;
    let (a, b) = part.cut(mid);
    let (x, y) = rayon::join(
        || fold(a, offset, mid, leaf, merge),
        || fold(b, offset + mid, len - mid, leaf, merge),
    );
    merge(x, y)
}

/// AdamW's numbers of one step.
#[derive(Clone, Copy)]
struct Adam<T> {
    one_minus_b1: T,
    b2: T,
    one_minus_b2: T,
    /// sqrt(1 - b2^t).
    root_correction: T,
    eps: T,
    /// lr / (1 - b1^t).
    step_size: T,
    /// lr weight_decay.
    decay: T,
    /// 1 - lr weight_decay.
    keep: T,
}

impl<T: Real> Adam<T> {
    fn new(betas: (f64, f64), eps: f64, weight_decay: f64, scalars: &UpdateScalars) -> Self {
        let n = AdamNumbers::new(betas, eps, weight_decay, scalars.lr, scalars.step);
        Self {
            one_minus_b1: T::from_f64(n.one_minus_b1),
            b2: T::from_f64(n.b2),
            one_minus_b2: T::from_f64(n.one_minus_b2),
            root_correction: T::from_f64(n.root_correction),
            eps: T::from_f64(n.eps),
            step_size: T::from_f64(n.step_size),
            decay: T::from_f64(n.decay),
            keep: T::from_f64(n.keep),
        }
    }
}

/// The rule with this step's numbers.
#[derive(Clone, Copy)]
enum Rule<T> {
    Sgd { momentum: T, lr: T },
    AdamW(Adam<T>),
}

impl<T: Real> Rule<T> {
    /// `None` for a rule that is not known here.
    fn new(rule: &UpdateRule, scalars: &UpdateScalars) -> Option<Self> {
        Some(match *rule {
            UpdateRule::Sgd { momentum } => {
                Self::Sgd { momentum: T::from_f64(momentum), lr: T::from_f64(scalars.lr) }
            }
            UpdateRule::AdamW { betas, eps, weight_decay } => {
                Self::AdamW(Adam::new(betas, eps, weight_decay, scalars))
            }
            UpdateRule::Custom { .. } => return None,
        })
    }
}

/// Scalars common to both rules and all modes.
#[derive(Clone, Copy)]
struct Pull<T> {
    clip: T,
    /// damping c.
    damping: T,
    /// teacher_rate c.
    rate: T,
    /// 1 - teacher_rate c.
    keep: T,
}

impl<T: Real> Pull<T> {
    fn new(scalars: &UpdateScalars) -> Self {
        let rate = scalars.teacher_rate * scalars.clip;
        Self {
            clip: T::from_f64(scalars.clip),
            damping: T::from_f64(scalars.damping * scalars.clip),
            rate: T::from_f64(rate),
            keep: T::from_f64(1.0 - rate),
        }
    }
}

const NONE: u8 = 0;
const FULL: u8 = 1;
const DRIFT: u8 = 2;

/// The buffers of an exact parameter: theta, teacher or drift, first moment, second moment; absent ones empty.
pub(super) type ExactBuffers<'a, T> = (&'a mut [T], &'a mut [T], &'a mut [T], &'a mut [T]);

struct ExactPass<'a, T, G, const TEACHER: u8> {
    buffers: ExactBuffers<'a, T>,
    grad: &'a [G],
    rule: Rule<T>,
    pull: Pull<T>,
}

impl<T: Real, G: Element, const TEACHER: u8> WithSimd for ExactPass<'_, T, G, TEACHER> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (theta, teacher, m, v) = self.buffers;
        let n = theta.len();
        let (grad, m, pull) = (&self.grad[..n], &mut m[..n], self.pull);
        let teacher = if TEACHER == NONE { &mut [] } else { &mut teacher[..n] };
        // The order of operations is torch's.
        let force = |grad: G, theta: T, teacher: T| {
            let g = grad.wide::<T>() * pull.clip;
            match TEACHER {
                FULL => g + pull.damping * (theta - teacher),
                DRIFT => g + pull.damping * teacher,
                _ => g,
            }
        };
        let follow = |theta: T, step: T, teacher: T| match TEACHER {
            FULL => teacher * pull.keep + pull.rate * theta,
            _ => pull.keep * (teacher + step),
        };
        match self.rule {
            Rule::Sgd { momentum, lr } => {
                for i in 0..n {
                    let reference = if TEACHER == NONE { T::ZERO } else { teacher[i] };
                    let u = momentum * m[i] + force(grad[i], theta[i], reference);
                    let step = -lr * u;
                    m[i] = u;
                    theta[i] += step;
                    if TEACHER != NONE {
                        teacher[i] = follow(theta[i], step, reference);
                    }
                }
            }
            Rule::AdamW(adam) => {
                let v = &mut v[..n];
                for i in 0..n {
                    let reference = if TEACHER == NONE { T::ZERO } else { teacher[i] };
                    let g = force(grad[i], theta[i], reference);
                    m[i] += adam.one_minus_b1 * (g - m[i]);
                    v[i] = adam.b2 * v[i] + adam.one_minus_b2 * g * g;
                    // The f64 root of an f32, rounded to f32, is the correctly rounded root.
                    let root = T::from_f64(v[i].to_f64().sqrt());
                    let move_by =
                        adam.step_size * (m[i] / (root / adam.root_correction + adam.eps));
                    let step = -(move_by + adam.decay * theta[i]);
                    theta[i] = theta[i] * adam.keep - move_by;
                    if TEACHER != NONE {
                        teacher[i] = follow(theta[i], step, reference);
                    }
                }
            }
        }
    }
}

/// Updates an exact parameter; `full` tells whether the teacher buffer (if not empty) holds weights or drift.
pub(super) fn update_exact<T: Real>(
    buffers: ExactBuffers<'_, T>,
    full: bool,
    grad: Numbers<'_, T>,
    rule: &UpdateRule,
    scalars: &UpdateScalars,
) {
    let Some(rule) = Rule::new(rule, scalars) else { return };
    let pull = Pull::new(scalars);
    // A teacher that neither pulls nor moves need not be read.
    let idle = full && scalars.damping == 0.0 && scalars.teacher_rate == 0.0;
    let form = match (buffers.1.is_empty() || idle, full) {
        (true, _) => NONE,
        (false, true) => FULL,
        (false, false) => DRIFT,
    };
    fn run<T: Real, G: Element>(
        form: u8,
        buffers: ExactBuffers<'_, T>,
        grad: &[G],
        rule: Rule<T>,
        pull: Pull<T>,
    ) {
        let arch = Arch::new();
        match form {
            FULL => arch.dispatch(ExactPass::<_, _, FULL> { buffers, grad, rule, pull }),
            DRIFT => arch.dispatch(ExactPass::<_, _, DRIFT> { buffers, grad, rule, pull }),
            _ => arch.dispatch(ExactPass::<_, _, NONE> { buffers, grad, rule, pull }),
        }
    }
    let len = buffers.0.len();
    fold(
        (buffers, grad),
        0,
        len,
        &|(buffers, grad), _, _| match grad {
            Numbers::Zeros => run(form, buffers, T::zeros(CHUNK), rule, pull),
            Numbers::Wide(grad) => run(form, buffers, grad, rule, pull),
            Numbers::Bf16(grad) => run(form, buffers, grad, rule, pull),
        },
        &|(), ()| (),
    );
}
