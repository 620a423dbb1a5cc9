//! What a device must offer.

use crate::error::Result;
use crate::ops::Op;
use crate::plan::Plan;
use crate::{DType, Shape, SharedBytes, Tensor};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A piece of device memory. Host access never races with a run: a backend orders the two.
pub trait Buffer: Any + Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn bytes(&self) -> usize;

    /// True for borrowed weights.
    fn read_only(&self) -> bool {
        false
    }

    /// Bytes the backend added beside the original to prepare it (a repacked copy).
    fn prepared_bytes(&self) -> usize {
        0
    }

    /// Copies `out.len()` bytes from `offset` to the host. The caller has checked the range.
    ///
    /// # Errors
    /// What the device reports.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Copies `data` from the host to `offset`. The caller has checked the range and
    /// [`Buffer::read_only`].
    ///
    /// # Errors
    /// What the device reports.
    fn write(&self, offset: usize, data: &[u8]) -> Result<()>;

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// What the device reports.
    fn clear(&self) -> Result<()>;

    /// The buffer as the backend's own type.
    fn as_any(&self) -> &dyn Any;
}

/// A device: memory, and plans made executable. Receives only checked operations.
pub trait Backend: Send + Sync {
    /// Short name, as given to `--device`: `cpu`, `cuda`, `metal`.
    fn name(&self) -> &'static str;

    /// One line about the hardware, for people.
    fn description(&self) -> String;

    /// Memory of `bytes` zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>>;

    /// Takes a weight of that type and shape: borrows the bytes where the device can address them,
    /// copies them otherwise, and prepares them (repacks, pads) where that pays.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), or what the device reports.
    fn import(&self, dtype: DType, shape: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>>;

    /// Whether there is a kernel for the operation; asked when it is recorded.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Unsupported), which names the whole problem.
    fn supports(&self, op: &Op<Tensor>) -> Result<(), crate::Unsupported>;

    /// How many steps behind a step the device may run in one kernel with it. Small temporaries keep their place
    /// so long, so that none of these steps writes where another one still reads.
    fn joins(&self) -> usize {
        0
    }

    /// Makes a plan executable: kernels chosen and compiled, addresses resolved.
    ///
    /// # Errors
    /// Out of memory for the arena, or what the compiler of the device reports.
    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>>;
}

/// A compiled plan.
pub trait Execute: Send + Sync {
    /// Runs every step once and waits for the end.
    ///
    /// # Errors
    /// What the device reports, with the step it was at.
    fn run(&self) -> Result<()>;

    /// Runs every step once, one after the other, and returns the time of each.
    ///
    /// # Errors
    /// As [`Execute::run`].
    fn profile(&self) -> Result<Vec<Duration>>;
}
