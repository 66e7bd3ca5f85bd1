//! Matrices as the bulk copies of kernels/sm90/ see them.

use crate::error::{Error, Kind, Result};

/// A row-major matrix in device memory, and the box of it that one bulk copy moves.
///
/// A box is 128 bytes wide and lies swizzled by 128 bytes in shared memory. What a box holds outside the matrix reads
/// as zeros and is not written. Source: CUDA driver API, cuTensorMapEncodeTiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// A multiple of 16.
    pub address: u64,
    /// At least 1.
    pub rows: usize,
    /// In elements, at least 1.
    pub columns: usize,
    /// From row to row, in bytes: a multiple of 16.
    pub pitch: u64,
    /// True if its elements are fp32, else bf16.
    pub wide: bool,
    /// Rows of a box: 1 to 256.
    pub box_rows: usize,
}

impl Matrix {
    /// Bytes of a row of a box.
    pub const BOX_BYTES: u32 = 128;

    /// Returns the bytes of an element.
    pub fn element_bytes(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    /// Returns the elements of a row of a box.
    pub fn box_columns(&self) -> u32 {
        Self::BOX_BYTES / self.element_bytes() as u32
    }

    /// Holds the matrix against the rules of the driver.
    ///
    /// Errors: [`Kind::Device`] with the rule that it breaks.
    pub fn check(&self) -> Result<()> {
        let broken = |rule: &str| Error::new(Kind::Device, format!("tensor map: {rule}: {self:?}"));
        if self.address == 0 || !self.address.is_multiple_of(16) {
            return Err(broken("the address must be a multiple of 16"));
        }
        if !self.pitch.is_multiple_of(16) || self.pitch >= 1 << 40 {
            return Err(broken("the pitch must be a multiple of 16 below 2^40"));
        }
        if self.rows == 0 || self.columns == 0 || self.rows.max(self.columns) > u32::MAX as usize {
            return Err(broken("rows and columns must be 1 to 2^32 - 1"));
        }
        if self.pitch < self.columns as u64 * self.element_bytes() && self.rows > 1 {
            return Err(broken("rows overlap"));
        }
        if !(1..=256).contains(&self.box_rows) {
            return Err(broken("a box must have 1 to 256 rows"));
        }
        Ok(())
    }
}

/// Bytes of a kernel parameter of type `ptx::TensorMap`; [`super::Driver::tensor_map`] makes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

impl TensorMap {
    /// The size of the parameter in bytes; no other kind of argument has it.
    pub const BYTES: u8 = 128;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_the_rule_that_is_broken() {
        let good =
            Matrix { address: 256, rows: 3, columns: 40, pitch: 80, wide: false, box_rows: 64 };
        assert!(good.check().is_ok());
        assert!(Matrix { rows: 1, pitch: 0, ..good }.check().is_ok());
        for (bad, rule) in [
            (Matrix { address: 264, ..good }, "address"),
            (Matrix { address: 0, ..good }, "address"),
            (Matrix { pitch: 82, ..good }, "pitch"),
            (Matrix { rows: 0, ..good }, "rows and columns"),
            (Matrix { wide: true, ..good }, "overlap"),
            (Matrix { box_rows: 257, ..good }, "box"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.message().contains(rule), "{error}");
        }
    }

    #[test]
    fn a_map_has_the_size_and_alignment_that_the_driver_asks_for() {
        assert_eq!(size_of::<TensorMap>(), TensorMap::BYTES as usize);
        assert_eq!(align_of::<TensorMap>(), 64);
    }
}
