//! Destination of the gradients of a backward pass, and hooks on the inputs of linear layers.

use crate::ops::{LinearShape, Memory, Ops};

/// The gradients of a model by block; `None` for frozen blocks.
pub type Gradients<M> = Vec<Option<<M as Memory>::Grad>>;

/// Empties gradients.
pub fn clear<O: Ops>(ops: &O, grads: &mut Gradients<O>) {
    grads.iter_mut().flatten().for_each(|grad| ops.clear_grad(grad));
}

/// A hook on the inputs of linear layers in the backward pass, for methods that work in the space these inputs span.
pub trait InputHook<O: Ops>: Send {
    /// Returns the inputs that the weight gradient of block `matrix` is made of, given its inputs `x` [N, I]; `None`
    /// leaves out the gradients of the layer.
    fn inputs<'a>(
        &'a mut self,
        ops: &O,
        shape: (usize, usize),
        matrix: usize,
        x: &'a O::Act,
    ) -> Option<&'a O::Act>;

    /// Returns a number that identifies the ops it starts, for the key of recorded work.
    fn key(&self) -> u64;
}

/// Destination of the gradients of a backward pass.
pub struct Sink<'a, O: Ops> {
    /// Buffers to add to; `None` for the model's own.
    pub grads: Option<&'a mut Gradients<O>>,
    /// Hook on the inputs of linear layers.
    pub hook: Option<&'a mut dyn InputHook<O>>,
}

impl<O: Ops> Sink<'_, O> {
    /// The model's own buffers, without a hook.
    pub fn own() -> Self {
        Self { grads: None, hook: None }
    }

    /// Returns the buffers, `own` being the model's.
    pub(super) fn of<'b>(&'b mut self, own: &'b mut Gradients<O>) -> &'b mut Gradients<O> {
        self.grads.as_deref_mut().unwrap_or(own)
    }

    /// Adds the weight gradient of a linear layer and that of its bias, where they train.
    pub(super) fn linear(&mut self, ops: &O, own: &mut Gradients<O>, job: Linear<'_, O>) {
        let Linear { shape, dy, x, matrix, bias } = job;
        let Self { grads, hook } = self;
        let grads = grads.as_deref_mut().unwrap_or(own);
        let x = match hook {
            None => x,
            Some(hook) => match hook.inputs(ops, (shape.n, shape.i), matrix, x) {
                Some(x) => x,
                None => return,
            },
        };
        if let Some(dw) = grads[matrix].as_mut() {
            ops.linear_wgrad(shape, dy, x, dw);
        }
        if let Some(db) = bias.and_then(|bias| grads[bias].as_mut()) {
            ops.bias_grad(shape.n, shape.o, dy, db);
        }
    }
}

/// The weight gradient of a linear layer.
pub(super) struct Linear<'a, O: Ops> {
    /// Its shape.
    pub(super) shape: LinearShape,
    /// Gradient of the outputs, [N, O].
    pub(super) dy: &'a O::Act,
    /// Inputs, [N, I].
    pub(super) x: &'a O::Act,
    /// Block of the matrix.
    pub(super) matrix: usize,
    /// Block of the bias, if any.
    pub(super) bias: Option<usize>,
}
