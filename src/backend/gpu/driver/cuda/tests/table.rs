//! Entry points that a test tells what to return. Each test thread has a driver of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};

use super::super::api::Code;
use super::super::api::{
    Api, CAPABILITY_MAJOR, CAPABILITY_MINOR, Handle, LaunchAttribute, LaunchConfig,
    SHARED_MEMORY_OPTIN,
};
use crate::backend::gpu::driver::shared_limit;
use crate::backend::gpu::images::{Image, Kernel};
use crate::backend::gpu::probe::Version;

/// Calls that give something back; their failure is nobody's to tell.
pub(super) const GIVES_BACK: [&str; 8] = [
    "cuDevicePrimaryCtxRelease",
    "cuMemFree",
    "cuMemFreeHost",
    "cuModuleUnload",
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// A driver: what it is, and what it has done.
#[derive(Debug)]
pub(super) struct Fake {
    pub version: (u32, u32),
    pub capability: (u32, u32),
    pub free: u64,
    pub(super) counts: BTreeMap<String, u32>,
    pub(super) failures: Vec<(String, u32, u32)>,
    /// Handles that were created and not destroyed.
    pub(super) live: Vec<(&'static str, usize)>,
    pub(super) next: usize,
    pub(super) pinned: Vec<Vec<u8>>,
    pub(super) attributes: Vec<u32>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            version: (13, 0),
            capability: (9, 0),
            free: 70 << 30,
            counts: BTreeMap::new(),
            failures: Vec::new(),
            live: Vec::new(),
            next: 4096,
            pinned: Vec::new(),
            attributes: Vec::new(),
        }
    }
}

thread_local! {
    static FAKE: RefCell<Fake> = RefCell::default();
}

const fn kernel(name: &'static str, waits: bool) -> Kernel {
    Kernel { name, threads: 32, dynamic: false, waits }
}

/// Three files of kernels, the last one for compute capability 9.0 alone.
pub(super) static IMAGES: &[Image] = &[
    Image {
        file: "a.cu",
        fatbin: b"plain waits",
        sm90: false,
        kernels: &[kernel("plain", false), kernel("waits", true)],
        log: "",
    },
    Image {
        file: "b.cu",
        fatbin: b"other",
        sm90: false,
        kernels: &[kernel("other", false)],
        log: "",
    },
    Image { file: "c.cu", fatbin: b"sm90", sm90: true, kernels: &[kernel("sm90", false)], log: "" },
];

fn state<T>(change: impl FnOnce(&mut Fake) -> T) -> T {
    FAKE.with_borrow_mut(change)
}

/// Takes a driver into use in this thread.
pub(super) fn with(fake: Fake) {
    state(|now| *now = fake);
}

/// Lets the call of this name that has this number return `code`.
pub(super) fn fail(call: &str, at: u32, code: u32) {
    state(|fake| fake.failures.push((call.to_owned(), at, code)));
}

/// Returns how often each call was made.
pub(super) fn calls() -> Vec<(String, u32)> {
    state(|fake| fake.counts.iter().map(|(call, count)| (call.clone(), *count)).collect())
}

/// Returns how often a call was made.
pub(super) fn count(call: &str) -> u32 {
    state(|fake| fake.counts.get(call).copied().unwrap_or(0))
}

/// Lists what was not given back.
pub(super) fn live() -> Vec<String> {
    state(|fake| fake.live.iter().map(|(kind, at)| format!("{kind} {at:#x}")).collect())
}

/// Returns how many attributes each launch had.
pub(super) fn attributes() -> Vec<u32> {
    state(|fake| fake.attributes.clone())
}

/// Forgets the attributes of earlier launches.
pub(super) fn forget_attributes() {
    state(|fake| fake.attributes.clear());
}

/// Counts a call and says what it returns.
fn call(name: &str) -> Code {
    state(|fake| {
        let count = fake.counts.entry(name.to_owned()).or_default();
        *count += 1;
        let (name, count) = (name, *count);
        let failure = fake.failures.iter().find(|(call, at, _)| call == name && *at == count);
        Code(failure.map_or(0, |(_, _, code)| *code))
    })
}

/// Hands out a handle of a kind, unless the call fails.
fn create(name: &str, kind: &'static str, out: *mut Handle) -> Code {
    let code = call(name);
    if code.is_success() {
        let at = state(|fake| {
            fake.next += 16;
            fake.live.push((kind, fake.next));
            fake.next
        });
        // SAFETY: the caller hands over a place for a handle.
        unsafe { *out = at as Handle };
    }
    code
}

/// Takes a handle back, also where the call fails: what comes of it is up to the driver then.
fn destroy(name: &str, kind: &'static str, handle: usize) -> Code {
    state(|fake| {
        match fake.live.iter().position(|one| *one == (kind, handle)) {
            Some(at) => {
                fake.live.remove(at);
            }
            // Given back twice, or never handed out: no test that looks at what is left passes.
            None => fake.live.push(("stranger", handle)),
        }
    });
    call(name)
}

unsafe extern "C" fn init(_: c_uint) -> Code {
    call("cuInit")
}

