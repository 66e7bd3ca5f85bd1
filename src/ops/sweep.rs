//! Ops that connect the passes of a sweep without the host: sums over rows, weights of whole documents,
//! work that is started again.

use std::ops::Range;

use super::compute::Compute;
use super::head::RowStats;
use super::weight::DocumentFormula;

/// Identity of work that may be recorded and started again: everything that decides its ops and their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkKey {
    names: Vec<&'static str>,
    words: Vec<u64>,
}

impl WorkKey {
    /// Makes the key of a kind of work.
    pub fn new(kind: &'static str) -> Self {
        Self { names: vec![kind], words: Vec::new() }
    }

    /// Adds a name.
    pub fn name(&mut self, name: &'static str) -> &mut Self {
        self.names.push(name);
        self
    }

    /// Adds a whole number.
    pub fn word(&mut self, word: u64) -> &mut Self {
        self.words.push(word);
        self
    }

    /// Adds numbers by their bits.
    pub fn numbers(&mut self, numbers: &[f64]) -> &mut Self {
        self.words.extend(numbers.iter().map(|number| number.to_bits()));
        self
    }
}

/// The ops between sweeps. None of them waits, but those that return what the backend found.
pub trait Sweep: Compute {
    /// Sets sums to 0.
    fn clear_tally(&self, tally: &mut Self::Tally);
    /// Adds the results of `rows` of the pack just swept, in f64 and in an order that depends on their number alone.
    ///
    /// A row that counts nothing is left out, whatever its results hold.
    fn tally(
        &self,
        pack: &Self::Pack,
        rows: Range<usize>,
        stats: &RowStats<Self::Stat>,
        tally: &mut Self::Tally,
    );
    /// Weighs all rows of each document alike, as the formula says; without `base` nothing is compared with.
    ///
    /// In pairs the last document of an odd number has no partner and is weighed by its own r.
    fn document_weights(
        &self,
        pack: &Self::Pack,
        base: Option<&Self::Stat>,
        nll: &Self::Stat,
        formula: DocumentFormula,
        weights: &mut Self::Stat,
    );
    /// Tells that gradients written from here on are (or are no more) the last of their step, so that a backend may take
    /// their norm while it writes them.
    fn last_writes(&self, _on: bool) {}
    /// Does `work`, or starts again what it started when `key` came before.
    ///
    /// Under one key `work` must start the same ops on the same buffers with the same numbers; the contents of buffers
    /// may differ, and those of `packs`, whose shapes the backend adds to the key. What `work` does on the host beside
    /// starting ops may not happen. It must not wait, read back, allocate or load.
    fn replay(&self, packs: &[&Self::Pack], key: WorkKey, work: &mut dyn FnMut());
    /// Notes the time at which the work before it has ended, under a number below 8.
    fn mark(&self, at: usize);
    /// Returns the seconds between two marks; waits for the later one.
    fn seconds(&self, from: usize, to: usize) -> f64;
}
