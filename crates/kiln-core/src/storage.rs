//! Storage: the memory behind tensors, or the promise of it.

use crate::backend::Buffer;
use crate::pool::Pool;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identity of a storage, a device or a recording, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u64);

impl Id {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The memory of one or more tensors: a device buffer, or a temporary that a plan will place in
/// its arena. Cloning shares it.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    id: Id,
    owner: Id,
    bytes: usize,
    buffer: Option<Box<dyn Buffer>>,
    /// Where the buffer goes back to when the last tensor lets go of it.
    pool: Option<Arc<Pool>>,
}

impl Storage {
    pub(crate) fn new(device: Id, bytes: usize, buffer: Box<dyn Buffer>) -> Self {
        Self(Arc::new(Inner {
            id: Id::next(),
            owner: device,
            bytes,
            buffer: Some(buffer),
            pool: None,
        }))
    }

    pub(crate) fn pooled(
        device: Id,
        bytes: usize,
        buffer: Box<dyn Buffer>,
        pool: Arc<Pool>,
    ) -> Self {
        Self(Arc::new(Inner {
            id: Id::next(),
            owner: device,
            bytes,
            buffer: Some(buffer),
            pool: Some(pool),
        }))
    }

    pub(crate) fn temporary(recording: Id, bytes: usize) -> Self {
        Self(Arc::new(Inner { id: Id::next(), owner: recording, bytes, buffer: None, pool: None }))
    }

    /// Identity; clones have the same.
    pub fn id(&self) -> Id {
        self.0.id
    }

    /// The device (or, for a temporary, the recording) it belongs to.
    pub(crate) fn owner(&self) -> Id {
        self.0.owner
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// The device buffer; `None` for a temporary.
    pub fn buffer(&self) -> Option<&dyn Buffer> {
        self.0.buffer.as_deref()
    }

    /// True for storage that only exists inside a plan.
    pub fn is_temporary(&self) -> bool {
        self.0.buffer.is_none()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let (Some(pool), Some(buffer)) = (self.pool.take(), self.buffer.take()) {
            pool.give(buffer);
        }
    }
}

impl PartialEq for Storage {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_temporary() { "temporary" } else { "buffer" };
        write!(f, "Storage({kind} {}, {} bytes)", self.id().0, self.bytes())
    }
}
