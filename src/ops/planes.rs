//! Buffers of a parameter and its optimizer state in each state mode.

use super::format::MOMENT_BLOCK;
use super::param::{ParamSpec, StateMode, TeacherForm};

/// A buffer of a parameter: how many numbers, and the bytes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// Numbers; 0 where the buffer is absent.
    pub len: usize,
    /// Bytes of a number.
    pub size: usize,
}

impl Plane {
    /// Returns its bytes.
    pub fn bytes(self) -> u64 {
        self.len as u64 * self.size as u64
    }
}

/// All buffers of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planes {
    /// The weights: whole ones, or the upper bf16 half of split ones.
    pub theta: Plane,
    /// The lower half of split weights.
    pub low: Plane,
    /// The teacher's weights, or the drift.
    pub teacher: Plane,
    /// First moment.
    pub first: Plane,
    /// Second moment.
    pub second: Plane,
    /// Scales of an 8-bit first moment, one for each block.
    pub scales: Plane,
}

/// Storage of the weights of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Once, for student and teacher.
    Frozen,
    /// In the exact mode, with this teacher.
    Exact(TeacherForm),
    /// In 16-bit planes, with this teacher: a drift or none.
    Split(TeacherForm),
}

impl ParamSpec {
    /// Returns how the weights are stored.
    pub fn stored(&self) -> Stored {
        match (self.trainable, self.mode) {
            (false, _) => Stored::Frozen,
            (true, StateMode::Exact) => Stored::Exact(self.teacher),
            (true, _) => Stored::Split(self.teacher),
        }
    }

    /// Returns the buffers on a backend that takes `frozen` bytes for a frozen weight and `exact` for one in exact state.
    pub fn planes(&self, frozen: usize, exact: usize) -> Planes {
        let plane =
            |wanted: bool, size: usize| Plane { len: if wanted { self.len } else { 0 }, size };
        let [first, second] = self.rule.moment_names().map(|name| !name.is_empty());
        match self.stored() {
            Stored::Frozen => Planes { theta: plane(true, frozen), ..Planes::absent() },
            Stored::Exact(form) => Planes {
                theta: plane(true, exact),
                teacher: plane(form != TeacherForm::None, exact),
                first: plane(first, exact),
                second: plane(second, exact),
                ..Planes::absent()
            },
            Stored::Split(form) => {
                let tiny = self.mode == StateMode::Tiny;
                let first = plane(first, if tiny { 1 } else { 2 });
                let blocks = if tiny { first.len.div_ceil(MOMENT_BLOCK) } else { 0 };
                Planes {
                    theta: plane(true, 2),
                    low: plane(self.mode != StateMode::Approx, 2),
                    teacher: plane(form == TeacherForm::Drift, 2),
                    first,
                    second: plane(second, 2),
                    scales: Plane { len: blocks, size: 4 },
                }
            }
        }
    }

    /// Returns the buffer of the gradient, where one in exact state has `exact` bytes a number.
    pub fn gradient(&self, exact: usize) -> Plane {
        let size = if self.mode == StateMode::Exact { exact } else { 2 };
        Plane { len: if self.trainable { self.len } else { 0 }, size }
    }
}

impl Planes {
    /// Returns buffers without numbers.
    fn absent() -> Self {
        let none = Plane { len: 0, size: 1 };
        Self { theta: none, low: none, teacher: none, first: none, second: none, scales: none }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::UpdateRule;

    /// The buffers come to the bytes that a mode promises.
    #[test]
    fn buffers_have_the_bytes_of_their_mode() {
        for mode in StateMode::ALL {
            let teacher =
                if mode == StateMode::Exact { TeacherForm::Full } else { TeacherForm::Drift };
            let rule = UpdateRule::Sgd { momentum: 0.9 };
            let len = 3 * MOMENT_BLOCK;
            let name = "w".to_owned();
            let spec = ParamSpec { name, len, trainable: true, mode, teacher, rule, seed: 0 };
            let Planes { theta, low, teacher, first, second, scales } = spec.planes(4, 4);
            let (kept, n) = (mode.bytes(), len as f64);
            assert_eq!((theta.bytes() + low.bytes()) as f64, n * kept.weights, "{mode:?}");
            assert_eq!(teacher.bytes() as f64, n * kept.teacher, "{mode:?}");
            assert_eq!((first.bytes() + scales.bytes()) as f64, n * kept.moment, "{mode:?}");
            assert_eq!((second.bytes(), spec.gradient(4).bytes() as f64), (0, n * kept.gradient));
            let frozen = ParamSpec { trainable: false, ..spec };
            assert_eq!(frozen.planes(2, 4).theta.bytes(), 2 * len as u64);
            assert_eq!(frozen.planes(2, 4).teacher.bytes() + frozen.gradient(4).bytes(), 0);
        }
    }
}
