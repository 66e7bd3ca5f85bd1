//! The op catalogue: the only door to compute.
