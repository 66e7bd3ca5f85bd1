//! `[method]`: what is minimised, and the checks of what it needs.

use serde::{Deserialize, Serialize};

use super::Recipe;
use crate::error::{Error, Result};
use crate::method::projection::Setup;
use crate::method::{self, Combination, Knobs, Method, Settings, WeightRule};

/// `[method]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodSection {
    /// The forget loss, a name of docs/methods.md.
    pub loss: String,
    /// The penalty on retain documents: nll, kl, kl_tokens, kl_muse, qkl, rmu_retain, none.
    pub penalty: String,
    /// A second penalty on the same documents, or none.
    pub second_penalty: String,
    /// alpha.
    pub forget_weight: f64,
    /// beta.
    pub retain_weight: f64,
    /// The weight of the second penalty.
    pub second_weight: f64,
    /// delta.
    pub teacher_rate: f64,
    /// Pull of the student to the teacher.
    pub damping: f64,
    /// Combination of the gradients of loss and penalties: sum, project, min_norm.
    pub combine: String,
    /// The share of what the inputs of each matrix on retain documents are made of that the loss leaves alone (PGU); 0 for
    /// nothing.
    pub shield: f64,
    /// The most directions of each matrix' inputs that are left alone.
    pub shield_rank: usize,
    /// Number of retain documents, the first ones, that these are found from.
    pub shield_documents: usize,
    /// Rate at which the weight of the penalty follows it above `dual_bound`; 0 keeps the weight.
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
            second_penalty: "none".into(),
            forget_weight: 0.05,
            retain_weight: 1.0,
            second_weight: 1.0,
            teacher_rate: 0.005,
            damping: 5.0,
            combine: "sum".into(),
            shield: 0.0,
            shield_rank: 256,
            shield_documents: 64,
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
        let penalty = |key: &str, name: &str| match name {
            "none" => Ok(None),
            name => method::find(&method::PENALTIES, key, name).map(Some),
        };
        let loss = method::find(&method::FORGET, "method.loss", &section.loss)?;
        let first = penalty("method.penalty", &section.penalty)?;
        let second = penalty("method.second_penalty", &section.second_penalty)?;
        if second.is_some() && first.is_none() {
            return Err(Error::config(format!(
                "method.second_penalty: is {}, but there is no first one",
                section.second_penalty
            ))
            .hint("set method.penalty, or method.second_penalty=none"));
        }
        let start = section.retain_weight;
        let rule = if section.dual_rate > 0.0 {
            WeightRule::Dual { start, rate: section.dual_rate, bound: section.dual_bound }
        } else {
            WeightRule::Constant(start)
        };
        let first = first.map(|penalty| (penalty, rule));
        let second = second.map(|penalty| (penalty, WeightRule::Constant(section.second_weight)));
        let penalties = first.into_iter().chain(second);
        Ok(Method::new((loss, section.forget_weight), penalties, section.knobs))
    }

    /// Tells whether retain documents are read: by a penalty, or for a shield.
    pub fn reads_retain(&self) -> bool {
        self.method.penalty != "none" || self.method.shield > 0.0
    }

    /// Returns how gradients are combined.
    pub fn combination(&self) -> Result<Combination> {
        Combination::find(&self.method.combine)
    }

    /// Returns the gradient projection, if there is one, of packs of `tokens` tokens.
    pub fn projection(&self, tokens: usize) -> Option<Setup> {
        let MethodSection { shield: share, shield_rank: rank, .. } = self.method;
        (share > 0.0).then_some(Setup { share, rank, tokens })
    }

    /// Returns the numbers of a step.
    pub fn settings(&self) -> Settings {
        Settings {
            clip: self.optim.clip,
            damping: self.method.damping,
            teacher_rate: self.method.teacher_rate,
            schedule: self.schedule(),
        }
    }

    /// Checks the names of loss and penalty, their numbers, and what they need.
    pub(super) fn check_method(&self) -> Result<()> {
        let method = self.method()?;
        let Knobs { beta_npo, beta_simnpo, delta_simnpo, beta_undial, beta_wga, .. } =
            self.method.knobs;
        let Knobs { satimp_beta1, satimp_beta2, rmu_steering, .. } = self.method.knobs;
        let section = &self.method;
        let checks = [
            ("beta_npo", beta_npo, beta_npo > 0.0, "above 0"),
            ("beta_simnpo", beta_simnpo, beta_simnpo > 0.0, "above 0"),
            ("delta_simnpo", delta_simnpo, delta_simnpo.is_finite(), "a number"),
            ("beta_undial", beta_undial, beta_undial >= 0.0, "0 or more"),
            ("beta_wga", beta_wga, beta_wga >= 0.0, "0 or more"),
            ("satimp_beta1", satimp_beta1, satimp_beta1 >= 0.0, "0 or more"),
            ("satimp_beta2", satimp_beta2, satimp_beta2 >= 0.0, "0 or more"),
            (
                "rmu_steering",
                rmu_steering,
                rmu_steering >= 0.0 && rmu_steering.is_finite(),
                "0 or more",
            ),
            ("second_weight", section.second_weight, section.second_weight >= 0.0, "0 or more"),
            ("shield", section.shield, (0.0..=1.0).contains(&section.shield), "0 to 1"),
            ("dual_bound", self.method.dual_bound, self.method.dual_bound.is_finite(), "a number"),
        ];
        for (key, value, good, wanted) in checks {
            if !good {
                return Err(Error::config(format!("method.{key}: wanted {wanted}, got {value}")));
            }
        }
        let (loss, knobs) = (method.loss(), self.method.knobs);
        let penalized = method.penalties().next().is_some();
        if self.combination()? != Combination::Sum && !penalized {
            return Err(Error::config(format!(
                "method.combine: {} needs a penalty to combine the loss with",
                self.method.combine
            ))
            .hint("set method.penalty, or method.combine=sum"));
        }
        if section.shield > 0.0 && (section.shield_rank == 0 || section.shield_documents == 0) {
            return Err(Error::config(
                "method.shield: wanted shield_rank and shield_documents above 0, got 0",
            )
            .hint("method.shield=0 switches it off"));
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
        if self.method.dual_rate > 0.0 && !penalized {
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
        assert_eq!(
            refused(&["method.penalty=none", "method.second_penalty=nll"]),
            "method.second_penalty: is nll, but there is no first one"
        );
        assert_eq!(refused(&["method.shield=1.5"]), "method.shield: wanted 0 to 1, got 1.5");
        assert_eq!(refused(&["method.beta_simnpo=0"]), "method.beta_simnpo: wanted above 0, got 0");
    }
}
