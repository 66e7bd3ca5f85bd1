//! A matrix product as its launchers are given it.

/// Transposition of the operands of a GEMM; all matrices are row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Layout {
    /// `A[m,k] B[n,k]^T`: forward.
    Nt,
    /// `A[m,k] B[k,n]`: input gradient.
    Nn,
    /// `A[k,m]^T B[k,n]`: weight gradient.
    Tn,
}

/// Number format of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Out {
    /// The precision of storage.
    Stored,
    /// fp32.
    F32,
    /// bf16, rounded to nearest even.
    Bf16,
}

/// One matrix product: `c[m,n] = A B (+ bias[n]) (+ residual[m,n])`, or `c += A B (+ bias[n])`.
///
/// Operands, bias and residual are in the precision of storage, pitches in elements. Addresses are those of whole
/// elements; rows that are multiples of 16 bytes from an address that is one are read fastest.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::gpu) struct Gemm {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: u64,
    pub lda: usize,
    pub b: u64,
    pub ldb: usize,
    pub c: u64,
    /// In elements of c's own type.
    pub ldc: usize,
    pub out: Out,
    /// Adds to what c holds; excludes a residual.
    pub accumulate: bool,
    /// 0 for none.
    pub bias: u64,
    /// 0 for none; its pitch is `ldc`, and c is in the precision of storage.
    pub residual: u64,
}
