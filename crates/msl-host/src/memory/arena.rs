//! One reserved range of addresses, cut into slots of 4 GiB. A buffer lies in slots of its own, so that an
//! access far out of its bounds still shows which buffer it started from.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::MemoryError;

/// Bytes of a slot. The runtime's lookup depends on it.
const SLOT: usize = 1 << 32;
/// Bytes before the start of a buffer that belong to its slot.
const LEAD: usize = 1 << 31;
/// Freed slots keep at most this many bytes each, and in all.
const KEEP: usize = 4 << 20;
const KEEP_ALL: usize = 256 << 20;
const PAGE: usize = 1 << 16;

struct Arena {
    base: usize,
    bytes: usize,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// Slots that were never used start here.
    next: usize,
    /// Freed slots: index and committed bytes.
    slots: Vec<(usize, usize)>,
    kept: usize,
}

/// Memory at a place of its own.
pub(crate) struct Slot {
    arena: &'static Arena,
    index: usize,
    count: usize,
    committed: usize,
}

fn arena() -> Result<&'static Arena, MemoryError> {
    static ARENA: OnceLock<Option<Arena>> = OnceLock::new();
    let arena = ARENA.get_or_init(|| {
        // Less where the system limits the address space of a process.
        (38..=46).rev().find_map(|bits| {
            let bytes = 1usize << bits;
            let base = map(std::ptr::null_mut(), bytes + SLOT, libc::PROT_NONE, 0)?;
            Some(Arena { base: base.next_multiple_of(SLOT), bytes, free: Mutex::default() })
        })
    });
    arena.as_ref().ok_or_else(|| MemoryError::Exhausted {
        bytes: 0,
        reason: "the system reserves no range of addresses".into(),
    })
}

/// First address and size of the arena, for the runtime's lookup.
pub(crate) fn arena_bounds() -> Result<(usize, usize), MemoryError> {
    arena().map(|arena| (arena.base, arena.bytes))
}

fn map(at: *mut libc::c_void, bytes: usize, protection: i32, flags: i32) -> Option<usize> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping; with MAP_FIXED the caller names a range of the arena that it owns.
    let address = unsafe { libc::mmap(at, bytes, protection, flags, -1, 0) };
    (address != libc::MAP_FAILED).then_some(address as usize)
}

impl Slot {
    /// Memory of `bytes` bytes with unspecified content.
    pub(crate) fn new(bytes: usize) -> Result<Self, MemoryError> {
        let exhausted = |reason: &str| MemoryError::Exhausted { bytes, reason: reason.into() };
        let arena = arena()?;
        let need =
            bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(|| exhausted("too large"))?;
        // Half a slot before the start and at least as much after the end.
        let count =
            need.checked_add(2 * LEAD).ok_or_else(|| exhausted("too large"))?.div_ceil(SLOT);
        let mut free = arena.free.lock().unwrap_or_else(PoisonError::into_inner);
        if count == 2 && need <= KEEP {
            // The smallest freed slot that has the bytes, or any other.
            let fit = (0..free.slots.len())
                .filter(|&at| free.slots[at].1 >= need)
                .min_by_key(|&at| free.slots[at].1)
                .or(free.slots.len().checked_sub(1));
            if let Some(at) = fit {
                let (index, committed) = free.slots.swap_remove(at);
                free.kept -= committed;
                drop(free);
                let mut slot = Slot { arena, index, count, committed };
                slot.commit(need)?;
                return Ok(slot);
            }
        }
        let index = free.next;
        if index + count > arena.bytes / SLOT {
            return Err(exhausted("no addresses are left; drop buffers that are not needed"));
        }
        free.next += count;
        drop(free);
        let mut slot = Slot { arena, index, count, committed: 0 };
        slot.commit(need)?;
        Ok(slot)
    }

    fn commit(&mut self, need: usize) -> Result<(), MemoryError> {
        if need > self.committed {
            let at = self.base() as *mut libc::c_void;
            map(at, need, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED).ok_or_else(
                || MemoryError::Exhausted {
                    bytes: need,
                    reason: "the system gives no memory".into(),
                },
            )?;
            self.committed = need;
        }
        Ok(())
    }

    /// First byte, aligned to 4 KiB.
    pub(crate) fn base(&self) -> *mut u8 {
        (self.arena.base + self.index * SLOT + LEAD) as *mut u8
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut free = self.arena.free.lock().unwrap_or_else(PoisonError::into_inner);
        if self.committed > KEEP || free.kept + self.committed > KEEP_ALL {
            let at = self.base() as *mut libc::c_void;
            // A failure leaves the memory in place, which is only waste.
            let _ = map(at, self.committed, libc::PROT_NONE, libc::MAP_FIXED);
            self.committed = 0;
        }
        if self.count == 2 {
            free.kept += self.committed;
            free.slots.push((self.index, self.committed));
        }
    }
}
