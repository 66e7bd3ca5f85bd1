//! Norms of hidden states.

/// Statistic that rows are normalised by.
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
