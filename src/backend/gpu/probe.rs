//! A query of this machine's NVIDIA driver: version, devices, memory.
//!
//! The driver library is loaded at run time, so one binary runs with and without it.

use std::path::Path;

#[cfg(feature = "cuda")]
use super::driver::cuda::api::{self, Api, Code};
#[cfg(feature = "cuda")]
use super::images;
pub use super::problem::{OLDEST, Problem, Version};

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
    /// Shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
    /// The memory that is free now, in bytes; none where the device grants no context (exclusive mode, full).
    pub free_bytes: Option<u64>,
}

impl Device {
    /// Returns whether the kernels have code for this device: compute capability 8.0 and up.
    pub fn supported(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// Result of a query of the driver; fields that could not be read are none or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probe {
    /// True if a driver library was found.
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
    let api = api::driver().inspect_err(|problem| {
        probe.driver_present = *problem != Problem::NoDriver;
        if let Problem::TooOld { found } = problem {
            probe.version = Some(*found);
        }
    })?;
    (probe.driver_present, probe.version) = (true, Some(api.version));
    // Devices are told of even where this build's kernels cannot run on them.
    for ordinal in 0..connect_any(api)? {
        probe.devices.push(describe(api, ordinal)?);
    }
    if probe.devices.is_empty() {
        return Err(Problem::NoDevice);
    }
    suits(api.version, images::NVCC_VERSION)
}

#[cfg(feature = "cuda")]
/// Tells whether a driver of this version runs code of this nvcc: within a major release of CUDA it does, whatever the
/// minor one.
fn suits(found: Version, nvcc: Option<&'static str>) -> Result<(), Problem> {
    let Some(nvcc) = nvcc else { return Ok(()) };
    let major = nvcc.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let wanted = Version { major, minor: 0 };
    if found < wanted { Err(Problem::TooOldForKernels { found, wanted, nvcc }) } else { Ok(()) }
}

/// Starts the driver and returns how many devices it has.
///
/// Errors: [`Problem::TooOldForKernels`] where it does not run code of this nvcc.
#[cfg(feature = "cuda")]
pub(super) fn connect(api: &Api, nvcc: Option<&'static str>) -> Result<i32, Problem> {
    let count = connect_any(api)?;
    suits(api.version, nvcc).map(|()| count)
}

#[cfg(feature = "cuda")]
fn connect_any(api: &Api) -> Result<i32, Problem> {
    // SAFETY: the flags must be 0.
    match unsafe { (api.init)(0) } {
        Code::NO_DEVICE => return Err(Problem::NoDevice),
        code => checked(api, "cuInit", code)?,
    }
    let mut count = 0;
    // SAFETY: writes one int, which lives on this stack.
    checked(api, "cuDeviceGetCount", unsafe { (api.device_count)(&mut count) })?;
    Ok(count.max(0))
}

/// Turns what a call returned into a result.
#[cfg(feature = "cuda")]
fn checked(api: &Api, call: &'static str, code: Code) -> Result<(), Problem> {
    if code.is_success() {
        return Ok(());
    }
    Err(Problem::Failed { call, number: code.0, code: api.describe(code), hint: code.hint() })
}

/// Asks for a property of a device that is never negative.
#[cfg(feature = "cuda")]
pub(super) fn attribute(api: &Api, device: i32, which: i32) -> Result<u32, Problem> {
    let mut value = 0;
    // SAFETY: writes one int, which lives on this stack; a wrong device or attribute is an error.
    let code = unsafe { (api.device_attribute)(&mut value, which, device) };
    checked(api, "cuDeviceGetAttribute", code)?;
    Ok(value.max(0) as u32)
}

/// Asks for what a device is, without its free memory, which would need a context.
#[cfg(feature = "cuda")]
pub(super) fn identify(api: &Api, ordinal: i32) -> Result<Device, Problem> {
    let mut device = 0;
    // SAFETY: writes one int, which lives on this stack.
    checked(api, "cuDeviceGet", unsafe { (api.device_get)(&mut device, ordinal) })?;
    let attribute = |which| attribute(api, device, which);
    let capability = (attribute(api::CAPABILITY_MAJOR)?, attribute(api::CAPABILITY_MINOR)?);
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most the 255 bytes it is told of, so the last one stays 0.
    let code = unsafe { (api.device_name)(name.as_mut_ptr().cast(), 255, device) };
    checked(api, "cuDeviceGetName", code)?;
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let mut total = 0;
    // SAFETY: writes one number, which lives on this stack.
    checked(api, "cuDeviceTotalMem", unsafe { (api.device_memory)(&mut total, device) })?;
    Ok(Device {
        ordinal: ordinal as u32,
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        capability,
        total_bytes: total as u64,
        shared_bytes: attribute(api::SHARED_MEMORY_OPTIN)?,
        free_bytes: None,
    })
}

/// Asks for what a device is; free memory by way of a context.
#[cfg(feature = "cuda")]
fn describe(api: &Api, ordinal: i32) -> Result<Device, Problem> {
    let device = identify(api, ordinal)?;
    Ok(Device { free_bytes: free_bytes(api, ordinal), ..device })
}

/// Returns the free bytes of a device, and leaves the thread's current context as it was.
#[cfg(feature = "cuda")]
fn free_bytes(api: &Api, device: i32) -> Option<u64> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the device exists; the context is released below, on every path behind this one.
    if !unsafe { (api.context_retain)(&mut context, device) }.is_success() {
        return None;
    }
    let (mut free, mut total, mut popped) = (0, 0, std::ptr::null_mut());
    // SAFETY: the context is alive until its release, and is popped before that; the numbers live on this stack.
    let asked = unsafe {
        (api.context_push)(context).is_success() && {
            let code = (api.memory_info)(&mut free, &mut total);
            let _ = (api.context_pop)(&mut popped);
            code.is_success()
        }
    };
    // SAFETY: pairs with the retain above; a failure leaves the context to the end of the process.
    let _ = unsafe { (api.context_release)(device) };
    asked.then_some(free as u64)
}

