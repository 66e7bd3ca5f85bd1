//! The parameters of a model on a backend: loading, reading back, gradients.

use super::config::ModelConfig;
use super::layout::{Block, Layout, Order, Part, Train};
use super::rope;
use super::sink::{Gradients, clear};
use crate::error::Result;
use crate::io::safetensors::Weights;
use crate::ops::{
    Compute, Distances, HeadWeight, Memory, Ops, ParamSpec, Role, RopeTable, StateMode, TeacherForm,
};

use crate::optim::UpdateRule;

/// Parameter storage of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keeping {
    /// The parameters that train; `None` loads for inference, all frozen.
    pub train: Option<Train>,
    /// State mode of those that train.
    pub mode: StateMode,
    /// Storage of their teacher.
    pub teacher: TeacherForm,
    /// The optimizer.
    pub rule: UpdateRule,
    /// Root seed of rounding noise.
    pub seed: u64,
}

impl Keeping {
    fn spec(&self, block: &Block) -> ParamSpec {
        ParamSpec {
            name: block.name.clone(),
            len: block.len(),
            trainable: block.trainable,
            mode: self.mode,
            teacher: self.teacher,
            rule: self.rule,
            seed: self.seed,
        }
    }

    /// Keeps a model that is only read.
    pub fn inference() -> Self {
        Self {
            train: None,
            mode: StateMode::Exact,
            teacher: TeacherForm::None,
            rule: UpdateRule::Sgd { momentum: 0.0 },
            seed: 0,
        }
    }
}

/// A model on a backend.
pub struct Model<M: Memory> {
    /// Its configuration.
    pub config: ModelConfig,
    /// Its blocks.
    pub layout: Layout,
    /// Rotary frequencies of layers that see all, and of those with a window.
    pub ropes: [RopeTable; 2],
    /// A parameter per block.
    pub params: Vec<M::Param>,
    /// A gradient per trainable block.
    pub grads: Gradients<M>,
}

impl<M: Memory> Model<M> {
    /// Checks every tensor and then loads the model.
    pub fn load(
        memory: &M,
        config: ModelConfig,
        weights: &Weights,
        keep: &Keeping,
    ) -> Result<Self> {
        Layout::new(&config, keep.train.unwrap_or_default()).check(weights)?;
        Self::make(memory, config, keep, &mut |block, out| read_block(weights, block, out))
    }

    /// Makes a model of the numbers that `fill` writes for each block, one part behind the other.
    pub fn make(
        memory: &M,
        config: ModelConfig,
        keep: &Keeping,
        fill: &mut dyn FnMut(&Block, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let mut layout = Layout::new(&config, keep.train.unwrap_or_default());
        if keep.train.is_none() {
            layout.blocks.iter_mut().for_each(|block| block.trainable = false);
        }
        let mut params = Vec::with_capacity(layout.blocks.len());
        let mut grads = Vec::with_capacity(layout.blocks.len());
        for block in &layout.blocks {
            let spec = keep.spec(block);
            params.push(memory.param(&spec, &mut |out| fill(block, out))?);
            grads.push(if block.trainable { Some(memory.grad(&spec)?) } else { None });
        }
        let local = config.local_rope.as_ref().unwrap_or(&config.rope);
        let ropes = [&config.rope, local].map(|rope| {
            let table = rope::table(rope);
            RopeTable { scale: table.scale * config.head_scale, ..table }
        });
        Ok(Self { config, layout, ropes, params, grads })
    }

    /// Returns the rotary frequencies of layer `l`.
    pub(super) fn rope(&self, l: usize) -> &RopeTable {
        &self.ropes[usize::from(self.config.heads(l).window.is_some())]
    }

    /// Allocates a second gradient for every block that has one, of the same kind.
    pub fn more_grads(&self, memory: &M, keep: &Keeping) -> Result<Gradients<M>> {
        let grad =
            |block: &Block| block.trainable.then(|| memory.grad(&keep.spec(block))).transpose();
        self.layout.blocks.iter().map(grad).collect()
    }

    /// Returns a scratch buffer long enough to show any block of a layer, or an empty one where none is needed.
    pub fn layer_scratch(&self, memory: &M) -> Result<M::Act> {
        let needed = self.params.iter().any(|p| {
            [Role::Student, Role::Teacher, Role::Evaluated]
                .iter()
                .any(|r| memory.needs_scratch(p, *r))
        });
        memory.act(if needed { self.layout.longest_layer_block() } else { 0 })
    }

    /// Returns a scratch buffer for block `b`, empty where none is needed.
    pub fn block_scratch(&self, memory: &M, b: usize) -> Result<M::Act> {
        let roles = [Role::Student, Role::Teacher, Role::Evaluated];
        let needed = roles.iter().any(|r| memory.needs_scratch(&self.params[b], *r));
        memory.act(if needed { self.layout.blocks[b].len() } else { 0 })
    }
}

impl<O: Ops> Model<O> {
    /// Gives the teacher the weights of another model of the same shape.
    pub fn load_teacher(&mut self, ops: &O, weights: &Weights) -> Result<()> {
        self.layout.check(weights)?;
        let mut values = Vec::new();
        for (block, param) in self.layout.blocks.iter().zip(&mut self.params) {
            if block.trainable {
                values.resize(block.len(), 0.0);
                read_block(weights, block, &mut values)?;
                ops.set_teacher(param, &values);
            }
        }
        ops.sync()
    }

