//! Return codes of the driver's calls: their names, what they mean for a run, and what to do.

use std::ffi::{CStr, c_char};
use std::fmt;

use super::api::{Api, Code};
use crate::error::{Error, Kind, Result};

/// Hint for a device whose memory is full.
const MEMORY: &str = "smaller packs, --set model.state=compact, or fewer trained parameters; `nepenthe plan` counts them, \
                      and nvidia-smi shows what other processes hold";
/// Hint for a call after a kernel that failed.
const KERNEL: &str = "a kernel that was started earlier failed, not this call: start again (a run with --resume); if it \
                      fails again, CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer finds the kernel";
/// Hint for a device that refuses the code of the kernels.
const KERNELS: &str = "kernels of nvcc 13 need a driver of the 580 series or newer: update it, or build with an nvcc 12";

/// Codes that are told by name without the driver's help, and what to do about them.
const KNOWN: &[(u32, &str, Option<&str>)] = &[
    (1, "CUDA_ERROR_INVALID_VALUE", None),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", Some(MEMORY)),
    (3, "CUDA_ERROR_NOT_INITIALIZED", None),
    (
        34,
        "CUDA_ERROR_STUB_LIBRARY",
        Some(
            "the stub library of a CUDA toolkit was loaded in place of the driver: take its folder (.../stubs) out of \
             LD_LIBRARY_PATH",
        ),
    ),
    (
        46,
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        Some(
            "another process holds the device in exclusive mode, or an MPS server does not let this one in: `nvidia-smi -q \
             -d COMPUTE` shows the mode, `nvidia-smi -c DEFAULT` lifts it; or use --device cpu",
        ),
    ),
    (
        100,
        "CUDA_ERROR_NO_DEVICE",
        Some("check CUDA_VISIBLE_DEVICES and nvidia-smi, or use --device cpu"),
    ),
    (101, "CUDA_ERROR_INVALID_DEVICE", None),
    (200, "CUDA_ERROR_INVALID_IMAGE", Some(KERNELS)),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", Some(KERNELS)),
    (
        214,
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        Some(
            "the device's memory has an uncorrectable error: `nvidia-smi -q -d ECC` shows it; reset or replace the device",
        ),
    ),
    (218, "CUDA_ERROR_INVALID_PTX", Some(KERNELS)),
    (
        221,
        "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        Some(
            "install the driver's PTX compiler, libnvidia-ptxjitcompiler.so.1, from the driver's packages",
        ),
    ),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", Some(KERNELS)),
    (226, "CUDA_ERROR_CONTAINED", Some(KERNEL)),
    (400, "CUDA_ERROR_INVALID_HANDLE", None),
    (500, "CUDA_ERROR_NOT_FOUND", None),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", Some(KERNEL)),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", None),
    (
        702,
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        Some(
            "the device also draws a screen, and the system ends kernels that take long: use another device",
        ),
    ),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", Some(KERNEL)),
    (710, "CUDA_ERROR_ASSERT", Some(KERNEL)),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", Some(KERNEL)),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", Some(KERNEL)),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", Some(KERNEL)),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", Some(KERNEL)),
    (718, "CUDA_ERROR_INVALID_PC", Some(KERNEL)),
    (719, "CUDA_ERROR_LAUNCH_FAILED", Some(KERNEL)),
    (721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", Some(KERNEL)),
    (801, "CUDA_ERROR_NOT_SUPPORTED", None),
    (
        802,
        "CUDA_ERROR_SYSTEM_NOT_READY",
        Some(
            "the devices of this machine are joined by NVSwitch and wait for the fabric manager: `systemctl start \
             nvidia-fabricmanager`, of the driver's own version",
        ),
    ),
    (
        803,
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        Some(
            "library and kernel module of the driver differ in version, as after an update: reboot; in a container, use \
             the host's libcuda",
        ),
    ),
    (
        804,
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        Some(
            "this device does not take the forward-compatibility library: take cuda-compat out of LD_LIBRARY_PATH",
        ),
    ),
    (
        805,
        "CUDA_ERROR_MPS_CONNECTION_FAILED",
        Some(
            "the MPS server does not answer: start nvidia-cuda-mps-control again, or unset CUDA_MPS_PIPE_DIRECTORY",
        ),
    ),
    (900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", None),
    (901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", None),
    (912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", None),
    (913, "CUDA_ERROR_FUNCTION_NOT_LOADED", None),
    (
        999,
        "CUDA_ERROR_UNKNOWN",
        Some(
            "often the module nvidia-uvm is not loaded, or /dev/nvidia-uvm is missing in a container: `modprobe \
             nvidia-uvm`; `dmesg` may say more",
        ),
    ),
];

impl Code {
    /// `CUDA_ERROR_INVALID_VALUE`.
    pub(super) const INVALID_VALUE: Self = Self(1);
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub(super) const OUT_OF_MEMORY: Self = Self(2);
    /// `CUDA_ERROR_NO_DEVICE`.
    pub(in crate::backend::gpu) const NO_DEVICE: Self = Self(100);

    /// Tells whether the call did what it says.
    pub(in crate::backend::gpu) fn is_success(self) -> bool {
        self.0 == 0
    }

    fn known(self) -> Option<&'static (u32, &'static str, Option<&'static str>)> {
        KNOWN.iter().find(|(number, ..)| *number == self.0)
    }

    /// Returns what to do, where that is known.
    pub(in crate::backend::gpu) fn hint(self) -> Option<&'static str> {
        self.known().and_then(|(_, _, hint)| *hint)
    }

    /// Returns the kind of an error: memory that is full is told from all else.
    fn kind(self) -> Kind {
        if self == Self::OUT_OF_MEMORY { Kind::Memory } else { Kind::Device }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some((number, name, _)) => write!(f, "{name} ({number})"),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Api {
    /// Describes a code: its name and number, and the driver's text where it has one.
    pub(in crate::backend::gpu) fn describe(&self, code: Code) -> String {
        type Ask = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
        let ask = |ask: Option<Ask>| {
            let mut text = std::ptr::null();
            // SAFETY: writes one pointer, to a text that lives as long as the library.
            let answered = unsafe { ask?(code, &mut text) };
            if !answered.is_success() || text.is_null() {
                return None;
            }
            // SAFETY: as above; the text ends with a zero.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = match (code.known(), ask(self.error_name)) {
            (None, Some(name)) => format!("{name} ({})", code.0),
            _ => code.to_string(),
        };
        match ask(self.error_text) {
            Some(text) => format!("{name}: {text}"),
            None => name,
        }
    }

    /// Makes the error of a failed call; `what` names the call and what it was for.
    pub(super) fn failed(&self, what: impl fmt::Display, code: Code) -> Error {
        let error = Error::new(code.kind(), format!("cuda: {what}: {}", self.describe(code)));
        match code.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// Turns what a call returned into a result.
    pub(super) fn check(&self, call: &str, code: Code) -> Result<()> {
        if code.is_success() { Ok(()) } else { Err(self.failed(call, code)) }
    }

    /// Makes the error of an allocation of `bytes` bytes, with what is free where that is known.
    pub(super) fn no_memory(&self, what: &str, bytes: u64, free: Option<u64>, code: Code) -> Error {
        if code != Code::OUT_OF_MEMORY {
            return self.failed(format!("{what}: {bytes} bytes"), code);
        }
        let free = free.map_or(String::new(), |free| format!(", free are {free}"));
        Error::new(Kind::Memory, format!("cuda: {what}: wanted {bytes} bytes{free}")).hint(MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_are_sorted_and_unknown_ones_are_told_by_number() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(Code(700).to_string(), "CUDA_ERROR_ILLEGAL_ADDRESS (700)");
        assert_eq!(Code(4711).to_string(), "error 4711");
        assert_eq!((Code(4711).hint(), Code(4711).kind()), (None, Kind::Device));
        assert_eq!(Code(2).kind(), Kind::Memory);
    }

    #[test]
    fn hints_say_what_each_fault_of_a_machine_needs() {
        for (code, part) in [
            (34, "stub"),
            (46, "exclusive mode"),
            (226, "compute-sanitizer"),
            (700, "CUDA_LAUNCH_BLOCKING=1"),
            (719, "--resume"),
            (721, "earlier"),
            (802, "fabric"),
            (803, "reboot"),
            (999, "nvidia-uvm"),
        ] {
            assert!(Code(code).hint().unwrap().contains(part), "{code}");
        }
    }
}
