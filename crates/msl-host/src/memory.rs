//! Device buffers: memory with room around it, a record of the bytes that were written, and the
//! cells of the conflict detector.

mod arena;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use arena::{Slot, arena_bounds};

use crate::MemoryError;

/// The byte that fills memory which nothing wrote: NaN in every float type, -1 in every integer type.
pub(crate) const POISON: u8 = 0xff;

/// A number type whose every bit pattern is a value.
///
/// # Safety
///
/// The type has no padding and no invalid bit pattern.
pub unsafe trait Scalar: Copy + 'static {}

macro_rules! scalars {
    ($($t:ty)*) => {
        $(
            // SAFETY: a primitive number has no padding and no invalid bit pattern.
            unsafe impl Scalar for $t {}
        )*
    };
}
scalars!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// Views numbers as bytes.
fn bytes_of<T: Scalar>(values: &[T]) -> &[u8] {
    // SAFETY: a `Scalar` has no padding, the slice is initialised, and u8 needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// Memory of the device. Clones share it.
///
/// A new buffer is poisoned: every byte is 0xff, and reading it before it is written can be
/// [reported](crate::FaultKind::UnwrittenRead).
///
/// ```no_run
/// let buffer = msl_host::Buffer::new(16)?;
/// buffer.write(4, &7u32.to_ne_bytes())?;
/// assert_eq!(buffer.to_vec::<u32>()?[1], 7);
/// assert_eq!(buffer.written_bytes(), 4);
/// # Ok::<(), msl_host::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    bytes: usize,
    state: Mutex<State>,
}

enum Memory {
    Slot(Slot),
    /// The owner, and the address of its bytes, which stay where they are while the owner lives.
    Borrowed {
        _owner: Box<dyn Send + Sync>,
        address: usize,
    },
}

/// What the checks know about the bytes of a buffer.
#[derive(Default)]
pub(crate) struct State {
    /// One bit per byte; empty where all are written.
    pub(crate) written: Vec<u64>,
    /// Two words per four bytes; empty until the conflict detector needs them.
    pub(crate) cells: Vec<u64>,
    /// The stamps of `cells` belong to this generation.
    pub(crate) generation: u64,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("bytes", &self.inner.bytes)
            .field("read_only", &self.is_read_only())
            .finish()
    }
}

