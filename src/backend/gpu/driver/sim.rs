//! The simulator as a device: kernels/sim/ and all kernels, compiled by g++ into one library that is loaded here.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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
    *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;
type LastError = unsafe extern "C" fn() -> *const c_char;
type MemAlloc = unsafe extern "C" fn(*mut *mut c_void, usize) -> c_int;
type MemFree = unsafe extern "C" fn(*mut c_void) -> c_int;
type SetOption = unsafe extern "C" fn(*const c_char, c_long);

struct Api {
    get_function: GetFunction,
    param_info: ParamInfo,
    launch_kernel: LaunchKernel,
    last_error: LastError,
    mem_alloc: MemAlloc,
    mem_free: MemFree,
    set_option: SetOption,
    // The functions above live in it.
    _library: Library,
}

/// The simulator keeps one set of options and one last error: launches take turns.
static TURN: Mutex<()> = Mutex::new(());

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
                last_error: get!(b"simLastError"),
                mem_alloc: get!(b"simMemAlloc"),
                mem_free: get!(b"simMemFree"),
                set_option: get!(b"simSetOption"),
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
}

impl Timing {
    /// The four corners that a kernel must agree on.
    pub const ALL: [Timing; 4] = [
        Timing { order: 0, eager: false },
        Timing { order: 1, eager: false },
        Timing { order: 0, eager: true },
        Timing { order: 1, eager: true },
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
        };
        Ok(Arc::new(Self { api: api()?, identity, timing }))
    }

    fn turn(&self) -> MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &CStr, value: c_long) {
        // SAFETY: the name is a C string; unknown names are ignored there.
        unsafe { (self.api.set_option)(name.as_ptr(), value) }
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
        let _turn = self.turn();
        // SAFETY: writes one pointer, which lives on this stack.
        match unsafe { (self.api.mem_alloc)(&mut out, bytes as usize) } {
            0 => Ok(out as u64),
            code => {
                Err(Error::new(Kind::Memory, format!("simulator: {bytes} bytes: error {code}")))
            }
        }
    }

    fn free(&self, address: u64) {
        let _turn = self.turn();
        // SAFETY: an address that was not allocated is refused there.
        let _ = unsafe { (self.api.mem_free)(address as *mut c_void) };
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller owns the device range, which is memory of this process and not `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as in upload.
        unsafe {
            std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        // SAFETY: as in upload.
        unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes as usize) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        // SAFETY: as in upload; overlapping ranges are moved correctly.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) };
        Ok(())
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
        let _turn = self.turn();
        self.set(c"order", c_long::from(self.timing.order));
        self.set(c"eager", c_long::from(self.timing.eager));
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
                std::ptr::null_mut(),
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a C string that stays until the next launch, which has to wait for its turn.
        let text =
            unsafe { CStr::from_ptr((self.api.last_error)()) }.to_string_lossy().into_owned();
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

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
