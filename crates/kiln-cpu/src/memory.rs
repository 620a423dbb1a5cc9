//! Host memory as device buffers.

use kiln_core::backend::Buffer;
use kiln_core::{Error, Result, SharedBytes};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Alignment of every allocation: a cache line and the widest vector.
pub(crate) const ALIGNMENT: usize = 64;

/// Held by a run and by every host access of a buffer, so that the two never race.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessLock(Arc<Mutex<()>>);

impl AccessLock {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        // The lock guards no value that a panic could leave broken: buffers are plain bytes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An aligned allocation of plain bytes.
#[derive(Debug)]
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation is plain bytes without thread affinity; all access goes through the raw
// pointer under the rules of `CpuBuffer`.
unsafe impl Send for Allocation {}
// SAFETY: as above; a shared reference alone gives no access to the bytes.
unsafe impl Sync for Allocation {}

impl Allocation {
    fn zeroed(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout has a size of at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Debug)]
enum Memory {
    Owned(Allocation),
    Borrowed(SharedBytes),
}

/// A buffer of the CPU device: its own bytes, or borrowed weights.
#[derive(Debug)]
pub(crate) struct CpuBuffer {
    memory: Memory,
    bytes: usize,
    lock: AccessLock,
}

impl CpuBuffer {
    /// Zero bytes.
    pub(crate) fn zeroed(bytes: usize, lock: &AccessLock) -> Result<Self> {
        let allocation = Allocation::zeroed(bytes)
            .ok_or_else(|| Error::OutOfMemory { device: "cpu".to_owned(), requested: bytes })?;
        Ok(Self { memory: Memory::Owned(allocation), bytes, lock: lock.clone() })
    }

    /// Weights, where they lie. Bytes not aligned for f32 are copied: GGUF allows any alignment.
    pub(crate) fn import(data: SharedBytes, lock: &AccessLock) -> Result<Self> {
        if data.as_ref().as_ptr().cast::<f32>().is_aligned() {
            let bytes = data.len();
            return Ok(Self { memory: Memory::Borrowed(data), bytes, lock: lock.clone() });
        }
        let buffer = Self::zeroed(data.len(), lock)?;
        buffer.write(0, data.as_ref())?;
        Ok(buffer)
    }

    /// First byte. Writing through it is only allowed for buffers that are not read-only.
    pub(crate) fn start(&self) -> *mut u8 {
        match &self.memory {
            Memory::Owned(allocation) => allocation.start.as_ptr(),
            Memory::Borrowed(data) => data.as_ref().as_ptr().cast_mut(),
        }
    }
}

impl Buffer for CpuBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read_only(&self) -> bool {
        matches!(self.memory, Memory::Borrowed(_))
    }

    fn prepared_bytes(&self) -> usize {
        0
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(offset + out.len() <= self.bytes, "read past the end of a buffer");
        let _guard = self.lock.lock();
        // SAFETY: the range is inside the buffer, `out` is memory of its own, and the lock keeps
        // runs from writing meanwhile.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.start().add(offset), out.len()) };
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        assert!(offset + data.len() <= self.bytes, "write past the end of a buffer");
        if self.read_only() {
            return Err(Error::ReadOnly);
        }
        let _guard = self.lock.lock();
        // SAFETY: the range is inside the owned allocation, `data` cannot overlap it because no
        // reference to it is ever given out, and the lock keeps runs from using it meanwhile.
        unsafe { self.start().add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        if self.read_only() {
            return Err(Error::ReadOnly);
        }
        let _guard = self.lock.lock();
        // SAFETY: the range is the owned allocation, and the lock keeps runs out.
        unsafe { self.start().write_bytes(0, self.bytes) };
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
