//! A competing GEMM library on this device: cuBLASLt, with the feature `rivals` and where its library is found.

use std::sync::Arc;

use crate::backend::gpu::driver::Driver;
#[cfg(feature = "rivals")]
use crate::backend::gpu::driver::cublaslt::{CublasLt, Multiply};
use crate::error::Result;

/// A product `[m, k] [k, n]` that a rival is to compute.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "rivals"), expect(dead_code, reason = "only a rival reads it"))]
pub(super) struct Product {
    /// m, n, k.
    pub shape: (usize, usize, usize),
    /// Flags for operands stored transposed, as in `x w^T`, `dy w` and `dy^T x`.
    pub transposed: [bool; 2],
    /// True if the result is added to something.
    pub adds: bool,
    /// fp32 numbers instead of bf16.
    pub wide: bool,
}

/// Times a closure on sets in turn: the given number of times, or as often as a result asks for.
///
/// Returns the median in seconds.
pub(super) type Timer<'a, T> =
    &'a dyn Fn(&mut [T], Option<usize>, &mut dyn FnMut(&mut T) -> Result<()>) -> Result<f64>;

/// The library, or why there is none.
#[derive(Debug)]
pub(super) struct Rival {
    #[cfg(feature = "rivals")]
    library: Result<CublasLt>,
}

impl Rival {
    /// The name in results.
    pub(super) const NAME: &str = "cuBLASLt";
}

#[cfg(not(feature = "rivals"))]
impl Rival {
    pub(super) fn open(_: &Arc<dyn Driver>) -> Self {
        Self {}
    }

    /// Returns why there is none.
    pub(super) fn why_none(&self) -> Option<String> {
        Some("this binary was built without the feature rivals".to_owned())
    }

    pub(super) fn time<T>(
        &self,
        _: &Product,
        _: &mut [T],
        _: impl Fn(&T) -> [u64; 4],
        _: Timer<'_, T>,
    ) -> Result<Option<f64>> {
        Ok(None)
    }
}

#[cfg(feature = "rivals")]
impl Rival {
    /// Repetitions that pick the fastest of its ways.
    const TRIALS: usize = 3;

    pub(super) fn open(driver: &Arc<dyn Driver>) -> Self {
        Self { library: CublasLt::open(driver.clone()) }
    }

    /// Returns why there is none.
    pub(super) fn why_none(&self) -> Option<String> {
        self.library.as_ref().err().map(|error| error.message().to_owned())
    }

    /// Times a product on the sets, in the fastest of the ways that the library offers.
    ///
    /// `addresses` are those of both operands, of what is added and of the result.
    pub(super) fn time<T>(
        &self,
        product: &Product,
        sets: &mut [T],
        addresses: impl Fn(&T) -> [u64; 4],
        timer: Timer<'_, T>,
    ) -> Result<Option<f64>> {
        let Ok(library) = &self.library else { return Ok(None) };
        let Product { shape: (m, n, k), transposed, adds, wide } = *product;
        let job = Multiply { m, n, k, transposed, adds, wide };
        let prepared = library.prepare(&job)?;
        let mut best = None;
        for way in prepared.ways() {
            let mut run = |set: &mut T| prepared.run(&way, addresses(set));
            let seconds = timer(sets, Some(Self::TRIALS), &mut run)?;
            if best.is_none_or(|(least, _)| seconds < least) {
                best = Some((seconds, way));
            }
        }
        let Some((_, way)) = best else { return Ok(None) };
        timer(sets, None, &mut |set| prepared.run(&way, addresses(set))).map(Some)
    }
}
