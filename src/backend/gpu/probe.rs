//! What the NVIDIA driver of this machine says: version, devices, memory.
//!
//! The driver library is loaded at run time, so one binary runs with and without it. Every entry point is looked up
//! before it is called: the binding panics on a missing one.

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

/// One CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The number the driver gives it, from 0.
    pub ordinal: u32,
    /// The product's name.
    pub name: String,
    /// The compute capability: major and minor number.
    pub capability: (u32, u32),
    /// All of its memory, in bytes.
    pub total_bytes: u64,
    /// The memory that is free now, in bytes; none where the device grants no context (exclusive mode, full).
    pub free_bytes: Option<u64>,
}

impl Device {
    /// Returns whether the kernels have code for this device: compute capability 8.0 and up.
    pub fn supported(&self) -> bool {
        self.capability >= (8, 0)
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
    /// What is there under the driver's name lacks an entry point.
    #[error("the NVIDIA driver library lacks {symbol}; it is damaged or not the driver's")]
    NotADriver {
        /// The first entry point that is missing.
        symbol: &'static str,
    },
    /// The driver is older than [`OLDEST`].
    #[error("the NVIDIA driver speaks CUDA {found}, wanted {OLDEST} (driver 525) or newer")]
    TooOld {
        /// What the driver reports.
        found: Version,
    },
    /// The driver works and has no device to offer.
    #[error("the NVIDIA driver shows no device")]
    NoDevice,
    /// A call of the driver failed.
    #[error("the NVIDIA driver failed in {call}: {code}")]
    Failed {
        /// The driver's function.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
    },
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let hint = match &problem {
            Problem::NotBuilt => "build with the default features",
            Problem::NoDriver => "install the NVIDIA driver, or use --device cpu",
            Problem::NoDevice => "check CUDA_VISIBLE_DEVICES, or use --device cpu",
            _ => "install a current NVIDIA driver, or use --device cpu",
        };
        Error::new(Kind::Device, problem.to_string()).hint(hint)
    }
}

/// What a look at the driver found; fields that could not be had are none or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// Whether a driver library was found.
    pub driver_present: bool,
    /// The CUDA version the driver speaks.
    pub version: Option<Version>,
    /// The devices, in the driver's order.
    pub devices: Vec<Device>,
    /// Why no device can be used, where that is so.
    pub problem: Option<Problem>,
}

/// Asks the driver what there is; never panics and never fails: what is wrong is in [`Probe::problem`].
///
/// Free memory needs a context on each device, which takes the driver some tenths of a second.
pub fn probe() -> Probe {
    let mut probe = Probe::default();
    probe.problem = fill(&mut probe).err();
    probe
}

#[cfg(not(feature = "cuda"))]
fn fill(_: &mut Probe) -> Result<(), Problem> {
    Err(Problem::NotBuilt)
}

#[cfg(feature = "cuda")]
fn fill(probe: &mut Probe) -> Result<(), Problem> {
    for ordinal in 0..connect(probe)? {
        probe.devices.push(describe(ordinal)?);
    }
    if probe.devices.is_empty() { Err(Problem::NoDevice) } else { Ok(()) }
}

/// Loads and starts the driver, notes its version, and returns how many devices it has.
#[cfg(feature = "cuda")]
pub(super) fn connect(probe: &mut Probe) -> Result<i32, Problem> {
    use cudarc::driver::{result, sys};

    // SAFETY: loading the driver library runs its initialisers, which every CUDA program relies on.
    if !unsafe { sys::is_culib_present() } {
        return Err(Problem::NoDriver);
    }
    probe.driver_present = true;
    require(&["cuDriverGetVersion"])?;
    let mut number = 0;
    // SAFETY: the entry point exists and writes one int, which lives on this stack.
    unsafe { sys::cuDriverGetVersion(&mut number) }
        .result()
        .map_err(|error| failed("cuDriverGetVersion", error))?;
    let version = Version::from_driver(number);
    probe.version = Some(version);
    if version < OLDEST {
        return Err(Problem::TooOld { found: version });
    }
    require(&[
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDeviceTotalMem_v2",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
        "cuMemGetInfo_v2",
    ])?;
    match result::init() {
        Ok(()) => {}
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(Problem::NoDevice);
        }
        Err(error) => return Err(failed("cuInit", error)),
    }
    result::device::get_count()
        .map(|count| count.max(0))
        .map_err(|error| failed("cuDeviceGetCount", error))
}

