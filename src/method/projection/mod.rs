//! Gradient projection (PGU): finds principal subspaces of retain-set activations, to be projected out of the forget
//! gradients.

mod hooks;
mod subspace;

use rayon::prelude::*;

use self::subspace::principal;
use super::passes::Passes;
use super::{Knobs, MeanTeacher};
use crate::data::MicroBatch;
use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::ops::{Memory, Ops};

pub use self::hooks::{Grams, Projection, layers_at_once};

/// Principal directions of the inputs of every matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Directions {
    /// Orthonormal rows and their width for each block that is such a matrix: the input of [`Projection::new`].
    pub bases: Vec<Option<(Vec<f32>, usize)>>,
    /// The share of the inputs' squares that they hold, the mean over matrices.
    pub share: f64,
}

/// Subspaces to find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setup {
    /// Fraction of the squares of each matrix' inputs to capture.
    pub share: f64,
    /// Directions of each matrix at most.
    pub rank: usize,
    /// Tokens of a packed batch at most.
    pub tokens: usize,
}

/// Finds the subspaces of `texts`, and has the gradients of the forget loss projected out of them.
///
/// Errors: as [`directions`].
pub fn prepare<O: Ops>(
    ops: &O,
    state: &mut MeanTeacher<O>,
    setup: Setup,
    texts: &[MicroBatch],
) -> Result<()> {
    let Setup { share, rank, tokens } = setup;
    let MeanTeacher { model, passes, method, .. } = &mut *state;
    let found = directions(ops, model, passes, &method.knobs, texts, share, rank)?;
    state.hook = Some(Box::new(Projection::new(ops, tokens, found.bases)?));
    state.prepared.insert("shielded", found.share);
    Ok(())
}

/// Allocates what [`prepare`] does for `model` at most.
pub fn allocate<M: Memory>(memory: &M, model: &Model<M>, setup: Setup) -> Result<()> {
    let layers = &model.layout.layers;
    let matrices = |l: usize| layers[l].matrices(&model.config);
    Grams::new(memory, model, layers_at_once(matrices(0).map(|(_, width)| width), layers.len()))?;
    let mut shapes = vec![None; model.layout.blocks.len()];
    for (block, width) in (0..layers.len()).flat_map(matrices) {
        shapes[block] = Some((setup.rank.min(width), width));
    }
    Projection::allocate(memory, setup.tokens, &shapes, &mut |_, _| {}).map(drop)
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
        passes.observe(ops, model, knobs, texts, &mut grams)?;
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
