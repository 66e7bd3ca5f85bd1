//! Scratch buffers that tasks borrow and give back, so that a step does not allocate once it is warm.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::Real;

/// The buffers not in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool<T> {
    free: Arc<Mutex<Vec<Vec<T>>>>,
}

/// A borrowed buffer; its content is arbitrary.
pub(super) struct Lent<T> {
    buffer: Vec<T>,
    len: usize,
    pool: Pool<T>,
}

impl<T: Real> Pool<T> {
    /// Lends a buffer of `len` numbers.
    pub fn lend(&self, len: usize) -> Lent<T> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The largest buffer is the one most likely long enough.
        let at = free.iter().enumerate().max_by_key(|(_, b)| b.len()).map(|(i, _)| i);
        let mut buffer = at.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if buffer.len() < len {
            buffer.resize(len, T::ZERO);
        }
        Lent { buffer, len, pool: self.clone() }
    }
}

impl<T> Deref for Lent<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[..self.len]
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[..self.len]
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
