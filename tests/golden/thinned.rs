//! Recorded logits and gradients in full or as `thin.py` leaves them: some of the entries, and signed sums over all.

use nepenthe::io::safetensors::Weights;
use nepenthe::rng::mix;

use crate::engine::{Check, near, relative_l2};

/// Of the hash of an entry's index, sum k takes its sign from this bit and k more.
const FIRST_SIGN: usize = 8;

/// Of a thinned record one logit in so many is kept.
const KEEP_LOGITS: u64 = 8;

/// Returns an entry with the sign that it has in sum `k`.
fn signed(index: usize, k: usize, value: f64) -> f64 {
    if mix(index as u64) >> (FIRST_SIGN + k) & 1 == 1 { value } else { -value }
}

/// Recorded logits, compared position by position in order.
pub struct Logits {
    /// All of them, or one in [`KEEP_LOGITS`].
    entries: Vec<f64>,
    /// Signed sums over the vocabulary, all of a position together; none in a full record.
    sums: Vec<f64>,
    every: u64,
    vocab: usize,
    positions: usize,
    /// Positions and entries compared so far.
    position: usize,
    entry: usize,
}

impl Logits {
    /// Reads the logits of `positions` tokens.
    pub fn read(file: &Weights, positions: usize, vocab: usize) -> Check<Self> {
        let read = |name: &str| file.read_f64(name).map_err(|e| e.to_string());
        let full = file.info("logits_f64").is_some();
        let (entries, sums, every) = match full {
            true => (read("logits_f64")?, Vec::new(), 1),
            false => (read("logits_kept")?, read("logits_sums")?, KEEP_LOGITS),
        };
        if !full && (sums.is_empty() || sums.len() % positions != 0) {
            return Err(format!("{} signed sums of {positions} positions", sums.len()));
        }
        Ok(Self { entries, sums, every, vocab, positions, position: 0, entry: 0 })
    }

    /// Compares the logits of the next position: every recorded entry within `tolerance` and the rounding to f32, the
    /// sums within what such errors add up to if they are independent.
    pub fn compare(&mut self, what: &str, got: &[f32], tolerance: f64) -> Check {
        let first = self.position * self.vocab;
        let allowed = |z: f64| tolerance + z.abs() * f64::from(f32::EPSILON);
        for (column, got) in got.iter().enumerate() {
            if mix((first + column) as u64).is_multiple_of(self.every) {
                let want = *self.entries.get(self.entry).ok_or("fewer logits than positions")?;
                self.entry += 1;
                near(&format!("{what}: logit"), f64::from(*got), want, 0.0, allowed(want))?;
            }
        }
        let square: f64 = got.iter().map(|z| allowed(f64::from(*z)).powi(2)).sum();
        let sums = self.sums.len() / self.positions;
        for (k, want) in self.sums[self.position * sums..][..sums].iter().enumerate() {
            let terms = got.iter().enumerate();
            let sum = terms.map(|(column, z)| signed(first + column, k, f64::from(*z))).sum();
            near(&format!("{what}: signed sum of logits"), sum, *want, 0.0, 3.0 * square.sqrt())?;
        }
        self.position += 1;
        Ok(())
    }

    /// Confirms that every recorded number was compared.
    pub fn finish(self) -> Check {
        if self.entry == self.entries.len() && self.position == self.positions {
            return Ok(());
        }
        Err(format!("{} of {} recorded logits were compared", self.entry, self.entries.len()))
    }
}

/// Returns the relative L2 distance of a gradient from its record: a full one, or the norm and signed sums, whose
/// differences' mean square is the squared distance on average.
pub fn gradient_distance(got: &[f32], recorded: &[f64], thinned: bool) -> Check<f64> {
    if !thinned {
        return match got.len() == recorded.len() {
            true => Ok(relative_l2(got, recorded)),
            false => Err(format!("{} entries, recorded {}", got.len(), recorded.len())),
        };
    }
    let (norm, sums) = recorded.split_first().ok_or("no sums")?;
    let off = sums.iter().enumerate().map(|(k, want)| {
        let terms = got.iter().enumerate();
        let sum: f64 = terms.map(|(i, g)| signed(i, k, f64::from(*g))).sum();
        (sum - want).powi(2)
    });
    let off = (off.sum::<f64>() / sums.len() as f64).sqrt();
    Ok(if off == 0.0 { 0.0 } else { off / norm })
}
