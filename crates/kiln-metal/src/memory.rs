//! Device memory as buffers of the core.

use crate::runtime::DeviceMemory;
use kiln_core::backend::Buffer;
use kiln_core::{Error, Result};
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Held by a run and by every host access of a buffer, so that the two never race.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessLock(Arc<Mutex<()>>);

impl AccessLock {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        // The lock guards no value that a panic could leave broken: buffers are plain bytes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of a Metal device.
#[derive(Debug)]
pub(crate) struct MetalBuffer<M> {
    pub(crate) memory: Arc<M>,
    device: &'static str,
    lock: AccessLock,
}

impl<M: DeviceMemory> MetalBuffer<M> {
    pub(crate) fn new(memory: M, device: &'static str, lock: &AccessLock) -> Self {
        Self { memory: Arc::new(memory), device, lock: lock.clone() }
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.memory.bytes() => Ok(()),
            _ => Err(Error::Device {
                device: self.device.to_owned(),
                problem: format!(
                    "{bytes} bytes at {offset} reach outside a buffer of {}",
                    self.memory.bytes()
                ),
            }),
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.memory.is_borrowed() { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

impl<M: DeviceMemory> Buffer for MetalBuffer<M> {
    fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    fn read_only(&self) -> bool {
        self.memory.is_borrowed()
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        let _guard = self.lock.lock();
        self.memory.read(offset, out)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check(offset, data.len())?;
        let _guard = self.lock.lock();
        self.memory.write(offset, data)
    }

    fn clear(&self) -> Result<()> {
        self.check_writable()?;
        let _guard = self.lock.lock();
        self.memory.clear()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
