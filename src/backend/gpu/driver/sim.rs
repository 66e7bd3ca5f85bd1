//! The simulator as a device: kernels/sim/ and all kernels, compiled by g++ into one library that is loaded here.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use libloading::Library;

use super::{Driver, Identity, Launch};
use crate::error::{Error, Kind, Result};

/// The library that build.rs made; empty where it could not.
const LIBRARY: &str = env!("NEPENTHE_SIM_LIBRARY");
/// Why there is none.
const WHY_NONE: &str = env!("NEPENTHE_SIM_WHY_NONE");

type Function = *const c_void;
type GetFunction = unsafe extern "C" fn(*const c_char) -> Function;
type ParamInfo = unsafe extern "C" fn(Function, u32, *mut u32) -> c_int;
type LaunchKernel = unsafe extern "C" fn(
    Function,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    *mut LaunchOptions,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;
type MemAlloc = unsafe extern "C" fn(*mut *mut c_void, usize) -> c_int;
type MemFree = unsafe extern "C" fn(*mut c_void) -> c_int;
type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> c_int;
type Fill = unsafe extern "C" fn(*mut c_void, u8, usize) -> c_int;

/// `SimLaunchOptions` of kernels/sim/launch.cpp.
#[repr(C)]
struct LaunchOptions {
    order: u32,
    eager: u32,
    shift: u32,
    seed: u32,
    report: [c_char; 4096],
}

struct Api {
    get_function: GetFunction,
    param_info: ParamInfo,
    launch_kernel: LaunchKernel,
    mem_alloc: MemAlloc,
    mem_free: MemFree,
    upload: Copy,
    download: Copy,
    copy: Copy,
    fill: Fill,
    // The functions above live in it.
    _library: Library,
}

fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    API.get_or_init(|| {
        if LIBRARY.is_empty() {
            return Err(WHY_NONE.to_string());
        }
        // SAFETY: the library was built from kernels/ by this package's build script; its initialisers only
        // register kernels, and each symbol has the type of its declaration in kernels/sim/.
        unsafe {
            let library = Library::new(LIBRARY).map_err(|e| e.to_string())?;
            macro_rules! get {
                ($name:literal) => {
                    *library.get($name).map_err(|e: libloading::Error| e.to_string())?
                };
            }
            Ok(Api {
                get_function: get!(b"simGetFunction"),
                param_info: get!(b"simParamInfo"),
                launch_kernel: get!(b"simLaunchKernel"),
                mem_alloc: get!(b"simMemAlloc"),
                mem_free: get!(b"simMemFree"),
                upload: get!(b"simMemcpyHtoD"),
                download: get!(b"simMemcpyDtoH"),
                copy: get!(b"simMemcpyDtoD"),
                fill: get!(b"simMemsetD8"),
                _library: library,
            })
        }
    })
    .as_ref()
    .map_err(|why| Error::new(Kind::Device, format!("no simulator: {why}")))
}

/// When asynchronous work happens, and in which order threads run; results must not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Threads run in rising (0), falling (1) or random (2) order.
    pub order: u8,
    /// Copies happen when they are issued (true) or as late as is legal.
    pub eager: bool,
    /// Where shared memory begins, in bytes from where it usually does: a multiple of 128, at most 1024.
    pub shift: u16,
    /// What the random order follows from.
    pub seed: u32,
}

impl Timing {
    const fn new(order: u8, eager: bool, shift: u16) -> Self {
        Self { order, eager, shift, seed: 1 }
    }

    /// The corners that a kernel must agree on: the first four are orders and copies, then a random order, then
    /// shared memory that is aligned to 128 bytes and no more.
    pub const ALL: [Timing; 6] = [
        Timing::new(0, false, 0),
        Timing::new(1, false, 0),
        Timing::new(0, true, 0),
        Timing::new(1, true, 0),
        Timing::new(2, false, 0),
        Timing::new(0, false, 128),
    ];
}

/// The simulated device.
pub struct Simulator {
    api: &'static Api,
    identity: Identity,
    timing: Timing,
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("timing", &self.timing).finish_non_exhaustive()
    }
}

