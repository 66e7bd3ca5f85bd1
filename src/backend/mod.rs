//! The machines that carry out the ops.
