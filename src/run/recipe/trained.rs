//! Which parameters a recipe trains, and whether a model has the layers that it names.

use super::{Recipe, TrainKey};
use crate::error::{Error, Result};
use crate::method::{Objective, Rows};
use crate::model::{Layout, ModelConfig, Train};

impl Recipe {
    /// Returns what trains.
    pub fn train(&self) -> Train {
        let down = self.model.train == TrainKey::Down;
        match (self.model.train, self.layers().ok().flatten()) {
            (TrainKey::Body, None) => Train::Body,
            (TrainKey::All, _) => Train::All,
            (_, layers) => {
                let (first, last) = layers.unwrap_or((0, usize::MAX));
                Train::Layers { first, last, down }
            }
        }
    }

    /// Returns the first and the last layer that train, where `model.train_layers` names some.
    fn layers(&self) -> Result<Option<(usize, usize)>> {
        let text = self.model.train_layers.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Some((first, last))),
            _ => Err(Error::config(format!(
                "model.train_layers: wanted a layer or two, the lower first, got `{text}`"
            ))
            .hint("for example --set model.train_layers=5-7, counted from 0")),
        }
    }

    /// Checks what is said of layers without knowing the model.
    pub(super) fn check_trained(&self) -> Result<()> {
        let layers = self.layers()?;
        if layers.is_some() && self.model.train == TrainKey::All {
            return Err(Error::config(
                "model.train_layers: has no meaning with model.train=all, which trains everything",
            )
            .hint("set model.train=body or down"));
        }
        Ok(())
    }

    /// Checks that a model of `config` has the layers that the recipe names.
    ///
    /// Errors: [`crate::Kind::Config`].
    pub fn check_model(&self, config: &ModelConfig) -> Result<()> {
        let layers = self.layers()?;
        if let Some((_, last)) = layers {
            config.check_layer("model.train_layers", last)?;
        }
        let method = self.method()?;
        for objective in std::iter::once(method.loss()).chain(method.penalties()) {
            let Rows::Hidden(hidden) = objective.rows(&method.knobs) else { continue };
            config.check_layer("method.rmu_layer", hidden.layer)?;
            if let Some((first, _)) = layers.filter(|(first, _)| *first > hidden.layer) {
                return Err(Error::config(format!(
                    "model.train_layers: start at {first}, behind layer {} whose rows {} pulls",
                    hidden.layer,
                    objective.name()
                ))
                .hint("train layers up to method.rmu_layer"));
            }
        }
        self.check_trains(config)
    }

    /// Checks that some parameter of a model of `config` can move: that one trains, that the learning rate is not 0, and
    /// that loss or penalty has a gradient.
    fn check_trains(&self, config: &ModelConfig) -> Result<()> {
        let nothing = |key: &str, why: &str, hint: &str| {
            Err(Error::config(format!("{key}: {why}, so nothing would train")).hint(hint))
        };
        if Layout::new(config, self.train()).trainable() == 0 {
            let why = format!("leaves no parameter of this {} model", config.architecture);
            let key = if self.model.train_layers.is_empty() {
                "model.train"
            } else {
                "model.train_layers"
            };
            return nothing(key, &why, "set model.train=body or all, or other layers");
        }
        if self.optim.lr == 0.0 {
            return nothing("optim.lr", "is 0", "set a learning rate above 0");
        }
        let method = self.method()?;
        let section = &self.method;
        let silent =
            section.knobs.nlul_threshold >= 1.0 && method.loss().keys().contains(&"nlul_threshold");
        let (key, why, hint) = match section.forget_weight == 0.0 {
            true => ("method.forget_weight", "is 0", "set method.forget_weight above 0"),
            false if silent => (
                "method.nlul_threshold",
                "is 1 or more, so that the loss leaves every token alone",
                "set it below 1; 0 switches the rule off",
            ),
            false => return Ok(()),
        };
        // A divergence from the starting model is 0 there, with a gradient of 0, and stays so.
        let from_start = |objective: &dyn Objective| {
            let rows = objective.rows(&section.knobs);
            rows.reads_teacher() || (rows.reads_base() && self.model.base.as_os_str().is_empty())
        };
        let first =
            method.penalty().filter(|_| section.retain_weight != 0.0 || section.dual_rate > 0.0);
        let second = method.second().filter(|_| section.second_weight != 0.0);
        let weighed: Vec<_> = first.into_iter().chain(second).collect();
        if weighed.iter().any(|penalty| !from_start(*penalty)) {
            return Ok(());
        }
        let penalty = match (weighed.first(), method.penalty()) {
            (Some(penalty), _) => format!(
                "penalty {} compares with the starting model, from which nothing else departs",
                penalty.name()
            ),
            (None, Some(_)) => "the weight of every penalty (method.retain_weight) is 0".to_owned(),
            (None, None) => "there is no penalty".to_owned(),
        };
        nothing(key, &format!("{why}, and {penalty}"), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(sets: &[&str]) -> Result<Recipe> {
        Recipe::assemble(None, None, &sets.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn layers_are_one_or_a_range() {
        let train = |sets: &[&str]| recipe(sets).unwrap().train();
        assert_eq!(train(&[]), Train::Body);
        let body = |first, last| Train::Layers { first, last, down: false };
        assert_eq!(train(&["model.train_layers=\"5-7\""]), body(5, 7));
        assert_eq!(train(&["model.train_layers=\"5\""]), body(5, 5));
        let down = Train::Layers { first: 5, last: 7, down: true };
        assert_eq!(train(&["model.train=down", "model.train_layers=5-7"]), down);
        for wrong in ["7-5", "a", "1-", "-2"] {
            let error = recipe(&[&format!("model.train_layers=\"{wrong}\"")]).unwrap_err();
            assert!(error.message().ends_with(&format!("got `{wrong}`")), "{}", error.message());
        }
        assert!(recipe(&["model.train=all", "model.train_layers=5-7"]).is_err());
    }
}
