//! Operands and results of sweeps over logits.

/// Per-row results of a head sweep, on the backend.
#[derive(Debug)]
pub struct RowStats<S> {
    /// -log p of the target, nats; left alone where [`Matched::reads_teacher`](super::Matched::reads_teacher).
    pub nll: S,
    /// The row's value before its coefficient.
    pub value: S,
    /// 1 where the target is the most probable token, else 0; left alone where
    /// [`Matched::reads_teacher`](super::Matched::reads_teacher).
    pub hit: S,
}

/// The shape of a head sweep: `n` rows of width `c` against `v` logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// N, rows.
    pub n: usize,
    /// C, model width.
    pub c: usize,
    /// V, vocabulary.
    pub v: usize,
}

/// A head: its matrix, V x C, and its bias, V, where it has one; logits are `z = h w^T (+ bias)`, or `cap tanh(z / cap)`.
#[derive(Debug, Clone, Copy)]
pub struct HeadWeight<W> {
    /// The matrix.
    pub matrix: W,
    /// The bias.
    pub bias: Option<W>,
    /// Cap of the logits (Gemma-2); two heads that are compared have the same.
    pub cap: Option<f64>,
}

impl<W> HeadWeight<W> {
    /// Makes a head without a bias and a cap.
    pub fn plain(matrix: W) -> Self {
        Self { matrix, bias: None, cap: None }
    }
}

/// The rows of a head sweep: `first` to `first + shape.n` of the pack and of `h`.
#[derive(Debug, Clone, Copy)]
pub struct HeadRows<'a, A: ?Sized, P, W> {
    /// Rows, width, vocabulary.
    pub shape: HeadShape,
    /// The first row.
    pub first: usize,
    /// The packed documents.
    pub pack: &'a P,
    /// Final hidden states, [N, C].
    pub h: &'a A,
    /// The head.
    pub w: HeadWeight<W>,
}

/// The model that a full-vocabulary loss compares with.
#[derive(Debug, Clone, Copy)]
pub struct HeadReference<'a, A: ?Sized, W> {
    /// Its final hidden states, [shape.n, C].
    pub h: &'a A,
    /// Its head; `None` where both share one.
    pub w: Option<HeadWeight<W>>,
}

/// Where a head sweep writes gradients.
#[derive(Debug)]
pub struct HeadGrads<'a, A: ?Sized, G> {
    /// Gradient at the final hidden rows [N, C], overwritten.
    pub dh: &'a mut A,
    /// Gradient of the head matrix [V, C], accumulated; `None` where the head is frozen.
    pub dw: Option<&'a mut G>,
    /// Gradient of its bias, V, accumulated likewise.
    pub db: Option<&'a mut G>,
}

/// Sums over the rows of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tallied {
    /// Values, each row times its share.
    pub value: f64,
    /// Plain NLL, each row times what it counts in monitors.
    pub nll: f64,
    /// Rows whose target is the most probable token, each times what it counts in monitors.
    pub hit: f64,
}
