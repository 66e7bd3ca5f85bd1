//! A run from recipe to report: plan, loop, checkpoint, resume, signals.
