//! Finds what a loss is to leave alone: the subspaces that the inputs of a model's matrices mostly lie in on texts.

use rayon::prelude::*;

use super::passes::Passes;
use super::subspace::principal;
use super::{Knobs, Nll};
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::model::tap::{Grams, Tap, layers_at_once};
use crate::ops::Ops;

/// The leading directions of every matrix' inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Directions {
    /// Of each block, where it is such a matrix, orthonormal rows and their width: what
    /// [`Shield::new`](crate::model::tap::Shield::new) takes.
    pub bases: Vec<Option<(Vec<f32>, usize)>>,
    /// The share of the inputs' squares that they hold, the mean over matrices.
    pub share: f64,
}

/// Finds the fewest directions that hold `share` of the squares of each matrix' inputs on `texts`, `rank` at most, with the
/// weights that `model` has now.
///
/// Some layers at a time: a pass over the texts with room for the sums of [`layers_at_once`], whose leading eigenvectors
/// the host then finds. All gradients are empty afterwards.
///
/// Errors: [`Kind::Numeric`] where inputs are not finite; those of the passes.
pub fn directions<O: Ops>(
    ops: &O,
    model: &mut Model<O>,
    passes: &mut Passes<O>,
    knobs: &Knobs,
    texts: &[MicroBatch],
    share: f64,
    rank: usize,
) -> Result<Directions> {
    let mut bases = vec![None; model.layout.blocks.len()];
    let layers = model.config.layers;
    let widths = model.layout.layers[0].matrices(&model.config).map(|(_, width)| width);
    let at_once = layers_at_once(widths, layers);
    let mut grams = Grams::new(ops, model, at_once)?;
    let (mut held, mut count) = (0.0, 0);
    for first in (0..layers).step_by(at_once) {
        grams.open(ops, model, first..layers.min(first + at_once));
        model.tap = Tap::Grams(grams);
        // With weight 0 the way back carries zeros; only the inputs of matrices are asked for.
        passes.sweep(ops, model, None, &Nll, knobs, texts, Some(0.0))?;
        let Tap::Grams(filled) = std::mem::replace(&mut model.tap, Tap::Closed) else { break };
        grams = filled;
        let sums = grams.read(ops);
        ops.sync()?;
        let blocks = &model.layout.blocks;
        let own = |(block, width, gram): (usize, usize, Vec<f32>)| {
            if !gram.iter().all(|x| x.is_finite()) {
                let name = &blocks[block].name;
                return Err(Error::new(
                    Kind::Numeric,
                    format!("{name}: its inputs are not finite"),
                )
                .hint("the model is broken before the first step"));
            }
            Ok((block, width, principal(&gram, width, share, rank)))
        };
        for (block, width, found) in sums.into_par_iter().map(own).collect::<Result<Vec<_>>>()? {
            held += found.share;
            count += 1;
            bases[block] = Some((found.rows.iter().map(|x| *x as f32).collect(), width));
        }
    }
    model.clear_grads(ops);
    Ok(Directions { bases, share: held / f64::from(count.max(1)) })
}
