//! The whole update of several layers, norm and clip included, and the making of the teacher's weights.

use super::floors;
use super::lab::Case;
use super::{Lab, Measurement, Preset};
use crate::backend::gpu::{Act, Gpu, Grad, Param};
use crate::error::{Error, Kind, Result};
use crate::model::{Block, Layout};
use crate::ops::{Memory, ParamSpec, Role, State, StateMode};
use crate::optim::{StepSettings, UpdateRule};

const KIND: &str = "update";

/// Returns the updates that are measured and predicted, with their names: every built-in rule in compact state, and the
/// first in exact state.
pub(super) fn cases() -> impl Iterator<Item = (StateMode, UpdateRule, String)> {
    let of = |mode: StateMode, (name, rule)| (mode, rule, format!("{} {name}", mode.name()));
    let compact = UpdateRule::BUILT_IN.map(|rule| of(StateMode::Compact, rule));
    compact.into_iter().chain([of(StateMode::Exact, UpdateRule::BUILT_IN[0])])
}

/// Measures the update by mode and optimizer.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let mut lines = Vec::new();
    for (i, (mode, rule, name)) in cases().enumerate() {
        let mut updated = Updated::new(lab, preset, mode, rule)?;
        lines.push(updated.update(lab, &format!("{} {name}", preset.name))?);
        if i == 0 {
            lines.push(updated.teacher(lab, &format!("{} teacher weights", preset.name))?);
        }
    }
    Ok(lines)
}

/// Parameters of whole layers with state and gradients; far more than a cache holds.
struct Updated {
    gpu: Gpu,
    params: Vec<Param>,
    grads: Vec<Option<Grad>>,
    scratch: Act,
    /// Weights of all of them, and of the last one.
    len: usize,
    last: usize,
    mode: StateMode,
    rule: UpdateRule,
    settings: StepSettings,
}

impl Updated {
    fn new(lab: &Lab, preset: &Preset, mode: StateMode, rule: UpdateRule) -> Result<Self> {
        let gpu = lab.gpu(0)?;
        let (recipe, settings) = (&preset.recipe, preset.recipe.settings());
        let layout = Layout::new(&preset.config, recipe.train());
        let (mut params, mut grads, mut len, mut last) = (Vec::new(), Vec::new(), 0, 0);
        for block in blocks(&layout, preset.updated) {
            let spec = ParamSpec {
                name: block.name.clone(),
                len: block.len(),
                trainable: true,
                mode,
                teacher: recipe.teacher(mode),
                rule,
                seed: recipe.seed,
            };
            params.push(gpu.param(&spec, &mut |out| {
                lab.fill(out, 0.02);
                Ok(())
            })?);
            let mut grad = gpu.grad(&spec)?;
            lab.fill_grad(&gpu, &mut grad, block.len())?;
            grads.push(Some(grad));
            last = block.len();
            len += last;
        }
        let scratch = gpu.act(layout.longest_layer_block())?;
        let settings = StepSettings {
            step: 0,
            lr: settings.schedule.lr,
            max_norm: settings.clip,
            damping: settings.damping,
            teacher_rate: settings.teacher_rate,
        };
        Ok(Self { gpu, params, grads, scratch, len, last, mode, rule, settings })
    }

    fn update(&mut self, lab: &Lab, name: &str) -> Result<Measurement> {
        let Self { gpu, params, grads, len, mode, rule, settings, .. } = self;
        let floor = floors::update(*len, *mode, rule);
        let seconds = lab.time(gpu, &mut [()], |()| {
            gpu.update_all(params, grads, settings)?;
            settings.step += 1;
            Ok(())
        })?;
        gpu.update_all(params, grads, settings)?;
        let outcome = gpu.outcome(())?;
        if outcome.skipped || !outcome.grad_norm.is_finite() {
            return Err(Error::new(
                Kind::Device,
                format!("{name}: the update refused its gradients"),
            ));
        }
        let case = Case { kind: KIND, name: name.to_owned(), shape: len.to_string(), floor };
        Ok(lab.record(case, seconds, None))
    }

    fn teacher(&mut self, lab: &Lab, name: &str) -> Result<Measurement> {
        let Self { gpu, params, scratch, len, last, .. } = self;
        let floor = floors::teacher(*len, lab.stored());
        let seconds = lab.time(gpu, &mut [()], |()| {
            for param in &*params {
                gpu.view(param, Role::Teacher, scratch);
            }
            Ok(())
        })?;
        lab.check_act(gpu, name, scratch, *last)?;
        let case = Case { kind: KIND, name: name.to_owned(), shape: len.to_string(), floor };
        Ok(lab.record(case, seconds, None))
    }
}

/// Returns how many weights the update of at least `least` of them has.
pub(super) fn weights(layout: &Layout, least: usize) -> usize {
    blocks(layout, least).iter().map(|block| block.len()).sum()
}

/// Picks the trained blocks of as many layers as it takes for `least` weights.
fn blocks(layout: &Layout, least: usize) -> Vec<&Block> {
    let mut left = least;
    let wanted = |block: &&Block| {
        let more = left > 0;
        left = left.saturating_sub(block.len());
        more
    };
    layout.blocks.iter().filter(|block| block.trainable).take_while(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Train;
    use crate::run::plan::model;

    #[test]
    fn blocks_are_just_enough() {
        let layout = Layout::new(&model("llama-2-7b").unwrap(), Train::Body);
        let len = |least| weights(&layout, least);
        // A layer: 4 * 4096^2 + 3 * 4096 * 11008, the last block 4096 * 11008.
        assert_eq!(len(200_000_000), 202_375_168);
        assert_eq!(len(1), 3 * 4096 * 4096);
        assert_eq!(len(usize::MAX), layout.trainable());
    }
}
