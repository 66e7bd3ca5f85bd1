//! Rotary positions: cosines and sines kept per frequency table, and the rotation of query and key heads.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::Real;
use super::rows::each;
use crate::ops::{Direction, Heads, RopeTable};

/// Cosines and sines of every position seen so far, one table per set of frequencies.
///
/// They are made once and not per op: in f64 they cost as much as the rotation of a small model's heads.
#[derive(Debug, Clone, Default)]
pub(super) struct Angles<T>(Arc<RwLock<Vec<Known<T>>>>);

#[derive(Debug)]
struct Known<T> {
    table: RopeTable,
    /// A row per position: R/2 cosines, R/2 sines.
    rows: Vec<T>,
}

impl<T: Real> Known<T> {
    fn grow(&mut self, positions: usize) {
        let half = self.table.inv_freq.len();
        for position in self.rows.len() / (2 * half)..positions.next_power_of_two() {
            let angles = self.table.inv_freq.iter().map(|f| position as f64 * f);
            let scale = self.table.scale;
            self.rows.extend(angles.clone().map(|a| T::from_f64(a.cos() * scale)));
            self.rows.extend(angles.map(|a| T::from_f64(a.sin() * scale)));
        }
    }
}

impl<T: Real> Angles<T> {
    /// Lends the tables, among which that of `table` has at least `positions` rows; and its index.
    fn upto(
        &self,
        table: &RopeTable,
        positions: usize,
    ) -> (RwLockReadGuard<'_, Vec<Known<T>>>, usize) {
        let long_enough = |k: &Known<T>| k.rows.len() >= positions * 2 * table.inv_freq.len();
        loop {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(i) = known.iter().position(|k| k.table == *table && long_enough(k)) {
                return (known, i);
            }
            drop(known);
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let i = known.iter().position(|k| k.table == *table).unwrap_or_else(|| {
                known.push(Known { table: table.clone(), rows: Vec::new() });
                known.len() - 1
            });
            known[i].grow(positions);
        }
    }

    /// Turns the query and key heads of each row of `qkv` by its position, forth or back.
    pub(super) fn rotate(
        &self,
        positions: &[u32],
        heads: Heads,
        table: &RopeTable,
        direction: Direction,
        qkv: &mut [T],
    ) {
        let half = table.inv_freq.len();
        let Some(longest) = positions.iter().max().filter(|_| half > 0) else {
            return;
        };
        let sign = T::from_f64(if direction == Direction::Forward { 1.0 } else { -1.0 });
        let (known, i) = self.upto(table, *longest as usize + 1);
        let angles = known[i].rows.as_slice();
        each(
            positions.len(),
            heads.qkv_width(),
            qkv,
            #[inline(always)]
            |r, row| {
                let at = positions[r] as usize * 2 * half;
                let (cos, sin) = angles[at..at + 2 * half].split_at(half);
                for head in row.chunks_exact_mut(heads.d).take(heads.h + heads.g) {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        let (x, y, sin) = (*a, *b, *sin * sign);
                        *a = x * *cos - y * sin;
                        *b = y * *cos + x * sin;
                    }
                }
            },
        );
    }
}
