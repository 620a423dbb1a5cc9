//! What the host and the runtime share. `runtime/state.h` has the same layouts.

pub(super) const INDICES: usize = 31;
pub(super) const MAX_FAULTS: usize = 64;
pub(super) const MAX_THREADS: usize = 1024;

pub(super) const DETECT_CONFLICTS: u32 = 1;
pub(super) const REPORT_UNWRITTEN: u32 = 2;
pub(super) const STOP_AT_FIRST: u32 = 4;
pub(super) const EXITED_LEAVE: u32 = 8;
pub(super) const SHARED: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) base: *mut u8,
    pub(super) size: u64,
    pub(super) written: *mut u64,
    pub(super) cells: *mut u64,
    pub(super) kind: u32,
    pub(super) index: u32,
    pub(super) read_only: u32,
    pub(super) unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fault {
    pub(super) code: u32,
    pub(super) region_kind: u32,
    pub(super) region_index: u32,
    pub(super) line: u32,
    pub(super) pc: u64,
    pub(super) offset: i64,
    pub(super) size: u64,
    pub(super) bytes: u32,
    pub(super) access: u32,
    pub(super) group: [u32; 3],
    pub(super) thread: [u32; 3],
    pub(super) other_group: [u32; 3],
    pub(super) other_group_known: u32,
    pub(super) other_thread: u32,
    pub(super) other_access: u32,
    pub(super) waiting: u32,
    pub(super) returned: u32,
    pub(super) other_line: u32,
    pub(super) signal: i32,
}

#[repr(C)]
pub(super) struct Launch {
    pub(super) entry: *const libc::c_void,
    pub(super) arena_base: u64,
    pub(super) arena_bytes: u64,
    pub(super) regions: *const Region,
    pub(super) region_count: u64,
    pub(super) stamps: *const std::sync::atomic::AtomicU64,
    pub(super) seed: u64,
    pub(super) budget: u64,
    pub(super) memory_limit: u64,
    pub(super) next_group: u64,
    pub(super) first_stamp: u64,
    pub(super) unset: *const u64,
    pub(super) unset_count: u64,
    pub(super) unset_low: u64,
    pub(super) unset_bytes: u64,
    pub(super) buffers: [*mut u8; INDICES],
    pub(super) threadgroup_bytes: [u64; INDICES],
    pub(super) groups: [u32; 3],
    pub(super) threads: [u32; 3],
    pub(super) nominal: [u32; 3],
    pub(super) flags: u32,
    pub(super) fault_count: u32,
    pub(super) stop: u32,
    pub(super) faults: [Fault; MAX_FAULTS],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawCounters {
    pub(super) device_read: u64,
    pub(super) device_written: u64,
    pub(super) constant_read: u64,
    pub(super) threadgroup_read: u64,
    pub(super) threadgroup_written: u64,
    pub(super) atomics: u64,
    pub(super) threadgroup_barriers: u64,
    pub(super) simdgroup_barriers: u64,
    pub(super) collectives: u64,
    pub(super) partial_collectives: u64,
    pub(super) threadgroup_memory: u64,
    pub(super) threads: u64,
    pub(super) threadgroups: u64,
}

/// The start of a worker, which the host fills; the rest is the runtime's.
#[repr(C)]
pub(super) struct WorkerHead {
    pub(super) launch: *mut Launch,
    pub(super) counters: RawCounters,
    pub(super) stacks: *mut u8,
    pub(super) stack_bytes: u64,
    pub(super) shared: *mut u8,
    pub(super) shared_written: *mut u64,
    pub(super) shared_cells: *mut u64,
    pub(super) shared_bytes: u64,
}
