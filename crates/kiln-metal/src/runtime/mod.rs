//! What the backend needs of a Metal implementation: memory, pipelines, and dispatches in order.

use crate::caps::Caps;
use crate::library::{FunctionConstant, Library};
use kiln_core::{Result, SharedBytes};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(target_os = "macos")]
pub(crate) mod apple;
pub(crate) mod host;

/// A Metal implementation.
pub(crate) trait Runtime: Send + Sync + Sized + 'static {
    /// Device memory.
    type Buffer: DeviceMemory;
    /// A compiled source file.
    type Library: Send + Sync;
    /// A specialised kernel.
    type Pipeline: Send + Sync;
    /// Commands ready to be submitted again and again.
    type Prepared: Send + Sync;

    /// As given to `--device`.
    fn name(&self) -> &'static str;

    /// One line about the hardware.
    fn description(&self) -> String;

    /// What the device can do.
    fn caps(&self) -> Caps;

    /// Zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](kiln_core::Error::OutOfMemory).
    fn allocate(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Memory whose contents are lost between runs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](kiln_core::Error::OutOfMemory).
    fn scratch(&self, bytes: usize) -> Result<Self::Buffer> {
        self.allocate(bytes)
    }

    /// Weights: borrowed where the device can address them, copied otherwise.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](kiln_core::Error::OutOfMemory).
    fn import(&self, bytes: SharedBytes) -> Result<Self::Buffer>;

    /// Compiles a source text.
    ///
    /// # Errors
    /// The log of the compiler.
    fn library(&self, library: &Library, source: &str) -> Result<Self::Library, String>;

    /// Specialises a function, to run with `threads` threads of a threadgroup.
    ///
    /// # Errors
    /// What the compiler reports.
    fn pipeline(
        &self,
        library: &Self::Library,
        function: &str,
        constants: &[(FunctionConstant, u32)],
        threads: usize,
    ) -> Result<Self::Pipeline, String>;

    /// The most threads of a threadgroup that a kernel can run with.
    fn threads(&self, pipeline: &Self::Pipeline) -> usize;

    /// Bytes of threadgroup memory that a kernel declares in its body.
    fn static_threadgroup_memory(&self, pipeline: &Self::Pipeline) -> usize;

    /// Makes commands ready.
    ///
    /// # Errors
    /// What the device reports.
    fn prepare(&self, commands: Vec<Command<Self>>) -> Result<Self::Prepared>;

    /// Runs all commands in order and waits for the end.
    ///
    /// # Errors
    /// A [`Fault`], with its step where that is known.
    fn run(&self, prepared: &Self::Prepared) -> Result<(), Fault>;

    /// As [`Runtime::run`], one step after the other; returns the time of each.
    ///
    /// # Errors
    /// As [`Runtime::run`].
    fn profile(&self, prepared: &Self::Prepared, steps: usize) -> Result<Vec<Duration>, Fault>;
}

/// Device memory that the host can reach between runs.
pub(crate) trait DeviceMemory: Send + Sync + fmt::Debug + 'static {
    /// Size of the memory asked for.
    fn bytes(&self) -> usize;

    /// Where that memory begins in the device's buffer: borrowed memory begins anywhere in a page.
    fn base(&self) -> usize {
        0
    }

    /// Whether it borrows weights.
    fn is_borrowed(&self) -> bool;

    /// Copies bytes to the host; the range is inside.
    ///
    /// # Errors
    /// What the device reports.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Copies bytes from the host; the range is inside, and the memory is not borrowed.
    ///
    /// # Errors
    /// What the device reports.
    fn write(&self, offset: usize, data: &[u8]) -> Result<()>;

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// What the device reports.
    fn clear(&self) -> Result<()>;
}

/// One dispatch with everything resolved.
pub(crate) struct Command<R: Runtime> {
    /// The step of the plan it belongs to.
    pub(crate) step: usize,
    /// Its place among the phases of the step: each waits for the one before.
    pub(crate) phase: usize,
    /// Whether all commands before must have finished.
    pub(crate) barrier: bool,
    pub(crate) pipeline: Arc<R::Pipeline>,
    /// The argument struct, `[[buffer(0)]]`.
    pub(crate) arguments: Vec<u8>,
    /// `[[buffer(1)]]` and so on.
    pub(crate) buffers: Vec<BoundBuffer<R>>,
    pub(crate) threadgroups: [usize; 3],
    pub(crate) threads: [usize; 3],
    /// Bytes of `[[threadgroup(0)]]`; 0 for none.
    pub(crate) threadgroup_memory: usize,
}

/// A range of a buffer as an argument.
pub(crate) struct BoundBuffer<R: Runtime> {
    pub(crate) buffer: Arc<R::Buffer>,
    /// From the start of the device's buffer.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    pub(crate) writes: bool,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// The step at fault, where that is known.
    pub(crate) step: Option<usize>,
    pub(crate) problem: String,
}
