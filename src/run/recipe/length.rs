//! The length of a run, and the settings that it leaves without effect.

use super::Recipe;
use crate::model::ModelConfig;
use crate::optim::{Schedule, Shape};
use crate::report::notices::WARNING;

impl Recipe {
    /// Returns the forget documents of a step.
    pub fn forget_per_step(&self) -> usize {
        self.run.micro_batch * self.run.forget_accum_steps
    }

    /// Returns the learning rate over the steps of the run.
    pub fn schedule(&self) -> Schedule {
        self.optim.schedule(self.run.steps)
    }

    /// Computes the steps from `run.epochs`, where it is above 0, and `documents`, the number of forget documents; says so.
    ///
    /// The last step may begin another pass, so that every document is seen as often as was asked.
    pub fn settle_steps(&mut self, documents: usize) -> Option<String> {
        let (epochs, each) = (self.run.epochs, self.forget_per_step() as u64);
        if epochs == 0 {
            return None;
        }
        self.run.steps = epochs.saturating_mul(documents as u64).div_ceil(each.max(1));
        self.run.epochs = 0;
        Some(format!(
            "run.epochs={epochs}: {} steps of {each} forget documents, of which there are {documents}",
            self.run.steps
        ))
    }

    /// Returns how often `steps` steps go through `documents` forget documents.
    pub fn passes(&self, steps: u64, documents: usize) -> f64 {
        steps as f64 * self.forget_per_step() as f64 / documents.max(1) as f64
    }

    /// Says what the length of the run makes of its settings, one line each: runs that end before the learning rate is
    /// reached, and settings that then have no effect.
    ///
    /// Nothing is said of a run whose steps are not known yet.
    pub fn remarks(&self) -> Vec<String> {
        let mut said = Vec::new();
        let (schedule, steps, w) = (self.schedule(), self.run.steps, self.optim.warmup);
        let lr = self.optim.lr;
        if schedule.shape == Shape::Paper && !schedule.adamw && w > 0 {
            said.push(format!(
                "{WARNING}optim.warmup={w} has no effect: with optim.optimizer=sgd, optim.schedule=paper has a constant rate; \
                 optim.schedule=constant warms up"
            ));
        }
        if self.run.epochs > 0 {
            return said;
        }
        if steps == 0 {
            said.push(format!(
                "{WARNING}run.steps is 0: nothing trains, and the written model is the start model"
            ));
        } else if schedule.full_from() >= steps {
            // Up to there no rate falls, but for the step from lr/100 to the foot of the paper's ramp.
            let highest = schedule.rate(0).max(schedule.rate(steps - 1));
            let (why, way) = match schedule.shape {
                Shape::Paper => (
                    format!(
                        "optim.schedule=paper holds lr/100 for {} steps and reaches optim.lr after {}",
                        w + 1,
                        schedule.full_from()
                    ),
                    "lower optim.warmup, or set optim.schedule=constant",
                ),
                _ => (format!("optim.warmup takes {w} steps"), "lower optim.warmup"),
            };
            said.push(format!(
                "{WARNING}the learning rate never reaches optim.lr={lr:e}: {why}, but the run has {steps} (highest rate \
                 {highest:.2e}); {way}"
            ));
        }
        said
    }

    /// Says which contexts are longer than the positions of a model of `config`, one line each.
    pub fn long_contexts(&self, config: &ModelConfig) -> Vec<String> {
        let most = config.max_positions;
        let retain = self.reads_retain().then_some(self.data.retain_context);
        let contexts = [
            ("data.forget_context", Some(self.data.forget_context)),
            ("data.retain_context", retain),
            ("eval.context", self.measured_context()),
        ];
        let long = contexts.into_iter().filter_map(|(key, tokens)| Some((key, tokens?)));
        let long = long.filter(|(_, tokens)| *tokens > most);
        let what = if config.check_length(most + 1).is_err() {
            "longer documents will be refused"
        } else {
            "the model was made for no more"
        };
        long.map(|(key, tokens)| {
            format!("{key} is {tokens}, but the model has {most} positions and {what}: --set {key}={most}")
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(preset: Option<&str>, sets: &[&str]) -> Recipe {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Recipe::assemble(preset, None, &sets).unwrap()
    }

    #[test]
    fn epochs_become_steps_that_see_every_document() {
        let sets = ["run.epochs=3", "run.micro_batch=4", "run.forget_accum_steps=2"];
        let mut recipe = recipe(None, &sets);
        assert_eq!(
            recipe.settle_steps(41).unwrap(),
            "run.epochs=3: 16 steps of 8 forget documents, of which there are 41"
        );
        assert_eq!((recipe.run.steps, recipe.run.epochs), (16, 0));
        assert_eq!(recipe.settle_steps(41), None);
        assert_eq!(recipe.passes(16, 64), 2.0);
    }

    #[test]
    fn a_run_inside_the_warm_up_is_said() {
        let said = recipe(Some("npo-kl"), &["run.steps=40"]).remarks();
        assert_eq!(
            said,
            [
                "warning: the learning rate never reaches optim.lr=1e-5: optim.schedule=paper holds lr/100 for 101 steps and \
              reaches optim.lr after 200, but the run has 40 (highest rate 1.00e-7); lower optim.warmup, or set \
              optim.schedule=constant"
            ]
        );
        assert!(recipe(Some("npo-kl"), &[]).remarks().is_empty());
        assert!(recipe(Some("muse-news"), &[]).remarks().is_empty());
        let short = ["optim.warmup=10", "run.steps=5"];
        assert_eq!(recipe(None, &short).remarks().len(), 1);
        assert!(recipe(None, &["optim.warmup=10", "run.steps=10"]).remarks().is_empty());
        assert_eq!(recipe(Some("muse-news"), &["optim.warmup=10"]).remarks().len(), 1);
    }
}
