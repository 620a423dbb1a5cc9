//! What a kernel runs over, and what the run reports.

use crate::Buffer;

/// How many threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// Whole threadgroups, as `dispatchThreadgroups` of Metal.
    Threadgroups([u32; 3]),
    /// Threads; threadgroups at the upper edges are smaller, as `dispatchThreads` of Metal.
    Threads([u32; 3]),
}

/// An argument of a kernel, at a buffer index.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Binding<'a> {
    /// A buffer from a byte offset on.
    Buffer {
        /// The index of `[[buffer(index)]]`, 0 to 30.
        index: u32,
        /// The buffer.
        buffer: &'a Buffer,
        /// First byte that the kernel sees at its pointer.
        offset: usize,
        /// Bytes from there on that the kernel may touch; `None` for all of the buffer. Where a
        /// buffer is bound several times, it may be touched up to the furthest end.
        length: Option<usize>,
    },
    /// A copy of host bytes, as `setBytes` of Metal: at most 4096 bytes, read-only.
    Bytes {
        /// The index of `[[buffer(index)]]`, 0 to 30.
        index: u32,
        /// The bytes.
        data: &'a [u8],
    },
}

impl<'a> Binding<'a> {
    /// Binds `buffer` from byte `offset` on at `index`.
    pub fn buffer(index: u32, buffer: &'a Buffer, offset: usize) -> Self {
        Binding::Buffer { index, buffer, offset, length: None }
    }

    /// As [`Binding::buffer`], of which the kernel may touch `length` bytes.
    pub fn buffer_part(index: u32, buffer: &'a Buffer, offset: usize, length: usize) -> Self {
        Binding::Buffer { index, buffer, offset, length: Some(length) }
    }

    /// Binds a copy of `data` at `index`.
    pub fn bytes(index: u32, data: &'a [u8]) -> Self {
        Binding::Bytes { index, data }
    }

    /// The buffer index.
    pub fn index(&self) -> u32 {
        match self {
            Binding::Buffer { index, .. } | Binding::Bytes { index, .. } => *index,
        }
    }
}

/// How a dispatch is run and what is checked. Bounds are always checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Order of threads between synchronisation points: 0 is by thread index, every other value a permutation.
    pub seed: u64,
    /// Report two threads that touch the same bytes unordered, one of them writing.
    pub detect_conflicts: bool,
    /// Report reads of bytes that nothing wrote.
    pub report_unwritten: bool,
    /// End the run at the first fault. Otherwise conflicts and unwritten reads are collected, up to 64.
    pub stop_at_first: bool,
    /// Threads that returned no longer count at barriers, as Apple's hardware does; otherwise it is a fault.
    pub exited_threads_leave_barriers: bool,
    /// Accesses and synchronisation points that a threadgroup may take.
    pub budget: u64,
    /// Bytes of threadgroup memory that a threadgroup may use.
    pub threadgroup_memory_limit: u64,
    /// System threads that run threadgroups. The result does not depend on it, unless the kernel has a
    /// conflict or uses atomics on floats.
    pub workers: usize,
}

impl Default for RunOptions {
    /// Every check on, natural order, one worker, 2^40 accesses, 32 KiB of threadgroup memory.
    fn default() -> Self {
        RunOptions {
            seed: 0,
            detect_conflicts: true,
            report_unwritten: true,
            stop_at_first: true,
            exited_threads_leave_barriers: false,
            budget: 1 << 40,
            threadgroup_memory_limit: 32 << 10,
            workers: 1,
        }
    }
}

impl RunOptions {
    /// Only bounds are checked: the fastest way to run.
    pub fn unchecked() -> Self {
        RunOptions { detect_conflicts: false, report_unwritten: false, ..RunOptions::default() }
    }
}

/// One run of a kernel over a grid.
#[derive(Clone, Debug)]
pub struct Dispatch<'a> {
    /// The grid.
    pub grid: Grid,
    /// Threads of a threadgroup along each axis: at most 1024 in all.
    pub threads_per_threadgroup: [u32; 3],
    /// The arguments, in any order.
    pub bindings: Vec<Binding<'a>>,
    /// Threadgroup memory for `[[threadgroup(index)]]` arguments: index and bytes.
    pub threadgroup_memory: Vec<(u32, usize)>,
    /// Order and checks.
    pub options: RunOptions,
}

impl<'a> Dispatch<'a> {
    /// Runs `threadgroups` whole threadgroups of `threads_per_threadgroup` threads.
    pub fn threadgroups(threadgroups: [u32; 3], threads_per_threadgroup: [u32; 3]) -> Self {
        Dispatch {
            grid: Grid::Threadgroups(threadgroups),
            threads_per_threadgroup,
            bindings: Vec::new(),
            threadgroup_memory: Vec::new(),
            options: RunOptions::default(),
        }
    }

    /// Runs `threads` threads in threadgroups of `threads_per_threadgroup`.
    pub fn threads(threads: [u32; 3], threads_per_threadgroup: [u32; 3]) -> Self {
        Dispatch {
            grid: Grid::Threads(threads),
            ..Self::threadgroups([0; 3], threads_per_threadgroup)
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn bind(mut self, binding: Binding<'a>) -> Self {
        self.bindings.push(binding);
        self
    }

    /// Adds threadgroup memory at `index`.
    #[must_use]
    pub fn threadgroup(mut self, index: u32, bytes: usize) -> Self {
        self.threadgroup_memory.push((index, bytes));
        self
    }

    /// Sets order and checks.
    #[must_use]
    pub fn options(mut self, options: RunOptions) -> Self {
        self.options = options;
        self
    }
}

/// What a run did, summed over all threads. Accesses are those of the optimised kernel: a value that the
/// compiler keeps in a register is not loaded twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Bytes of all loads from device buffers, without constant arguments.
    pub device_bytes_read: u64,
    /// Bytes of all stores to device buffers.
    pub device_bytes_written: u64,
    /// Bytes of all loads from `constant` arguments.
    pub constant_bytes_read: u64,
    /// Bytes of all loads from threadgroup memory.
    pub threadgroup_bytes_read: u64,
    /// Bytes of all stores to threadgroup memory.
    pub threadgroup_bytes_written: u64,
    /// Atomic operations on device or threadgroup memory.
    pub atomics: u64,
    /// Threadgroup barriers, counted once per threadgroup that passes.
    pub threadgroup_barriers: u64,
    /// Simdgroup barriers, counted once per simdgroup that passes.
    pub simdgroup_barriers: u64,
    /// Collectives (`simd_sum`, shuffles, simdgroup matrix products...), counted once per simdgroup.
    pub collectives: u64,
    /// Collectives in which not all live threads of the simdgroup took part.
    pub partial_collectives: u64,
    /// Bytes of threadgroup memory of a threadgroup: arguments and declared arrays.
    pub threadgroup_memory: u64,
    /// Threads that ran.
    pub threads: u64,
    /// Threadgroups that ran.
    pub threadgroups: u64,
}
