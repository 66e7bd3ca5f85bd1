//! The NVIDIA driver as a device: primary context, one stream, the kernels of [`images::IMAGES`].
//!
//! Every call is one of cudarc's thin `result` layer, which looks the entry point up when it is first used and panics
//! where it is missing: [`Cuda::open`] therefore asks for all of them first. All work goes to one stream, because
//! [`Driver`] promises one order; an upload joins it from pinned memory and makes nobody wait.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUevent_flags, CUfunction_attribute, CUresult,
    CUstreamCaptureMode,
};
use cudarc::driver::{result, sys};

use super::lanes::Lanes;
use super::staging::Staging;
use super::{Driver, Identity, Launch, MARKS, Matrix, TensorMap};
use crate::backend::gpu::{images, probe};
use crate::error::{Error, Kind, Result};

/// Entry points that are called here or by the staging ring.
const SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
];

/// Dynamic shared memory that a kernel gets without asking, in bytes.
const SHARED_DEFAULT: u32 = 48 << 10;

/// `cuFuncGetParamInfo` of CUDA 12.4: offset and size of a parameter, an error behind the last one.
type ParamInfo = unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> c_int;

/// A kernel, loaded.
#[derive(Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory it may be launched with.
    shared: u32,
    /// The sizes of its parameters, where the driver tells.
    sizes: Option<Vec<u8>>,
    /// Whether it may start ahead of the end of the kernel before it.
    early: bool,
}

/// A module that was loaded at run time.
#[derive(Debug)]
struct Module(sys::CUmodule);

