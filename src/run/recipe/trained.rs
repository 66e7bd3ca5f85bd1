//! Which parameters a recipe trains, and whether a model has the layers that it names.

use super::{Recipe, TrainKey};
use crate::error::{Error, Result};
use crate::method::Rows;
use crate::model::{ModelConfig, Train};

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
        Ok(())
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