    /// Visits every tensor of the blocks picked by `pick` with its fp32 values in the order of files, as `read` gets them
    /// per block.
    ///
    /// Errors: what an op before has met, before anybody takes the numbers for good.
    fn visit(
        &self,
        ops: &O,
        pick: impl Fn(usize) -> bool,
        mut read: impl FnMut(usize, &mut [f32]) -> bool,
        visit: &mut dyn FnMut(&str, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (mut values, mut stored) = (Vec::new(), Vec::new());
        for (b, block) in self.layout.blocks.iter().enumerate().filter(|(b, _)| pick(*b)) {
            values.resize(block.len(), 0.0);
            if !read(b, &mut values) {
                continue;
            }
            ops.sync()?;
            let mut start = 0;
            for part in &block.parts {
                let laid = &values[start..start + part.len()];
                if part.order == Order::Same {
                    visit(&part.name, laid)?;
                } else {
                    stored.resize(part.len(), 0.0);
                    part.order.write(&part.shape, laid, &mut stored);
                    visit(&part.name, &stored)?;
                }
                start += part.len();
            }
        }
        Ok(())
    }

    /// Visits every tensor of student or teacher in fp32, in layout order.
    pub fn visit_weights(
        &self,
        ops: &O,
        role: Role,
        visit: &mut dyn FnMut(&str, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let read = |b: usize, out: &mut [f32]| {
            ops.read_param(&self.params[b], role, out);
            true
        };
        self.visit(ops, |_| true, read, visit)
    }

    /// Visits the gradient of every trainable tensor in fp32.
    pub fn visit_grads(
        &self,
        ops: &O,
        visit: &mut dyn FnMut(&str, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let read = |b: usize, out: &mut [f32]| match &self.grads[b] {
            Some(grad) => {
                ops.read_grad(grad, out);
                true
            }
            None => false,
        };
        self.visit(ops, |_| true, read, visit)
    }

    /// Visits one optimizer buffer of every trainable tensor in fp32.
    pub fn visit_moments(
        &self,
        ops: &O,
        name: &str,
        visit: &mut dyn FnMut(&str, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let read = |b: usize, out: &mut [f32]| ops.read_moment(&self.params[b], name, out);
        self.visit(ops, |b| self.layout.blocks[b].trainable, read, visit)
    }

    /// Measures L2 distances over all trainable parameters between student, teacher and the `initial` weights.
    pub fn distances(&self, ops: &O, initial: &Weights) -> Result<Distances> {
        let mut total = Distances::default();
        let mut start = Vec::new();
        for (block, param) in self.layout.blocks.iter().zip(&self.params) {
            if block.trainable {
                start.resize(block.len(), 0.0);
                read_block(initial, block, &mut start)?;
                let one = ops.distances(param, &start);
                total.student_teacher += one.student_teacher;
                total.student_initial += one.student_initial;
                total.teacher_initial += one.teacher_initial;
            }
        }
        ops.sync()?;
        Ok(Distances {
            student_teacher: total.student_teacher.sqrt(),
            student_initial: total.student_initial.sqrt(),
            teacher_initial: total.teacher_initial.sqrt(),
        })
    }

    /// Empties all gradients.
    pub fn clear_grads(&mut self, ops: &O) {
        clear(ops, &mut self.grads);
    }
}

/// Reads the tensors of a block in the order of the ops, one behind the other.
///
/// Errors: a tensor that is not there, or not of the part's length.
pub fn read_block(weights: &Weights, block: &Block, out: &mut [f32]) -> Result<()> {
    let mut rest = out;
    for part in &block.parts {
        let (here, after) = rest.split_at_mut(part.len());
        read_part(weights, part, here)?;
        rest = after;
    }
    Ok(())
}

/// Reads one tensor of a block in the order of the ops.
///
/// Errors: a tensor that is not there, or not of the part's length.
pub fn read_part(weights: &Weights, part: &Part, out: &mut [f32]) -> Result<()> {
    let name = part.name_in(weights);
    if part.order == Order::Same {
        return weights.read_f32(name, out);
    }
    let mut stored = vec![0.0; part.len()];
    weights.read_f32(name, &mut stored)?;
    part.order.read(&part.shape, &stored, out);
    Ok(())
}

/// A weight as the ops of `O` read it.
pub type View<'a, O> = <O as Compute>::Weight<'a>;

/// Shows the head of a model with the cap of its logits; `scratch` is for its matrix and its bias.
pub(super) fn head_weight<'a, O: Ops>(
    ops: &O,
    (layout, params, cap): (&Layout, &'a [O::Param], Option<f64>),
    role: Role,
    [matrix, bias]: &'a mut [O::Act; 2],
) -> HeadWeight<View<'a, O>> {
    HeadWeight {
        matrix: ops.view(&params[layout.head], role, matrix),
        bias: layout.head_bias.map(|b| ops.view(&params[b], role, bias)),
        cap,
    }
}
