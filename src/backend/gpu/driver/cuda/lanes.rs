//! Copies during the work in flight: a second stream with pinned memory of its own, and the events that order it.

use super::api::Api;
use super::handles::{Event, Stream};
use super::staging::Staging;
use crate::error::Result;

/// Two lanes of buffers that take turns; see [`crate::backend::gpu::driver::Driver::stage`].
#[derive(Debug)]
pub(super) struct Lanes {
    // Dropped first, and with it the copies out of the memory below.
    stream: Stream,
    staging: Staging,
    /// The end of the work that was started before the other lane was last staged to: all that reads a lane's buffers.
    done: [Event; 2],
    /// The end of the last copies.
    ready: Event,
    last: usize,
}

impl Lanes {
    /// Makes stream, events and pinned memory; the device's context must be current.
    pub(super) fn new(api: &'static Api) -> Result<Self> {
        Ok(Self {
            stream: Stream::new(api)?,
            staging: Staging::new(api)?,
            done: [Event::ordering(api)?, Event::ordering(api)?],
            ready: Event::ordering(api)?,
            last: 0,
        })
    }

    /// Copies `parts` during the work of `main`, behind the work that still reads this lane's buffers.
    ///
    /// # Safety
    /// The context of `main` is current; the ranges are device memory; `main` is not being captured.
    pub(super) unsafe fn stage(
        &mut self,
        lane: usize,
        parts: &[(u64, &[u8])],
        main: &Stream,
    ) -> Result<()> {
        for (other, done) in self.done.iter().enumerate() {
            if other != lane || self.last == lane {
                done.record(main)?;
            }
        }
        self.last = lane;
        // Waiting for an event that was never recorded waits for nothing.
        self.stream.wait_for(&self.done[lane])?;
        for (address, bytes) in parts {
            // SAFETY: the caller vouches for ranges and context; nobody captures this stream.
            unsafe { self.staging.send(*address, bytes, &self.stream)? };
        }
        self.ready.record(&self.stream)?;
        main.wait_for(&self.ready)
    }
}
