//! Linear maps: kernels/gemm*.cu.

use crate::backend::gpu::{Act, Gpu, Grad, Weight};

#[allow(clippy::too_many_arguments)]
pub(in crate::backend::gpu) fn forward(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _x: &Act,
    _w: Weight<'_>,
    _bias: Option<Weight<'_>>,
    _residual: Option<&Act>,
    _y: &mut Act,
) {
    gpu.refuse("linear: not written");
}

pub(in crate::backend::gpu) fn dgrad(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _dy: &Act,
    _w: Weight<'_>,
    _dx: &mut Act,
) {
    gpu.refuse("linear dgrad: not written");
}

pub(in crate::backend::gpu) fn wgrad(
    gpu: &Gpu,
    _n: usize,
    _oi: (usize, usize),
    _dy: &Act,
    _x: &Act,
    _dw: &mut Grad,
) {
    gpu.refuse("linear wgrad: not written");
}

pub(in crate::backend::gpu) fn bias_grad(
    gpu: &Gpu,
    _n: usize,
    _o: usize,
    _dy: &Act,
    _db: &mut Grad,
) {
    gpu.refuse("bias gradient: not written");
}

/// How the operands of a product lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Layout {
    /// A[m,k] B[n,k]^T.
    Nt,
    /// A[m,k] B[k,n].
    Nn,
    /// A[k,m]^T B[k,n].
    Tn,
}

/// What a product is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) enum Out {
    /// The precision of storage.
    Stored,
    /// fp32.
    F32,
    /// bf16.
    Bf16,
}

/// A matrix product; pitches in elements.
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
    pub ldc: usize,
    pub out: Out,
    pub accumulate: bool,
    pub bias: u64,
    pub residual: u64,
}

pub(in crate::backend::gpu) fn gemm(gpu: &Gpu, _job: &Gemm) {
    gpu.refuse("gemm: not written");
}
