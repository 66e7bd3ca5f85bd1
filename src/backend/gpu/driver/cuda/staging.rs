//! Pinned host memory on the way to the device: what a caller hands over is copied here and read from here by the
//! device, so that the caller's bytes may change at once and nobody waits for the work before.

use super::api::Api;
use super::handles::{Event, Pinned, Stream};
use crate::error::Result;

/// Bytes of a slot: large enough to run a copy at the bus's full rate.
const SLOT: usize = 4 << 20;
/// Slots; while the device reads one, the host fills the next.
const SLOTS: usize = 8;
/// Bytes that are worth a thread of their own.
const PIECE: usize = 1 << 20;

/// A ring of slots, filled in order. Small uploads share a slot. No copy may be in flight when it is dropped.
#[derive(Debug)]
pub(super) struct Staging {
    api: &'static Api,
    memory: Pinned,
    events: Vec<Event>,
    /// True for a slot that was copied from since its event was last waited for.
    pending: [bool; SLOTS],
    slot: usize,
    used: usize,
}

impl Staging {
    /// Allocates the ring; the device's context must be current.
    pub(super) fn new(api: &'static Api) -> Result<Self> {
        let memory = Pinned::new(api, SLOT * SLOTS)?;
        let events = (0..SLOTS).map(|_| Event::ordering(api)).collect::<Result<Vec<_>>>()?;
        Ok(Self { api, memory, events, pending: [false; SLOTS], slot: 0, used: 0 })
    }

    /// Copies `bytes` to the device in the order of `stream`.
    ///
    /// # Safety
    /// The context of `stream` is current; the range at `address` is device memory; `stream` is not being captured.
    pub(super) unsafe fn send(
        &mut self,
        mut address: u64,
        mut bytes: &[u8],
        stream: &Stream,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.used == SLOT {
                self.turn(stream)?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(SLOT - self.used));
            // Nothing is reading this part: the slot's event was waited for when the slot was entered, and every part
            // of it is handed out once.
            let part = self.memory.part(self.slot * SLOT + self.used, now.len());
            copy(part, now);
            // SAFETY: the caller vouches for the range and the context; the pinned bytes stay until the event.
            let code = unsafe {
                (self.api.upload)(address, part.as_ptr().cast(), part.len(), stream.get())
            };
            self.api.check("cuMemcpyHtoDAsync", code)?;
            self.pending[self.slot] = true;
            // The next part starts at a multiple of 64, so that the host's copies stay aligned.
            self.used = (self.used + now.len()).next_multiple_of(64).min(SLOT);
            address += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Leaves a full slot and enters the next one, once the device has read it.
    fn turn(&mut self, stream: &Stream) -> Result<()> {
        // The event then stands for every copy out of this slot.
        self.events[self.slot].record(stream)?;
        let next = (self.slot + 1) % SLOTS;
        if std::mem::take(&mut self.pending[next]) {
            self.events[next].wait()?;
        }
        (self.slot, self.used) = (next, 0);
        Ok(())
    }
}

/// Copies `from` into `to`, which is as long; several threads where there is much, because one core copies slower than the
/// bus takes.
///
/// The threads are plain ones: a thread pool would run its other jobs while it waits here, and one of them could want
/// the ring that the caller has locked.
fn copy(to: &mut [u8], from: &[u8]) {
    let mut pieces = to.chunks_mut(PIECE).zip(from.chunks(PIECE));
    let first = pieces.next();
    std::thread::scope(|scope| {
        for (to, from) in pieces {
            scope.spawn(move || to.copy_from_slice(from));
        }
        if let Some((to, from)) = first {
            to.copy_from_slice(from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_takes_every_byte_whatever_the_pieces() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, SLOT] {
            let from: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut to = vec![255; len];
            copy(&mut to, &from);
            assert!(to == from, "{len} bytes");
        }
    }
}
