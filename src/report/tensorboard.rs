//! Event files as TensorBoard reads them, written by hand: a handful of protobuf fields in checksummed records.
//!
//! A record is its length (u64), the masked CRC32C of those 8 bytes, the payload, and the payload's masked CRC32C,
//! all little-endian. The payload is an `Event`: wall_time = 1 (double), step = 2 (int64), then file_version = 3
//! (string), summary = 5 or session_log = 7. A `Summary` repeats value = 1 with tag = 1 (string) and
//! simple_value = 2 (float); a `SessionLog` has status = 1, where START is 1.
//! Source: tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.h.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Version string of the first record.
const VERSION: &str = "brain.Event:2";

/// The CRC32C (Castagnoli, reflected) of `bytes`, rotated and offset as records store it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = (crc >> 1) ^ (low * 0x82f6_3b78);
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked_crc(payload).to_le_bytes());
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Adds a field whose content has a length: a string or a message.
fn bytes_field(out: &mut Vec<u8>, number: u8, content: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// Starts an event; as in proto3 a step of 0 is left out.
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    if step > 0 {
        out.push(2 << 3);
        varint(&mut out, step);
    }
    out
}

/// The record that every file begins with.
fn version(wall_time: f64) -> Vec<u8> {
    let mut out = event(wall_time, 0);
    bytes_field(&mut out, 3, VERSION.as_bytes());
    record(&out)
}

/// The record after which a reader drops what other files say of `step` and later ones.
fn restart(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = event(wall_time, step);
    bytes_field(&mut out, 7, &[1 << 3, 1]);
    record(&out)
}

/// The record of the numbers of one step.
fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in values {
        let mut value = Vec::new();
        bytes_field(&mut value, 1, tag.as_bytes());
        value.push(2 << 3 | 5);
        value.extend((*number as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &value);
    }
    let mut out = event(wall_time, step);
    bytes_field(&mut out, 5, &summary);
    record(&out)
}

/// An event file being written.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Starts a file of its own in `dir` for a run that goes on at `step`.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make folder", dir, e))?;
        let now = now();
        // Nanoseconds keep apart what two processes start within a second; readers sort by name.
        let name = format!("events.out.tfevents.{:020.9}.nepenthe", now);
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut events = Self { path, file };
        events.write(&version(now))?;
        if step > 0 {
            events.write(&restart(now, step))?;
        }
        Ok(events)
    }

    /// Adds the numbers of `step`; what is not finite is kept, TensorBoard marks it.
    ///
    /// Errors: [`crate::Kind::Io`] if the file system refuses.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(&scalars(now(), step, values))
    }

    fn write(&mut self, record: &[u8]) -> Result<()> {
        self.file.write_all(record).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli_and_masked() {
        // RFC 3720, B.4: 32 bytes of zeros, and the digits.
        let plain = |bytes: &[u8]| masked_crc(bytes).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(plain(&[0; 32]), 0x8a91_36aa);
        assert_eq!(plain(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_are_those_of_tensorboard() {
        let bytes = [
            version(1.5e9),
            scalars(1.5e9 + 1.0, 0, &[("loss_tr", 0.25)]),
            scalars(1.5e9 + 2.0, 300, &[("loss_tr", -1.5), ("loss_kl", 3.4e-5)]),
            restart(1.5e9 + 3.0, 200),
        ]
        .concat();
        let wanted: Vec<u8> =
            FIXTURE.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(bytes, wanted);
    }

    /// Written by `RecordWriter` of the Python package tensorboard 2.21 with the same events.
    const FIXTURE: &str = "
        18 00 00 00 00 00 00 00 a3 7f 4b 22 09 00 00 00 c0 0b 5a d6 41 1a 0d 62 72 61 69 6e 2e 45 76 65
        6e 74 3a 32 4c a9 a4 64 1b 00 00 00 00 00 00 00 1a 0d 9e 13 09 00 00 40 c0 0b 5a d6 41 2a 10 0a
        0e 0a 07 6c 6f 73 73 5f 74 72 15 00 00 80 3e 5c 4b 89 54 2e 00 00 00 00 00 00 00 c5 cb 57 fa 09
        00 00 80 c0 0b 5a d6 41 10 ac 02 2a 20 0a 0e 0a 07 6c 6f 73 73 5f 74 72 15 00 00 c0 bf 0a 0e 0a
        07 6c 6f 73 73 5f 6b 6c 15 39 9b 0e 38 1e 6f 56 ad 10 00 00 00 00 00 00 00 95 fb fe 18 09 00 00
        c0 c0 0b 5a d6 41 10 c8 01 3a 02 08 01 e2 16 91 c6";
}
