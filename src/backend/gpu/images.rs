//! The compiled kernels that this binary carries, one fatbin for each file of kernels/.

use sha2::{Digest, Sha256};

/// One compiled file of kernels/: machine code for sm_80 and sm_90a, and PTX for what comes after; of kernels/sm90/,
/// code for sm_90a alone.
#[derive(Debug)]
pub struct Image {
    /// The source file, from kernels/ on.
    pub file: &'static str,
    /// The fatbin, aligned to 16 bytes.
    pub fatbin: &'static [u8],
    /// True if only a device of compute capability 9.0 can load it.
    pub sm90: bool,
    /// The entry points, in the order of their names.
    pub kernels: &'static [Kernel],
    /// Output of ptxas: registers, shared memory and spills of each kernel and architecture.
    pub log: &'static str,
}

/// An entry point.
#[derive(Debug)]
pub struct Kernel {
    /// Its name, unique among all files.
    pub name: &'static str,
    /// The most threads of a block, by its launch bounds; 0 for none.
    pub threads: u32,
    /// True if it uses dynamic shared memory.
    pub dynamic: bool,
    /// True if its sm_90a code waits for earlier kernels itself, so that it may be launched before they end.
    pub waits: bool,
}

impl Image {
    /// Returns the architectures that it has code for, as ptxas names them.
    pub fn architectures(&self) -> &'static [&'static str] {
        if self.sm90 { &["sm_90a"] } else { &["sm_80", "sm_90a"] }
    }

    /// Returns the entry point of this name, if it has one.
    pub fn kernel(&self, name: &str) -> Option<&'static Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Returns the SHA-256 of the fatbin in lower-case hexadecimal digits.
    pub fn sha256(&self) -> String {
        Sha256::digest(self.fatbin).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the lines of the log that report a stack frame or spilled registers of a kernel.
    pub fn spills(&self) -> Vec<&'static str> {
        self.log
            .lines()
            .map(str::trim)
            .filter(|line| line.contains("bytes stack frame"))
            .filter(|line| {
                *line != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
            })
            .collect()
    }
}

/// Returns the image that holds the entry point `kernel`, if this build has it.
pub fn find(kernel: &str) -> Option<&'static Image> {
    IMAGES.iter().find(|image| image.kernel(kernel).is_some())
}

// The generated table uses it only where there are images.
#[allow(dead_code)]
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/images.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_kernels_without_spills_or_a_reason_to_be_none() {
        assert_eq!(IMAGES.is_empty(), !WHY_EMPTY.is_empty());
        assert_eq!(IMAGES.is_empty(), NVCC_VERSION.is_none());
        for image in IMAGES {
            assert_eq!(image.fatbin.as_ptr() as usize % 16, 0);
            let file = image.file;
            assert_eq!(image.fatbin[..4], 0xBA55_ED50_u32.to_le_bytes(), "{file}");
            assert!(!image.kernels.is_empty(), "{file}: no entry point");
            let unbound = image.kernels.iter().find(|kernel| kernel.threads == 0);
            assert!(unbound.is_none(), "{file}: no launch bounds: {unbound:?}");
            assert!(image.spills().is_empty(), "{file}: {:?}", image.spills());
            for target in ["sm_80", "sm_90a"] {
                let named = format!("for '{target}'");
                let found = image.log.lines().filter(|line| line.contains(&named)).count();
                let wanted =
                    if image.architectures().contains(&target) { image.kernels.len() } else { 0 };
                assert_eq!(found, wanted, "{file}: {target}");
            }
            assert_eq!(image.sha256().len(), 64);
        }
    }

    #[test]
    fn find_knows_the_update_when_there_are_images_and_nothing_else() {
        assert_eq!(find("update_sgd_compact_bf16").is_some(), !IMAGES.is_empty());
        assert!(find("no_such_kernel").is_none());
    }

    #[test]
    fn spills_names_a_line_with_spill_stores() {
        let log = "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n    \
                   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        let image = Image { file: "x.cu", fatbin: &[], sm90: false, kernels: &[], log };
        assert_eq!(image.spills().len(), 1);
    }
}
