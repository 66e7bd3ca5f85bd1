//! Copies beside the work in flight: a second stream with pinned memory of its own, and the events that order it.

use cudarc::driver::sys::{CUevent_flags, CUevent_wait_flags};
use cudarc::driver::{result, sys};

use super::cuda::check;
use super::staging::Staging;
use crate::error::Result;

/// Two lanes of buffers that take turns; see [`super::Driver::stage`].
#[derive(Debug)]
pub(super) struct Lanes {
    stream: sys::CUstream,
    staging: Staging,
    /// The end of the work that was started before the other lane was last staged to: all that reads a lane's buffers.
    done: [sys::CUevent; 2],
    /// The end of the last copies.
    ready: sys::CUevent,
    last: usize,
}

// SAFETY: driver handles may move between threads.
unsafe impl Send for Lanes {}

impl Lanes {
    /// Makes stream, events and pinned memory; the device's context must be current.
    pub(super) fn new() -> Result<Self> {
        let event = || {
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING;
            check("cuEventCreate", result::event::create(flags))
        };
        Ok(Self {
            stream: check(
                "cuStreamCreate",
                result::stream::create(result::stream::StreamKind::NonBlocking),
            )?,
            staging: Staging::new()?,
            done: [event()?, event()?],
            ready: event()?,
            last: 0,
        })
    }

    /// Copies `parts` beside the work of `main`, behind the work that still reads this lane's buffers.
    ///
    /// # Safety
    /// The context of `main` is current; the ranges are device memory; `main` is not being captured.
    pub(super) unsafe fn stage(
        &mut self,
        lane: usize,
        parts: &[(u64, &[u8])],
        main: sys::CUstream,
    ) -> Result<()> {
        let wait = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: events and streams are alive. Waiting for an event that was never recorded waits for nothing.
        unsafe {
            for (other, done) in self.done.into_iter().enumerate() {
                if other != lane || self.last == lane {
                    check("cuEventRecord", result::event::record(done, main))?;
                }
            }
            self.last = lane;
            let wanted = self.done[lane];
            check("cuStreamWaitEvent", result::stream::wait_event(self.stream, wanted, wait))?;
            for (address, bytes) in parts {
                self.staging.send(*address, bytes, self.stream)?;
            }
            check("cuEventRecord", result::event::record(self.ready, self.stream))?;
            check("cuStreamWaitEvent", result::stream::wait_event(main, self.ready, wait))
        }
    }

    /// Gives all back; no copy may be in flight and the context must be current.
    pub(super) fn release(&mut self) {
        // SAFETY: every handle was made by new and is given back once.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            self.staging.release();
            for event in [self.done[0], self.done[1], self.ready] {
                let _ = result::event::destroy(event);
            }
            let _ = result::stream::destroy(self.stream);
        }
    }
}
