//! The tensors of a step as kernels read them, and the scans of their gradients.

use bytemuck::{Pod, Zeroable};

use super::Param;
use crate::backend::gpu::Grad;

/// Result of a scan: struct Scan of kernels/common.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Scan {
    pub(super) sum_sq: f64,
    pub(super) nonfinite: u64,
    pub(super) max_bits: u32,
    pub(super) reserved: u32,
}

/// A trainable tensor of the step: struct Entry of kernels/common.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(super) struct Entry {
    pub(super) tensor: u64,
    pub(super) scans: u64,
    pub(super) partials: u32,
    pub(super) index: u32,
    /// In fp32 (0), in two planes of 16 bits (1), in one (2).
    pub(super) kept: u32,
    /// Of no use to kernels: whether a product has left the partial scans.
    pub(super) scanned: u32,
}

/// Bytes of an [`Entry`].
pub(super) const ENTRY: u64 = size_of::<Entry>() as u64;
/// Bytes of a [`Scan`].
pub(super) const SCAN: u64 = size_of::<Scan>() as u64;

/// A trained parameter by its place, and its gradient.
pub(super) type Trained<'a> = (usize, &'a Param, &'a Grad);
