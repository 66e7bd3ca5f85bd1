//! Packed documents, as the host hands them to a backend.

/// Documents laid end to end without padding, as the host hands them to a backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackData {
    /// Token ids, N.
    pub ids: Vec<u32>,
    /// Position of each token in its own document, N.
    pub positions: Vec<u32>,
    /// Where each document starts, and N at the end: documents + 1.
    pub starts: Vec<u32>,
    /// The id each row is to predict (any id where its coefficient is 0), N.
    pub targets: Vec<u32>,
    /// Factor of each row's loss: mask, normalizer and loss weight in one; 0 leaves the row out, N.
    pub coefs: Vec<f64>,
    /// Weight of each row's value in a sweep's sum; 0 leaves it out, N.
    pub shares: Vec<f64>,
    /// Weight of each row in the monitored NLL and accuracy; 0 leaves it out, N.
    pub monitors: Vec<f64>,
    /// Divisor of the sum over each document's targets where documents are weighed.
    pub spans: Vec<u32>,
    /// The cache slot of each document (generation only).
    pub slots: Vec<u32>,
}

/// Weights of a row in a loss and in the sums over a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowCounts {
    /// See [`PackData::coefs`].
    pub coef: f64,
    /// See [`PackData::shares`].
    pub share: f64,
    /// See [`PackData::monitors`].
    pub monitor: f64,
}

impl PackData {
    /// Bytes of a token on the host, at most: each may be a document of its own.
    pub const BYTES: u64 = 3 * 4 + 3 * 8 + 3 * 4;

    /// Empties the pack and keeps its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.starts.clear();
        self.targets.clear();
        self.coefs.clear();
        self.shares.clear();
        self.monitors.clear();
        self.spans.clear();
        self.slots.clear();
    }

    /// Appends a document whose token t predicts token t + 1; the last row's target is 0.
    ///
    /// `coef(t)` is the coefficient of row t; no row counts in sums.
    pub fn push(&mut self, ids: &[u32], mut coef: impl FnMut(usize) -> f64) {
        let span = ids.len().saturating_sub(1);
        self.push_counted(ids, span, |t| RowCounts { coef: coef(t), ..RowCounts::default() });
    }

    /// Appends a document whose token t predicts token t + 1 and counts `counts(t)`; the last row's target is 0.
    pub fn push_counted(
        &mut self,
        ids: &[u32],
        span: usize,
        counts: impl FnMut(usize) -> RowCounts,
    ) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len() as u32);
        self.targets.extend_from_slice(ids.get(1..).unwrap_or(&[]));
        self.targets.extend(ids.first().map(|_| 0));
        for RowCounts { coef, share, monitor } in (0..ids.len()).map(counts) {
            self.coefs.push(coef);
            self.shares.push(share);
            self.monitors.push(monitor);
        }
        self.spans.push(span as u32);
        self.starts.push(self.ids.len() as u32);
    }

    /// Returns N.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
