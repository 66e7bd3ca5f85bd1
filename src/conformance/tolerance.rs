//! The one tolerance of all comparisons.

/// The type in which a number was computed or stored, as far as its error goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 53 bits.
    F64,
    /// 24 bits.
    F32,
    /// 11 bits: fp32 operands of a TF32 product.
    Tf32,
    /// 8 bits.
    Bf16,
}

/// Returns the relative error allowed after a reduction of `reduction` terms in `dtype`.
///
/// Errors of a sum grow like the root of its length when they are independent; four of them, and four terms more,
/// leave room for the handful of roundings around the sum.
pub fn tol(dtype: Dtype, reduction: usize) -> f64 {
    let unit = match dtype {
        Dtype::F64 => f64::EPSILON / 2.0,
        Dtype::F32 => f64::from(f32::EPSILON) / 2.0,
        Dtype::Tf32 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-9),
    };
    4.0 * (4.0 + (reduction as f64).sqrt()) * unit
}
