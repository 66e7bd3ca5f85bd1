//! Pinned host memory on the way to the device: what a caller hands over is copied here and read from here by the
//! device, so that the caller's bytes may change at once and nobody waits for the work before.

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{result, sys};
use rayon::prelude::*;

use super::cuda::{check, check_memory};
use crate::error::Result;

/// Bytes of a slot: large enough to run a copy at the bus's full rate.
const SLOT: usize = 4 << 20;
/// Slots; while the device reads one, the host fills the next.
const SLOTS: usize = 8;
/// Bytes that one core copies at a time.
const PIECE: usize = 512 << 10;

/// A ring of slots, filled in order. Small uploads share a slot.
#[derive(Debug)]
pub(super) struct Staging {
    memory: *mut u8,
    events: [sys::CUevent; SLOTS],
    /// Whether copies out of a slot were issued since its event was last waited for.
    pending: [bool; SLOTS],
    slot: usize,
    used: usize,
}

// SAFETY: the memory belongs to this value alone, and driver handles may move between threads.
unsafe impl Send for Staging {}

impl Staging {
    /// Allocates the ring; the device's context must be current.
    pub(super) fn new() -> Result<Self> {
        let bytes = SLOT * SLOTS;
        // SAFETY: a context is current.
        let memory = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|error| check_memory("pinned host memory", bytes as u64, None, error))?;
        // SAFETY: the driver has just handed out these bytes.
        unsafe { std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes) };
        let events = [std::ptr::null_mut(); SLOTS];
        let mut ring =
            Self { memory: memory.cast(), events, pending: [false; SLOTS], slot: 0, used: 0 };
        for event in &mut ring.events {
            *event = check(
                "cuEventCreate",
                result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING),
            )?;
        }
        Ok(ring)
    }

    /// Copies `bytes` to the device in the order of `stream`.
    ///
    /// # Safety
    /// The context of `stream` is current; the range at `address` is device memory; `stream` is not being captured.
    pub(super) unsafe fn send(
        &mut self,
        mut address: u64,
        mut bytes: &[u8],
        stream: sys::CUstream,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.used == SLOT {
                self.turn(stream)?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(SLOT - self.used));
            // SAFETY: slot and used stay inside the ring, which was zeroed; nothing is reading this part, because the
            // slot's event was waited for when the slot was entered and every part of it is handed out once.
            let part = unsafe {
                let part = self.memory.add(self.slot * SLOT + self.used);
                std::slice::from_raw_parts_mut(part, now.len())
            };
            // One core copies slower than the bus takes.
            part.par_chunks_mut(PIECE).zip(now.par_chunks(PIECE)).for_each(|(to, from)| {
                to.copy_from_slice(from);
            });
            // SAFETY: the caller vouches for the range and the context; the pinned bytes stay until the event.
            check("cuMemcpyHtoDAsync", unsafe {
                result::memcpy_htod_async(address, part, stream)
            })?;
            self.pending[self.slot] = true;
            // The next part starts at a multiple of 64, so that the host's copies stay aligned.
            self.used = (self.used + now.len()).next_multiple_of(64).min(SLOT);
            address += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Leaves a full slot and enters the next one, once the device has read it.
    fn turn(&mut self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream are alive; the event then stands for every copy out of this slot.
        check("cuEventRecord", unsafe { result::event::record(self.events[self.slot], stream) })?;
        let next = (self.slot + 1) % SLOTS;
        if std::mem::take(&mut self.pending[next]) {
            // SAFETY: the event is alive, and was recorded when its slot was left.
            check("cuEventSynchronize", unsafe { result::event::synchronize(self.events[next]) })?;
        }
        (self.slot, self.used) = (next, 0);
        Ok(())
    }

    /// Gives all back; no copy may be in flight and the context must be current.
    pub(super) fn release(&mut self) {
        for event in self.events.iter_mut().filter(|event| !event.is_null()) {
            // SAFETY: made by new, destroyed once.
            let _ = unsafe { result::event::destroy(*event) };
            *event = std::ptr::null_mut();
        }
        if !self.memory.is_null() {
            // SAFETY: made by new, given back once.
            let _ = unsafe { result::free_host(self.memory.cast()) };
            self.memory = std::ptr::null_mut();
        }
    }
}
