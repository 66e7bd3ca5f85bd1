//! The models whose shapes are measured, and the sizes beside them.

use crate::error::Result;
use crate::model::ModelConfig;
use crate::run::{Recipe, plan};

/// The models that are measured where none is named.
pub const MODELS: [&str; 4] = ["smollm2-135m", "llama-3.2-1b", "llama-2-7b", "llama-3-8b"];

/// One model's shapes.
#[derive(Debug, Clone)]
pub struct Preset {
    /// The model's name, one of [`plan::MODELS`].
    pub name: String,
    /// Its configuration.
    pub config: ModelConfig,
    /// The documents of a pack: how many and how long.
    pub pack: (usize, usize),
    /// Sequences and their cached tokens in generation.
    pub cached: (usize, usize),
    /// Generation: prompts, tokens of each, new tokens of each.
    pub prompts: (usize, usize, usize),
    /// The least number of weights in an update, where the model has as many.
    pub updated: usize,
    /// The side of the square product that is the roof.
    pub side: usize,
    /// The bytes of the copy that is the other roof.
    pub copied: usize,
    /// The step: losses, batches, optimizer.
    pub recipe: Recipe,
}

impl Preset {
    /// Makes the preset of a model: the paper's sizes, and a simulator's for `tiny`.
    pub fn new(name: &str) -> Result<Self> {
        let (config, name) = (plan::model(name)?, name.to_owned());
        let recipe = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            Recipe::assemble(Some("muse-news"), None, &sets)
        };
        if name == "tiny" {
            return Ok(Self {
                name,
                config,
                pack: (2, 12),
                cached: (2, 16),
                prompts: (2, 3, 4),
                updated: 1,
                side: 64,
                copied: 1 << 15,
                recipe: recipe(&[
                    "model.state=compact",
                    "data.forget_context=8",
                    "data.retain_context=4",
                    "run.micro_batch=1",
                    "run.forget_accum_steps=1",
                    "run.kl_accum_steps=1",
                    "run.pack_tokens=8",
                    "eval.documents=0",
                ])?,
            });
        }
        Ok(Self {
            name,
            config,
            pack: (4, 1024),
            cached: (64, 1024),
            prompts: (100, 100, 128),
            updated: 200_000_000,
            side: 8192,
            copied: 1 << 30,
            recipe: recipe(&["model.state=compact", "run.pack_tokens=4096", "eval.documents=0"])?,
        })
    }

    /// Returns the tokens of a pack.
    pub fn tokens(&self) -> usize {
        self.pack.0 * self.pack.1
    }

    /// Returns the lengths of the documents of a pack.
    pub fn lengths(&self) -> Vec<usize> {
        vec![self.pack.1; self.pack.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_papers_step() {
        for name in MODELS {
            let preset = Preset::new(name).unwrap();
            assert_eq!((preset.name.as_str(), preset.tokens()), (name, 4096));
            let (data, run) = (&preset.recipe.data, &preset.recipe.run);
            assert_eq!((data.forget_context, data.retain_context), (1024, 512));
            assert_eq!(run.micro_batch * run.forget_accum_steps, 40);
            assert_eq!(run.micro_batch * run.kl_accum_steps, 40);
        }
        assert!(Preset::new("huge").is_err());
    }
}