impl Buffer {
    /// A poisoned buffer of `bytes` bytes.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        let slot = Slot::new(bytes)?;
        // SAFETY: the slot has `bytes` bytes that nothing else refers to yet.
        unsafe { slot.base().write_bytes(POISON, bytes) };
        let state = State { written: vec![0; bytes.div_ceil(64)], ..State::default() };
        Ok(Self::from_parts(Memory::Slot(slot), bytes, state))
    }

    /// A buffer with a copy of `values`; all of it counts as written.
    pub fn from_slice<T: Scalar>(values: &[T]) -> Result<Self, MemoryError> {
        let data = bytes_of(values);
        let slot = Slot::new(data.len())?;
        // SAFETY: the slot has `data.len()` bytes, is fresh, and cannot overlap `data`.
        unsafe { slot.base().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        Ok(Self::from_parts(Memory::Slot(slot), data.len(), State::default()))
    }

    /// A read-only buffer over the bytes of `owner` where they lie, as a mapped file's; nothing is copied.
    /// Kernels that write to it get a [`ReadOnlyWrite`](crate::FaultKind::ReadOnlyWrite).
    pub fn borrow<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Self {
        let owner = Box::new(owner);
        let data = (*owner).as_ref();
        let (address, bytes) = (data.as_ptr() as usize, data.len());
        Self::from_parts(Memory::Borrowed { _owner: owner, address }, bytes, State::default())
    }

    fn from_parts(memory: Memory, bytes: usize, state: State) -> Self {
        Buffer { inner: Arc::new(Inner { memory, bytes, state: Mutex::new(state) }) }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.inner.bytes
    }

    /// Whether the size is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the buffer [borrows](Buffer::borrow) its memory.
    pub fn is_read_only(&self) -> bool {
        matches!(self.inner.memory, Memory::Borrowed { .. })
    }

    /// Copies `data` to byte `offset`. Waits for a dispatch that uses the buffer.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), MemoryError> {
        if self.is_read_only() {
            return Err(MemoryError::ReadOnly);
        }
        self.check(offset, data.len())?;
        let mut state = self.lock();
        // SAFETY: the range was checked, the memory is this buffer's own slot, and the lock keeps
        // dispatches and other host accesses away.
        unsafe {
            self.address().add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
        state.set_written(offset, data.len());
        Ok(())
    }

    /// Copies bytes from byte `offset` on into `data`. Waits for a dispatch that uses the buffer.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, data.len())?;
        let _state = self.lock();
        // SAFETY: the range was checked; the lock keeps writers away; poisoned bytes are initialised.
        unsafe {
            self.address().add(offset).copy_to_nonoverlapping(data.as_mut_ptr(), data.len());
        }
        Ok(())
    }

    /// The whole buffer as numbers; bytes after the last whole number are left out.
    pub fn to_vec<T: Scalar>(&self) -> Result<Vec<T>, MemoryError> {
        let count = self.len() / size_of::<T>();
        let mut values = Vec::with_capacity(count);
        let _state = self.lock();
        // SAFETY: the buffer has at least `count` numbers' bytes, the vector has their room, the lock
        // keeps writers away, and every bit pattern is a `T`.
        unsafe {
            let to: *mut T = values.as_mut_ptr();
            self.address().copy_to_nonoverlapping(to.cast(), count * size_of::<T>());
            values.set_len(count);
        }
        Ok(values)
    }

    /// Fills the buffer with poison again and forgets what was written.
    pub fn poison(&self) -> Result<(), MemoryError> {
        if self.is_read_only() {
            return Err(MemoryError::ReadOnly);
        }
        let mut state = self.lock();
        // SAFETY: the memory is this buffer's own slot, and the lock keeps everything else away.
        unsafe { self.address().write_bytes(POISON, self.len()) };
        state.written.clear();
        state.written.resize(self.len().div_ceil(64), 0);
        Ok(())
    }

    /// How many bytes the host or a kernel has written. Kernels are recorded in runs that
    /// [check](crate::RunOptions::report_unwritten) for unwritten reads.
    pub fn written_bytes(&self) -> usize {
        let state = self.lock();
        match state.written.is_empty() {
            true => self.len(),
            false => state.written.iter().map(|word| word.count_ones() as usize).sum(),
        }
    }

    /// The first byte of the range that nothing wrote, relative to the buffer.
    pub fn first_unwritten(&self, offset: usize, bytes: usize) -> Option<usize> {
        let state = self.lock();
        if state.written.is_empty() {
            return None;
        }
        let end = offset.saturating_add(bytes).min(self.len());
        (offset..end).find(|at| state.written[at / 64] >> (at % 64) & 1 == 0)
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<(), MemoryError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(MemoryError::Range { offset, bytes, size: self.len() }),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn address(&self) -> *mut u8 {
        match &self.inner.memory {
            Memory::Slot(slot) => slot.base(),
            Memory::Borrowed { address, .. } => *address as *mut u8,
        }
    }

    /// Orders and compares buffers by identity.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }
}

impl State {
    fn set_written(&mut self, offset: usize, bytes: usize) {
        if self.written.is_empty() {
            return;
        }
        for at in offset..offset + bytes {
            self.written[at / 64] |= 1 << (at % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_buffers_are_poisoned_and_know_what_was_written() {
        let buffer = Buffer::new(100).unwrap();
        assert!(buffer.to_vec::<f32>().unwrap().iter().all(|x| x.is_nan()));
        buffer.write(62, &[1, 2, 3, 4]).unwrap();
        assert_eq!(buffer.written_bytes(), 4);
        assert_eq!(buffer.first_unwritten(62, 10), Some(66));
        buffer.poison().unwrap();
        assert_eq!(buffer.written_bytes(), 0);
    }

    #[test]
    fn ranges_are_checked() {
        let buffer = Buffer::from_slice(&[1u32, 2]).unwrap();
        assert!(buffer.first_unwritten(0, 8).is_none());
        let mut out = [0; 4];
        assert!(matches!(
            buffer.read(5, &mut out),
            Err(MemoryError::Range { offset: 5, bytes: 4, size: 8 })
        ));
        assert!(buffer.write(usize::MAX, &[1]).is_err());
        buffer.read(4, &mut out).unwrap();
        assert_eq!(u32::from_ne_bytes(out), 2);
    }

    #[test]
    fn borrowed_memory_is_read_only() {
        let buffer = Buffer::borrow(vec![1u8, 2, 3]);
        assert_eq!(buffer.to_vec::<u8>().unwrap(), [1, 2, 3]);
        assert_eq!(buffer.write(0, &[0]), Err(MemoryError::ReadOnly));
    }
}
