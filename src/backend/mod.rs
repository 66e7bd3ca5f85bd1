//! The machines that carry out the ops.

pub mod gpu;
