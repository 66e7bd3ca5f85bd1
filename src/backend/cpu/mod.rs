//! Every op in Rust: the default without a GPU, and the oracle of every kernel.
//!
//! All ops are generic over the number type: f32 to work, f64 to check. Work is cut into tasks by shape alone
//! and each output has one task, so results do not depend on the number of threads.

mod attention;
mod cap;
mod compute;
mod erf;
mod gemm;
mod grad;
mod head;
mod layernorm;
mod matched;
mod memory;
mod mlp;
mod norm;
mod params;
mod pool;
mod real;
mod rope;
mod rows;
mod strip;
mod sweep;
mod update;

pub use compute::Pack;
pub use grad::Grad;
pub(crate) use grad::GradData;
pub use memory::CpuSizes;
pub use params::Param;
pub use real::Real;

use crate::error::{Error, Kind, Result};
use pool::Pool;

/// The CPU backend computing in `T`: f32 to work, f64 to check.
#[derive(Debug, Clone, Default)]
pub struct Cpu<T> {
    pool: Pool<T>,
    angles: rope::Angles<T>,
    marks: sweep::Marks,
}

impl<T: Real> crate::ops::Ops for Cpu<T> {
    fn renew(self) -> crate::Result<Self> {
        Ok(self)
    }
}

impl<T: Real> Cpu<T> {
    /// Makes the backend.
    pub fn new() -> Self {
        Self {
            pool: Pool::default(),
            angles: rope::Angles::default(),
            marks: sweep::Marks::default(),
        }
    }
}

/// Does `work` on one of the threads that the ops share, and returns what it returns.
///
/// From a thread outside the pool every op would put that thread to sleep and wake it again; on a step of a small model
/// that is a tenth of the time.
pub fn on_worker<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Allocates `len` times `value` for `name`.
///
/// Errors: [`Kind::Memory`] with the bytes that there are not.
fn filled<X: Copy>(name: &str, len: usize, value: X) -> Result<Vec<X>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(size_of::<X>());
        Error::new(Kind::Memory, format!("{name}: cannot allocate {bytes} bytes"))
    })?;
    out.resize(len, value);
    Ok(out)
}