/// Tells whether this machine seems to have an NVIDIA GPU that the user has not hidden: a driver library, the driver's
/// kernel module, or such a device on the PCI bus.
pub fn expected() -> bool {
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES");
    if hidden.is_ok_and(|list| matches!(list.trim(), "" | "-1" | "NoDevFiles")) {
        return false;
    }
    #[cfg(feature = "cuda")]
    if !matches!(api::driver(), Err(Problem::NoDriver)) {
        return true;
    }
    Path::new("/proc/driver/nvidia/version").exists()
        || on_pci_bus(Path::new("/sys/bus/pci/devices"))
}

/// Looks for a display or compute device of NVIDIA's.
fn on_pci_bus(devices: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(devices) else { return false };
    entries.flatten().any(|entry| {
        let read = |name| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        read("vendor").trim() == "0x10de" && read("class").starts_with("0x03")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    #[test]
    fn probe_never_panics_and_names_a_problem_or_a_device() {
        let probe = probe();
        assert!(probe.problem.is_some() || !probe.devices.is_empty(), "{probe:?}");
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
            "the NVIDIA driver supports CUDA 11.8, wanted 12.0 (driver 525) or newer"
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
            shared_bytes: 0,
            free_bytes: None,
        };
        assert!(!device((7, 5)).supported());
        assert!(device((8, 0)).supported() && device((12, 0)).supported());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_driver_of_the_kernels_major_release_suits_and_an_older_one_does_not() {
        let of = |major, minor, nvcc| suits(Version { major, minor }, nvcc);
        assert_eq!(of(13, 0, Some("13.2.10")), Ok(()));
        assert_eq!(of(12, 0, Some("12.8.93")), Ok(()));
        assert_eq!(of(12, 0, None), Ok(()));
        let problem = of(12, 8, Some("13.0.88")).unwrap_err();
        assert_eq!(
            problem.to_string(),
            "the NVIDIA driver supports CUDA 12.8, wanted 13.0 or newer for the kernels of this build (nvcc 13.0.88)"
        );
        assert!(problem.hint().contains("update the NVIDIA driver"));
    }

    #[test]
    fn a_gpu_on_the_bus_is_one_of_nvidia_that_computes() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, vendor: &str, class: &str| {
            let at = folder.path().join(name);
            std::fs::create_dir(&at).unwrap();
            std::fs::write(at.join("vendor"), format!("{vendor}\n")).unwrap();
            std::fs::write(at.join("class"), format!("{class}\n")).unwrap();
        };
        device("0000:00:01.0", "0x8086", "0x030000");
        // The sound of a graphics card.
        device("0000:01:00.1", "0x10de", "0x040300");
        assert!(!on_pci_bus(folder.path()));
        device("0000:02:00.0", "0x10de", "0x030200");
        assert!(on_pci_bus(folder.path()));
        assert!(!on_pci_bus(&folder.path().join("none")));
    }
}
