//! Sampling of documents: a function of seed, stream name, step and slot alone.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::Stream;

/// Order in which documents are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Order {
    /// Uniform with replacement, as the reference's `RandomSampler(replacement=True)`.
    #[default]
    Replacement,
    /// Every document once per epoch, each epoch in its own random order.
    Epochs,
}

/// Draws document indices for any step directly, in constant memory.
///
/// Slot i of step s depends on (seed, name, s, i) alone under `Replacement`, and on (seed, name, s * n + i)
/// under `Epochs`, n being the rows per step. How a step's rows are split into micro-batches, threads or
/// devices has no influence; n must stay the same over a run for epochs to be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    order: Order,
    stream: Stream,
    len: u64,
}

impl Sampler {
    /// Makes the sampler of the stream `name` under the root seed `seed` over `len` documents.
    ///
    /// Errors: `Kind::Data` if `len` is 0.
    pub fn new(order: Order, seed: u64, name: &str, len: usize) -> Result<Self> {
        if len == 0 {
            return Err(Error::data(format!("{name}: no documents to draw from")));
        }
        Ok(Self { order, stream: Stream::new(seed, name), len: len as u64 })
    }

    /// Returns the number of documents drawn from.
    pub fn documents(&self) -> usize {
        self.len as usize
    }

    /// Returns the `n` document indices of `step`, slot by slot.
    pub fn rows(&self, step: u64, n: usize) -> Vec<usize> {
        (0..n as u64).map(|slot| self.row(step, slot, n as u64) as usize).collect()
    }

    fn row(&self, step: u64, slot: u64, n: u64) -> u64 {
        match self.order {
            Order::Replacement => self.stream.below(step, slot, self.len),
            Order::Epochs => {
                let position = u128::from(step) * u128::from(n) + u128::from(slot);
                let len = u128::from(self.len);
                // Truncating the epoch is harmless: it is only a key.
                self.permute((position / len) as u64, (position % len) as u64)
            }
        }
    }

    /// Maps `index` to its place in the shuffled order of `epoch`.
    ///
    /// A Feistel network permutes the smallest 4^k >= len; walking the cycle until it lands below len restricts
    /// it to the documents (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    /// At most four rounds of walking are expected.
    fn permute(&self, epoch: u64, index: u64) -> u64 {
        const ROUNDS: u64 = 12;
        let bits = u64::BITS - (self.len - 1).leading_zeros();
        let half = bits.div_ceil(2).max(1);
        let mask = (1u64 << half) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> half, value & mask);
            for round in 0..ROUNDS {
                // right has at most 32 bits, so the round number cannot collide with it.
                let noise = self.stream.bits(epoch, round << 40 | right) & mask;
                (left, right) = (right, left ^ noise);
            }
            value = left << half | right;
            if value < self.len {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn epochs_visit_every_document_once_at_any_length() {
        for len in [1usize, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000] {
            let sampler = Sampler::new(Order::Epochs, 1, "forget", len).unwrap();
            for epoch in 0..3 {
                let mut rows = sampler.rows(epoch, len);
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..len), "{len}");
            }
        }
    }

    #[test]
    fn epochs_continue_across_steps_and_differ_between_epochs() {
        let sampler = Sampler::new(Order::Epochs, 1, "forget", 10).unwrap();
        let seen: Vec<_> = (0..5).flat_map(|step| sampler.rows(step, 4)).collect();
        let (mut first, mut second) = (seen[..10].to_vec(), seen[10..].to_vec());
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, second);
        assert_eq!(first, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn epochs_draw_all_orders_of_four_about_equally() {
        let sampler = Sampler::new(Order::Epochs, 3, "forget", 4).unwrap();
        let mut counts = HashMap::new();
        let epochs = 24_000;
        (0..epochs).for_each(|e| *counts.entry(sampler.rows(e, 4)).or_insert(0.0) += 1.0);
        assert_eq!(counts.len(), 24);
        let chi2: f64 = counts.values().map(|c: &f64| (c - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 49.7, "chi-square {chi2} of 23 degrees of freedom, p < 0.001");
    }

    #[test]
    fn replacement_is_uniform_and_depends_on_step_and_slot_only() {
        let sampler = Sampler::new(Order::Replacement, 3, "retain", 7).unwrap();
        assert_eq!(sampler.rows(5, 40)[..8], sampler.rows(5, 8));
        assert_ne!(sampler.rows(5, 40), sampler.rows(6, 40));
        let other = Sampler::new(Order::Replacement, 3, "forget", 7).unwrap();
        assert_ne!(sampler.rows(5, 40), other.rows(5, 40));
        let mut counts = [0.0f64; 7];
        sampler.rows(0, 70_000).into_iter().for_each(|row| counts[row] += 1.0);
        let chi2: f64 = counts.iter().map(|c| (c - 1e4).powi(2) / 1e4).sum();
        assert!(chi2 < 22.5, "chi-square {chi2} of 6 degrees of freedom, p < 0.001");
    }

    #[test]
    fn draws_at_the_ends_of_the_ranges_stay_in_bounds() {
        for order in [Order::Replacement, Order::Epochs] {
            let sampler = Sampler::new(order, u64::MAX, "forget", 1_000_003).unwrap();
            assert!(sampler.rows(u64::MAX, 5).into_iter().all(|row| row < 1_000_003));
        }
        assert_eq!(
            Sampler::new(Order::Epochs, 0, "forget", 0).unwrap_err().message(),
            "forget: no documents to draw from"
        );
    }
}