/// Asks for what a device is; free memory by way of a context.
#[cfg(feature = "cuda")]
pub(super) fn describe(ordinal: i32) -> Result<Device, Problem> {
    use cudarc::driver::sys::CUdevice_attribute as Attribute;
    use cudarc::driver::{result, sys};

    let device = result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
    let attribute = |which| {
        // SAFETY: `device` came from cuDeviceGet.
        unsafe { result::device::get_attribute(device, which) }
            .map(|value| value.max(0) as u32)
            .map_err(|error| failed("cuDeviceGetAttribute", error))
    };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most the 255 bytes it is told of, so the last one stays 0.
    unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device) }
        .result()
        .map_err(|error| failed("cuDeviceGetName", error))?;
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    // SAFETY: `device` came from cuDeviceGet.
    let total = unsafe { result::device::total_mem(device) }
        .map_err(|error| failed("cuDeviceTotalMem", error))?;
    Ok(Device {
        ordinal: ordinal as u32,
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        capability,
        total_bytes: total as u64,
        free_bytes: free_bytes(device),
    })
}

/// Returns the free bytes of `device`, and leaves the thread's current context as it was.
#[cfg(feature = "cuda")]
fn free_bytes(device: cudarc::driver::sys::CUdevice) -> Option<u64> {
    use cudarc::driver::{result, sys};

    // SAFETY: `device` came from cuDeviceGet; the context is released below, on every path.
    let context = unsafe { result::primary_ctx::retain(device) }.ok()?;
    // SAFETY: the context is alive until its release, and is popped before that.
    let free = unsafe {
        sys::cuCtxPushCurrent_v2(context).result().ok().and_then(|()| {
            let free = result::mem_get_info().ok().map(|(free, _)| free as u64);
            let mut popped = std::ptr::null_mut();
            let _ = sys::cuCtxPopCurrent_v2(&mut popped);
            free
        })
    };
    // SAFETY: pairs with the retain above; a failure leaves the context to the end of the process.
    let _ = unsafe { result::primary_ctx::release(device) };
    free
}

/// Looks up entry points before any is called: the binding panics on a missing one.
#[cfg(feature = "cuda")]
pub(super) fn require(symbols: &[&'static str]) -> Result<(), Problem> {
    // SAFETY: is_culib_present said that the library loads, so this returns it; an entry point is only looked up
    // here, never called through this type.
    let missing = |symbol: &&&'static str| unsafe {
        cudarc::driver::sys::culib().get::<*const ()>(symbol.as_bytes()).is_err()
    };
    match symbols.iter().find(missing) {
        Some(symbol) => Err(Problem::NotADriver { symbol }),
        None => Ok(()),
    }
}

#[cfg(feature = "cuda")]
pub(super) fn failed(call: &'static str, error: cudarc::driver::result::DriverError) -> Problem {
    // The enum's own name: asking the driver for a text may fail as the call itself did.
    Problem::Failed { call, code: format!("{:?}", error.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_never_panics_and_names_a_problem_or_a_device() {
        let probe = probe();
        assert_eq!(probe.problem.is_none(), !probe.devices.is_empty(), "{probe:?}");
        assert!(probe.version.is_none() || probe.driver_present);
        match &probe.problem {
            Some(problem) => eprintln!("skipped: no CUDA device: {problem}"),
            None => assert!(probe.devices.iter().all(|d| d.total_bytes > 0 && !d.name.is_empty())),
        }
    }

    #[test]
    fn version_takes_the_drivers_number_apart() {
        assert_eq!(Version::from_driver(12020).to_string(), "12.2");
        assert_eq!(Version::from_driver(13000).to_string(), "13.0");
        assert_eq!(Version::from_driver(-1).to_string(), "0.0");
        assert!(Version::from_driver(11080) < OLDEST && Version::from_driver(12000) >= OLDEST);
    }

    #[test]
    fn problem_becomes_a_device_error_with_a_hint() {
        let error = Error::from(Problem::TooOld { found: Version::from_driver(11080) });
        assert_eq!(error.kind(), Kind::Device);
        assert_eq!(
            error.message(),
            "the NVIDIA driver speaks CUDA 11.8, wanted 12.0 (driver 525) or newer"
        );
        assert!(error.hint_text().is_some());
    }

    #[test]
    fn device_below_capability_eight_is_not_supported() {
        let device = |capability| Device {
            ordinal: 0,
            name: String::new(),
            capability,
            total_bytes: 0,
            free_bytes: None,
        };
        assert!(!device((7, 5)).supported());
        assert!(device((8, 0)).supported() && device((12, 0)).supported());
    }
}
