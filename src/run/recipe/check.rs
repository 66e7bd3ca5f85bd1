//! The checks of a recipe that need neither model nor data.

use super::Recipe;
use crate::error::{Error, Result, nearest};
use crate::eval::monitored;
use crate::run::watch::Stop;

impl Recipe {
    /// Checks all that can be checked without a model and data.
    ///
    /// Errors: [`crate::Kind::Config`].
    pub(super) fn check(&self) -> Result<()> {
        self.check_method()?;
        self.check_trained()?;
        self.check_stop()?;
        if self.optim.lr > 1.0 {
            return Err(Error::config(format!("optim.lr: {:e} is above 1", self.optim.lr))
                .hint(format!("did you mean {:e}?", self.optim.lr.recip())));
        }
        if self.optim.lr_min > 0.0 && !self.optim.schedule.decays() {
            return Err(Error::config(format!(
                "optim.lr_min: is {:e}, but without a decay it has no effect",
                self.optim.lr_min
            ))
            .hint("set optim.schedule=linear or cosine, or optim.lr_min=0"));
        }
        let unit = 0.0..=1.0;
        let checks = [
            ("optim.lr", self.optim.lr, self.optim.lr >= 0.0, "0 or more"),
            (
                "optim.lr_min",
                self.optim.lr_min,
                (0.0..=self.optim.lr).contains(&self.optim.lr_min),
                "0 to optim.lr",
            ),
            (
                "optim.weight_decay",
                self.optim.weight_decay,
                self.optim.weight_decay >= 0.0 && self.optim.weight_decay.is_finite(),
                "0 or more",
            ),
            (
                "method.forget_weight",
                self.method.forget_weight,
                self.method.forget_weight.is_finite(),
                "a number",
            ),
            (
                "method.retain_weight",
                self.method.retain_weight,
                self.method.retain_weight.is_finite(),
                "a number",
            ),
            (
                "optim.momentum",
                self.optim.momentum,
                (0.0..1.0).contains(&self.optim.momentum),
                "0 to below 1",
            ),
            ("optim.b1", self.optim.b1, (0.0..1.0).contains(&self.optim.b1), "0 to below 1"),
            ("optim.b2", self.optim.b2, (0.0..1.0).contains(&self.optim.b2), "0 to below 1"),
            ("optim.eps", self.optim.eps, self.optim.eps > 0.0, "above 0"),
            ("optim.clip", self.optim.clip, self.optim.clip > 0.0, "above 0 (inf for no clipping)"),
            (
                "method.teacher_rate",
                self.method.teacher_rate,
                unit.contains(&self.method.teacher_rate),
                "0 to 1",
            ),
            ("method.damping", self.method.damping, self.method.damping >= 0.0, "0 or more"),
            ("method.tol", self.method.knobs.tol, self.method.knobs.tol >= 0.0, "0 or more"),
            ("method.dual_rate", self.method.dual_rate, self.method.dual_rate >= 0.0, "0 or more"),
        ];
        for (key, value, good, wanted) in checks {
            if !good || value.is_nan() {
                return Err(Error::config(format!("{key}: wanted {wanted}, got {value}")));
            }
        }
        let counts = [
            ("data.forget_context", self.data.forget_context, 2),
            ("data.retain_context", self.data.retain_context, 2),
            ("run.micro_batch", self.run.micro_batch, 1),
            ("run.forget_accum_steps", self.run.forget_accum_steps, 1),
            ("run.kl_accum_steps", self.run.kl_accum_steps, 1),
            ("run.pack_tokens", self.run.pack_tokens, 2),
            ("run.keep_checkpoints", self.run.keep_checkpoints, 1),
            ("eval.context", self.eval.context, 2),
            ("eval.max_new_tokens", self.eval.max_new_tokens, 1),
            ("eval.batch", self.eval.batch, 1),
        ];
        for (key, value, least) in counts {
            if value < least {
                return Err(Error::config(format!("{key}: wanted at least {least}, got {value}")));
            }
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        let Some(Stop { metric, bound }) = self.stop() else { return Ok(()) };
        let known = monitored::keys();
        if !known.contains(&metric.as_str()) {
            let error = Error::config(format!("eval.stop_metric: `{metric}` is unknown"));
            let near = nearest(&metric, known.iter().copied())
                .map_or(String::new(), |n| format!("; nearest is {n}"));
            return Err(error.hint(format!("known are {}{near}", known.join(", "))));
        }
        if self.eval.every == 0 {
            return Err(Error::config(
                "eval.stop_metric: eval.every is 0, so nothing would be measured",
            )
            .hint("set eval.every to the steps between evaluations"));
        }
        if !bound.is_finite() {
            return Err(Error::config(format!("eval.stop_val: wanted a number, got {bound}")));
        }
        Ok(())
    }
}
