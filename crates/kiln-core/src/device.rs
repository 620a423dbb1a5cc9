//! Devices: where tensors live and recordings run.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::pool::{MemoryUse, Pool};
use crate::recording::Recording;
use crate::storage::{Id, Storage};
use crate::tensor::{Element, contiguous_bytes};
use crate::{DType, Shape, SharedBytes, Tensor};
use std::fmt;
use std::sync::Arc;

/// A handle to a device. Cloning is cheap; tensors and recordings keep their device alive.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    id: Id,
    backend: Box<dyn Backend>,
    pool: Arc<Pool>,
}

impl Device {
    /// A device of that backend.
    pub fn new(backend: impl Backend + 'static) -> Self {
        let inner =
            Inner { id: Id::next(), backend: Box::new(backend), pool: Arc::new(Pool::default()) };
        Self { inner: Arc::new(inner) }
    }

    /// Short name: `cpu`, `cuda`, `metal`.
    pub fn name(&self) -> &'static str {
        self.inner.backend.name()
    }

    /// One line about the hardware, for people.
    pub fn description(&self) -> String {
        self.inner.backend.description()
    }

    pub(crate) fn id(&self) -> Id {
        self.inner.id
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    /// A tensor of zeros, from the device's pool of power-of-two buffers.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::OutOfMemory`].
    pub fn tensor(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = contiguous_bytes(dtype, shape)?;
        let out_of_memory =
            || Error::OutOfMemory { device: self.name().to_owned(), requested: bytes };
        let rounded = Pool::rounded(bytes).ok_or_else(out_of_memory)?;
        let pool = &self.inner.pool;
        let buffer = match pool.take(rounded) {
            Some(buffer) => {
                buffer.clear()?;
                buffer
            }
            None => {
                let buffer = self.backend().allocate(rounded)?;
                pool.adopt(rounded);
                buffer
            }
        };
        let storage = Storage::pooled(self.id(), bytes, buffer, Arc::clone(pool));
        Tensor::at_start(storage, dtype, shape)
    }

    /// A tensor with values from the host.
    ///
    /// # Errors
    /// As [`Device::tensor`], and [`Error::Length`] where the number of values differs.
    pub fn upload<T: Element>(&self, values: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        self.upload_bytes(T::DTYPE, shape, bytemuck::cast_slice(values))
    }

    /// A tensor of any type with bytes from the host, copied.
    ///
    /// # Errors
    /// As [`Device::upload`].
    pub fn upload_bytes(
        &self,
        dtype: DType,
        shape: impl Into<Shape>,
        bytes: &[u8],
    ) -> Result<Tensor> {
        let tensor = self.tensor(dtype, shape)?;
        tensor.write_bytes(bytes)?;
        Ok(tensor)
    }

    /// A read-only weight from shared host bytes: borrowed without a copy where the device can.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Length`] where the bytes are not exactly the tensor's, or
    /// [`Error::OutOfMemory`].
    pub fn import(
        &self,
        dtype: DType,
        shape: impl Into<Shape>,
        bytes: SharedBytes,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let expected = contiguous_bytes(dtype, shape)?;
        if bytes.len() != expected {
            return Err(Error::Length { operation: "import", expected, got: bytes.len() });
        }
        let buffer = self.backend().import(dtype, shape, bytes)?;
        self.inner.pool.count_weight(expected, buffer.prepared_bytes());
        Tensor::at_start(Storage::new(self.id(), expected, buffer), dtype, shape)
    }

    /// Starts a recording of operations.
    pub fn record(&self) -> Recording {
        Recording::new(self.clone())
    }

    /// Bytes in use.
    pub fn memory(&self) -> MemoryUse {
        self.inner.pool.memory()
    }

    /// Frees buffers that are kept for reuse.
    pub fn trim(&self) {
        self.inner.pool.trim();
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name()).finish()
    }
}
