//! Memory of a worker that is kept between dispatches: stacks, threadgroup memory, constant bytes.

use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

use super::super::launch::{Launch, MAX_THREADS, RawCounters, WorkerHead};
use crate::MemoryError;
use crate::memory::Slot;

/// Stack of a thread, with a page without access below it.
const STACK: usize = 256 << 10;
const GUARD: usize = 4 << 10;
/// Largest threadgroup memory of a threadgroup.
pub(super) const SHARED_BYTES: usize = 1 << 20;
/// Bytes of a cell of the conflict detector, two words each; `CELL` of the runtime.
pub(super) const CELL_BYTES: usize = 2;
/// `SHARED_STRIDE` and `MAX_SHARED` of the runtime.
const SHARED_STRIDE: usize = 1 << 20;
const MAX_SHARED: usize = 64;
/// Largest constant bytes of a binding.
pub(super) const BYTES_EACH: usize = 4096;

struct Memory {
    stacks: *mut u8,
    shared: Slot,
    bytes: Vec<Slot>,
    written: Vec<u64>,
    cells: Vec<u64>,
    worker: Vec<u128>,
}

// SAFETY: the stacks are owned by this value alone.
unsafe impl Send for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Memory::new` with this size and nothing runs on it.
        unsafe { libc::munmap(self.stacks.cast(), STACK * MAX_THREADS) };
    }
}

impl Memory {
    fn new(worker_bytes: usize) -> Result<Self, MemoryError> {
        let exhausted =
            || MemoryError::Exhausted { bytes: STACK * MAX_THREADS, reason: "stacks".into() };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping.
        let stacks =
            unsafe { libc::mmap(std::ptr::null_mut(), STACK * MAX_THREADS, access, flags, -1, 0) };
        if stacks == libc::MAP_FAILED {
            return Err(exhausted());
        }
        let memory = Memory {
            stacks: stacks.cast(),
            shared: Slot::new(MAX_SHARED * SHARED_STRIDE)?,
            bytes: Vec::new(),
            written: vec![0; SHARED_BYTES / 64 + 2 * MAX_SHARED],
            cells: vec![0; 2 * (SHARED_BYTES / CELL_BYTES) + 128 * MAX_SHARED],
            worker: vec![0; worker_bytes.div_ceil(16)],
        };
        for thread in 0..MAX_THREADS {
            // SAFETY: the page lies in the mapping above.
            unsafe {
                libc::mprotect(memory.stacks.add(thread * STACK).cast(), GUARD, libc::PROT_NONE)
            };
        }
        Ok(memory)
    }
}

/// Memory of a worker, taken from a pool and given back on drop.
pub(super) struct Workspace(ManuallyDrop<Memory>);

static POOL: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

impl Workspace {
    pub(super) fn take(worker_bytes: usize) -> Result<Self, MemoryError> {
        let kept = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = match kept {
            Some(memory) => memory,
            None => Memory::new(worker_bytes)?,
        };
        if memory.worker.len() < worker_bytes.div_ceil(16) {
            memory.worker = vec![0; worker_bytes.div_ceil(16)];
        }
        while memory.bytes.len() < super::INDICES {
            memory.bytes.push(Slot::new(BYTES_EACH + 16)?);
        }
        Ok(Workspace(ManuallyDrop::new(memory)))
    }

    /// Place of the constant bytes of a binding.
    pub(super) fn bytes(&mut self, at: usize) -> *mut u8 {
        self.0.bytes[at].base()
    }

    /// Fills the part of the worker that the host knows.
    pub(super) fn fill(&mut self, launch: *mut Launch) -> *mut WorkerHead {
        let memory = &mut *self.0;
        let head = WorkerHead {
            launch,
            counters: RawCounters::default(),
            stacks: memory.stacks,
            stack_bytes: STACK as u64,
            shared: memory.shared.base(),
            shared_written: memory.written.as_mut_ptr(),
            shared_cells: memory.cells.as_mut_ptr(),
            shared_bytes: 0,
        };
        let worker: *mut WorkerHead = memory.worker.as_mut_ptr().cast();
        // SAFETY: the worker has the runtime's size, which starts with this head, and is aligned to 16.
        unsafe { worker.write(head) };
        worker
    }

    pub(super) fn counters(&mut self) -> RawCounters {
        let worker: *const WorkerHead = self.0.worker.as_ptr().cast();
        // SAFETY: `fill` wrote the head and the runtime has returned.
        unsafe { (*worker).counters }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: the value is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.0) };
        POOL.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

/// A stack for signal handlers of this thread, where it has none: a kernel may have used up its own.
pub(super) struct SignalStack(Option<Vec<u8>>);

impl SignalStack {
    pub(super) fn new() -> Self {
        let mut old = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: asks for the current stack.
        let known = unsafe { libc::sigaltstack(std::ptr::null(), &mut old) } == 0;
        if known && old.ss_flags & libc::SS_DISABLE == 0 {
            return SignalStack(None);
        }
        let mut memory = vec![0u8; 64 << 10];
        let stack =
            libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
        // SAFETY: the memory lives until `drop` removes it from the thread.
        unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
        SignalStack(Some(memory))
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        if self.0.is_some() {
            let none = libc::stack_t {
                ss_sp: std::ptr::null_mut(),
                ss_flags: libc::SS_DISABLE,
                ss_size: 0,
            };
            // SAFETY: removes the stack that `new` gave to this thread.
            unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) };
        }
    }
}
