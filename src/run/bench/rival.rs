//! Who else multiplies matrices on this device: cuBLASLt, with the feature `rivals` and where its library is found.

use std::sync::Arc;

use super::gemm::Form;
use super::lab::Lab;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Driver;
#[cfg(feature = "rivals")]
use crate::backend::gpu::driver::cublaslt::{CublasLt, Multiply};
use crate::error::Result;

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
        _: &Lab,
        _: &Gpu,
        _: (usize, usize, usize),
        _: Form,
        _: &mut [T],
        _: impl Fn(&T) -> [u64; 4],
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

    /// Times the product `[m, k] [k, n]` on the same sets, in the fastest of the ways that the library offers.
    ///
    /// `addresses` are those of both operands, of what is added and of the result.
    pub(super) fn time<T>(
        &self,
        lab: &Lab,
        gpu: &Gpu,
        (m, n, k): (usize, usize, usize),
        form: Form,
        sets: &mut [T],
        addresses: impl Fn(&T) -> [u64; 4],
    ) -> Result<Option<f64>> {
        let Ok(library) = &self.library else { return Ok(None) };
        let (transposed, adds) = (form.pass.transposed(), form.adds());
        let job = Multiply { m, n, k, transposed, adds, wide: lab.stored() > 2.0 };
        let prepared = library.prepare(&job)?;
        let mut best = None;
        for way in prepared.ways() {
            let mut run = |set: &mut T| prepared.run(&way, addresses(set));
            let seconds = lab.laps(gpu, sets, Self::TRIALS, &mut run, None)?;
            if best.is_none_or(|(least, _)| seconds < least) {
                best = Some((seconds, way));
            }
        }
        let Some((_, way)) = best else { return Ok(None) };
        lab.time(gpu, sets, |set| prepared.run(&way, addresses(set))).map(Some)
    }
}

#[cfg(feature = "rivals")]
impl super::gemm::Pass {
    /// Tells which operands are stored the other way round, as `x w^T`, `dy w` and `dy^T x` have them.
    fn transposed(self) -> [bool; 2] {
        match self {
            Self::Forward => [false, true],
            Self::Input => [false, false],
            Self::Weight => [true, false],
        }
    }
}
