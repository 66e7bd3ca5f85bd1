//! The evaluations of a run, and what follows from them: the best model, and when to stop.

use serde::{Deserialize, Serialize};

use crate::eval::metric::Direction;
use crate::eval::monitored::{self, Measured};

/// An evaluation after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Steps done.
    pub step: u64,
    /// The results; samples are kept of the first evaluation only.
    pub measured: Measured,
}

/// When the run stops.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// The figure.
    pub metric: String,
    /// Its bound.
    pub bound: f64,
}

impl Stop {
    /// Returns the distance of `value` from the bound, negative once the run must stop.
    ///
    /// A metric that is good when high on what the model knows, as verbatim memory is, falls and stops the run strictly below
    /// the bound, as in the reference; one that is good when low, as an NLL is, rises and stops it strictly above.
    fn slack(&self, value: f64) -> f64 {
        match monitored::find(&self.metric).map(|one| one.metric.direction) {
            Some(Direction::Lower) => self.bound - value,
            _ => value - self.bound,
        }
    }
}

/// Decision after an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// True if this model is the nearest so far that has not crossed the bound.
    pub best: bool,
    /// True if the run is to stop.
    pub stop: bool,
}

/// All evaluations so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Watch {
    /// Steps between evaluations; 0 for the first alone.
    pub every: u64,
    /// When to stop, if at all.
    pub stop: Option<Stop>,
    /// In the order of their steps.
    pub entries: Vec<Entry>,
}

impl Watch {
    /// Returns whether an evaluation is due after `step` steps.
    pub fn due(&self, step: u64) -> bool {
        let wanted = step == 0 || (self.every > 0 && step.is_multiple_of(self.every));
        wanted && self.entries.last().is_none_or(|last| last.step != step)
    }

    /// Takes an evaluation in.
    ///
    /// With slack s of the metric, the first evaluation sets the best; a later one is best where 0 <= s < best.
    /// Source: mt-unlearn `run_mt.py`, `metric_best > value >= stop_val`.
    pub fn record(&mut self, step: u64, mut measured: Measured) -> Verdict {
        let slack = |measured: &Measured| {
            let stop = self.stop.as_ref()?;
            Some(stop.slack(*measured.figures.get(&stop.metric)?))
        };
        let now = slack(&measured);
        let first = self.entries.first().and_then(|entry| slack(&entry.measured));
        let later = self.entries.iter().skip(1).filter_map(|entry| slack(&entry.measured));
        let before = later.filter(|s| *s >= 0.0).chain(first).reduce(f64::min);
        let verdict = match (now, before) {
            (Some(now), Some(before)) => {
                Verdict { best: before > now && now >= 0.0, stop: now < 0.0 }
            }
            _ => Verdict { best: false, stop: false },
        };
        if !self.entries.is_empty() {
            measured.samples.clear();
        }
        self.entries.push(Entry { step, measured });
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(metric: &str, bound: f64, values: &[f64]) -> Vec<(bool, bool)> {
        let stop = Some(Stop { metric: metric.into(), bound });
        let mut watch = Watch { every: 5, stop, entries: vec![] };
        let record = |(i, value): (usize, &f64)| {
            let figures = [(metric.to_owned(), *value)].into();
            let verdict = watch.record(5 * i as u64, Measured { figures, samples: vec![] });
            (verdict.best, verdict.stop)
        };
        values.iter().enumerate().map(record).collect()
    }

    #[test]
    fn record_keeps_the_lowest_above_the_bound_and_stops_strictly_below() {
        let (no, best, stop) = ((false, false), (true, false), (false, true));
        assert_eq!(
            verdicts("verbmem_forget", 0.25, &[0.98, 0.99, 0.5, 0.6, 0.25, 0.2]),
            [no, no, best, no, best, stop]
        );
        // As in the reference: a start below the bound can never be bettered, and does not stop the run itself.
        assert_eq!(verdicts("verbmem_forget", 0.25, &[0.2, 0.3, 0.1]), [no, no, stop]);
    }

    #[test]
    fn record_of_an_nll_stops_strictly_above() {
        let (no, best, stop) = ((false, false), (true, false), (false, true));
        assert_eq!(verdicts("nll_retain", 0.5, &[0.2, 0.3, 0.25, 0.51]), [no, best, no, stop]);
    }

    #[test]
    fn due_at_the_start_and_every_so_many_steps_once() {
        let mut watch = Watch { every: 5, stop: None, entries: vec![] };
        assert!(watch.due(0) && watch.due(5) && !watch.due(3));
        watch.record(5, Measured::default());
        assert!(!watch.due(5) && watch.due(10));
    }
}
