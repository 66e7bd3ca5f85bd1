//! Sums over rows, weights of documents (kernels/row_sums.cu), and work recorded once and started again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::buffer::GradMarks;
use super::driver::Args;
use super::{Gpu, Grad, Pack, Stat};
use crate::ops::{DocumentFormula, RowStats, Sweep, WorkKey};

/// Sums over rows: three fp64 numbers at an address.
#[derive(Debug)]
pub struct Tally {
    pub(super) at: u64,
}

/// Bytes of sums.
pub(super) const TALLY_BYTES: u64 = 24;

/// Recordings of one device at most; work of further shapes is started op by op.
const RECORDINGS: usize = 32;

/// A gradient that recorded work writes.
#[derive(Debug)]
struct Flag {
    marks: Arc<GradMarks>,
    /// True if it had been written before the work.
    before: bool,
    /// Number of partial scans that the work leaves.
    scanned: u32,
}

/// Work on the device's side, and what it means for the gradients on the host's.
#[derive(Debug)]
struct Recording {
    graph: u64,
    /// The gradients it writes. First writes overwrite and later ones add, which is recorded as it was.
    flags: Vec<Flag>,
}

/// Recorded graphs, by key.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    known: Mutex<HashMap<WorkKey, Vec<Recording>>>,
    /// First writes seen by the recording at work.
    flags: Mutex<Option<Vec<Flag>>>,
    replays: AtomicU64,
    off: AtomicBool,
    /// True once the device could not record something; what it has recorded stays usable.
    full: AtomicBool,
    /// True while the last gradients of a step are written.
    last: AtomicBool,
}

impl Gpu {
    /// Tells whether the coming write of a gradient adds (else it overwrites), and notes the write.
    pub(super) fn adds(&self, grad: &Grad) -> bool {
        let marks = &grad.marks;
        let before = marks.written.swap(true, Ordering::Relaxed);
        marks.scanned.store(0, Ordering::Relaxed);
        let mut flags = self.recordings.flags.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flags) = flags.as_mut()
            && !flags.iter().any(|flag| Arc::ptr_eq(&flag.marks, marks))
        {
            flags.push(Flag { marks: marks.clone(), before, scanned: 0 });
        }
        before
    }

    /// Tells whether the gradients that are written now are the last of their step.
    pub(super) fn writes_last(&self) -> bool {
        self.recordings.last.load(Ordering::Relaxed)
    }

    /// Records work that comes again and starts it as a whole (which is how a device begins), or starts every op alone:
    /// a failing kernel is easier to find that way.
    pub fn record_work(&self, on: bool) {
        self.recordings.off.store(!on, Ordering::Relaxed);
    }

    /// Returns how much work was recorded, and how often recorded work was started.
    pub fn replays(&self) -> (usize, u64) {
        let known = self.recordings.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.values().map(Vec::len).sum(), self.recordings.replays.load(Ordering::Relaxed))
    }

    /// Starts what was recorded.
    fn start_recorded(&self, graph: u64) {
        self.recordings.replays.fetch_add(1, Ordering::Relaxed);
        self.keep(self.driver.replay(graph));
    }

    /// Does `work`, or starts again what it started when `key` came before with gradients in the same state.
    ///
    /// The first time of a key the work is done as it is: kernels are loaded, and scratch grows. The second time it is
    /// recorded, and from then on started as a whole.
    pub(super) fn replay_as(&self, key: WorkKey, work: &mut dyn FnMut()) {
        if self.recordings.off.load(Ordering::Relaxed) {
            return work();
        }
        let mut known = self.recordings.known.lock().unwrap_or_else(PoisonError::into_inner);
        let count: usize = known.values().map(Vec::len).sum();
        let Some(recordings) = known.get_mut(&key) else {
            known.insert(key, Vec::new());
            drop(known);
            return work();
        };
        let same = |flag: &Flag| flag.marks.written.load(Ordering::Relaxed) == flag.before;
        if let Some(found) = recordings.iter().find(|r| r.flags.iter().all(same)) {
            self.start_recorded(found.graph);
            for Flag { marks, scanned, .. } in &found.flags {
                marks.written.store(true, Ordering::Relaxed);
                marks.scanned.store(*scanned, Ordering::Relaxed);
            }
            return;
        }
        if count >= RECORDINGS || self.recordings.full.load(Ordering::Relaxed) || self.has_failed()
        {
            drop(known);
            return work();
        }
        let slot = |flags| {
            let mut at = self.recordings.flags.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *at, flags)
        };
        slot(Some(Vec::new()));
        let recorded = self.driver.capture(&mut || {
            work();
            self.take_failure()
        });
        let mut flags = slot(None).unwrap_or_default();
        for flag in &mut flags {
            flag.scanned = flag.marks.scanned.load(Ordering::Relaxed);
        }
        match recorded {
            Ok(Some(graph)) => {
                recordings.push(Recording { graph, flags });
                self.start_recorded(graph);
            }
            // Nothing was done: the gradients are what they were before.
            Ok(None) => {
                for Flag { marks, before, .. } in &flags {
                    marks.written.store(*before, Ordering::Relaxed);
                }
                self.recordings.full.store(true, Ordering::Relaxed);
                drop(known);
                work();
            }
            Err(error) => self.keep(Err(error)),
        }
    }
}

impl Sweep for Gpu {
    fn clear_tally(&self, tally: &mut Tally) {
        self.keep(self.fill(tally.at, 0, TALLY_BYTES));
    }

    fn tally(&self, pack: &Pack, rows: Range<usize>, stats: &RowStats<Stat>, tally: &mut Tally) {
        let from = |at: u64| at + 4 * rows.start as u64;
        let args = Args::new().ptr(from(stats.value.at)).ptr(from(stats.nll.at));
        let args = args.ptr(from(stats.hit.at)).ptr(from(pack.shares)).ptr(from(pack.monitors));
        let args = args.ptr(tally.at).u32(rows.len() as u32);
        self.launch("row_sums", [1, 1, 1], 256, 0, args);
    }

    fn document_weights(
        &self,
        pack: &Pack,
        base: Option<&Stat>,
        nll: &Stat,
        formula: DocumentFormula,
        weights: &mut Stat,
    ) {
        let base = base.map_or(0, |base| base.at);
        let args = Args::new().ptr(base).ptr(nll.at).ptr(pack.starts).ptr(pack.spans);
        let args = args.ptr(weights.at).f32(formula.factor as f32).f32(formula.slope as f32);
        let args = args.f32(formula.shift as f32).u32(u32::from(formula.paired));
        self.launch("sequence_weights", [pack.data.spans.len() as u32, 1, 1], 256, 0, args);
    }

    fn last_writes(&self, on: bool) {
        self.recordings.last.store(on, Ordering::Relaxed);
    }

    fn replay(&self, packs: &[&Pack], mut key: WorkKey, work: &mut dyn FnMut()) {
        for Pack { ids, block_count, reach, data, .. } in packs {
            // Tables of angles are made for powers of two.
            let reach = reach.next_power_of_two() as u64;
            let (n, documents) = (data.tokens() as u64, data.spans.len() as u64);
            key.word(*ids).word(n).word(documents).word(*block_count as u64).word(reach);
        }
        key.word(u64::from(self.writes_last()));
        self.replay_as(key, work);
    }

    fn mark(&self, at: usize) {
        self.keep(self.driver.mark(at));
    }

    fn seconds(&self, from: usize, to: usize) -> f64 {
        self.driver.between_marks(from, to).unwrap_or_else(|error| {
            self.keep(Err(error));
            0.0
        })
    }
}
