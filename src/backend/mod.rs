//! The machines that carry out the ops.

pub mod counter;
pub mod cpu;
pub mod gpu;