unsafe extern "C" fn device_count(out: *mut c_int) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { *out = 1 };
    call("cuDeviceGetCount")
}

unsafe extern "C" fn device_get(out: *mut c_int, ordinal: c_int) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { *out = ordinal };
    call("cuDeviceGet")
}

unsafe extern "C" fn device_name(out: *mut c_char, _: c_int, _: c_int) -> Code {
    // SAFETY: as the entry point of this name: there is room for more.
    unsafe { std::ptr::copy_nonoverlapping(c"Fake".as_ptr(), out, 5) };
    call("cuDeviceGetName")
}

unsafe extern "C" fn device_attribute(out: *mut c_int, which: c_int, _: c_int) -> Code {
    let capability = state(|fake| fake.capability);
    let value = match which {
        CAPABILITY_MAJOR => capability.0,
        CAPABILITY_MINOR => capability.1,
        SHARED_MEMORY_OPTIN => shared_limit(capability),
        _ => 1,
    };
    // SAFETY: as the entry point of this name.
    unsafe { *out = value as c_int };
    call("cuDeviceGetAttribute")
}

unsafe extern "C" fn device_memory(out: *mut usize, _: c_int) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { *out = 80 << 30 };
    call("cuDeviceTotalMem")
}

unsafe extern "C" fn context_retain(out: *mut Handle, _: c_int) -> Code {
    let code = create("cuDevicePrimaryCtxRetain", "context", out);
    if code.is_success() {
        // A device has one.
        state(|fake| fake.live.last_mut().unwrap().1 = 1);
    }
    code
}

unsafe extern "C" fn context_release(_: c_int) -> Code {
    destroy("cuDevicePrimaryCtxRelease", "context", 1)
}

unsafe extern "C" fn context_push(_: Handle) -> Code {
    call("cuCtxPushCurrent")
}

unsafe extern "C" fn context_pop(_: *mut Handle) -> Code {
    call("cuCtxPopCurrent")
}

unsafe extern "C" fn context_set(_: Handle) -> Code {
    call("cuCtxSetCurrent")
}

unsafe extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { (*free, *total) = (state(|fake| fake.free) as usize, 80 << 30) };
    call("cuMemGetInfo")
}

unsafe extern "C" fn memory_alloc(out: *mut u64, _: usize) -> Code {
    let mut handle = std::ptr::null_mut();
    let code = create("cuMemAlloc", "memory", &mut handle);
    // SAFETY: as the entry point of this name.
    unsafe { *out = handle as u64 };
    code
}

unsafe extern "C" fn memory_free(at: u64) -> Code {
    destroy("cuMemFree", "memory", at as usize)
}

unsafe extern "C" fn host_alloc(out: *mut *mut c_void, bytes: usize, _: c_uint) -> Code {
    let code = create("cuMemHostAlloc", "pinned", out);
    if code.is_success() {
        // The host writes to it: real memory.
        let mut owned = vec![1u8; bytes];
        let memory = owned.as_mut_ptr();
        state(|fake| fake.pinned.push(owned));
        // SAFETY: as the entry point of this name.
        unsafe { *out = memory.cast() };
        state(|fake| fake.live.last_mut().unwrap().1 = memory as usize);
    }
    code
}

unsafe extern "C" fn host_free(at: *mut c_void) -> Code {
    state(|fake| fake.pinned.retain(|owned| !std::ptr::eq(owned.as_ptr(), at.cast())));
    destroy("cuMemFreeHost", "pinned", at as usize)
}

unsafe extern "C" fn upload(_: u64, _: *const c_void, _: usize, _: Handle) -> Code {
    call("cuMemcpyHtoDAsync")
}

unsafe extern "C" fn download(_: *mut c_void, _: u64, _: usize, _: Handle) -> Code {
    call("cuMemcpyDtoHAsync")
}

unsafe extern "C" fn copy(_: u64, _: u64, _: usize, _: Handle) -> Code {
    call("cuMemcpyDtoDAsync")
}

unsafe extern "C" fn fill(_: u64, _: u8, _: usize, _: Handle) -> Code {
    call("cuMemsetD8Async")
}

unsafe extern "C" fn module_load(out: *mut Handle, _: *const c_void) -> Code {
    create("cuModuleLoadData", "module", out)
}

unsafe extern "C" fn module_unload(module: Handle) -> Code {
    destroy("cuModuleUnload", "module", module as usize)
}

unsafe extern "C" fn module_function(out: *mut Handle, _: Handle, _: *const c_char) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { *out = 64 as Handle };
    call("cuModuleGetFunction")
}

unsafe extern "C" fn function_set(_: Handle, _: c_int, _: c_int) -> Code {
    call("cuFuncSetAttribute")
}

unsafe extern "C" fn launch(
    config: *const LaunchConfig,
    _: Handle,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) -> Code {
    // SAFETY: as the entry point of this name.
    let config = unsafe { &*config };
    // SAFETY: there is one attribute, whether it counts or not.
    let LaunchAttribute { id, value, .. } = unsafe { &*config.attributes };
    assert_eq!((*id, *value), (6, 1));
    state(|fake| fake.attributes.push(config.attribute_count));
    call("cuLaunchKernelEx")
}

