//! Host memory as the buffers of the reference.

use kiln_core::backend::Buffer;
use kiln_core::{Error, Result, SharedBytes};
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Bytes of a buffer: own, or borrowed from a file.
#[derive(Debug)]
pub(crate) enum Memory {
    Owned(RwLock<Vec<u8>>),
    Borrowed(SharedBytes),
}

impl Memory {
    /// Memory of `len` bytes of that value.
    pub(crate) fn filled(len: usize, value: u8) -> Result<Self> {
        let mut bytes = Vec::new();
        let out_of_memory = || Error::OutOfMemory { device: "reference".into(), requested: len };
        bytes.try_reserve_exact(len).map_err(|_| out_of_memory())?;
        bytes.resize(len, value);
        Ok(Self::Owned(RwLock::new(bytes)))
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let range = offset..offset.saturating_add(out.len());
        let mut copy = |bytes: &[u8]| {
            out.copy_from_slice(bytes.get(range.clone())?);
            Some(())
        };
        match self {
            Memory::Owned(bytes) => copy(&bytes.read().unwrap_or_else(PoisonError::into_inner)),
            Memory::Borrowed(bytes) => copy(bytes.as_ref()),
        }
        .ok_or_else(|| outside(&range))
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let range = offset..offset.saturating_add(data.len());
        let Memory::Owned(bytes) = self else { return Err(Error::ReadOnly) };
        let mut bytes = bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes.get_mut(range.clone()).ok_or_else(|| outside(&range))?.copy_from_slice(data);
        Ok(())
    }

    /// Sets every byte to that value.
    pub(crate) fn fill(&self, value: u8) -> Result<()> {
        let Memory::Owned(bytes) = self else { return Err(Error::ReadOnly) };
        bytes.write().unwrap_or_else(PoisonError::into_inner).fill(value);
        Ok(())
    }
}

fn outside(range: &Range<usize>) -> Error {
    problem(format!("bytes {range:?} reach outside their buffer"))
}

/// An error of this device.
pub(crate) fn problem(problem: String) -> Error {
    Error::Device { device: "reference".into(), problem }
}

/// Held by a run or by one access of the host: the two never overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn(Arc<Mutex<()>>);

impl Turn {
    pub(crate) fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct HostBuffer {
    pub(crate) memory: Arc<Memory>,
    pub(crate) bytes: usize,
    pub(crate) turn: Turn,
}

impl Buffer for HostBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read_only(&self) -> bool {
        matches!(*self.memory, Memory::Borrowed(_))
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let _turn = self.turn.take();
        self.memory.read(offset, out)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let _turn = self.turn.take();
        self.memory.write(offset, data)
    }

    fn clear(&self) -> Result<()> {
        let _turn = self.turn.take();
        self.memory.fill(0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
