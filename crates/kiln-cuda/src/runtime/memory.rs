//! Device memory, and the way of weights from a file to it.

use super::context::{Context, Entered};
use super::driver::Address;
use super::error;
use crate::planes::Planes;
use kiln_core::backend::Buffer;
use kiln_core::{Error, Result};
use std::any::Any;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// An allocation in device memory.
pub(crate) struct Memory {
    context: Arc<Context>,
    address: Address,
}

impl Memory {
    /// Memory of at least `bytes` bytes with any contents.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let entered = context.enter()?;
        let mut address = 0;
        let bytes = bytes.max(1);
        // SAFETY: the driver writes the address.
        let status = unsafe { (entered.driver.memory_allocate)(&mut address, bytes) };
        entered.driver.check_memory("cuMemAlloc", bytes, status)?;
        Ok(Self { context: Arc::clone(context), address })
    }

    /// Zero bytes.
    pub(crate) fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let memory = Self::new(context, bytes)?;
        memory.fill_zero(bytes)?;
        Ok(memory)
    }

    /// Makes the first `bytes` bytes zero; no more than were asked for.
    fn fill_zero(&self, bytes: usize) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: callers stay inside the allocation.
        let status =
            unsafe { (entered.driver.memory_fill)(self.address, 0, bytes, entered.stream) };
        entered.driver.check("cuMemsetD8Async", status)?;
        entered.wait()
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }
}

/// Copies inside device memory, behind what is on the stream.
///
/// # Safety
/// Two ranges of live memory of that size, which do not overlap.
pub(crate) unsafe fn copy(
    entered: &Entered<'_>,
    to: Address,
    from: Address,
    bytes: usize,
) -> Result<()> {
    // SAFETY: by the contract.
    let status = unsafe { (entered.driver.copy_on_device)(to, from, bytes, entered.stream) };
    entered.driver.check("cuMemcpyDtoDAsync", status)
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Where the context cannot be entered the device is lost, and its memory with it.
        if let Ok(entered) = self.context.enter() {
            // SAFETY: allocated in `new`, freed once; runs that used it have ended.
            unsafe { (entered.driver.memory_free)(self.address) };
        }
    }
}

/// A buffer of the CUDA device.
pub(crate) struct CudaBuffer {
    memory: Memory,
    bytes: usize,
    /// For weights: how their bits are laid out; `None` for plain types.
    planes: Option<Planes>,
    read_only: bool,
}

impl CudaBuffer {
    /// Zero bytes.
    pub(crate) fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let memory = Memory::zeroed(context, bytes)?;
        Ok(Self { memory, bytes, planes: None, read_only: false })
    }

    /// A weight whose bytes are already in `memory`.
    pub(crate) fn weight(memory: Memory, bytes: usize, planes: Option<Planes>) -> Self {
        Self { memory, bytes, planes, read_only: true }
    }

    pub(crate) fn address(&self) -> Address {
        self.memory.address
    }

    /// The layout of a prepared weight.
    pub(crate) fn planes(&self) -> Option<Planes> {
        self.planes
    }

    fn enter(&self) -> Result<Entered<'_>> {
        self.memory.context.enter()
    }

    fn check_plain(&self) -> Result<()> {
        match self.planes {
            None => Ok(()),
            Some(_) => Err(error("a weight that was repacked at import cannot be read back")),
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBuffer({} bytes at {:#x})", self.bytes, self.memory.address)
    }
}

impl Buffer for CudaBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn prepared_bytes(&self) -> usize {
        self.planes.map_or(0, |planes| planes.bytes() - self.bytes)
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check_plain()?;
        assert!(offset + out.len() <= self.bytes, "read past the end of a buffer");
        let entered = self.enter()?;
        let (from, to) = (self.memory.address + offset as u64, out.as_mut_ptr().cast());
        // SAFETY: the range is inside the allocation, and `out` stays until the stream is idle.
        let status = unsafe { (entered.driver.copy_to_host)(to, from, out.len(), entered.stream) };
        entered.driver.check("cuMemcpyDtoHAsync", status)?;
        entered.wait()
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        assert!(offset + data.len() <= self.bytes, "write past the end of a buffer");
        let entered = self.enter()?;
        let (to, from) = (self.memory.address + offset as u64, data.as_ptr().cast());
        // SAFETY: the range is inside the allocation, and `data` stays until the stream is idle.
        let status =
            unsafe { (entered.driver.copy_to_device)(to, from, data.len(), entered.stream) };
        entered.driver.check("cuMemcpyHtoDAsync", status)?;
        entered.wait()
    }

    fn clear(&self) -> Result<()> {
        self.check_writable()?;
        self.memory.fill_zero(self.bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Bytes of each half of the staging memory.
pub(crate) const STAGING: usize = 16 << 20;

/// Page-locked host memory, from which the device copies while the host fills the other half.
pub(crate) struct Staging {
    context: Arc<Context>,
    start: *mut u8,
    events: [super::graph::Event; 2],
    /// Whether a copy from the half may still run.
    busy: [bool; 2],
    next: usize,
}

// SAFETY: plain memory and handles of the driver; used behind a mutable reference.
unsafe impl Send for Staging {}

impl Staging {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let events = [super::graph::Event::new(context)?, super::graph::Event::new(context)?];
        let entered = context.enter()?;
        let mut start = ptr::null_mut();
        // SAFETY: the driver writes the address.
        let status = unsafe { (entered.driver.host_allocate)(&mut start, 2 * STAGING, 0) };
        entered.driver.check_memory("cuMemHostAlloc", 2 * STAGING, status)?;
        drop(entered);
        let context = Arc::clone(context);
        Ok(Self { context, start: start.cast(), events, busy: [false; 2], next: 0 })
    }

    /// Copies up to [`STAGING`] bytes to the device. Returns as soon as `data` is no longer needed.
    pub(crate) fn copy(&mut self, to: Address, data: &[u8]) -> Result<()> {
        assert!(data.len() <= STAGING, "a piece larger than the staging memory");
        let half = self.next;
        self.next = 1 - half;
        if self.busy[half] {
            self.events[half].wait()?;
        }
        // SAFETY: the half has room for the piece, and the device is done with it.
        let from = unsafe {
            let from = self.start.add(half * STAGING);
            ptr::copy_nonoverlapping(data.as_ptr(), from, data.len());
            from
        };
        let entered = self.context.enter()?;
        // SAFETY: the caller's range in device memory; the half is not touched until the event.
        let status =
            unsafe { (entered.driver.copy_to_device)(to, from.cast(), data.len(), entered.stream) };
        entered.driver.check("cuMemcpyHtoDAsync", status)?;
        self.busy[half] = true;
        self.events[half].record(&entered)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // A failure leaves nothing to do here.
            let _ = entered.wait();
            // SAFETY: allocated in `new`, freed once, and the stream is idle.
            unsafe { (entered.driver.host_free)(self.start.cast()) };
        }
    }
}
