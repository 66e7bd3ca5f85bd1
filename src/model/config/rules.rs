//! Settings whose keys and defaults differ between families, read as the record of the family says.

use serde_json::Value;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::model::family::{Architecture, Bias, Residual, ResidualRule, Size};
use crate::ops::Activation;

const SCORE_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";

/// A config.json and the record of its family.
pub(super) struct Rules<'a> {
    pub(super) json: &'a Reader<'a>,
    pub(super) family: &'static Architecture,
}

impl Rules<'_> {
    /// Refuses settings that change the computation to one that is not supported.
    pub(super) fn refuse(&self) -> Result<()> {
        let Self { json, family } = self;
        for (key, wanted) in family.required {
            if json.flag(key, *wanted)? != *wanted {
                return Err(Error::model(format!(
                    "config.json: {key}: {} is not supported, wanted {wanted}",
                    !wanted
                )));
            }
        }
        for (key, own) in [(SCORE_CAP, family.score_cap), (LOGIT_CAP, family.logit_cap)] {
            if let Some(cap) = json.present(key).filter(|_| own.is_none()) {
                return Err(Error::model(format!(
                    "config.json: {key}: {cap} is not supported, wanted null"
                )));
            }
        }
        let [width, heads] =
            [family.keys.width, family.keys.heads].map(|key| json.optional_size(key));
        let (width, heads) = (width?, heads?);
        for (key, size) in family.fixed {
            let wanted = match size {
                Size::Width => width,
                Size::Heads => heads,
                Size::HeadWidth => width.zip(heads).map(|(width, heads)| width / heads),
            };
            if let (Some(got), Some(wanted)) = (json.optional_size(key)?, wanted)
                && got != wanted
            {
                return Err(Error::model(format!(
                    "config.json: {key}: {got} is not supported, wanted {wanted}"
                )));
            }
        }
        // Flags without effect, but of the right type.
        family.ignored.iter().try_for_each(|key| json.flag(key, false).map(drop))
    }

    pub(super) fn activation(&self) -> Result<Activation> {
        let key = self.family.keys.activation;
        let name = self.json.text(key)?;
        let known = self.family.activations;
        known.iter().find(|(known, _)| *known == name).map(|(_, found)| *found).ok_or_else(|| {
            let known: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            Error::model(format!(
                "config.json: {key}: `{name}` is not supported, wanted {}",
                known.join(", ")
            ))
        })
    }

    pub(super) fn bias(&self, bias: Bias) -> Result<bool> {
        match bias {
            Bias::Always => Ok(true),
            Bias::Never => Ok(false),
            Bias::Key(key, default) => self.json.flag(key, default),
        }
    }

    pub(super) fn residual(&self) -> Result<Residual> {
        Ok(match self.family.residual {
            ResidualRule::Always(residual) => residual,
            ResidualRule::ParallelIf(key) if self.json.flag(key, true)? => Residual::Parallel,
            ResidualRule::ParallelIf(_) => Residual::Sequential,
        })
    }

    /// Returns the factor on query and key heads by which scores are divided by the root of the family's number instead of
    /// that of D.
    pub(super) fn head_scale(&self, head_width: usize) -> Result<f64> {
        let Some((key, default)) = self.family.score_scale else { return Ok(1.0) };
        let scalar = self.json.number(key, Some(default))?;
        if scalar <= 0.0 {
            return Err(Error::model(format!("config.json: {key}: {scalar} must be positive")));
        }
        Ok((head_width as f64 / scalar).powf(0.25))
    }

    /// Returns the cap of attention scores.
    pub(super) fn score_cap(&self) -> Result<Option<f64>> {
        self.cap(SCORE_CAP, self.family.score_cap)
    }

    /// Returns the cap of logits.
    pub(super) fn logit_cap(&self) -> Result<Option<f64>> {
        self.cap(LOGIT_CAP, self.family.logit_cap)
    }

    /// Returns the cap under `key`, where null stands for none, else the default of a family that has caps.
    fn cap(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        if default.is_none() || self.json.root.get(key).is_some_and(Value::is_null) {
            return Ok(None);
        }
        let cap = self.json.number(key, default)?;
        // Tensor cores' tangents are off by 2^-23 or two, and so is a capped number by as many parts of the cap.
        if (1e-3..=1e3).contains(&cap) {
            Ok(Some(cap))
        } else {
            Err(Error::model(format!("config.json: {key}: wanted 0.001 to 1000, got {cap}")))
        }
    }
}
