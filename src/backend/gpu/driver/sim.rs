//! The simulator as a device: kernels/sim/ and all kernels, compiled by g++ into one library that is loaded here.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use libloading::Library;

use super::{Driver, Identity, Launch, MARKS, Matrix, TensorMap, shared_limit};
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
    /// Seed of the random order.
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
    /// Work recorded by the capture in progress.
    recording: Mutex<Option<Vec<Work>>>,
    recorded: Mutex<Vec<Vec<Work>>>,
    /// Most recordings there may be.
    recordings: AtomicUsize,
    /// True if launches are only noted and checked, and no kernel runs.
    dry: AtomicBool,
    launched: Mutex<BTreeSet<&'static str>>,
    marks: Mutex<[Option<Instant>; MARKS]>,
}

/// A piece of recorded work.
#[derive(Debug, Clone)]
enum Work {
    Fill(u64, u8, u64),
    Copy(u64, u64, u64),
    Launch(Box<Launch>),
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("timing", &self.timing).finish_non_exhaustive()
    }
}

impl Simulator {
    /// Loads the simulator as a device of compute capability 8.0.
    ///
    /// Errors: [`Kind::Device`] where this build has none, with the reason.
    pub fn open(timing: Timing) -> Result<Arc<Self>> {
        Self::open_as(timing, (8, 0))
    }

    /// Loads the simulator as a device of this compute capability: 9.0 takes the kernels of kernels/sm90/, 8.6 and 8.9
    /// grant a block 99 KiB of shared memory.
    ///
    /// Errors: as [`Simulator::open`].
    pub fn open_as(timing: Timing, capability: (u32, u32)) -> Result<Arc<Self>> {
        let identity = Identity {
            name: "simulator".to_string(),
            capability,
            processors: 2,
            shared_bytes: shared_limit(capability),
            total_bytes: 4 << 30,
            cache_bytes: 4 << 10,
        };
        Ok(Arc::new(Self {
            api: api()?,
            identity,
            timing,
            recording: Mutex::default(),
            recorded: Mutex::default(),
            recordings: AtomicUsize::new(usize::MAX),
            dry: AtomicBool::new(false),
            launched: Mutex::default(),
            marks: Mutex::default(),
        }))
    }

    /// Records at most `most` pieces of work, and says of further ones that it could not, as a device without memory does.
    pub fn limit_recordings(&self, most: usize) {
        self.recordings.store(most, Ordering::Relaxed);
    }

    /// Checks launches from now on without running their kernels, or runs them again: to see which ones some work takes.
    pub fn run_kernels(&self, on: bool) {
        self.dry.store(!on, Ordering::Relaxed);
    }

    /// Returns the kernels that were launched.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        lock(&self.launched).clone()
    }

    /// Refuses what a device refuses while work is recorded.
    fn outside_capture(&self, what: &str) -> Result<()> {
        match lock(&self.recording).as_ref() {
            Some(_) => Err(failed(format!("simulator: {what} inside captured work"))),
            None => Ok(()),
        }
    }

    /// Records a piece of work; false where nothing is being recorded.
    fn records(&self, work: Work) -> bool {
        match lock(&self.recording).as_mut() {
            Some(list) => {
                list.push(work);
                true
            }
            None => false,
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.outside_capture("an allocation")?;
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
        self.outside_capture("an upload")?;
        // SAFETY: reads `bytes`; a device range that is not allocated is refused there.
        let code = unsafe {
            (self.api.upload)(address as *mut c_void, bytes.as_ptr().cast(), bytes.len())
        };
        self.copied("upload", address, bytes.len(), code)
    }

    fn stage(&self, _: usize, parts: &[(u64, &[u8])]) -> Result<()> {
        parts.iter().try_for_each(|(address, bytes)| self.upload(*address, bytes))
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.outside_capture("a download")?;
        // SAFETY: writes `bytes`; a device range that is not allocated is refused there.
        let code = unsafe {
            (self.api.download)(bytes.as_mut_ptr().cast(), address as *const c_void, bytes.len())
        };
        self.copied("download", address, bytes.len(), code)
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        if self.records(Work::Fill(address, value, bytes)) {
            return Ok(());
        }
        // SAFETY: a device range that is not allocated is refused there.
        let code = unsafe { (self.api.fill)(address as *mut c_void, value, bytes as usize) };
        self.copied("fill", address, bytes as usize, code)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        if self.records(Work::Copy(from, to, bytes)) {
            return Ok(());
        }
        // SAFETY: device ranges that are not allocated are refused there.
        let code =
            unsafe { (self.api.copy)(to as *mut c_void, from as *const c_void, bytes as usize) };
        self.copied("copy", to, bytes as usize, code)
    }

    fn tensor_map(&self, matrix: &Matrix) -> Result<TensorMap> {
        matrix.check()?;
        // `sim::TensorMap`: what a bulk copy asks for, in the words that the driver keeps to itself.
        let mut words = [0; 16];
        words[..7].copy_from_slice(&[
            matrix.address,
            matrix.columns as u64,
            matrix.rows as u64,
            matrix.pitch,
            matrix.element_bytes(),
            u64::from(matrix.box_columns()),
            matrix.box_rows as u64,
        ]);
        Ok(TensorMap(words))
    }

    fn launch(&self, mut launch: Launch) -> Result<()> {
        if self.records(Work::Launch(Box::new(launch))) {
            return Ok(());
        }
        let kernel = launch.kernel;
        let (most, asked) = (self.identity.shared_bytes, launch.shared);
        if asked > most {
            return Err(failed(format!(
                "{kernel}: {asked} bytes of shared memory; a block has at most {most} bytes"
            )));
        }
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
        lock(&self.launched).insert(kernel);
        if self.dry.load(Ordering::Relaxed) {
            return Ok(());
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
        self.outside_capture("a wait")
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<u64>> {
        self.outside_capture("a capture")?;
        *lock(&self.recording) = Some(Vec::new());
        let worked = work();
        let list = lock(&self.recording).take().unwrap_or_default();
        worked?;
        let mut recorded = lock(&self.recorded);
        if recorded.len() >= self.recordings.load(Ordering::Relaxed) {
            return Ok(None);
        }
        recorded.push(list);
        Ok(Some(recorded.len() as u64 - 1))
    }

    fn replay(&self, graph: u64) -> Result<()> {
        self.outside_capture("a replay")?;
        let list = lock(&self.recorded).get(graph as usize).cloned();
        let list =
            list.ok_or_else(|| failed(format!("simulator: graph {graph} was never recorded")))?;
        list.into_iter().try_for_each(|work| match work {
            Work::Fill(address, value, bytes) => self.fill(address, value, bytes),
            Work::Copy(from, to, bytes) => self.copy(from, to, bytes),
            Work::Launch(launch) => self.launch(*launch),
        })
    }

    fn mark(&self, at: usize) -> Result<()> {
        self.outside_capture("a mark")?;
        lock(&self.marks)[at] = Some(Instant::now());
        Ok(())
    }

    fn between_marks(&self, from: usize, to: usize) -> Result<f64> {
        let marks = lock(&self.marks);
        match (marks[from], marks[to]) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(from).as_secs_f64()),
            _ => Err(failed(format!("simulator: marks {from} and {to} were not both set"))),
        }
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
