//! The NVIDIA driver as a device: primary context, one stream, the kernels of [`images::IMAGES`].
//!
//! `api` declares the entry points, `code` says what they return, `handles` gives back what they hand out. All
//! work goes to one stream, because [`Driver`] promises one order; an upload joins it from pinned memory and makes nobody
//! wait.

pub(in crate::backend::gpu) mod api;
pub(in crate::backend::gpu) mod code;
mod graph;
mod handles;
mod lanes;
mod module;
mod staging;
#[cfg(test)]
mod tests;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::api::{
    Api, L2_CACHE_SIZE, LaunchAttribute, LaunchConfig, MAP_BFLOAT16, MAP_FLOAT32, MAP_NONE,
    MAP_PROMOTION_256B, MAP_SWIZZLE_128B, MULTIPROCESSOR_COUNT, PROGRAMMATIC,
};
use self::graph::Refused;
use self::handles::{Context, Event, GraphExec, Stream};
use self::lanes::Lanes;
use self::module::Kernels;
use self::staging::Staging;
use super::{Driver, Identity, Launch, MARKS, Matrix, TensorMap};
use crate::backend::gpu::images::{self, Image};
use crate::backend::gpu::probe::{self, Version};
use crate::error::{Error, Kind, Result};

/// The first driver whose graphs keep the order of kernels that start early: edges have data since CUDA 12.3.
const EDGE_DATA: Version = Version { major: 12, minor: 3 };
/// Free memory below which nothing more is recorded, in bytes: a graph of a step takes some megabytes of it.
const GRAPH_ROOM: u64 = 128 << 20;

/// An NVIDIA GPU.
#[derive(Debug)]
pub struct Cuda {
    // Dropped in this order, the context last.
    graphs: Mutex<Vec<GraphExec>>,
    lanes: Mutex<Lanes>,
    staging: Mutex<Staging>,
    kernels: Mutex<Kernels>,
    marks: [Event; MARKS],
    stream: Stream,
    context: Context,
    api: &'static Api,
    identity: Identity,
    ordinal: u32,
    capturing: AtomicBool,
    /// True if the caller did something that a capture does not allow.
    misused: AtomicBool,
    /// Messages that were written to stderr.
    notes: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// Takes the device of this number into use and loads its kernels.
    ///
    /// Errors: [`Kind::Device`] where there is no driver, no such device, one below capability 8.0, no kernel in this
    /// build, or kernels that the driver refuses; [`Kind::Memory`] where the device has no memory for them.
    pub fn open(ordinal: u32) -> Result<Arc<Self>> {
        Self::open_with(api::driver()?, ordinal, images::IMAGES, images::NVCC_VERSION)
    }

    /// Does the work of [`Cuda::open`] with these entry points and these kernels of this nvcc.
    fn open_with(
        api: &'static Api,
        ordinal: u32,
        images: &'static [Image],
        nvcc: Option<&'static str>,
    ) -> Result<Arc<Self>> {
        let count = probe::connect(api, nvcc)?;
        if i64::from(ordinal) >= i64::from(count) {
            return Err(Error::new(
                Kind::Device,
                format!("no device {ordinal}, the driver shows {count}"),
            )
            .hint("check CUDA_VISIBLE_DEVICES, or use --device cpu"));
        }
        let found = probe::identify(api, ordinal as c_int)?;
        let (major, minor) = found.capability;
        if !found.supported() {
            return Err(Error::new(
                Kind::Device,
                format!(
                    "{} has compute capability {major}.{minor}, wanted 8.0 or more",
                    found.name
                ),
            )
            .hint("use --device cpu"));
        }
        if images.is_empty() {
            return Err(Error::new(
                Kind::Device,
                format!("this build has no kernels: {}", images::WHY_EMPTY),
            )
            .hint("build where nvcc is found (docs/building.md), or use --device cpu"));
        }
        if found.capability == (9, 0) && api.tensor_map.is_none() {
            return Err(probe::Problem::NotADriver { symbol: "cuTensorMapEncodeTiled" }.into());
        }
        let attribute = |which| probe::attribute(api, ordinal as c_int, which);
        let identity = Identity {
            name: found.name,
            capability: found.capability,
            processors: attribute(MULTIPROCESSOR_COUNT)?,
            shared_bytes: found.shared_bytes,
            total_bytes: found.total_bytes,
            cache_bytes: u64::from(attribute(L2_CACHE_SIZE)?),
        };
        // What is made before a failure is given back in the opposite order, the context last.
        let context = Context::retain(api, ordinal as c_int)?;
        let stream = Stream::new(api)?;
        let marks = (0..MARKS).map(|_| Event::timing(api)).collect::<Result<Vec<_>>>()?;
        let marks: [Event; MARKS] = marks
            .try_into()
            .map_err(|_| Error::new(Kind::Device, "cuda: wrong number of events"))?;
        let kernels = Kernels::new(api, &identity, images)?;
        let compiled = kernels.compiled();
        let cuda = Self {
            graphs: Mutex::default(),
            staging: Mutex::new(Staging::new(api)?),
            lanes: Mutex::new(Lanes::new(api)?),
            kernels: Mutex::new(kernels),
            marks,
            stream,
            context,
            api,
            identity,
            ordinal,
            capturing: AtomicBool::new(false),
            misused: AtomicBool::new(false),
            notes: Mutex::default(),
        };
        if compiled > 0 {
            cuda.note(format!(
                "{}, compute capability {major}.{minor}: the driver compiles up to {compiled} files of kernels when they \
                 are first needed, and keeps them for later starts",
                cuda.identity.name
            ));
        }
        Ok(Arc::new(cuda))
    }

