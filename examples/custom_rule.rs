//! Unlearns with an optimizer that nepenthe does not have: Lion (arXiv 2302.06675), which steps by the sign of a mix of
//! momentum and gradient.
//!
//! `cargo run --example custom_rule -- RECIPE.toml OUT`: RECIPE.toml is any recipe, or the config.resolved.toml of a
//! run folder; its learning rate should be about a tenth of SGD's.
#![allow(missing_docs)]

use std::path::Path;

use nepenthe::backend::cpu::Cpu;
use nepenthe::optim::{CustomRule, TensorView, UpdateScalars};
use nepenthe::run::Recipe;
use nepenthe::run::train::{self, Options};
use nepenthe::{Error, Result};

pub struct Lion {
    /// Momentum coefficients of the step and of the next momentum.
    pub betas: [f32; 2],
    /// Weights shrink by `lr * weight_decay` a step.
    pub weight_decay: f32,
}

impl CustomRule for Lion {
    fn name(&self) -> &str {
        "lion"
    }

    fn state(&self) -> [&'static str; 2] {
        ["momentum", ""]
    }

    fn update(&mut self, tensor: &mut TensorView<'_>, numbers: &UpdateScalars) -> Result<()> {
        let (lr, [b1, b2], decay) = (numbers.lr as f32, self.betas, self.weight_decay);
        tensor.each(|gradient, weight, [momentum, _]| {
            let mixed = b1 * *momentum + (1.0 - b1) * gradient;
            *momentum = b2 * *momentum + (1.0 - b2) * gradient;
            let sign = if mixed == 0.0 { 0.0 } else { mixed.signum() };
            -lr * (sign + decay * weight)
        });
        Ok(())
    }
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [recipe, out] = &arguments[..] else {
        return Err(Error::config("wanted two arguments: a recipe and a folder for the run"));
    };
    let recipe = Recipe::assemble(None, Some(Path::new(recipe)), &[])?;
    let lion = Lion { betas: [0.9, 0.99], weight_decay: 0.0 };
    let options = Options { rule: Some(Box::new(lion)), ..Options::new(Path::new(out)) };
    println!("{:#?}", train::run(Cpu::<f32>::new(), &recipe, options)?);
    Ok(())
}
