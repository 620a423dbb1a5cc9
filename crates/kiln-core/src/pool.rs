//! A pool of device buffers in power-of-two sizes.

use crate::backend::Buffer;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a device's memory in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of pooled buffers that tensors hold now, as rounded up by the pool.
    pub live: usize,
    /// Most bytes that were ever live at once.
    pub high_water: usize,
    /// Bytes of buffers kept for reuse.
    pub idle: usize,
    /// Bytes of imported weights, borrowed or uploaded, exact.
    pub weights: usize,
    /// Bytes a backend added to prepare weights (repacking); 0 where they are used as they lie.
    pub prepared: usize,
}

/// Recycles buffers by power-of-two size and keeps count of them.
#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: BTreeMap<usize, Vec<Box<dyn Buffer>>>,
    memory: MemoryUse,
}

/// Smallest buffer the pool hands out.
const MIN_BYTES: usize = 256;

impl Pool {
    /// The size a request is rounded up to, or `None` on overflow.
    pub fn rounded(bytes: usize) -> Option<usize> {
        bytes.max(MIN_BYTES).checked_next_power_of_two()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves counters, never memory, inexact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle buffer of exactly `rounded` bytes; its contents are stale. Counts it as live.
    pub(crate) fn take(&self, rounded: usize) -> Option<Box<dyn Buffer>> {
        let mut state = self.state();
        let buffer = state.idle.get_mut(&rounded)?.pop()?;
        state.memory.idle -= rounded;
        state.memory.add_live(rounded);
        Some(buffer)
    }

    /// Counts a fresh buffer as live.
    pub(crate) fn adopt(&self, rounded: usize) {
        self.state().memory.add_live(rounded);
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Box<dyn Buffer>) {
        let mut state = self.state();
        let bytes = buffer.bytes();
        state.memory.live -= bytes;
        state.memory.idle += bytes;
        state.idle.entry(bytes).or_default().push(buffer);
    }

    /// Frees the idle buffers.
    pub(crate) fn trim(&self) {
        let mut state = self.state();
        state.memory.idle = 0;
        state.idle.clear();
    }

    pub(crate) fn count_weight(&self, bytes: usize, prepared: usize) {
        let mut state = self.state();
        state.memory.weights += bytes;
        state.memory.prepared += prepared;
    }

    /// Bytes in use.
    pub fn memory(&self) -> MemoryUse {
        self.state().memory
    }
}

impl MemoryUse {
    fn add_live(&mut self, bytes: usize) {
        self.live += bytes;
        self.high_water = self.high_water.max(self.live);
    }
}
