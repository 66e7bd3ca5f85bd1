//! Greedy generation on random weights: what an evaluation of memory waits for.

use super::floors;
use super::{Lab, Measurement, Preset};
use crate::error::Result;
use crate::model::Model;
use crate::model::generate::{Choice, Request, generate};
use crate::model::params::Keeping;
use crate::rng::Stream;

/// Measures the preset's prompts, all at the same time, by the median of three runs; the first of four makes room.
pub(super) fn run(lab: &Lab, preset: &Preset) -> Result<Vec<Measurement>> {
    let (config, (prompts, len, new)) = (&preset.config, preset.prompts);
    let gpu = lab.gpu(0)?;
    let mut model = Model::make(&gpu, config.clone(), &Keeping::inference(), &mut |block, out| {
        if block.name.contains("norm") {
            out.fill(1.0)
        } else {
            lab.fill(out, 0.02)
        }
        Ok(())
    })?;
    let stream = Stream::new(1, "prompts");
    let id = |i: usize, t: usize| stream.below(i as u64, t as u64, config.vocab as u64) as u32;
    let texts: Vec<Vec<u32>> = (0..prompts).map(|i| (0..len).map(|t| id(i, t)).collect()).collect();
    // No token ends a text, so that every run makes as many.
    let request = Request {
        max_new_tokens: new,
        end_tokens: Vec::new(),
        choice: Choice::Greedy,
        batch: prompts,
    };
    let mut seconds = Vec::new();
    for _ in 0..4 {
        seconds.extend(
            lab.driver()
                .laps(1, &mut |_| generate(&gpu, &mut model, &texts, &request).map(drop))?,
        );
    }
    let roof: f64 = floors::generation(config, preset.prompts, lab.stored())
        .iter()
        .map(|floor| floor.seconds(&lab.roofs))
        .sum();
    let shape = format!("{prompts}x{len}+{new}");
    let amount = ((prompts * new) as f64, "tokens/s");
    let name = format!("{} greedy", preset.name);
    let median = super::median(&seconds[1..]);
    Ok(vec![lab.line(("generate", name, shape), median, amount, [Some(roof), None])])
}