impl Simulator {
    /// Loads the simulator.
    ///
    /// Errors: [`Kind::Device`] where this build has none, with the reason.
    pub fn open(timing: Timing) -> Result<Arc<Self>> {
        let identity = Identity {
            name: "simulator".to_string(),
            capability: (8, 0),
            processors: 2,
            shared_bytes: 163 * 1024,
            total_bytes: 4 << 30,
            cache_bytes: 4 << 10,
        };
        Ok(Arc::new(Self { api: api()?, identity, timing }))
    }

    fn copied(&self, what: &str, address: u64, bytes: usize, code: c_int) -> Result<()> {
        match code {
            0 => Ok(()),
            _ => Err(failed(format!(
                "simulator: {what} of {bytes} bytes at {address:#x} is out of bounds"
            ))),
        }
    }
}

fn failed(message: String) -> Error {
    Error::new(Kind::Device, message)
}

impl Driver for Simulator {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        let mut out = std::ptr::null_mut();
        // SAFETY: writes one pointer, which lives on this stack.
        match unsafe { (self.api.mem_alloc)(&mut out, bytes as usize) } {
            0 => Ok(out as u64),
            code => {
                Err(Error::new(Kind::Memory, format!("simulator: {bytes} bytes: error {code}")))
            }
        }
    }

    fn free(&self, address: u64) {
        // SAFETY: an address that was not allocated is refused there.
        let _ = unsafe { (self.api.mem_free)(address as *mut c_void) };
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: reads `bytes`; a device range that is not allocated is refused there.
        let code = unsafe {
            (self.api.upload)(address as *mut c_void, bytes.as_ptr().cast(), bytes.len())
        };
        self.copied("upload", address, bytes.len(), code)
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: writes `bytes`; a device range that is not allocated is refused there.
        let code = unsafe {
            (self.api.download)(bytes.as_mut_ptr().cast(), address as *const c_void, bytes.len())
        };
        self.copied("download", address, bytes.len(), code)
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        // SAFETY: a device range that is not allocated is refused there.
        let code = unsafe { (self.api.fill)(address as *mut c_void, value, bytes as usize) };
        self.copied("fill", address, bytes as usize, code)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        // SAFETY: device ranges that are not allocated are refused there.
        let code =
            unsafe { (self.api.copy)(to as *mut c_void, from as *const c_void, bytes as usize) };
        self.copied("copy", to, bytes as usize, code)
    }

    fn launch(&self, mut launch: Launch) -> Result<()> {
        let kernel = launch.kernel;
        let name = CString::new(kernel).map_err(|e| failed(format!("{kernel}: {e}")))?;
        // SAFETY: the name is a C string.
        let function = unsafe { (self.api.get_function)(name.as_ptr()) };
        if function.is_null() {
            return Err(failed(format!("{kernel}: no kernel of this name in the simulator")));
        }
        let mut wanted = Vec::new();
        let mut size = 0;
        // SAFETY: the function is a kernel's handle; writes one u32.
        while unsafe { (self.api.param_info)(function, wanted.len() as u32, &mut size) } == 0 {
            wanted.push(size as u8);
        }
        if wanted != launch.args.sizes() {
            let got = launch.args.sizes();
            return Err(failed(format!("{kernel}: argument sizes {got:?}, wanted {wanted:?}")));
        }
        let [x, y, z] = launch.grid;
        let mut addresses = launch.args.addresses();
        let mut options = LaunchOptions {
            order: u32::from(self.timing.order),
            eager: u32::from(self.timing.eager),
            shift: u32::from(self.timing.shift),
            seed: self.timing.seed,
            report: [0; 4096],
        };
        // SAFETY: the argument block has the sizes the kernel wants; faults inside come back as an error code.
        let code = unsafe {
            (self.api.launch_kernel)(
                function,
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.shared,
                &mut options,
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the launch ends its report with a zero, within the array.
        let text = unsafe { CStr::from_ptr(options.report.as_ptr()) }.to_string_lossy();
        Err(failed(format!("{launch}: {text}")))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<u64>> {
        work().map(|()| None)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        Err(failed(format!("simulator: graph {graph} was never recorded")))
    }

    fn laps(&self, count: usize, work: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
        (0..count)
            .map(|lap| {
                let start = Instant::now();
                work(lap)?;
                Ok(start.elapsed().as_secs_f64())
            })
            .collect()
    }

    fn stream(&self) -> Option<u64> {
        None
    }
}
