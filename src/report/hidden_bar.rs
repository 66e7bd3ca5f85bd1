//! The bar of a build without the feature `cli`: it counts steps and draws nothing.

/// The methods of `indicatif::ProgressBar` that [`super::progress`] calls.
#[derive(Debug, Default)]
pub(super) struct ProgressBar {
    steps: u64,
    position: std::cell::Cell<u64>,
}

impl ProgressBar {
    pub(super) fn new(steps: u64) -> Self {
        Self { steps, ..Self::default() }
    }

    pub(super) fn length(&self) -> Option<u64> {
        Some(self.steps)
    }

    #[cfg(test)]
    pub(super) fn hidden() -> Self {
        Self::default()
    }

    pub(super) fn with_position(self, step: u64) -> Self {
        self.position.set(step);
        self
    }

    pub(super) fn is_hidden(&self) -> bool {
        true
    }

    pub(super) fn reset_eta(&self) {}

    pub(super) fn set_message(&self, _message: String) {}

    pub(super) fn inc(&self, steps: u64) {
        self.position.set(self.position.get() + steps);
    }

    pub(super) fn position(&self) -> u64 {
        self.position.get()
    }

    pub(super) fn abandon(&self) {}
}