    /// Says something on stderr, once.
    fn note(&self, text: String) {
        let mut notes = lock(&self.notes);
        if !notes.contains(&text) {
            eprintln!("note: {text}");
            notes.push(text);
        }
    }

    /// Makes the context current in this thread.
    fn bind(&self) -> Result<()> {
        self.context.bind()
    }

    /// Refuses what must not happen while work is recorded; makes the context current.
    fn outside_capture(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            self.misused.store(true, Ordering::Relaxed);
            return Err(Error::new(Kind::Device, format!("cuda: {what} inside captured work")));
        }
        self.bind()
    }

    fn named(&self) -> String {
        format!("{} (device {})", self.identity.name, self.ordinal)
    }

    /// True if a kernel may now start before the previous one has ended.
    fn starts_early(&self) -> bool {
        // An older driver cannot record such an order.
        !self.capturing.load(Ordering::Relaxed) || self.api.version >= EDGE_DATA
    }

    /// Runs laps between neighbours of `events`, one more than there are laps, and returns the seconds of each.
    fn between(
        &self,
        events: &[Event],
        work: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        for (lap, event) in events.iter().enumerate() {
            self.bind()?;
            event.record(&self.stream)?;
            if lap + 1 < events.len() {
                work(lap)?;
            }
        }
        self.sync()?;
        events.windows(2).map(|pair| pair[0].seconds_to(&pair[1])).collect()
    }

    /// Records `work` and makes it ready to start; the inner error is the driver's, with which nothing was done.
    fn record(
        &self,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<std::result::Result<GraphExec, String>> {
        let said = |Refused { call, code }: Refused| format!("{call}: {}", self.api.describe(code));
        if let Err(refused) = graph::begin(self.api, &self.stream) {
            return Ok(Err(said(refused)));
        }
        self.misused.store(false, Ordering::Relaxed);
        self.capturing.store(true, Ordering::Relaxed);
        let worked = work();
        self.capturing.store(false, Ordering::Relaxed);
        let recorded = graph::end(self.api, &self.stream);
        if let Err(error) = worked {
            return match self.misused.load(Ordering::Relaxed) {
                true => Err(error),
                false => Ok(Err(error.message().to_owned())),
            };
        }
        let made = recorded.and_then(|graph| graph::instantiate(self.api, graph, &self.stream));
        Ok(made.map_err(said))
    }
}

impl Driver for Cuda {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn free_bytes(&self) -> Option<u64> {
        self.bind().ok()?;
        self.context.free_bytes()
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.outside_capture("an allocation")?;
        let mut address = 0;
        // SAFETY: a context is current; writes one address, which lives on this stack. The driver aligns to 256 bytes
        // at least.
        let code = unsafe { (self.api.memory_alloc)(&mut address, bytes as usize) };
        if code.is_success() {
            return Ok(address);
        }
        Err(self.api.no_memory(&self.named(), bytes, self.free_bytes(), code))
    }

    fn free(&self, address: u64) {
        if address != 0 && self.bind().is_ok() {
            // SAFETY: the caller gives back what alloc returned, once. The driver waits for work that uses it; what
            // it says of earlier failures was said by the call that failed.
            let _ = unsafe { (self.api.memory_free)(address) };
        }
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.outside_capture("an upload")?;
        // SAFETY: the context is current, the range is the caller's, nothing is being captured.
        unsafe { lock(&self.staging).send(address, bytes, &self.stream) }
    }

    fn stage(&self, lane: usize, parts: &[(u64, &[u8])]) -> Result<()> {
        self.outside_capture("an upload")?;
        // SAFETY: the context is current, the ranges are the caller's, nothing is being captured.
        unsafe { lock(&self.lanes).stage(lane, parts, &self.stream) }
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.outside_capture("a download")?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is the caller's; `bytes` stays borrowed until the wait below has ended, also where the
        // copy failed.
        let code = unsafe {
            (self.api.download)(bytes.as_mut_ptr().cast(), address, bytes.len(), self.stream.get())
        };
        let waited = self.stream.sync();
        self.api.check("cuMemcpyDtoHAsync", code)?;
        waited
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is the caller's.
        let code = unsafe { (self.api.fill)(address, value, bytes as usize, self.stream.get()) };
        self.api.check("cuMemsetD8Async", code)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the ranges are the caller's and do not overlap.
        let code = unsafe { (self.api.copy)(to, from, bytes as usize, self.stream.get()) };
        self.api.check("cuMemcpyDtoDAsync", code)
    }

