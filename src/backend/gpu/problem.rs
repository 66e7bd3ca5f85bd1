//! Reasons why no GPU can be used, and versions of the driver.

use std::fmt;

use crate::error::{Error, Kind};

/// The oldest CUDA driver interface that is supported: 12.0, which driver 525 brought.
pub const OLDEST: Version = Version { major: 12, minor: 0 };

/// A CUDA driver interface version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

impl Version {
    /// Takes apart the driver's own form: 1000 times the major plus 10 times the minor number.
    pub fn from_driver(number: i32) -> Self {
        let number = number.max(0) as u32;
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The feature `cuda` was off when this binary was built.
    #[error("this binary was built without the feature cuda")]
    NotBuilt,
    /// There is no driver library on this machine.
    #[error("no NVIDIA driver library (libcuda) found")]
    NoDriver,
    /// There is a driver library that does not load.
    #[error("the NVIDIA driver library does not load: {why}")]
    Unloadable {
        /// The loader's message.
        why: String,
    },
    /// The library of the driver's name lacks an entry point.
    #[error("the NVIDIA driver library lacks {symbol}; it is damaged or not the driver's")]
    NotADriver {
        /// The first entry point that is missing.
        symbol: &'static str,
    },
    /// The driver is older than [`OLDEST`].
    #[error("the NVIDIA driver supports CUDA {found}, wanted {OLDEST} (driver 525) or newer")]
    TooOld {
        /// The newest CUDA release that the driver supports.
        found: Version,
    },
    /// The driver is older than the CUDA release whose nvcc compiled the kernels of this build.
    #[error(
        "the NVIDIA driver supports CUDA {found}, wanted {wanted} or newer for the kernels of this build (nvcc {nvcc})"
    )]
    TooOldForKernels {
        /// The newest CUDA release that the driver supports.
        found: Version,
        /// The oldest release that loads code of that nvcc.
        wanted: Version,
        /// The compiler of the kernels.
        nvcc: &'static str,
    },
    /// The driver works and has no device to offer.
    #[error("the NVIDIA driver shows no device")]
    NoDevice,
    /// A call of the driver failed.
    #[error("the NVIDIA driver failed in {call}: {code}")]
    Failed {
        /// The driver's function.
        call: &'static str,
        /// The driver's number of the error.
        number: u32,
        /// Its name, number and text.
        code: String,
        /// The remedy, if one is known.
        hint: Option<&'static str>,
    },
}

impl Problem {
    /// Returns what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotBuilt => "build with the default features",
            Self::NoDriver => "install the NVIDIA driver, or use --device cpu",
            Self::NoDevice => "check CUDA_VISIBLE_DEVICES and nvidia-smi, or use --device cpu",
            Self::TooOldForKernels { .. } => {
                "update the NVIDIA driver (CUDA 13 needs the 580 series or newer), build with an nvcc that is no newer than \
                 the driver (docs/building.md), or use --device cpu"
            }
            Self::Failed { hint: Some(hint), .. } => hint,
            _ => "install a current NVIDIA driver, or use --device cpu",
        }
    }
}
impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        // CUDA_ERROR_OUT_OF_MEMORY.
        let full = matches!(problem, Problem::Failed { number: 2, .. });
        let kind = if full { Kind::Memory } else { Kind::Device };
        Error::new(kind, problem.to_string()).hint(problem.hint())
    }
}
