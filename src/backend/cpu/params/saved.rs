//! Parameters as checkpoints keep them.

use super::{Param, Split, Store};
use crate::backend::cpu::Real;
use crate::backend::cpu::update::Scale;
use crate::error::{Error, Result};
use crate::ops::TeacherForm;
use crate::ops::format::{EXPONENT_LIMIT, MOMENT_BLOCK, from_block, widen};
use crate::ops::param::MOMENT_SCALES;

/// Bytes of counter, exponent, and the three maxima as f64 bits, 8 each.
pub(in crate::backend::cpu) const SCALAR_BYTES: usize = 40;

impl<T: Real> Param<T> {
    /// Hands every state buffer to `write`, by name, as raw little-endian bytes; frozen parameters have none.
    pub(in crate::backend::cpu) fn save(
        &self,
        write: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let [first, second] = self.rule.moment_names();
        match &self.store {
            Store::Frozen(_) => return Ok(()),
            Store::Exact(exact) => {
                let teacher = if exact.form == TeacherForm::Full { "teacher" } else { "drift" };
                let named = [
                    ("theta", &exact.theta),
                    (teacher, &exact.teacher),
                    (first, &exact.first),
                    (second, &exact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    write(name, bytemuck::cast_slice(buffer))?;
                }
            }
            Store::Split(split) => {
                let named = [
                    ("theta_hi", &split.hi),
                    ("theta_lo", &split.lo),
                    ("drift", &split.drift),
                    (first, &split.first),
                    (second, &split.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    write(name, bytemuck::cast_slice(buffer))?;
                }
                if !split.bytes.is_empty() {
                    write(first, bytemuck::cast_slice(&split.bytes))?;
                    write(MOMENT_SCALES, bytemuck::cast_slice(&split.scales))?;
                }
            }
        }
        write("scalars", &scalar_bytes(self))
    }

    /// Restores what [`Param::save`] wrote.
    ///
    /// After an error the parameter holds a mixture of old and new state.
    pub(in crate::backend::cpu) fn load(
        &mut self,
        read: &mut dyn FnMut(&str, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let [first, second] = self.rule.moment_names();
        match &mut self.store {
            Store::Frozen(_) => return Ok(()),
            Store::Exact(exact) => {
                let teacher = if exact.form == TeacherForm::Full { "teacher" } else { "drift" };
                let named = [
                    ("theta", &mut exact.theta),
                    (teacher, &mut exact.teacher),
                    (first, &mut exact.first),
                    (second, &mut exact.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    read(name, bytemuck::cast_slice_mut(buffer))?;
                }
            }
            Store::Split(split) => {
                let named = [
                    ("theta_hi", &mut split.hi),
                    ("theta_lo", &mut split.lo),
                    ("drift", &mut split.drift),
                    (first, &mut split.first),
                    (second, &mut split.second),
                ];
                for (name, buffer) in named.into_iter().filter(|(_, buffer)| !buffer.is_empty()) {
                    read(name, bytemuck::cast_slice_mut(buffer))?;
                }
                if !split.bytes.is_empty() {
                    read(first, bytemuck::cast_slice_mut(&mut split.bytes))?;
                    read(MOMENT_SCALES, bytemuck::cast_slice_mut(&mut split.scales))?;
                }
            }
        }
        let mut bytes = [0u8; SCALAR_BYTES];
        read("scalars", &mut bytes)?;
        restore_scalars(self, &bytes)
    }

    /// Copies the moment called `name` to `out`; false where there is none.
    pub(in crate::backend::cpu) fn read_moment(&self, name: &str, out: &mut [f32]) -> bool {
        let Some(which) = self.rule.moment_names().iter().position(|n| *n == name) else {
            return false;
        };
        if name.is_empty() {
            return false;
        }
        match &self.store {
            Store::Frozen(_) => return false,
            Store::Exact(exact) => {
                let moment = [&exact.first, &exact.second][which];
                out.iter_mut().zip(moment).for_each(|(to, x)| *to = x.to_f32());
            }
            Store::Split(split) if !split.bytes.is_empty() => {
                let blocks = split.bytes.chunks(MOMENT_BLOCK).zip(&split.scales);
                for (to, (block, scale)) in out.chunks_mut(MOMENT_BLOCK).zip(blocks) {
                    to.iter_mut().zip(block).for_each(|(to, q)| *to = from_block(*q, *scale));
                }
            }
            Store::Split(split) => {
                let moment = [&split.first, &split.second][which];
                out.iter_mut().zip(moment).for_each(|(to, x)| *to = widen(*x));
            }
        }
        true
    }
}

fn scalar_bytes<T>(param: &Param<T>) -> [u8; SCALAR_BYTES] {
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

fn restore_scalars<T>(param: &mut Param<T>, bytes: &[u8; SCALAR_BYTES]) -> Result<()> {
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