/// An NVIDIA GPU.
#[derive(Debug)]
pub struct Cuda {
    identity: Identity,
    ordinal: u32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<(&'static images::Image, sys::CUmodule)>,
    /// Modules of the caller's own.
    own: Mutex<Vec<Module>>,
    functions: Mutex<HashMap<&'static str, Function>>,
    param_info: Option<ParamInfo>,
    staging: Mutex<Option<Staging>>,
    lanes: Mutex<Option<Lanes>>,
    marks: [sys::CUevent; MARKS],
    graphs: Mutex<Vec<sys::CUgraphExec>>,
    capturing: AtomicBool,
}

// SAFETY: driver handles may be used by any thread in which their context is current, which `bind` sees to; all that
// changes is behind a mutex.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

/// Turns a failed call of the driver into an error that names it.
pub(super) fn check<T>(
    call: &'static str,
    result: std::result::Result<T, DriverError>,
) -> Result<T> {
    // The enum's own name: asking the driver for a text may fail as the call itself did.
    result.map_err(|error| Error::new(Kind::Device, format!("cuda: {call}: {:?}", error.0)))
}

/// Turns a failed allocation into an error that says what was wanted and what is free.
pub(super) fn check_memory(
    what: &str,
    bytes: u64,
    free: Option<u64>,
    DriverError(code): DriverError,
) -> Error {
    if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Error::new(Kind::Device, format!("cuda: {what}: {bytes} bytes: {code:?}"));
    }
    let free = free.map_or_else(|| "unknown".to_owned(), |free| free.to_string());
    Error::new(Kind::Memory, format!("cuda: {what}: wanted {bytes} bytes, free are {free}"))
        .hint("smaller packs, --set model.state=compact, or fewer trained parameters; `nepenthe plan` counts them")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// Takes the device of this number into use and loads all kernels.
    ///
    /// Errors: [`Kind::Device`] where there is no driver, no such device, one below capability 8.0, no kernel in this
    /// build, or kernels that the driver refuses.
    pub fn open(ordinal: u32) -> Result<Arc<Self>> {
        let count = probe::connect(&mut probe::Probe::default())?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(Error::new(
                Kind::Device,
                format!("no device {ordinal}, the driver shows {count}"),
            )
            .hint("check CUDA_VISIBLE_DEVICES, or use --device cpu"));
        }
        probe::require(SYMBOLS)?;
        let found = probe::describe(ordinal as i32)?;
        if !found.supported() {
            let (major, minor) = found.capability;
            return Err(Error::new(
                Kind::Device,
                format!(
                    "{} has compute capability {major}.{minor}, wanted 8.0 or more",
                    found.name
                ),
            )
            .hint("use --device cpu"));
        }
        if images::IMAGES.is_empty() {
            return Err(Error::new(
                Kind::Device,
                format!("this build carries no kernels: {}", images::WHY_EMPTY),
            )
            .hint("build where nvcc is found (docs/building.md), or use --device cpu"));
        }
        let device = check("cuDeviceGet", result::device::get(ordinal as c_int))?;
        let attribute = |which| {
            // SAFETY: `device` came from cuDeviceGet.
            check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })
                .map(|value| value.max(0) as u32)
        };
        let identity = Identity {
            name: found.name,
            capability: found.capability,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            total_bytes: found.total_bytes,
            cache_bytes: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        };
        // SAFETY: `device` came from cuDeviceGet; drop releases the context.
        let context =
            check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        // From here on drop gives back whatever is there.
        let mut cuda = Self {
            identity,
            ordinal,
            device,
            context,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            own: Mutex::default(),
            functions: Mutex::default(),
            // SAFETY: is_culib_present said that the library loads; the type is the one of cuda.h since 12.4.
            param_info: unsafe { sys::culib().get::<ParamInfo>(b"cuFuncGetParamInfo") }
                .ok()
                .map(|symbol| *symbol),
            staging: Mutex::new(None),
            lanes: Mutex::new(None),
            marks: [std::ptr::null_mut(); MARKS],
            graphs: Mutex::default(),
            capturing: AtomicBool::new(false),
        };
        cuda.bind()?;
        cuda.stream = check(
            "cuStreamCreate",
            result::stream::create(result::stream::StreamKind::NonBlocking),
        )?;
        cuda.staging = Mutex::new(Some(Staging::new()?));
        cuda.lanes = Mutex::new(Some(Lanes::new()?));
        for mark in &mut cuda.marks {
            let event = result::event::create(CUevent_flags::CU_EVENT_DEFAULT);
            *mark = check("cuEventCreate", event)?;
        }
        let hopper = cuda.identity.capability == (9, 0);
        for image in images::IMAGES.iter().filter(|image| hopper || !image.hopper) {
            // SAFETY: a context is current and the image is a fatbin of nvcc, aligned to 16 bytes.
            let module = unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) };
            cuda.modules.push((image, module.map_err(|error| refused(image, error))?));
        }
        Ok(Arc::new(cuda))
    }

    /// Makes the context current in this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until drop.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    /// Refuses what must not happen while work is recorded; makes the context current.
    fn outside_capture(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Device, format!("cuda: {what} inside captured work")));
        }
        self.bind()
    }

    fn named(&self) -> String {
        format!("{} (device {})", self.identity.name, self.ordinal)
    }

    /// Finds a kernel in the loaded modules.
    fn load(&self, kernel: &'static str) -> Result<Function> {
        let failed = |text: String| Error::new(Kind::Device, format!("cuda: {kernel}: {text}"));
        let name = CString::new(kernel).map_err(|e| failed(e.to_string()))?;
        let built_in =
            self.modules.iter().find_map(|(image, module)| Some((*module, image.kernel(kernel)?)));
        let handle = match built_in {
            // SAFETY: the module stays loaded until drop.
            Some((module, _)) => unsafe { result::module::get_function(module, name) }
                .map_err(|DriverError(code)| failed(format!("cuModuleGetFunction: {code:?}")))?,
            None => lock(&self.own)
                .iter()
                // SAFETY: as above.
                .find_map(|m| unsafe { result::module::get_function(m.0, name.clone()) }.ok())
                .ok_or_else(|| failed("no kernel of this name for this device".to_owned()))?,
        };
        let sizes = self.param_info.map(|ask| {
            let (mut sizes, mut offset, mut size) = (Vec::new(), 0, 0);
            // SAFETY: the function is alive; the call writes two numbers that live on this stack.
            while unsafe { ask(handle, sizes.len(), &mut offset, &mut size) } == 0 {
                sizes.push(u8::try_from(size).unwrap_or(u8::MAX));
            }
            sizes
        });
        // Code for other devices does not wait.
        let waits = built_in.is_some_and(|(_, found)| found.waits);
        let early = waits && self.identity.capability == (9, 0);
        Ok(Function { handle, shared: SHARED_DEFAULT, sizes, early })
    }

    /// Returns a kernel that may use `shared` bytes and takes arguments of these sizes, and whether it may start early.
    fn function(&self, launch: &Launch) -> Result<(sys::CUfunction, bool)> {
        let mut functions = lock(&self.functions);
        if !functions.contains_key(launch.kernel) {
            functions.insert(launch.kernel, self.load(launch.kernel)?);
        }
        let failed = |text: String| {
            Error::new(Kind::Device, format!("cuda: {launch}, {}: {text}", self.named()))
        };
        let Some(function) = functions.get_mut(launch.kernel) else {
            return Err(failed("not loaded".to_owned()));
        };
        if let Some(wanted) = &function.sizes
            && wanted != launch.args.sizes()
        {
            let got = launch.args.sizes();
            return Err(failed(format!("argument sizes {got:?}, wanted {wanted:?}")));
        }
        if launch.shared > function.shared {
            // SAFETY: the function is alive.
            let set = unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    launch.shared as i32,
                )
            };
            set.map_err(|DriverError(code)| {
                let most = self.identity.shared_bytes;
                failed(format!("cuFuncSetAttribute: {code:?}; a block has at most {most} bytes"))
            })?;
            function.shared = launch.shared;
        }
        Ok((function.handle, function.early))
    }

    /// Runs laps between neighbours of `events`, one more than there are laps, and returns the seconds of each.
    fn between(
        &self,
        events: &[sys::CUevent],
        work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        for (lap, event) in events.iter().enumerate() {
            self.bind()?;
            // SAFETY: event and stream are alive.
            check("cuEventRecord", unsafe { result::event::record(*event, self.stream) })?;
            if lap + 1 < events.len() {
                work(lap)?;
            }
        }
        self.sync()?;
        let seconds = |pair: &[sys::CUevent]| {
            // SAFETY: both were recorded on one stream, and all of its work has ended.
            check("cuEventElapsedTime", unsafe { result::event::elapsed(pair[0], pair[1]) })
                .map(|milliseconds| f64::from(milliseconds) / 1e3)
        };
        events.windows(2).map(seconds).collect()
    }
}

