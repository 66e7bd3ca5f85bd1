//! RMU: representation misdirection, on rows of the residual stream.

use crate::error::Result;
use crate::method::{Hidden, Knobs, MeanTeacher, Normaliser, Objective, Rows};
use crate::ops::Ops;
use crate::rng::Stream;

/// The two halves of RMU.
pub enum Rmu {
    /// Rows of forget documents go to one random vector.
    Steer,
    /// Rows of retain documents stay where the teacher has them.
    Keep,
}

impl Objective for Rmu {
    fn name(&self) -> &'static str {
        match self {
            Self::Steer => "rmu",
            Self::Keep => "rmu_retain",
        }
    }

    fn formula(&self) -> &'static str {
        match self {
            Self::Steer => {
                "|h - rmu_steering u|^2/C, h the hidden state after layer rmu_layer, mean over the tokens of a document, then over documents"
            }
            Self::Keep => {
                "|h - h_teacher|^2/C, h the hidden state after layer rmu_layer, mean over the tokens of a document, then over documents"
            }
        }
    }

    fn gradient(&self) -> &'static str {
        match self {
            Self::Steer => "2 (h - rmu_steering u)/C",
            Self::Keep => "2 (h - h_teacher)/C",
        }
    }

    fn source(&self) -> &'static str {
        "arXiv 2403.03218, with C as in its code; u is sampled uniformly from [0, 1)^C and normalized"
    }

    fn differs(&self) -> &'static str {
        match self {
            Self::Steer => {
                "wmdp `unlearn.py` averages over padding too; open-unlearning `rmu.py` divides a vector of documents by a column of lengths, which mixes documents"
            }
            Self::Keep => {
                "as for the loss; there the model compared with is always the starting one"
            }
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Steer => &["rmu_layer", "rmu_steering"],
            Self::Keep => &["rmu_layer"],
        }
    }

    fn rows(&self, knobs: &Knobs) -> Rows {
        Rows::Hidden(Hidden { layer: knobs.rmu_layer, steered: matches!(self, Self::Steer) })
    }

    fn normaliser(&self) -> Normaliser {
        Normaliser::OwnPositions
    }
}

/// Sets the vector that hidden states are steered to, where the forget loss has one.
pub fn prepare<O: Ops>(ops: &O, state: &mut MeanTeacher<O>, seed: u64) -> Result<()> {
    let MeanTeacher { model, passes, method, .. } = state;
    let knobs = &method.knobs;
    if matches!(method.loss().rows(knobs), Rows::Hidden(hidden) if hidden.steered) {
        passes.steer(ops, &steering(seed, model.config.width, knobs.rmu_steering))?;
    }
    Ok(())
}

/// Returns the vector that rows of `width` numbers are pulled to: random, all at least 0, of length `length`.
pub fn steering(seed: u64, width: usize, length: f64) -> Vec<f64> {
    let stream = Stream::new(seed, "rmu");
    let drawn: Vec<f64> = (0..width as u64).map(|i| stream.uniform(0, i)).collect();
    let norm = drawn.iter().map(|x| x * x).sum::<f64>().sqrt();
    drawn.into_iter().map(|x| length * x / norm.max(f64::MIN_POSITIVE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steering_vector_has_its_length_and_no_negative_number() {
        let u = steering(3, 64, 20.0);
        let norm = u.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm - 20.0).abs() < 1e-12 && u.iter().all(|x| *x >= 0.0));
        assert_ne!(u, steering(4, 64, 20.0));
    }
}
