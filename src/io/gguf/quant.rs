//! The number formats of GGUF tensors, and how they become fp32.
//!
//! Quantised formats hold blocks of 32 consecutive elements of a row. With d and m the block's fp16 scale and minimum
//! and q its integers: Q8_0 is x = d q, Q4_0 x = d (q - 8), Q4_1 x = d q + m. In the 4-bit formats byte j holds element
//! j in its low and element j + 16 in its high half.
//!
//! Source: the GGUF specification (ggml, docs/gguf.md) and the block layouts of ggml's `ggml-common.h`.

use std::fmt;

use crate::error::{Error, Result};

/// A number format that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// 8 bits and a scale per block.
    Q8_0,
    /// 4 bits and a scale per block.
    Q4_0,
    /// 4 bits, a scale and a minimum per block.
    Q4_1,
}

/// Elements of a block of the quantised formats.
pub const BLOCK: usize = 32;

impl Format {
    /// All formats that can be read.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// Returns the format that ggml numbers `id`, if it can be read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Returns ggml's number of the format.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// Returns the elements that are stored together.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => BLOCK,
        }
    }

    /// Returns the bytes that they take.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Returns the bytes of `len` elements; `None` for parts of a block or where the number overflows.
    pub fn bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block()) {
            return None;
        }
        (len / self.block()).checked_mul(self.block_bytes())
    }

    /// Reads `bytes` into `out`.
    ///
    /// Errors: [`crate::Kind::Model`] if `bytes` is not just as long as the elements of `out` are.
    pub fn read(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        if self.bytes(out.len()) != Some(bytes.len()) {
            return Err(Error::model(format!(
                "{} elements of {self} do not fit {} bytes",
                out.len(),
                bytes.len()
            )));
        }
        let blocks = out.chunks_exact_mut(self.block()).zip(bytes.chunks_exact(self.block_bytes()));
        match self {
            Self::F32 => {
                blocks.for_each(|(x, b)| x[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
            Self::F16 => blocks.for_each(|(x, b)| x[0] = half_at(b, 0)),
            Self::Bf16 => {
                blocks.for_each(|(x, b)| x[0] = half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
            }
            Self::Q8_0 => blocks.for_each(|(x, b)| {
                let d = half_at(b, 0);
                for (x, &q) in x.iter_mut().zip(&b[2..]) {
                    *x = f32::from(q as i8) * d;
                }
            }),
            Self::Q4_0 => blocks.for_each(|(x, b)| {
                let d = half_at(b, 0);
                nibbles(&b[2..], x, |q| (f32::from(q) - 8.0) * d);
            }),
            Self::Q4_1 => blocks.for_each(|(x, b)| {
                let (d, m) = (half_at(b, 0), half_at(b, 2));
                // Two roundings, not one: every other reader of these files multiplies and then adds.
                nibbles(&b[4..], x, |q| f32::from(q) * d + m);
            }),
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        })
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(q & 15);
        *high = value(q >> 4);
    }
}

/// Returns ggml's name of a format that cannot be read, where it is known.
pub(super) fn foreign_name(id: u32) -> Option<&'static str> {
    Some(match id {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_bytes(x: f32) -> [u8; 2] {
        half::f16::from_f32(x).to_le_bytes()
    }

    fn read(format: Format, bytes: &[u8], len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        format.read(bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn read_when_plain_gives_the_numbers_back() {
        let x = [0.0, -1.5, 3.125e-2, 65504.0];
        let f32s: Vec<u8> = x.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        assert_eq!(read(Format::F32, &f32s, 4), x);
        let halves: Vec<u8> = x.iter().flat_map(|&x| half_bytes(x)).collect();
        assert_eq!(read(Format::F16, &halves, 4), x);
        let brains = [0x00, 0x80, 0xc0, 0x3f];
        assert_eq!(read(Format::Bf16, &brains, 2), [-0.0, 1.5]);
    }

    #[test]
    fn read_when_q8_0_is_signed_times_scale() {
        let mut bytes = half_bytes(0.5).to_vec();
        bytes.extend((0..32).map(|j| (j * 8 - 128) as u8));
        let wanted: Vec<f32> = (0..32).map(|j| (j * 8 - 128) as f32 * 0.5).collect();
        assert_eq!(read(Format::Q8_0, &bytes, 32), wanted);
    }

    #[test]
    fn read_when_four_bits_puts_low_halves_first() {
        // Byte j holds j below and 15 - j above.
        let q: Vec<u8> = (0..16).map(|j| j | (15 - j) << 4).collect();
        let mut q4_0 = half_bytes(-0.25).to_vec();
        q4_0.extend(&q);
        let mut q4_1 = [half_bytes(0.25), half_bytes(-3.0)].concat();
        q4_1.extend(&q);
        let number = |j: i32| if j < 16 { j } else { 31 - j };
        let wanted: Vec<f32> = (0..32).map(|j| (number(j) - 8) as f32 * -0.25).collect();
        assert_eq!(read(Format::Q4_0, &q4_0, 32), wanted);
        let wanted: Vec<f32> = (0..32).map(|j| number(j) as f32 * 0.25 - 3.0).collect();
        assert_eq!(read(Format::Q4_1, &q4_1, 32), wanted);
    }

    #[test]
    fn read_when_lengths_differ_is_refused() {
        let error = Format::Q4_1.read(&[0; 39], &mut [0.0; 64]).unwrap_err();
        assert_eq!(error.message(), "64 elements of Q4_1 do not fit 39 bytes");
        assert!(Format::Q8_0.read(&[0; 34], &mut [0.0; 31]).is_err());
        assert_eq!(Format::F32.bytes(usize::MAX), None);
    }
}
