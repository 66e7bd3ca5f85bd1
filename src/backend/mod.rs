//! The machines that carry out the ops.

pub mod cpu;
pub mod gpu;
