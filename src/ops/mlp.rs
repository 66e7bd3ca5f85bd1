//! Activations of MLPs.

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x Phi(x)`, Phi being the standard normal distribution function.
    Gelu,
    /// `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `max(x, 0)`; its derivative at 0 is 0.
    Relu,
}

/// The inner part of an MLP of F numbers: `y = act(x)`, or gated `y = act(gate) up`.
///
/// Source: transformers `activations.py` (`silu`, `gelu`, `gelu_new`, `relu`); arXiv 2002.05202 for gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// The function.
    pub activation: Activation,
    /// Presence of gates: a row then holds F gates and F ups, else F numbers.
    pub gated: bool,
}

impl Mlp {
    /// The activation of Llama, for which backends have fused kernels.
    pub const SWIGLU: Self = Self { activation: Activation::Silu, gated: true };

    /// Returns the width of a row before the activation, F after it.
    pub fn width(self, f: usize) -> usize {
        if self.gated { 2 * f } else { f }
    }

    /// Returns F for rows of `width` numbers before the activation.
    pub fn inner(self, width: usize) -> usize {
        if self.gated { width / 2 } else { width }
    }
}
