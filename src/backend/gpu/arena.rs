//! Device memory of a run: large slabs, handed out in order at start and given back together.
//!
//! The first slab has the size that the plan predicts, so that a run holds one allocation; what the plan missed
//! comes in further slabs and is visible in [`Arena::bytes`].

use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Driver;
use crate::error::Result;

/// Every buffer begins at a multiple of this, in bytes.
pub const ALIGNMENT: u64 = 256;
/// The smallest slab, in bytes.
const SLAB: u64 = 32 << 20;

/// A stack of slabs. Buffers live as long as the arena.
#[derive(Debug)]
pub struct Arena {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
    /// Each buffer is an allocation of its own: the simulator then guards its end.
    separate: bool,
}

#[derive(Debug, Default)]
struct State {
    slabs: Vec<u64>,
    next: u64,
    left: u64,
    /// Sum of the slabs.
    held: u64,
    /// Sum of the buffers.
    used: u64,
}

impl Arena {
    /// Makes an arena; `first` is the size of its first slab in bytes, 0 to allocate as asked.
    pub fn new(driver: Arc<dyn Driver>, first: u64, separate: bool) -> Result<Self> {
        let arena = Self { driver, state: Mutex::default(), separate };
        if first > 0 && !separate {
            arena.grow(&mut arena.lock(), first)?;
        }
        Ok(arena)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, state: &mut State, bytes: u64) -> Result<()> {
        let address = self.driver.alloc(bytes)?;
        state.slabs.push(address);
        state.held += bytes;
        (state.next, state.left) = (address, bytes);
        Ok(())
    }

    /// Hands out `bytes` of undefined content, aligned to [`ALIGNMENT`]; no bytes have the address 0.
    pub fn alloc(&self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        let mut state = self.lock();
        if self.separate {
            self.grow(&mut state, bytes)?;
            state.used += bytes;
            return Ok(state.next);
        }
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if bytes > state.left {
            self.grow(&mut state, bytes.max(SLAB))?;
        }
        let address = state.next;
        state.next += bytes;
        state.left -= bytes;
        state.used += bytes;
        Ok(address)
    }

    /// Returns the bytes held from the device and the bytes handed out.
    pub fn bytes(&self) -> (u64, u64) {
        let state = self.lock();
        (state.held, state.used)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Work in flight may still read the slabs.
        let _ = self.driver.sync();
        for slab in &self.lock().slabs {
            self.driver.free(*slab);
        }
    }
}
