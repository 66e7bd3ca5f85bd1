//! Norms of hidden states and heads.

use super::heads::Heads;

/// Statistic that rows are normalized by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// RMSNorm: the root mean square; a weight, no bias.
    Rms,
    /// LayerNorm: mean and variance; a weight and a bias.
    Layer,
}

/// A norm of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// The kind.
    pub kind: NormKind,
    /// C, width of a row.
    pub width: usize,
    /// Addend of the mean square or variance.
    pub eps: f64,
    /// Addend of the weight: 0, or 1 where the stored weight counts from there (Gemma); RMSNorm only.
    pub offset: f64,
}

impl Norm {
    /// Makes an RMSNorm whose weight is used as stored.
    pub fn rms(width: usize, eps: f64) -> Self {
        Self { kind: NormKind::Rms, width, eps, offset: 0.0 }
    }

    /// Makes a LayerNorm.
    pub fn layer(width: usize, eps: f64) -> Self {
        Self { kind: NormKind::Layer, width, eps, offset: 0.0 }
    }

    /// Returns the number of statistics of a row that the backward pass needs: rstd, or mean and rstd.
    pub fn statistics(&self) -> usize {
        match self.kind {
            NormKind::Rms => 1,
            NormKind::Layer => 2,
        }
    }
}

/// Operands of a norm of N rows.
#[derive(Debug)]
pub struct NormArgs<'a, A, W> {
    /// N, rows.
    pub n: usize,
    /// The norm.
    pub norm: Norm,
    /// Rows, [N, C].
    pub x: &'a A,
    /// Weight, C numbers.
    pub gain: W,
    /// Bias, C numbers; LayerNorm only, which has one.
    pub bias: Option<W>,
}

impl<A, W: Copy> Clone for NormArgs<'_, A, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, W: Copy> Copy for NormArgs<'_, A, W> {}

/// Gradients of the weight and the bias of a norm; `None` where frozen or absent.
#[derive(Debug)]
pub struct NormGrads<'a, G> {
    /// Of the weight, C numbers, accumulated.
    pub gain: Option<&'a mut G>,
    /// Of the bias, likewise.
    pub bias: Option<&'a mut G>,
}

impl<G> NormGrads<'_, G> {
    /// Neither.
    pub fn none() -> Self {
        Self { gain: None, bias: None }
    }
}

/// Operands of the RMSNorms of query and key heads in N qkv rows.
#[derive(Debug)]
pub struct QkNormArgs<'a, A, W> {
    /// N, rows.
    pub n: usize,
    /// The heads.
    pub heads: Heads,
    /// The norm of a head; its width is D.
    pub norm: Norm,
    /// The qkv rows before the norm.
    pub raw: &'a A,
    /// Weights for query and for key heads, D numbers each.
    pub gains: [W; 2],
}

impl<A, W: Copy> Clone for QkNormArgs<'_, A, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, W: Copy> Copy for QkNormArgs<'_, A, W> {}
