//! The GPU side of this version: the compiled kernels and what the driver says; no op is launched yet.
//!
//! [`images`] holds the kernels of kernels/ that the compact state needs (update, teacher, norm, casts), compiled
//! by build.rs where an nvcc is found. [`driver`] asks the NVIDIA driver what devices there are. The launch of
//! the op catalogue is not in this version: [`refuse`] is the answer to `--device cuda`.

pub mod driver;
pub mod images;

use crate::error::{Error, Kind};

/// Returns the error that answers a request for device `cuda`: the kind is [`Kind::Device`].
///
/// A driver problem is named first where there is one, so that the user need not find it in a later version.
pub fn refuse(probe: &driver::Probe) -> Error {
    let found = match (&probe.problem, probe.devices.first()) {
        (Some(problem), _) => format!("; also, {problem}"),
        (None, Some(device)) => format!("; {} is there but stays unused", device.name),
        (None, None) => String::new(),
    };
    Error::new(
        Kind::Device,
        format!("device cuda: this version computes on the CPU only and launches no kernel{found}"),
    )
    .hint("use --device cpu; `nepenthe doctor` shows the driver, the devices and the compiled kernels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuse_is_a_device_error_with_a_hint() {
        let error = refuse(&driver::probe());
        assert_eq!(error.kind(), Kind::Device);
        assert_eq!(error.kind().exit_code(), 6);
        assert!(error.message().starts_with("device cuda: "), "{error}");
        assert!(!error.message().contains('\n'), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("--device cpu")));
    }
}
