//! `[method]`: what is minimised, and the checks of what it needs.

use serde::{Deserialize, Serialize};

use super::Recipe;
use crate::error::{Error, Result};
use crate::method::{self, Combination, Dual, Knobs, Method, Settings};

/// `[method]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodSection {
    /// The forget loss, a name of docs/methods.md.
    pub loss: String,
    /// The penalty on retain documents: nll, kl, kl_tokens, kl_muse, qkl, none.
    pub penalty: String,
    /// alpha.
    pub forget_weight: f64,
    /// beta.
    pub retain_weight: f64,
    /// delta.
    pub teacher_rate: f64,
    /// Pull of the student to the teacher.
    pub damping: f64,
    /// How the gradients of loss and penalty become one direction: sum, project, min_norm.
    pub combine: String,
    /// How fast the weight of the penalty follows it above `dual_bound`; 0 keeps it.
    pub dual_rate: f64,
    /// The value that the penalty is to stay below where its weight follows it.
    pub dual_bound: f64,
    /// The numbers of the losses.
    #[serde(flatten)]
    pub knobs: Knobs,
}

impl Default for MethodSection {
    fn default() -> Self {
        Self {
            loss: "nlul".into(),
            penalty: "qkl".into(),
            forget_weight: 0.05,
            retain_weight: 1.0,
            teacher_rate: 0.005,
            damping: 5.0,
            combine: "sum".into(),
            dual_rate: 0.0,
            dual_bound: 0.0,
            knobs: Knobs::default(),
        }
    }
}

impl Recipe {
    /// Resolves loss and penalty by name.
    pub fn method(&self) -> Result<Method> {
        let section = &self.method;
        let penalty = match section.penalty.as_str() {
            "none" => None,
            name => Some(method::find(&method::PENALTIES, "method.penalty", name)?),
        };
        Ok(Method {
            loss: method::find(&method::FORGET, "method.loss", &section.loss)?,
            penalty,
            knobs: section.knobs,
        })
    }

    /// Returns how gradients are combined.
    pub fn combination(&self) -> Result<Combination> {
        Combination::find(&self.method.combine)
    }

    /// Returns the numbers of a step.
    pub fn settings(&self) -> Settings {
        Settings {
            forget_weight: self.method.forget_weight,
            retain_weight: self.method.retain_weight,
            dual: (self.method.dual_rate > 0.0)
                .then_some(Dual { rate: self.method.dual_rate, bound: self.method.dual_bound }),
            clip: self.optim.clip,
            damping: self.method.damping,
            teacher_rate: self.method.teacher_rate,
            schedule: self.optim.schedule(),
        }
    }

    /// Checks the names of loss and penalty, their numbers, and what they need.
    pub(super) fn check_method(&self) -> Result<()> {
        let method = self.method()?;
        let Knobs { beta_npo, beta_simnpo, delta_simnpo, beta_undial, beta_wga, .. } =
            self.method.knobs;
        let Knobs { satimp_beta1, satimp_beta2, .. } = self.method.knobs;
        let checks = [
            ("beta_npo", beta_npo, beta_npo > 0.0, "above 0"),
            ("beta_simnpo", beta_simnpo, beta_simnpo > 0.0, "above 0"),
            ("delta_simnpo", delta_simnpo, delta_simnpo.is_finite(), "a number"),
            ("beta_undial", beta_undial, beta_undial >= 0.0, "0 or more"),
            ("beta_wga", beta_wga, beta_wga >= 0.0, "0 or more"),
            ("satimp_beta1", satimp_beta1, satimp_beta1 >= 0.0, "0 or more"),
            ("satimp_beta2", satimp_beta2, satimp_beta2 >= 0.0, "0 or more"),
            ("dual_bound", self.method.dual_bound, self.method.dual_bound.is_finite(), "a number"),
        ];
        for (key, value, good, wanted) in checks {
            if !good {
                return Err(Error::config(format!("method.{key}: wanted {wanted}, got {value}")));
            }
        }
        let (loss, knobs) = (method.loss, self.method.knobs);
        if self.combination()? != Combination::Sum && method.penalty.is_none() {
            return Err(Error::config(format!(
                "method.combine: {} needs a penalty to combine the loss with",
                self.method.combine
            ))
            .hint("set method.penalty, or method.combine=sum"));
        }
        let paired = loss.rows(&knobs).paired();
        let alternate = !self.data.alternate.as_os_str().is_empty();
        if paired && self.data.forget_chunking {
            return Err(Error::config(format!(
                "data.forget_chunking: loss {} compares whole documents",
                loss.name()
            ))
            .hint("set data.forget_chunking=false; longer documents are then truncated"));
        }
        if alternate && !paired {
            return Err(Error::config(format!(
                "data.alternate: loss {} reads no alternatives",
                loss.name()
            ))
            .hint("set method.loss=dpo, or leave data.alternate out"));
        }
        if self.method.dual_rate > 0.0 && method.penalty.is_none() {
            return Err(Error::config(
                "method.dual_rate: there is no penalty whose weight could follow it",
            )
            .hint("set method.penalty=nll, or method.dual_rate=0"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_that_mean_nothing_are_refused() {
        let refused = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            Recipe::assemble(None, None, &sets).unwrap_err().message().to_owned()
        };
        assert_eq!(
            refused(&["method.loss=dpo", "data.forget_chunking=true"]),
            "data.forget_chunking: loss dpo compares whole documents"
        );
        assert_eq!(
            refused(&["method.loss=npo", "data.alternate=a.jsonl"]),
            "data.alternate: loss npo reads no alternatives"
        );
        assert_eq!(
            refused(&["method.penalty=none", "method.dual_rate=0.1"]),
            "method.dual_rate: there is no penalty whose weight could follow it"
        );
        assert_eq!(refused(&["method.beta_simnpo=0"]), "method.beta_simnpo: wanted above 0, got 0");
    }
}
