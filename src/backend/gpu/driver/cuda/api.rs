//! The entry points of the NVIDIA driver, declared here and looked up at run time, so that one binary runs with and
//! without a driver.
//!
//! Every entry point returns an integer ([`Code`]): newer drivers return codes that no list of today holds, and one
//! outside of a Rust enum would be undefined behaviour. Names, types and numbers are those of cuda.h of CUDA 12.0,
//! which later versions keep.

use std::error::Error;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::backend::gpu::problem::{OLDEST, Problem, Version};

/// `CUresult` as an integer: a newer driver returns codes that are not listed here.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::gpu) struct Code(pub u32);

/// An opaque handle: a context, stream, event, module, function or graph.
pub(in crate::backend::gpu) type Handle = *mut c_void;

/// Names of the driver's library. The development name comes last: a toolkit has a stub library of that name.
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub(in crate::backend::gpu) const MULTIPROCESSOR_COUNT: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE`.
pub(in crate::backend::gpu) const L2_CACHE_SIZE: c_int = 38;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub(in crate::backend::gpu) const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub(in crate::backend::gpu) const CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub(in crate::backend::gpu) const SHARED_MEMORY_OPTIN: c_int = 97;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(super) const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_STREAM_NON_BLOCKING`.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(super) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub(super) const DISABLE_TIMING: c_uint = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(super) const PROGRAMMATIC: c_uint = 6;
/// `CU_TENSOR_MAP_DATA_TYPE_FLOAT32`.
pub(super) const MAP_FLOAT32: c_int = 7;
/// `CU_TENSOR_MAP_DATA_TYPE_BFLOAT16`.
pub(super) const MAP_BFLOAT16: c_int = 9;
/// `CU_TENSOR_MAP_INTERLEAVE_NONE` and `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`.
pub(super) const MAP_NONE: c_int = 0;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
pub(super) const MAP_SWIZZLE_128B: c_int = 3;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`.
pub(super) const MAP_PROMOTION_256B: c_int = 3;

/// `CUlaunchAttribute`: the value is a union of 64 bytes, of which the one attribute in use takes the first int.
#[repr(C)]
#[derive(Debug)]
pub(in crate::backend::gpu) struct LaunchAttribute {
    pub id: c_uint,
    pub pad: [u8; 4],
    pub value: c_int,
    pub rest: [c_int; 15],
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Debug)]
pub(in crate::backend::gpu) struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub stream: Handle,
    pub attributes: *mut LaunchAttribute,
    pub attribute_count: c_uint,
}

/// Declares the table of entry points and its two ways of looking them up.
macro_rules! table {
    (
        required { $($name:ident: $symbol:literal ($($type:ty),*),)* }
        optional { $($maybe:ident: $other:literal ($($kind:ty),*),)* }
    ) => {
        /// The entry points in use. Those that some supported driver lacks are optional.
        #[derive(Debug, Clone, Copy)]
        pub(in crate::backend::gpu) struct Api {
            /// The CUDA version that the driver supports.
            pub version: Version,
            $(pub $name: unsafe extern "C" fn($($type),*) -> Code,)*
            $(pub $maybe: Option<unsafe extern "C" fn($($kind),*) -> Code>,)*
        }

        impl Api {
            /// Looks every entry point up.
            fn find(library: &Library, version: Version) -> Result<Self, Problem> {
                Ok(Self {
                    version,
                    // SAFETY: each symbol has the type of its declaration in cuda.h.
                    $($name: unsafe { lookup(library, $symbol) }
                        .ok_or(Problem::NotADriver { symbol: $symbol })?,)*
                    // SAFETY: as above.
                    $($maybe: unsafe { lookup(library, $other) },)*
                })
            }
        }
    };
}

table! {
    required {
        init: "cuInit" (c_uint),
        device_count: "cuDeviceGetCount" (*mut c_int),
        device_get: "cuDeviceGet" (*mut c_int, c_int),
        device_name: "cuDeviceGetName" (*mut c_char, c_int, c_int),
        device_attribute: "cuDeviceGetAttribute" (*mut c_int, c_int, c_int),
        device_memory: "cuDeviceTotalMem_v2" (*mut usize, c_int),
        context_retain: "cuDevicePrimaryCtxRetain" (*mut Handle, c_int),
        context_release: "cuDevicePrimaryCtxRelease_v2" (c_int),
        context_push: "cuCtxPushCurrent_v2" (Handle),
        context_pop: "cuCtxPopCurrent_v2" (*mut Handle),
        context_set: "cuCtxSetCurrent" (Handle),
        memory_info: "cuMemGetInfo_v2" (*mut usize, *mut usize),
        memory_alloc: "cuMemAlloc_v2" (*mut u64, usize),
        memory_free: "cuMemFree_v2" (u64),
        host_alloc: "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint),
        host_free: "cuMemFreeHost" (*mut c_void),
        upload: "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, Handle),
        download: "cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, Handle),
        copy: "cuMemcpyDtoDAsync_v2" (u64, u64, usize, Handle),
        fill: "cuMemsetD8Async" (u64, u8, usize, Handle),
        module_load: "cuModuleLoadData" (*mut Handle, *const c_void),
        module_unload: "cuModuleUnload" (Handle),
        module_function: "cuModuleGetFunction" (*mut Handle, Handle, *const c_char),
        function_set: "cuFuncSetAttribute" (Handle, c_int, c_int),
        launch: "cuLaunchKernelEx" (*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void),
        stream_create: "cuStreamCreate" (*mut Handle, c_uint),
        stream_sync: "cuStreamSynchronize" (Handle),
        stream_wait: "cuStreamWaitEvent" (Handle, Handle, c_uint),
        stream_destroy: "cuStreamDestroy_v2" (Handle),
        event_create: "cuEventCreate" (*mut Handle, c_uint),
        event_record: "cuEventRecord" (Handle, Handle),
        event_sync: "cuEventSynchronize" (Handle),
        event_elapsed: "cuEventElapsedTime" (*mut f32, Handle, Handle),
        event_destroy: "cuEventDestroy_v2" (Handle),
        capture_begin: "cuStreamBeginCapture_v2" (Handle, c_int),
        capture_end: "cuStreamEndCapture" (Handle, *mut Handle),
        graph_instantiate: "cuGraphInstantiateWithFlags" (*mut Handle, Handle, c_ulonglong),
        graph_upload: "cuGraphUpload" (Handle, Handle),
        graph_launch: "cuGraphLaunch" (Handle, Handle),
        graph_destroy: "cuGraphDestroy" (Handle),
        graph_exec_destroy: "cuGraphExecDestroy" (Handle),
    }
    optional {
        // No device that lacks bulk copies needs it.
        tensor_map: "cuTensorMapEncodeTiled" (
            *mut c_void, c_int, u32, *mut c_void, *const u64, *const u64, *const u32, *const u32, c_int, c_int, c_int,
            c_int
        ),
        // Since CUDA 12.4.
        param_info: "cuFuncGetParamInfo" (Handle, usize, *mut usize, *mut usize),
        // Texts: an error is told without them too.
        error_name: "cuGetErrorName" (Code, *mut *const c_char),
        error_text: "cuGetErrorString" (Code, *mut *const c_char),
    }
}

/// Looks an entry point up; none where the library lacks it.
///
/// # Safety
/// `F` is the type of a function pointer, and of this entry point.
unsafe fn lookup<F: Copy>(library: &Library, symbol: &str) -> Option<F> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<F>(symbol.as_bytes()) }.ok().map(|found| *found)
}

/// Loads the driver, once in a process, and looks its entry points up; nothing of it is started.
///
/// Errors: [`Problem`]: there is none, it is damaged, or it is older than [`OLDEST`].
pub(in crate::backend::gpu) fn driver() -> Result<&'static Api, Problem> {
    static DRIVER: OnceLock<Result<(Api, Library), Problem>> = OnceLock::new();
    let found = DRIVER.get_or_init(|| {
        let library = library()?;
        let api = load(&library)?;
        Ok((api, library))
    });
    // The library stays loaded with the functions that lie in it.
    found.as_ref().map(|(api, _)| api).map_err(Problem::clone)
}

fn library() -> Result<Library, Problem> {
    let mut damaged = None;
    for name in NAMES {
        // SAFETY: loading the driver's library runs its initialisers, which every CUDA program relies on.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                // What the loader says is the error's source.
                let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                if !is_absent(name, &why) && damaged.is_none() {
                    damaged = Some(Problem::Unloadable { why });
                }
            }
        }
    }
    Err(damaged.unwrap_or(Problem::NoDriver))
}

/// Tells whether the loader found no library of this name, as opposed to one that does not load: of that, and of one
/// that lacks another library, it says something else.
fn is_absent(name: &str, why: &str) -> bool {
    cfg!(windows) || why.starts_with(&format!("{name}: cannot open shared object file"))
}

fn load(library: &Library) -> Result<Api, Problem> {
    const VERSION: &str = "cuDriverGetVersion";
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> Code;
    // SAFETY: the type is that of the declaration in cuda.h.
    let ask = unsafe { lookup::<GetVersion>(library, VERSION) }
        .ok_or(Problem::NotADriver { symbol: VERSION })?;
    let mut number = 0;
    // SAFETY: writes one int, which lives on this stack.
    let code = unsafe { ask(&mut number) };
    if !code.is_success() {
        let (number, hint) = (code.0, code.hint());
        return Err(Problem::Failed { call: VERSION, number, code: code.to_string(), hint });
    }
    // An old driver is told by its version, not by the first entry point that it lacks.
    let version = Version::from_driver(number);
    if version < OLDEST {
        return Err(Problem::TooOld { found: version });
    }
    Api::find(library, version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_cuda_h() {
        // CUlaunchAttribute: id, padding to 8, a union of 64 bytes; CUlaunchConfig: seven ints, three words.
        assert_eq!(
            (size_of::<LaunchAttribute>(), std::mem::offset_of!(LaunchAttribute, value)),
            (72, 8)
        );
        assert_eq!(
            (size_of::<LaunchConfig>(), std::mem::offset_of!(LaunchConfig, stream)),
            (56, 32)
        );
        assert_eq!(std::mem::offset_of!(LaunchConfig, attribute_count), 48);
    }

    #[cfg(not(windows))]
    #[test]
    fn a_library_that_does_not_load_is_told_from_none() {
        let name = "libcuda.so.1";
        let absent = "libcuda.so.1: cannot open shared object file: No such file or directory";
        assert!(is_absent(name, absent));
        for damaged in [
            "/usr/lib/libcuda.so.1: file too short",
            "libnvidia-other.so: cannot open shared object file: No such file or directory",
        ] {
            assert!(!is_absent(name, damaged), "{damaged}");
        }
    }

    #[test]
    fn the_drivers_own_name_comes_before_that_of_a_toolkits_stub() {
        assert!(cfg!(windows) || NAMES == ["libcuda.so.1", "libcuda.so"]);
    }
}
