//! Hooks on the inputs of linear layers: sums of x^T x, and the projection of inputs out of a subspace.

use std::ops::Range;

use crate::error::Result;
use crate::model::Model;
use crate::model::sink::InputHook;
use crate::ops::{LinearArgs, LinearShape, Memory, Ops, ParamSpec, Role, StateMode, TeacherForm};
use crate::optim::UpdateRule;

/// Limit of the sums that layers are processed together up to, in bytes: a pass over the texts costs more than they do.
const GRAMS: usize = 256 << 20;

/// Returns the number of layers, of `layers` with matrices of these input widths, whose sums of x^T x are made in one pass.
pub fn layers_at_once(widths: [usize; 4], layers: usize) -> usize {
    let bytes: usize = widths.iter().map(|width| 4 * width * width).sum();
    (GRAMS / bytes.max(1)).clamp(1, layers.max(1))
}

/// Sums of x^T x over rows, for the four matrices of some layers at a time.
pub struct Grams<M: Memory> {
    /// The blocks of the matrices,
    of: Vec<usize>,
    /// the widths of their inputs,
    widths: Vec<usize>,
    /// and their sums, in fp32 whatever gradients are kept in.
    sums: Vec<M::Grad>,
}

impl<M: Memory> Grams<M> {
    /// Makes room for the matrices of `layers` layers of `model` at a time, which all of them can share.
    pub fn new(memory: &M, model: &Model<M>, layers: usize) -> Result<Self> {
        let matrices = model.layout.layers[0].matrices(&model.config);
        let widths = matrices.map(|(_, width)| width).repeat(layers);
        let room =
            |width: &usize| memory.grad(&ParamSpec { trainable: true, ..frozen(width * width) });
        let sums = widths.iter().map(room).collect::<Result<_>>()?;
        Ok(Self { of: Vec::new(), widths, sums })
    }
}

impl<O: Ops> Grams<O> {
    /// Starts anew, for these layers, as many as there is room for or fewer.
    pub fn open(&mut self, ops: &O, model: &Model<O>, layers: Range<usize>) {
        let matrices = |l: usize| model.layout.layers[l].matrices(&model.config);
        self.of = layers.flat_map(matrices).map(|(block, _)| block).collect();
        self.sums.iter_mut().for_each(|sum| ops.clear_grad(sum));
    }

    /// Copies the sums to the host, each with its block and its width; waits for them.
    pub fn read(&self, ops: &O) -> Vec<(usize, usize, Vec<f32>)> {
        let each = self.of.iter().zip(&self.widths).zip(&self.sums);
        each.map(|((block, width), sum)| {
            let mut out = vec![0f32; width * width];
            ops.read_grad(sum, &mut out);
            (*block, *width, out)
        })
        .collect()
    }
}

impl<O: Ops> InputHook<O> for Grams<O> {
    fn inputs<'a>(
        &'a mut self,
        ops: &O,
        (n, width): (usize, usize),
        matrix: usize,
        x: &'a O::Act,
    ) -> Option<&'a O::Act> {
        if let Some(i) = self.of.iter().position(|block| *block == matrix) {
            let shape = LinearShape { n, o: width, i: width };
            ops.linear_wgrad(shape, x, x, &mut self.sums[i]);
        }
        None
    }

    fn key(&self) -> u64 {
        // The blocks are consecutive.
        1 + self.of.first().map_or(0, |first| (first << 32 | self.of.len()) as u64)
    }
}

/// A subspace of the inputs of each matrix, taken off them before they make a weight gradient.
///
/// dW = dy^T x becomes dy^T x (1 - U^T U) with orthonormal rows U [k, I], by two products of rows with k numbers: what
/// the step does to inputs inside the subspace is nothing.
///
/// Source: PGU, Hoang et al., WACV 2024, section 3.2, there on the gradient itself.
pub struct Projection<M: Memory> {
    /// By block.
    bases: Vec<Option<Basis<M>>>,
    /// Coordinates of rows in the subspace [N, k],
    coordinates: M::Act,
    /// and the rows without their part in it [N, I].
    rest: M::Act,
    /// For weights that are never shown through it.
    scratch: M::Act,
}

struct Basis<M: Memory> {
    k: usize,
    /// U, [k, I].
    rows: M::Param,
    /// -U^T, [I, k].
    back: M::Param,
}

impl<M: Memory> Projection<M> {
    /// Makes room for packs of up to `tokens` tokens; of each block that `bases` has some for, `k` orthonormal rows of the
    /// width given with them.
    pub fn new(memory: &M, tokens: usize, bases: Vec<Option<(Vec<f32>, usize)>>) -> Result<Self> {
        let shape = |(rows, width): &(Vec<f32>, usize)| (rows.len() / width, *width);
        let shapes: Vec<_> = bases.iter().map(|basis| basis.as_ref().map(shape)).collect();
        Self::allocate(memory, tokens, &shapes, &mut |block, out| {
            if let Some((rows, _)) = &bases[block] {
                out.copy_from_slice(rows);
            }
        })
    }

    /// Makes room for packs of up to `tokens` tokens and subspaces of `shapes`, [k, I] for each block that has one, whose
    /// rows `fill` writes.
    pub fn allocate(
        memory: &M,
        tokens: usize,
        shapes: &[Option<(usize, usize)>],
        fill: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<Self> {
        let (mut most, mut widest) = (0, 0);
        let mut bases = Vec::with_capacity(shapes.len());
        for (block, shape) in shapes.iter().enumerate() {
            let Some((k, width)) = shape.filter(|(k, _)| *k > 0) else {
                bases.push(None);
                continue;
            };
            most = most.max(k);
            widest = widest.max(width);
            let rows = memory.param(&frozen(k * width), &mut |out| {
                fill(block, out);
                Ok(())
            })?;
            let back = memory.param(&frozen(k * width), &mut |out| {
                let mut rows = vec![0f32; out.len()];
                fill(block, &mut rows);
                rows.iter().enumerate().for_each(|(i, x)| out[i % width * k + i / width] = -x);
                Ok(())
            })?;
            bases.push(Some(Basis { k, rows, back }));
        }
        Ok(Self {
            bases,
            coordinates: memory.act(tokens * most)?,
            rest: memory.act(tokens * widest)?,
            scratch: memory.act(0)?,
        })
    }
}

impl<O: Ops> InputHook<O> for Projection<O> {
    fn inputs<'a>(
        &'a mut self,
        ops: &O,
        (n, width): (usize, usize),
        matrix: usize,
        x: &'a O::Act,
    ) -> Option<&'a O::Act> {
        let Self { bases, coordinates, rest, scratch } = self;
        let Some(Basis { k, rows, back }) = &bases[matrix] else { return Some(x) };
        let w = ops.view(rows, Role::Student, scratch);
        let shape = LinearShape { n, o: *k, i: width };
        ops.linear(LinearArgs { shape, x, w, bias: None }, None, coordinates);
        let w = ops.view(back, Role::Student, scratch);
        let shape = LinearShape { n, o: width, i: *k };
        ops.linear(LinearArgs { shape, x: coordinates, w, bias: None }, Some(x), rest);
        Some(rest)
    }

    fn key(&self) -> u64 {
        0
    }
}

/// Describes numbers that only products read.
fn frozen(len: usize) -> ParamSpec {
    ParamSpec {
        name: "subspace".into(),
        len,
        trainable: false,
        mode: StateMode::Exact,
        teacher: TeacherForm::None,
        rule: UpdateRule::Sgd { momentum: 0.0 },
        seed: 0,
    }
}
