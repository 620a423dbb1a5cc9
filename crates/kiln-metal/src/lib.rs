//! The Metal backend: kernels in the Metal Shading Language, compiled on first use, weights where
//! they lie, one concurrent encoder per plan.
//!
//! The same lowering and kernels run in two ways: on Apple GPUs ([`device`]), and on any machine as
//! compiled code under checks ([`host_device`]), which is how they are tested.

mod caps;
mod dispatch;
mod exec;
mod library;
mod memory;
mod ops;
mod pipelines;
mod runtime;
mod view;

use exec::MetalExecutable;
use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::Op;
use kiln_core::{DType, Device, Plan, Result, Shape, SharedBytes, Tensor, Unsupported};
use memory::{AccessLock, MetalBuffer};
use pipelines::Pipelines;
pub use runtime::host::{Counts, DispatchCount, HostConfig};
use runtime::{DeviceMemory, Runtime};
use std::sync::Arc;
use view::{Memory, View};

/// Opens the GPU of this Mac as a device.
///
/// # Errors
/// [`Error::Device`](kiln_core::Error::Device) where there is no Apple GPU of the M1 or later, or
/// macOS is older than 14.
///
/// On another system it is always an error.
pub fn device() -> Result<Device> {
    #[cfg(target_os = "macos")]
    return Ok(Metal::device(runtime::apple::Apple::open()?));
    #[cfg(not(target_os = "macos"))]
    Err(kiln_core::Error::Device {
        device: "metal".to_owned(),
        problem: "only on macOS; `metal-host` runs the same kernels on any machine".to_owned(),
    })
}

/// Opens the host as a device that runs the kernels under checks, slowly.
///
/// # Errors
/// [`Error::Device`](kiln_core::Error::Device) where no C++ compiler is found.
///
/// ```no_run
/// let device = kiln_metal::host_device(kiln_metal::HostConfig::default())?;
/// assert_eq!(device.name(), "metal-host");
/// # Ok::<(), kiln_core::Error>(())
/// ```
pub fn host_device(config: HostConfig) -> Result<Device> {
    Ok(Metal::device(runtime::host::Host::open(config)?))
}

/// The Metal sources of all kernels as they are compiled: file name and text.
///
/// ```
/// let sources = kiln_metal::sources();
/// assert!(sources.iter().any(|(name, text)| *name == "norms" && text.contains("rms_norm")));
/// ```
pub fn sources() -> Vec<(&'static str, String)> {
    ops::LIBRARIES.iter().map(|library| (library.name, library.source())).collect()
}

/// A device of a runtime.
struct Metal<R: Runtime> {
    runtime: Arc<R>,
    pipelines: Pipelines<R>,
    lock: AccessLock,
}

impl<R: Runtime> Metal<R> {
    fn device(runtime: R) -> Device {
        let (pipelines, lock) = (Pipelines::default(), AccessLock::default());
        Device::new(Self { runtime: Arc::new(runtime), pipelines, lock })
    }

    fn buffer(&self, memory: R::Buffer) -> Box<dyn Buffer> {
        Box::new(MetalBuffer::new(memory, self.runtime.name(), &self.lock))
    }

    /// A view with the alignment it will have; its memory is not known before the plan is.
    fn unplaced(tensor: &Tensor) -> View {
        let buffer = tensor.storage().buffer();
        let buffer = buffer.and_then(|b| b.as_any().downcast_ref::<MetalBuffer<R::Buffer>>());
        let base = buffer.map_or(0, |buffer| buffer.memory.base());
        View::new(Memory::Buffer(0), base + tensor.offset(), tensor)
    }
}

impl<R: Runtime> Backend for Metal<R> {
    fn name(&self) -> &'static str {
        self.runtime.name()
    }

    fn description(&self) -> String {
        self.runtime.description()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>> {
        Ok(self.buffer(self.runtime.allocate(bytes)?))
    }

    fn import(&self, _: DType, _: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>> {
        Ok(self.buffer(self.runtime.import(bytes)?))
    }

    fn supports(&self, op: &Op<Tensor>) -> Result<(), Unsupported> {
        ops::supports(op, &self.runtime.caps(), self.runtime.name(), Self::unplaced)
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>> {
        let runtime = Arc::clone(&self.runtime);
        Ok(Box::new(MetalExecutable::new(plan, runtime, &self.pipelines, self.lock.clone())?))
    }
}