    fn tensor_map(&self, matrix: &Matrix) -> Result<TensorMap> {
        matrix.check()?;
        let encode = self
            .api
            .tensor_map
            .ok_or_else(|| Error::new(Kind::Device, format!("{}: no tensor maps", self.named())))?;
        let mut map = TensorMap::default();
        let element = if matrix.wide { MAP_FLOAT32 } else { MAP_BFLOAT16 };
        let size = [matrix.columns as u64, matrix.rows as u64];
        let copied = [matrix.box_columns(), matrix.box_rows as u32];
        // SAFETY: the map lives on this stack, is aligned as its type says, and the arrays have the lengths of rank 2.
        let code = unsafe {
            encode(
                std::ptr::from_mut(&mut map).cast(),
                element,
                2,
                matrix.address as *mut c_void,
                size.as_ptr(),
                &matrix.pitch,
                copied.as_ptr(),
                [1u32, 1].as_ptr(),
                MAP_NONE,
                MAP_SWIZZLE_128B,
                MAP_PROMOTION_256B,
                MAP_NONE,
            )
        };
        self.api
            .check("cuTensorMapEncodeTiled", code)
            .map_err(|error| error.at(format!("{matrix:?}")))?;
        Ok(map)
    }

    fn launch(&self, mut launch: Launch) -> Result<()> {
        self.bind()?;
        let most = self.identity.shared_bytes;
        let ready = lock(&self.kernels).ready(&launch, &self.named(), most)?;
        let mut attribute =
            LaunchAttribute { id: PROGRAMMATIC, pad: [0; 4], value: 1, rest: [0; 15] };
        let config = LaunchConfig {
            grid: launch.grid,
            block: [launch.block, 1, 1],
            shared: launch.shared,
            stream: self.stream.get(),
            attributes: &mut attribute,
            attribute_count: u32::from(ready.early && self.starts_early()),
        };
        let mut addresses = launch.args.addresses();
        // SAFETY: the argument block has what the kernel takes (checked where the driver tells; the simulator checks
        // the same launches), and the driver copies it and the attribute before it returns.
        let code = unsafe {
            (self.api.launch)(&config, ready.handle, addresses.as_mut_ptr(), std::ptr::null_mut())
        };
        if code.is_success() {
            return Ok(());
        }
        Err(self.api.failed(format!("cuLaunchKernelEx: {launch}, {}", self.named()), code))
    }

    fn load_ptx(&self, ptx: &str) -> Result<()> {
        self.outside_capture("loading PTX")?;
        lock(&self.kernels).load_ptx(ptx, &self.named())
    }

    fn sync(&self) -> Result<()> {
        self.outside_capture("a wait")?;
        self.stream.sync()
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<u64>> {
        self.outside_capture("a capture")?;
        let why = match self.context.free_bytes() {
            Some(free) if free < GRAPH_ROOM => format!("only {free} bytes of the device are free"),
            _ => match self.record(work)? {
                Ok(graph) => {
                    let mut graphs = lock(&self.graphs);
                    graphs.push(graph);
                    return Ok(Some(graphs.len() as u64 - 1));
                }
                Err(why) => why,
            },
        };
        self.note(format!(
            "{}: no CUDA graph was made, kernels are started one by one, which changes no result ({why})",
            self.named()
        ));
        Ok(None)
    }

    fn replay(&self, graph: u64) -> Result<()> {
        self.outside_capture("a replay")?;
        let graphs = lock(&self.graphs);
        let found = graphs.get(graph as usize).ok_or_else(|| {
            Error::new(Kind::Device, format!("cuda: graph {graph} was never recorded"))
        })?;
        // SAFETY: graph and stream are alive until drop.
        let code = unsafe { (self.api.graph_launch)(found.get(), self.stream.get()) };
        self.api.check("cuGraphLaunch", code)
    }

    fn mark(&self, at: usize) -> Result<()> {
        self.outside_capture("a mark")?;
        self.marks[at].record(&self.stream)
    }

    fn between_marks(&self, from: usize, to: usize) -> Result<f64> {
        self.outside_capture("a wait")?;
        let (from, to) = (&self.marks[from], &self.marks[to]);
        to.wait()?;
        // An event that was never recorded is an error of this call.
        from.seconds_to(to)
    }

    fn laps(&self, count: usize, work: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
        self.outside_capture("a measurement")?;
        let events =
            (0..=count).map(|_| Event::timing(self.api)).collect::<Result<Vec<Event>>>()?;
        self.between(&events, work)
    }

    fn stream(&self) -> Option<u64> {
        Some(self.stream.get() as u64)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // The fields give back what they hold, in this thread, after all work has ended.
        let _ = self.bind().and_then(|()| self.stream.sync());
    }
}
