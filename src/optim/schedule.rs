//! The learning rate over steps.

use serde::{Deserialize, Serialize};

/// The shape of a learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The full rate after warm-up.
    #[default]
    Constant,
    /// A straight line from the full rate to `lr_min`.
    Linear,
    /// Half a cosine from the full rate to `lr_min`.
    Cosine,
    /// The schedule of the paper's code; see [`Schedule`].
    Paper,
}

impl Shape {
    /// Tells whether the rate depends on the length of the run.
    pub fn decays(self) -> bool {
        matches!(self, Self::Linear | Self::Cosine)
    }
}

/// The learning rate over the steps of a run, counted from 0.
///
/// All shapes but `paper` warm up over w steps, step s < w at `lr (s + 1)/w`; w = 0 means none. Then follow `lr`, or a decay
/// whose step s has done the share `(s - w)/(steps - w)` of the way to `lr_min`, which step `steps`, the first one after the
/// run, would reach.
///
/// `paper` is the schedule of the paper's code (mt-unlearn `run_mt.py`, `run_epoch`). With AdamW, steps 0 to w run at one
/// percent of `lr`, then a ramp `lr (s - w)/w` leads to `lr` at step 2w; so w = 0 still has step 0 at one percent. With SGD
/// the rate is constant and w is not read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub shape: Shape,
    /// The full rate.
    pub lr: f64,
    /// The rate at the end of a decay.
    pub lr_min: f64,
    /// Warm-up steps w.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
    /// True if the optimizer is AdamW; read by `paper` alone.
    pub adamw: bool,
}

impl Schedule {
    /// Returns the schedule that always has the rate `lr`.
    pub fn constant(lr: f64) -> Self {
        Self { shape: Shape::Constant, lr, lr_min: 0.0, warmup: 0, steps: 0, adamw: false }
    }

    /// Returns the rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let (w, lr) = (self.warmup, self.lr);
        if self.shape == Shape::Paper {
            return match step {
                _ if !self.adamw => lr,
                s if s <= w => 0.01 * lr,
                s if s <= 2 * w => lr * (s - w) as f64 / w as f64,
                _ => lr,
            };
        }
        if step < w {
            return lr * (step + 1) as f64 / w as f64;
        }
        let whole = self.steps.saturating_sub(w).max(1);
        let done = ((step - w) as f64 / whole as f64).min(1.0);
        let left = match self.shape {
            Shape::Linear => 1.0 - done,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Shape::Constant | Shape::Paper => return lr,
        };
        self.lr_min + (lr - self.lr_min) * left
    }

    /// Returns the first step, counted from 0, that has the full rate.
    pub fn full_from(&self) -> u64 {
        match self.shape {
            Shape::Paper if !self.adamw => 0,
            Shape::Paper => (2 * self.warmup).max(1),
            _ => self.warmup.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape, warmup: u64, steps: u64) -> Schedule {
        Schedule { shape, warmup, steps, lr: 1.0, lr_min: 0.0, adamw: true }
    }

    fn rates(schedule: Schedule, steps: &[u64]) -> Vec<f64> {
        steps.iter().map(|step| schedule.rate(*step)).collect()
    }

    #[test]
    fn paper_follows_the_reference_in_both_phases() {
        let paper = schedule(Shape::Paper, 10, 0);
        assert_eq!(rates(paper, &[0, 10, 11, 20, 21]), [0.01, 0.01, 0.1, 1.0, 1.0]);
        assert_eq!(Schedule { lr: 2.0, ..schedule(Shape::Paper, 0, 0) }.rate(0), 0.02);
        let sgd = Schedule { adamw: false, ..paper };
        assert_eq!((sgd.rate(0), sgd.full_from()), (1.0, 0));
    }

    #[test]
    fn warm_up_rises_from_the_first_step_and_zero_is_none() {
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine] {
            assert_eq!(rates(schedule(shape, 4, 100), &[0, 1, 2, 3]), [0.25, 0.5, 0.75, 1.0]);
            assert_eq!(schedule(shape, 0, 100).rate(0), 1.0);
        }
    }

    #[test]
    fn decays_end_behind_the_last_step_at_the_least_rate() {
        assert_eq!(
            rates(schedule(Shape::Linear, 2, 6), &[2, 3, 4, 5, 6, 9]),
            [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        );
        let cosine = Schedule { lr_min: 0.5, ..schedule(Shape::Cosine, 0, 4) };
        let half = 0.75 + 0.25 * std::f64::consts::FRAC_1_SQRT_2;
        assert!((cosine.rate(1) - half).abs() < 1e-12 && (cosine.rate(4) - 0.5).abs() < 1e-12);
        assert_eq!(rates(schedule(Shape::Constant, 0, 2), &[0, 1, 7]), [1.0; 3]);
    }

    #[test]
    fn full_from_is_the_first_step_with_the_full_rate() {
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine, Shape::Paper] {
            for w in [0, 1, 5] {
                let schedule = schedule(shape, w, 100);
                let first = (0..100).find(|step| schedule.rate(*step) == 1.0).unwrap();
                assert_eq!(schedule.full_from(), first, "{shape:?} {w}");
            }
        }
    }
}
