//! Finds what the loss is to leave alone: the subspaces that the inputs of a model's matrices mostly lie in on retain
//! documents.

use super::recipe::Recipe;
use super::train::Stream;
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use crate::method::subspace::principal;
use crate::method::{MeanTeacher, Nll};
use crate::model::tap::{Grams, Shield, Tap};
use crate::ops::Ops;

/// Puts a shield over the model of `state`, found with the weights that it has now, as `[method]` says.
///
/// A layer at a time: a pass over the documents with room for the sums of one layer, whose leading eigenvectors the host
/// then finds. Returns the mean share of the inputs' squares that the subspaces hold.
///
/// Errors: [`crate::Kind::Numeric`] where activations are not finite; those of the passes.
pub(super) fn shield<O: Ops>(
    ops: &O,
    recipe: &Recipe,
    state: &mut MeanTeacher<O>,
    retain: &Stream,
) -> Result<f64> {
    let section = &recipe.method;
    let documents = retain.first(section.shield_documents)?;
    let batches: Vec<MicroBatch> = documents
        .chunks(recipe.run.micro_batch)
        .map(|docs| MicroBatch::new(docs.iter().copied()))
        .collect();
    let MeanTeacher { model, passes, .. } = state;
    let mut bases: Vec<Option<(Vec<f32>, usize)>> = vec![None; model.layout.blocks.len()];
    let mut grams = Grams::new(ops, model)?;
    let (mut held, mut count) = (0.0, 0);
    for l in 0..model.config.layers {
        grams.open(ops, model, l);
        model.tap = Tap::Grams(grams);
        // With weight 0 the way back carries zeros; only the inputs of matrices are asked for.
        passes.sweep(ops, model, None, &Nll, &section.knobs, &batches, Some(0.0))?;
        let Tap::Grams(filled) = std::mem::replace(&mut model.tap, Tap::Closed) else { break };
        grams = filled;
        for (block, width, gram) in grams.read(ops) {
            ops.sync()?;
            if !gram.iter().all(|x| x.is_finite()) {
                return Err(Error::new(
                    crate::Kind::Numeric,
                    format!("{}: its inputs are not finite", model.layout.blocks[block].name),
                )
                .hint("the model is broken before the first step"));
            }
            let found = principal(&gram, width, section.shield, section.shield_rank);
            held += found.share;
            count += 1;
            let rows = found.rows.iter().map(|x| *x as f32).collect();
            bases[block] = Some((rows, width));
        }
    }
    model.clear_grads(ops);
    model.tap = Tap::Shield(Shield::new(ops, passes.ws.tokens(), bases)?);
    Ok(held / f64::from(count.max(1)))
}
