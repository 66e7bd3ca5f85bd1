//! The few numbers of a parameter as checkpoints keep them.

use super::{Param, Split, Store};
use crate::backend::cpu::update::Scale;
use crate::error::{Error, Result};
use crate::ops::format::EXPONENT_LIMIT;

/// Counter, exponent, and the three maxima as f64 bits, 8 bytes each.
pub(super) const SCALAR_BYTES: usize = 40;

pub(super) fn scalar_bytes<T>(param: &Param<T>) -> [u8; SCALAR_BYTES] {
    let mut words = [param.counter, 0, 0, 0, 0];
    if let Store::Split(Split { scale, .. }) = &param.store {
        words[1] = i64::from(scale.exponent) as u64;
        let maxima = [scale.max_drift, scale.max_moment, scale.max_theta];
        words[2..].copy_from_slice(&maxima.map(f64::to_bits));
    }
    let mut bytes = [0; SCALAR_BYTES];
    bytes.chunks_exact_mut(8).zip(words).for_each(|(to, w)| to.copy_from_slice(&w.to_le_bytes()));
    bytes
}

pub(super) fn restore_scalars<T>(param: &mut Param<T>, bytes: &[u8; SCALAR_BYTES]) -> Result<()> {
    let word = |i: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * i..8 * i + 8]);
        u64::from_le_bytes(word)
    };
    if let Store::Split(Split { scale, .. }) = &mut param.store {
        let exponent = word(1) as i64;
        if exponent.unsigned_abs() > EXPONENT_LIMIT as u64 {
            return Err(Error::data(format!(
                "saved state: drift exponent {exponent} is not within {EXPONENT_LIMIT}"
            )));
        }
        *scale = Scale {
            exponent: exponent as i32,
            max_drift: f64::from_bits(word(2)),
            max_moment: f64::from_bits(word(3)),
            max_theta: f64::from_bits(word(4)),
        };
    }
    param.counter = word(0);
    Ok(())
}