/// Says which kernels a driver refused, and what usually helps.
fn refused(image: &images::Image, DriverError(code): DriverError) -> Error {
    let nvcc = images::NVCC_VERSION.unwrap_or("unknown");
    Error::new(
        Kind::Device,
        format!("cuda: kernels {} (nvcc {nvcc}): cuModuleLoadData: {code:?}", image.file),
    )
    .hint("kernels of nvcc 13 need a driver of the 580 series or newer: update it, or build with an nvcc 12")
}

impl Driver for Cuda {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn free_bytes(&self) -> Option<u64> {
        self.bind().ok()?;
        result::mem_get_info().ok().map(|(free, _)| free as u64)
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.outside_capture("an allocation")?;
        // SAFETY: a context is current. The driver aligns to 256 bytes at least.
        unsafe { result::malloc_sync(bytes as usize) }
            .map_err(|error| check_memory(&self.named(), bytes, self.free_bytes(), error))
    }

    fn free(&self, address: u64) {
        if address != 0 && self.bind().is_ok() {
            // SAFETY: the caller gives back what alloc returned, once. The driver waits for work that uses it; what
            // it says of earlier failures was said by the call that failed.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.outside_capture("an upload")?;
        match lock(&self.staging).as_mut() {
            // SAFETY: the context is current, the range is the caller's, nothing is being captured.
            Some(staging) => unsafe { staging.send(address, bytes, self.stream) },
            None => Err(Error::new(Kind::Device, "cuda: no staging memory")),
        }
    }

    fn stage(&self, lane: usize, parts: &[(u64, &[u8])]) -> Result<()> {
        self.outside_capture("an upload")?;
        match lock(&self.lanes).as_mut() {
            // SAFETY: the context is current, the ranges are the caller's, nothing is being captured.
            Some(lanes) => unsafe { lanes.stage(lane, parts, self.stream) },
            None => Err(Error::new(Kind::Device, "cuda: no staging memory")),
        }
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.outside_capture("a download")?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is the caller's; `bytes` stays borrowed until the wait below has ended, also where the
        // copy failed.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) };
        // SAFETY: the stream is alive.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        check("cuMemcpyDtoHAsync", copied)?;
        check("cuStreamSynchronize", waited)
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is the caller's.
        let done = unsafe { result::memset_d8_async(address, value, bytes as usize, self.stream) };
        check("cuMemsetD8Async", done)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the ranges are the caller's and do not overlap.
        let done = unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) };
        check("cuMemcpyDtoDAsync", done)
    }

    fn tensor_map(&self, matrix: &Matrix) -> Result<TensorMap> {
        matrix.check()?;
        // Drivers before CUDA 12 do not have it, nor do they know a device that wants it.
        probe::require(&["cuTensorMapEncodeTiled"])?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let element = if matrix.wide {
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32
        } else {
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        };
        let size = [matrix.columns as u64, matrix.rows as u64];
        let copied = [matrix.box_columns(), matrix.box_rows as u32];
        // SAFETY: the map lives on this stack, is aligned as its type says, and the arrays have the lengths of rank 2.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                2,
                matrix.address as *mut std::ffi::c_void,
                size.as_ptr(),
                &matrix.pitch,
                copied.as_ptr(),
                [1u32, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", code.result())
            .map_err(|error| error.at(format!("{matrix:?}")))?;
        Ok(TensorMap(map.opaque))
    }

    fn launch(&self, mut launch: Launch) -> Result<()> {
        self.bind()?;
        let (function, early) = self.function(&launch)?;
        let [x, y, z] = launch.grid;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(early),
        };
        let mut addresses = launch.args.addresses();
        // SAFETY: the argument block has what the kernel takes (checked where the driver tells; the simulator checks
        // the same launches), and the driver copies it and the attribute before it returns.
        let started = unsafe {
            sys::cuLaunchKernelEx(&config, function, addresses.as_mut_ptr(), std::ptr::null_mut())
        }
        .result();
        started.map_err(|DriverError(code)| {
            Error::new(Kind::Device, format!("cuda: {launch}, {}: {code:?}", self.named()))
        })
    }

    fn load_ptx(&self, ptx: &str) -> Result<()> {
        self.outside_capture("loading PTX")?;
        let failed =
            |text: String| Error::new(Kind::Device, format!("cuda: PTX, {}: {text}", self.named()));
        let text = CString::new(ptx).map_err(|e| failed(e.to_string()))?;
        // SAFETY: a context is current, and the driver reads the text up to its end within the call.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let module = module.map_err(|DriverError(code)| {
            failed(format!("cuModuleLoadData: {code:?}"))
                .hint("ptxas -arch=native says what is wrong with the text")
        })?;
        lock(&self.own).push(Module(module));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.outside_capture("a wait")?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream) })
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<u64>> {
        self.outside_capture("a capture")?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not the legacy stream, which cannot be captured.
        check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.stream, mode) })?;
        self.capturing.store(true, Ordering::Relaxed);
        let worked = work();
        self.capturing.store(false, Ordering::Relaxed);
        // SAFETY: this thread began the capture. It must end, whatever came of the work.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        if let (Err(error), Ok(graph)) = (&worked, graph) {
            if !graph.is_null() {
                // SAFETY: the graph is ours and nothing was made of it.
                let _ = unsafe { result::graph::destroy(graph) };
            }
            return Err(Error::new(error.kind(), error.message()));
        }
        worked?;
        let graph = check("cuStreamEndCapture", graph)?;
        // SAFETY: the graph is ours; an executable graph does not need it any more.
        let made = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            made
        };
        let mut graphs = lock(&self.graphs);
        graphs.push(check("cuGraphInstantiate", made)?);
        Ok(Some(graphs.len() as u64 - 1))
    }

    fn replay(&self, graph: u64) -> Result<()> {
        self.outside_capture("a replay")?;
        let found = lock(&self.graphs).get(graph as usize).copied().ok_or_else(|| {
            Error::new(Kind::Device, format!("cuda: graph {graph} was never recorded"))
        })?;
        // SAFETY: graph and stream are alive until drop.
        check("cuGraphLaunch", unsafe { result::graph::launch(found, self.stream) })
    }

    fn mark(&self, at: usize) -> Result<()> {
        self.outside_capture("a mark")?;
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe { result::event::record(self.marks[at], self.stream) })
    }

    fn between_marks(&self, from: usize, to: usize) -> Result<f64> {
        self.outside_capture("a wait")?;
        let (from, to) = (self.marks[from], self.marks[to]);
        // SAFETY: the events are alive; one that was never recorded is an error of the second call.
        unsafe {
            check("cuEventSynchronize", result::event::synchronize(to))?;
            let milliseconds = check("cuEventElapsedTime", result::event::elapsed(from, to))?;
            Ok(f64::from(milliseconds) / 1e3)
        }
    }

    fn laps(&self, count: usize, work: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
        self.outside_capture("a measurement")?;
        let mut events = Vec::with_capacity(count + 1);
        let made = (0..=count).try_for_each(|_| {
            let event = result::event::create(CUevent_flags::CU_EVENT_DEFAULT);
            events.push(check("cuEventCreate", event)?);
            Ok(())
        });
        let seconds = made.and_then(|()| self.between(&events, work));
        for event in events {
            // SAFETY: made above, destroyed once; one that the device has not reached yet is destroyed when it has.
            let _ = unsafe { result::event::destroy(event) };
        }
        seconds
    }

    fn stream(&self) -> Option<u64> {
        Some(self.stream as u64)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            // SAFETY: every handle was made by this value and is given back once, after all work has ended. Failures
            // repeat what an earlier call said.
            unsafe {
                if !self.stream.is_null() {
                    let _ = result::stream::synchronize(self.stream);
                }
                for graph in lock(&self.graphs).drain(..) {
                    let _ = result::graph::exec_destroy(graph);
                }
                if let Some(lanes) = lock(&self.lanes).as_mut() {
                    lanes.release();
                }
                if let Some(staging) = lock(&self.staging).as_mut() {
                    staging.release();
                }
                for mark in self.marks.iter().filter(|mark| !mark.is_null()) {
                    let _ = result::event::destroy(*mark);
                }
                for (_, module) in self.modules.drain(..) {
                    let _ = result::module::unload(module);
                }
                for Module(module) in lock(&self.own).drain(..) {
                    let _ = result::module::unload(module);
                }
                if !self.stream.is_null() {
                    let _ = result::stream::destroy(self.stream);
                }
                let _ = result::ctx::set_current(std::ptr::null_mut());
            }
        }
        // SAFETY: pairs with the retain of open.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_on_a_machine_without_a_device_is_a_device_error() {
        match Cuda::open(0) {
            Ok(cuda) => assert!(cuda.identity().capability >= (8, 0)),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Device, "{error}");
                assert!(error.hint_text().is_some(), "{error}");
                eprintln!("skipped: no CUDA device: {}", error.message());
            }
        }
    }

    #[test]
    fn out_of_memory_names_wanted_and_free_bytes() {
        let error = check_memory("x", 10, Some(3), DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert_eq!(error.kind(), Kind::Memory);
        assert_eq!(error.message(), "cuda: x: wanted 10 bytes, free are 3");
        let other = check_memory("x", 10, None, DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(other.kind(), Kind::Device);
    }
}
