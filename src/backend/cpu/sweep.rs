//! Sums over rows and weights of documents on the CPU, where all work has ended when its op returns.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::compute::Pack;
use super::{Cpu, Real};
use crate::ops::{DocumentFormula, RowStats, Sweep, Tallied, WorkKey};

/// Times noted by [`Sweep::mark`].
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<[Option<Instant>; 8]>);

impl Clone for Marks {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<T: Real> Sweep for Cpu<T> {
    fn clear_tally(&self, tally: &mut Tallied) {
        *tally = Tallied::default();
    }

    fn tally(
        &self,
        pack: &Pack,
        rows: Range<usize>,
        stats: &RowStats<Vec<T>>,
        tally: &mut Tallied,
    ) {
        let data = pack.data();
        for row in rows {
            let (share, monitor) = (&data.shares[row], &data.monitors[row]);
            if *share != 0.0 {
                tally.value += share * stats.value[row].to_f64();
            }
            if *monitor != 0.0 {
                tally.nll += monitor * stats.nll[row].to_f64();
                tally.hit += monitor * stats.hit[row].to_f64();
            }
        }
    }

    fn document_weights(
        &self,
        pack: &Pack,
        base: Option<&Vec<T>>,
        nll: &Vec<T>,
        formula: DocumentFormula,
        weights: &mut Vec<T>,
    ) {
        let data = pack.data();
        let rows = |d: usize| data.starts[d] as usize..data.starts[d + 1] as usize;
        let ratio = |d: usize| -> f64 {
            let targets = rows(d).start..rows(d).end.saturating_sub(1).max(rows(d).start);
            let of = |r: usize| base.map_or(0.0, |base| base[r].to_f64()) - nll[r].to_f64();
            targets.map(of).sum::<f64>() / f64::from(data.spans[d].max(1))
        };
        for d in 0..data.spans.len() {
            let partner = (d ^ 1 < data.spans.len() && formula.paired).then_some(d ^ 1);
            let against = partner.map_or(0.0, ratio);
            let weight = formula.weight(ratio(d) - against, partner.is_some_and(|other| other < d));
            weights[rows(d)].fill(T::from_f64(weight));
        }
    }

    fn replay(&self, _: &[&Pack], _: WorkKey, work: &mut dyn FnMut()) {
        work();
    }

    fn mark(&self, at: usize) {
        self.marks.0.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(Instant::now());
    }

    fn seconds(&self, from: usize, to: usize) -> f64 {
        let marks = self.marks.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (marks[from], marks[to]) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        }
    }
}
