//! Handles of the driver, each released when it is dropped: a half-built device leaves nothing behind.
//!
//! The context of a handle must be current in the thread that drops it. What the driver says when something is given back
//! repeats what an earlier call said, so nobody reads it.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use super::api::{Api, DISABLE_TIMING, Handle, NON_BLOCKING};
use crate::error::Result;

/// The primary context of a device, retained.
#[derive(Debug)]
pub(super) struct Context {
    api: &'static Api,
    device: c_int,
    handle: Handle,
}

// SAFETY: driver handles may be used by any thread in which their context is current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the context of a device and makes it current in this thread.
    pub(super) fn retain(api: &'static Api, device: c_int) -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: `device` came from cuDeviceGet; writes one handle, which lives on this stack.
        api.check("cuDevicePrimaryCtxRetain", unsafe {
            (api.context_retain)(&mut handle, device)
        })?;
        let context = Self { api, device, handle };
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current in this thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until it is dropped.
        self.api.check("cuCtxSetCurrent", unsafe { (self.api.context_set)(self.handle) })
    }

    /// Returns the free bytes of the device; the context must be current.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers, which live on this stack.
        let code = unsafe { (self.api.memory_info)(&mut free, &mut total) };
        code.is_success().then_some(free as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: pairs with the retain of `retain`; a context that is gone must not stay current.
        unsafe {
            let _ = (self.api.context_set)(null_mut());
            let _ = (self.api.context_release)(self.device);
        }
    }
}

/// Declares a handle that `$free` gives back.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $free:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name {
            api: &'static Api,
            handle: Handle,
        }

        // SAFETY: driver handles may be used by any thread in which their context is current.
        unsafe impl Send for $name {}
        // SAFETY: as above; the driver locks what it changes.
        unsafe impl Sync for $name {}

        impl $name {
            /// Takes over a handle that the driver has just handed out.
            pub(super) fn own(api: &'static Api, handle: Handle) -> Self {
                Self { api, handle }
            }

            /// Returns the driver's own handle.
            pub(super) fn get(&self) -> Handle {
                self.handle
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the driver handed it out, and it is given back once.
                let _ = unsafe { (self.api.$free)(self.handle) };
            }
        }
    };
}

handle!(
    /// A module of kernels.
    Module,
    module_unload
);
handle!(
    /// Captured work, as it was recorded.
    Graph,
    graph_destroy
);
handle!(
    /// Captured work, ready to start.
    GraphExec,
    graph_exec_destroy
);
handle!(
    /// A point in the order of a stream's work; one that is not reached yet is destroyed when it is.
    Event,
    event_destroy
);

impl Event {
    fn with(api: &'static Api, flags: c_uint) -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: a context is current; writes one handle, which lives on this stack.
        api.check("cuEventCreate", unsafe { (api.event_create)(&mut handle, flags) })?;
        Ok(Self::own(api, handle))
    }

    /// Makes an event that orders work.
    pub(super) fn ordering(api: &'static Api) -> Result<Self> {
        Self::with(api, DISABLE_TIMING)
    }

    /// Makes an event that knows its time.
    pub(super) fn timing(api: &'static Api) -> Result<Self> {
        Self::with(api, 0)
    }

    /// Puts the event behind the work that `stream` has now.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        let code = unsafe { (self.api.event_record)(self.handle, stream.handle) };
        self.api.check("cuEventRecord", code)
    }

    /// Waits until the work before the event has ended.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        self.api.check("cuEventSynchronize", unsafe { (self.api.event_sync)(self.handle) })
    }

    /// Returns the seconds from this event to `later`; both must be reached.
    pub(super) fn seconds_to(&self, later: &Self) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; writes one number, which lives on this stack.
        let code = unsafe { (self.api.event_elapsed)(&mut milliseconds, self.handle, later.get()) };
        self.api.check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

/// Work in one order. Dropping it waits for its work.
#[derive(Debug)]
pub(super) struct Stream {
    api: &'static Api,
    handle: Handle,
}

// SAFETY: driver handles may be used by any thread in which their context is current.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Stream {}

impl Stream {
    /// Makes a stream that the legacy default stream does not wait for.
    pub(super) fn new(api: &'static Api) -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: a context is current; writes one handle, which lives on this stack.
        api.check("cuStreamCreate", unsafe { (api.stream_create)(&mut handle, NON_BLOCKING) })?;
        Ok(Self { api, handle })
    }

    /// Returns the driver's own handle.
    pub(super) fn get(&self) -> Handle {
        self.handle
    }

    /// Waits for all work of the stream.
    pub(super) fn sync(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        self.api.check("cuStreamSynchronize", unsafe { (self.api.stream_sync)(self.handle) })
    }

    /// Lets later work wait for `event`; one that was never recorded is not waited for.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        let code = unsafe { (self.api.stream_wait)(self.handle, event.get(), 0) };
        self.api.check("cuStreamWaitEvent", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the driver handed it out, and it is given back once.
        unsafe {
            let _ = (self.api.stream_sync)(self.handle);
            let _ = (self.api.stream_destroy)(self.handle);
        }
    }
}

/// Host memory that the device reads by itself, zeroed. No copy may be in flight when it is dropped.
#[derive(Debug)]
pub(super) struct Pinned {
    api: &'static Api,
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates `bytes` bytes; a context must be current.
    pub(super) fn new(api: &'static Api, bytes: usize) -> Result<Self> {
        let mut at = null_mut();
        // SAFETY: a context is current; writes one pointer, which lives on this stack.
        let code = unsafe { (api.host_alloc)(&mut at, bytes, 0) };
        if !code.is_success() {
            // It is the host's memory that is short, and what may be locked of it.
            return Err(api
                .no_memory("pinned host memory", bytes as u64, None, code)
                .hint("free memory of the host, or let the process lock more of it (ulimit -l)"));
        }
        // SAFETY: the driver has just handed out these bytes.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { api, at, bytes })
    }

    /// Shows a part of the memory, cut at its end.
    pub(super) fn part(&mut self, from: usize, len: usize) -> &mut [u8] {
        let from = from.min(self.bytes);
        let len = len.min(self.bytes - from);
        // SAFETY: the range lies inside the memory, whose bytes are initialised and belong to this value, which is
        // borrowed as long as they are. The device only reads other parts.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u8>().add(from), len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the driver handed it out, and it is given back once.
        let _ = unsafe { (self.api.host_free)(self.at) };
    }
}