unsafe extern "C" fn stream_create(out: *mut Handle, _: c_uint) -> Code {
    create("cuStreamCreate", "stream", out)
}

unsafe extern "C" fn stream_sync(_: Handle) -> Code {
    call("cuStreamSynchronize")
}

unsafe extern "C" fn stream_wait(_: Handle, _: Handle, _: c_uint) -> Code {
    call("cuStreamWaitEvent")
}

unsafe extern "C" fn stream_destroy(stream: Handle) -> Code {
    destroy("cuStreamDestroy", "stream", stream as usize)
}

unsafe extern "C" fn event_create(out: *mut Handle, _: c_uint) -> Code {
    create("cuEventCreate", "event", out)
}

unsafe extern "C" fn event_record(_: Handle, _: Handle) -> Code {
    call("cuEventRecord")
}

unsafe extern "C" fn event_sync(_: Handle) -> Code {
    call("cuEventSynchronize")
}

unsafe extern "C" fn event_elapsed(out: *mut f32, _: Handle, _: Handle) -> Code {
    // SAFETY: as the entry point of this name.
    unsafe { *out = 2.0 };
    call("cuEventElapsedTime")
}

unsafe extern "C" fn event_destroy(event: Handle) -> Code {
    destroy("cuEventDestroy", "event", event as usize)
}

unsafe extern "C" fn capture_begin(_: Handle, _: c_int) -> Code {
    call("cuStreamBeginCapture")
}

unsafe extern "C" fn capture_end(_: Handle, out: *mut Handle) -> Code {
    create("cuStreamEndCapture", "graph", out)
}

unsafe extern "C" fn graph_instantiate(out: *mut Handle, _: Handle, _: c_ulonglong) -> Code {
    create("cuGraphInstantiate", "ready graph", out)
}

unsafe extern "C" fn graph_upload(_: Handle, _: Handle) -> Code {
    call("cuGraphUpload")
}

unsafe extern "C" fn graph_launch(_: Handle, _: Handle) -> Code {
    call("cuGraphLaunch")
}

unsafe extern "C" fn graph_destroy(graph: Handle) -> Code {
    destroy("cuGraphDestroy", "graph", graph as usize)
}

unsafe extern "C" fn graph_exec_destroy(graph: Handle) -> Code {
    destroy("cuGraphExecDestroy", "ready graph", graph as usize)
}

unsafe extern "C" fn tensor_map(
    _: *mut c_void,
    _: c_int,
    _: u32,
    _: *mut c_void,
    _: *const u64,
    _: *const u64,
    _: *const u32,
    _: *const u32,
    _: c_int,
    _: c_int,
    _: c_int,
    _: c_int,
) -> Code {
    call("cuTensorMapEncodeTiled")
}

/// Every kernel takes a number of four bytes and an address.
unsafe extern "C" fn param_info(_: Handle, at: usize, _: *mut usize, size: *mut usize) -> Code {
    match (call("cuFuncGetParamInfo"), [4, 8].get(at)) {
        (Code(0), Some(bytes)) => {
            // SAFETY: as the entry point of this name.
            unsafe { *size = *bytes };
            Code(0)
        }
        (Code(0), None) => Code(1),
        (code, _) => code,
    }
}

/// Codes from 1000 on are unknown to the driver.
unsafe fn say(code: Code, out: *mut *const c_char, text: String) -> Code {
    if code.0 >= 1000 {
        return Code(1);
    }
    let text = Box::leak(CString::new(text).unwrap().into_boxed_c_str());
    // SAFETY: as the entry points that call this.
    unsafe { *out = text.as_ptr() };
    Code(0)
}

unsafe extern "C" fn error_name(code: Code, out: *mut *const c_char) -> Code {
    // SAFETY: handed on.
    unsafe { say(code, out, format!("CUDA_ERROR_{}", code.0)) }
}

unsafe extern "C" fn error_text(code: Code, out: *mut *const c_char) -> Code {
    // SAFETY: handed on.
    unsafe { say(code, out, format!("text of {}", code.0)) }
}

/// Returns the entry points, which act on the driver of the thread that calls them.
pub(super) fn fake() -> &'static Api {
    let (major, minor) = state(|fake| fake.version);
    Box::leak(Box::new(Api {
        version: Version { major, minor },
        init,
        device_count,
        device_get,
        device_name,
        device_attribute,
        device_memory,
        context_retain,
        context_release,
        context_push,
        context_pop,
        context_set,
        memory_info,
        memory_alloc,
        memory_free,
        host_alloc,
        host_free,
        upload,
        download,
        copy,
        fill,
        module_load,
        module_unload,
        module_function,
        function_set,
        launch,
        stream_create,
        stream_sync,
        stream_wait,
        stream_destroy,
        event_create,
        event_record,
        event_sync,
        event_elapsed,
        event_destroy,
        capture_begin,
        capture_end,
        graph_instantiate,
        graph_upload,
        graph_launch,
        graph_destroy,
        graph_exec_destroy,
        tensor_map: Some(tensor_map),
        param_info: Some(param_info),
        error_name: Some(error_name),
        error_text: Some(error_text),
    }))
}
