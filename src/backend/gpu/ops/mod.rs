//! One file a family of kernels: geometry and launches.

pub(super) mod attention;
mod columns;
pub(super) mod embed;
pub(super) mod fused;
pub(super) mod generate;
pub(super) mod head;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod rope;
pub(super) mod swiglu;
