//! How parameters move: update rule, clip, schedule, state modes.
