//! A whole mean-teacher step on random weights, made on the device: what a user waits for.

use super::floors::{self, Floor};
use super::{Lab, Measurement, Memory, Preset};
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::method::MeanTeacher;
use crate::method::passes::Passes;
use crate::model::{Layout, Model};
use crate::ops::StateMode;
use crate::rng::Stream;
use crate::run::Recipe;
use crate::run::plan::{Plan, Target};

/// Steps that do not count: the first two load kernels and make rotary tables, the next two record what comes again in
/// each of the packs that take turns.
const WARMUP: u64 = 4;
/// Repetitions of a kernel for each repetition of a step.
const SHORTER: usize = 10;

/// Measures the step of the preset's recipe in compact state.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (config, mode) = (&preset.config, StateMode::Compact);
    let memory = lab.driver().free_bytes().unwrap_or(u64::MAX);
    let target = Target::gpu(lab.precision());
    let mut recipe = preset.recipe.clone();
    let most = Plan::new(config, &recipe, mode, target, memory)?.max_tokens;
    recipe.run.pack_tokens = pack_tokens(&recipe, most);
    let plan = Plan::new(config, &recipe, mode, target, memory)?;
    plan.require_packs()?;
    let (data, runs) = (&recipe.data, &recipe.run);
    let gpu = lab.gpu(plan.arena_bytes())?;
    let keep = recipe.keeping(mode);
    let model = Model::make(&gpu, config.clone(), &keep, &mut |block, out| {
        if block.name.contains("norm") {
            out.fill(1.0)
        } else {
            lab.fill(out, 0.02)
        }
        Ok(())
    })?;
    let passes = Passes::saving(&gpu, &model, runs.pack_tokens, Some(plan.saving))?;
    let mut state = MeanTeacher::new(model, None, passes, recipe.method()?, recipe.settings());
    let draw = |name: &str, accum: usize, len: usize, step: u64| -> Vec<MicroBatch> {
        let stream = Stream::new(1, name);
        (0..accum).map(|b| batch(stream, step, (b, runs.micro_batch, len), config.vocab)).collect()
    };
    let mut counted = 0;
    let mut steps = |count: u64| -> Result<Vec<f64>> {
        let mut seconds = Vec::new();
        for _ in 0..count {
            let step = state.step;
            let forget = draw("forget", runs.forget_accum_steps, data.forget_context, step);
            let retain = draw("retain", runs.kl_accum_steps, data.retain_context, step);
            seconds.extend(lab.driver().laps(1, &mut |_| {
                let report = state.step(&gpu, &forget, &retain)?;
                let finite = report.loss_tr.is_finite() && report.loss_kl.is_finite();
                counted = report.tokens;
                if report.skipped || !finite { Err(broken(preset, step)) } else { Ok(()) }
            })?);
        }
        Ok(seconds)
    };
    steps(WARMUP)?;
    let seconds = super::median(&steps(lab.repeat().div_ceil(SHORTER) as u64)?);

    let documents = |accum: usize, len| (runs.micro_batch * accum, len);
    let forget = documents(runs.forget_accum_steps, data.forget_context);
    let retain = documents(runs.kl_accum_steps, data.retain_context);
    let trained = Layout::new(config, recipe.train()).trainable();
    // The update comes after all products: its floor adds to theirs.
    let products = Floor { flop: floors::step(config, forget, retain), bytes: 0.0 };
    let update = floors::update(trained, mode, &keep.rule);
    let roof = products.seconds(&lab.roofs) + update.seconds(&lab.roofs);
    let shape = format!("{}x{}+{}x{}/{}", forget.0, forget.1, retain.0, retain.1, runs.pack_tokens);
    let amount = (counted as f64, "tokens/s");
    let mut line =
        lab.line(("step", preset.name.clone(), shape), seconds, amount, [Some(roof), None]);
    line.memory = Some(Memory { peak_bytes: gpu.bytes().1, planned_bytes: plan.buffer_bytes() });
    Ok(vec![line])
}

/// Returns the tokens of a pack: whole documents of the longer context, as many as were asked for and fit, at least one.
fn pack_tokens(recipe: &Recipe, most: u64) -> usize {
    let longest = recipe.data.forget_context.max(recipe.data.retain_context);
    let room = (recipe.run.pack_tokens as u64).min(most) as usize;
    longest * (room / longest).max(1)
}

fn broken(preset: &Preset, step: u64) -> Error {
    Error::new(Kind::Numeric, format!("bench {}: step {step} is not finite", preset.name))
}

/// Draws micro-batch `b` of `rows` documents of `len` tokens.
fn batch(
    stream: Stream,
    step: u64,
    (b, rows, len): (usize, usize, usize),
    vocab: usize,
) -> MicroBatch {
    let id = |row: usize, t: usize| {
        stream.below(step, (((b * rows + row) * len) + t) as u64, vocab as u64) as u32
    };
    MicroBatch::new((0..rows).map(|row| (0..len).map(|t| id(row, t)).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_hold_whole_documents_and_what_fits() {
        let recipe = Preset::new("llama-2-7b").unwrap().recipe;
        let tokens = |most| pack_tokens(&recipe, most);
        assert_eq!([tokens(1 << 40), tokens(4095), tokens(1)], [4096, 3072, 1024]);
    }
}
