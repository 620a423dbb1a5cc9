//! Loads compiled libraries and runs their kernels.

mod faults;
mod signals;
mod workspace;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::launch::{self, INDICES, Launch, RawCounters, Region};
use super::{ArgumentKind, Function};
use crate::memory::{POISON, arena_bounds};
use crate::{Binding, CompileError, Counters, Dispatch, DispatchError, Grid};
use workspace::Workspace;

type Run = unsafe extern "C" fn(*mut launch::WorkerHead);

/// A compiled library in this process.
#[derive(Debug)]
pub(crate) struct Image {
    path: PathBuf,
    /// Keeps the file of the library on disk, for `addr2line`.
    _folder: tempfile::TempDir,
    worker_bytes: usize,
    run: Run,
    trap: signals::Trap,
    entries: Vec<usize>,
    constants: Vec<RawConstant>,
    derive: unsafe extern "C" fn(),
    /// Held while a kernel runs: the function constants are variables of the image.
    running: Mutex<()>,
    addr2line: PathBuf,
    _library: libloading::Library,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawConstant {
    value: usize,
    bytes: usize,
    defined: usize,
}

impl Image {
    /// Loads the library at `path` and reads its tables.
    pub(crate) fn load(
        path: &Path,
        folder: Option<tempfile::TempDir>,
    ) -> Result<Self, CompileError> {
        let load = |error: libloading::Error| CompileError::Load(error.to_string());
        // The same file loaded twice is one image, whose function constants two libraries would share.
        let (path, folder) = match folder {
            Some(folder) => (path.to_path_buf(), folder),
            None => {
                let copying = |error: std::io::Error| CompileError::Load(error.to_string());
                let folder = tempfile::tempdir().map_err(copying)?;
                let copy = folder.path().join("kernels.so");
                std::fs::copy(path, &copy).map_err(copying)?;
                (copy, folder)
            }
        };
        // SAFETY: the file was written by this crate's compiler from the shim and the runtime; it has no
        // initialisers but those of the kernel's constants.
        let library = unsafe { libloading::Library::new(&path) }.map_err(load)?;
        // SAFETY: the runtime and the translator define these symbols with these types; the functions take
        // nothing and only return sizes.
        let (run, trap, derive, entries, constants, worker_bytes, launch_bytes) = unsafe {
            (
                *library.get::<Run>(b"msl_run\0").map_err(load)?,
                *library.get::<signals::Trap>(b"msl_trap\0").map_err(load)?,
                *library.get::<unsafe extern "C" fn()>(b"msl_derive_constants\0").map_err(load)?,
                *library.get::<*const usize>(b"msl_entries\0").map_err(load)?,
                *library.get::<*const RawConstant>(b"msl_constants\0").map_err(load)?,
                library
                    .get::<unsafe extern "C" fn() -> u64>(b"msl_worker_bytes\0")
                    .map_err(load)?(),
                library
                    .get::<unsafe extern "C" fn() -> u64>(b"msl_launch_bytes\0")
                    .map_err(load)?(),
            )
        };
        if launch_bytes as usize != size_of::<Launch>() {
            return Err(CompileError::Load("the library is of another runtime".into()));
        }
        let (mut entry_list, mut constant_list) = (Vec::new(), Vec::new());
        // SAFETY: both tables end with a null entry.
        unsafe {
            while *entries.add(entry_list.len()) != 0 {
                entry_list.push(*entries.add(entry_list.len()));
            }
            while (*constants.add(constant_list.len())).value != 0 {
                constant_list.push(*constants.add(constant_list.len()));
            }
        }
        Ok(Image {
            path,
            _folder: folder,
            worker_bytes: worker_bytes as usize,
            run,
            trap,
            entries: entry_list,
            constants: constant_list,
            derive,
            running: Mutex::new(()),
            addr2line: PathBuf::from("addr2line"),
            _library: library,
        })
    }
}

/// Counts the epochs of the conflict detector: low 32 bits are a stamp, high bits a generation.
static STAMPS: AtomicU64 = AtomicU64::new(1);

pub(super) fn dispatch(
    function: &Function,
    dispatch: &Dispatch<'_>,
) -> Result<Counters, DispatchError> {
    let info = function.info();
    let image = &function.library.image;
    let options = &dispatch.options;
    let invalid = |what: String| DispatchError::Invalid { kernel: info.name.clone(), what };
    let nominal = dispatch.threads_per_threadgroup;
    let per_group: u64 = nominal.iter().map(|&n| u64::from(n)).product();
    let limit = u64::from(info.max_threads.unwrap_or(1024)).min(1024);
    if per_group == 0 || per_group > limit || nominal.iter().any(|&n| n > 1024) {
        return Err(invalid(format!(
            "{nominal:?} threads per threadgroup; 1 to {limit} are allowed"
        )));
    }
    let (groups, threads) = match dispatch.grid {
        Grid::Threadgroups(groups) => {
            let mut threads = [0; 3];
            for axis in 0..3 {
                threads[axis] = groups[axis].checked_mul(nominal[axis]).ok_or_else(|| {
                    invalid(format!("a grid of {groups:?} threadgroups is too large"))
                })?;
            }
            (groups, threads)
        }
        Grid::Threads(threads) => {
            (std::array::from_fn(|a| threads[a].div_ceil(nominal[a])), threads)
        }
    };
    let mut shared = [0u64; INDICES];
    for &(index, bytes) in &dispatch.threadgroup_memory {
        *shared
            .get_mut(index as usize)
            .ok_or_else(|| invalid(format!("threadgroup memory {index}; indices are 0 to 30")))? =
            bytes as u64;
    }
    let total: u64 = shared.iter().map(|bytes| bytes.next_multiple_of(16)).sum();
    if total > options.threadgroup_memory_limit.min(1 << 19) {
        return Err(invalid(format!(
            "{total} bytes of threadgroup memory; the limit is {}",
            options.threadgroup_memory_limit
        )));
    }
    let mut indices: Vec<u32> = dispatch.bindings.iter().map(Binding::index).collect();
    indices.sort_unstable();
    if let Some(index) = indices.iter().copied().find(|&index| index as usize >= INDICES) {
        return Err(invalid(format!("a binding at index {index}; indices are 0 to 30")));
    }
    if let Some(twice) = indices.windows(2).find(|w| w[0] == w[1]) {
        return Err(invalid(format!("two bindings at index {}", twice[0])));
    }
    for argument in &info.arguments {
        let bound = match argument.kind {
            ArgumentKind::Threadgroup => shared[argument.index as usize] > 0,
            _ => indices.contains(&argument.index),
        };
        if !bound && !function.library.optional[function.index].contains(&argument.index) {
            return Err(DispatchError::Unbound {
                kernel: info.name.clone(),
                index: argument.index,
                name: argument.name.clone(),
            });
        }
    }
    if groups.contains(&0) {
        return Ok(Counters::default());
    }

    let (arena_base, arena_bytes) = arena_bounds()?;
    let workers = options.workers.clamp(1, 64);
    let mut spaces = Vec::with_capacity(workers);
    for _ in 0..workers {
        spaces.push(Workspace::take(image.worker_bytes)?);
    }

    // Buffers are locked in the order of their identities, so that two dispatches cannot wait for each other.
    let mut buffers: Vec<&crate::Buffer> = dispatch
        .bindings
        .iter()
        .filter_map(|binding| match binding {
            Binding::Buffer { buffer, .. } => Some(*buffer),
            Binding::Bytes { .. } => None,
        })
        .collect();
    buffers.sort_by_key(|buffer| buffer.identity());
    buffers.dedup_by_key(|buffer| buffer.identity());
    let mut states: Vec<_> = buffers.iter().map(|buffer| buffer.lock()).collect();
    let _running = image.running.lock().unwrap_or_else(PoisonError::into_inner);

    // A new generation long before the stamps of this one run out.
    let mut stamp = STAMPS.load(Ordering::Relaxed);
    while stamp & 0xffff_ffff > 0xf000_0000 {
        let next = ((stamp >> 32) + 1) << 32 | 1;
        stamp = match STAMPS.compare_exchange(stamp, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(seen) => seen,
        };
    }

    let mut pointers = [std::ptr::null_mut::<u8>(); INDICES];
    let mut regions: Vec<Region> = Vec::with_capacity(dispatch.bindings.len());
    let mut bytes_used = 0;
    let writes = |index: u32| {
        let argument =
            info.arguments.iter().find(|a| a.index == index && a.kind != ArgumentKind::Threadgroup);
        matches!(argument.map(|a| a.kind), Some(ArgumentKind::Device { read_only: false }))
    };
    for (buffer, state) in buffers.iter().zip(&mut states) {
        let bindings: Vec<u32> = dispatch
            .bindings
            .iter()
            .filter_map(|b| match b {
                Binding::Buffer { index, buffer: b, .. } if b.identity() == buffer.identity() => {
                    Some(*index)
                }
                _ => None,
            })
            .collect();
        let ends = dispatch.bindings.iter().filter_map(|b| match b {
            Binding::Buffer { buffer: b, offset, length, .. }
                if b.identity() == buffer.identity() =>
            {
                Some(length.map_or(b.len(), |length| offset.saturating_add(length)))
            }
            _ => None,
        });
        let end = ends.max().unwrap_or(0).min(buffer.len());
        let writable = bindings.iter().any(|&index| writes(index));
        if options.detect_conflicts && writable && !buffer.is_read_only() {
            if state.generation != stamp >> 32 {
                state.cells.clear();
                state.generation = stamp >> 32;
            }
            if state.cells.is_empty() {
                state.cells = vec![0; buffer.len().div_ceil(workspace::CELL_BYTES) * 2];
            }
        }
        let cells = options.detect_conflicts && writable && !buffer.is_read_only();
        let constant = info
            .arguments
            .iter()
            .any(|a| a.kind == ArgumentKind::Constant && a.index == bindings[0]);
        regions.push(Region {
            base: buffer.address(),
            size: end as u64,
            written: match state.written.is_empty() {
                true => std::ptr::null_mut(),
                false => state.written.as_mut_ptr(),
            },
            cells: if cells { state.cells.as_mut_ptr() } else { std::ptr::null_mut() },
            kind: u32::from(constant && bindings.len() == 1),
            index: bindings[0],
            read_only: u32::from(!writable || buffer.is_read_only()),
            unused: 0,
        });
    }
    for binding in &dispatch.bindings {
        match binding {
            Binding::Buffer { index, buffer, offset, .. } => {
                if *offset > buffer.len() {
                    return Err(invalid(format!(
                        "offset {offset} of the binding at index {index}; the buffer has {} bytes",
                        buffer.len()
                    )));
                }
                pointers[*index as usize] = buffer.address().wrapping_add(*offset);
            }
            Binding::Bytes { index, data } => {
                if data.len() > workspace::BYTES_EACH {
                    return Err(invalid(format!(
                        "{} bytes at index {index}; at most 4096",
                        data.len()
                    )));
                }
                let base = spaces[0].bytes(bytes_used);
                bytes_used += 1;
                // SAFETY: the place has BYTES_EACH bytes and belongs to this dispatch's workspace.
                unsafe {
                    base.copy_from_nonoverlapping(data.as_ptr(), data.len());
                    base.add(data.len()).write_bytes(POISON, 16);
                }
                pointers[*index as usize] = base;
                let constant = info
                    .arguments
                    .iter()
                    .any(|a| a.index == *index && a.kind == ArgumentKind::Constant);
                regions.push(Region {
                    base,
                    size: data.len() as u64,
                    written: std::ptr::null_mut(),
                    cells: std::ptr::null_mut(),
                    kind: u32::from(constant),
                    index: *index,
                    read_only: 1,
                    unused: 0,
                });
            }
        }
    }

    let flags = [
        (options.detect_conflicts, launch::DETECT_CONFLICTS),
        (options.report_unwritten, launch::REPORT_UNWRITTEN),
        (options.stop_at_first, launch::STOP_AT_FIRST),
        (options.exited_threads_leave_barriers, launch::EXITED_LEAVE),
        (workers > 1, launch::SHARED),
    ];
    let unset: Vec<u64> = image
        .constants
        .iter()
        .zip(function.values.iter().zip(&function.library.guarded))
        .map(|(raw, (value, guarded))| match value.is_none() && !guarded {
            true => raw.value as u64,
            false => 0,
        })
        .collect();
    let unset_low = unset.iter().copied().filter(|&at| at != 0).min().unwrap_or(0);
    let unset_end = unset.iter().copied().max().map_or(0, |last| last + 1);
    let mut launch = Box::new(Launch {
        entry: image.entries[function.index] as *const libc::c_void,
        arena_base: arena_base as u64,
        arena_bytes: arena_bytes as u64,
        regions: regions.as_ptr(),
        region_count: regions.len() as u64,
        stamps: &STAMPS,
        seed: options.seed,
        budget: options.budget.max(2),
        memory_limit: options.threadgroup_memory_limit.min(workspace::SHARED_BYTES as u64),
        next_group: 0,
        unset: unset.as_ptr(),
        unset_count: unset.len() as u64,
        unset_low,
        unset_bytes: if unset_low == 0 { 0 } else { unset_end - unset_low },
        first_stamp: (STAMPS.fetch_add(1, Ordering::Relaxed) + 1) & 0xffff_ffff,
        buffers: pointers,
        threadgroup_bytes: shared,
        groups,
        threads,
        nominal,
        flags: flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum(),
        fault_count: 0,
        stop: 0,
        faults: [launch::Fault::default(); launch::MAX_FAULTS],
    });
    set_constants(function);
    let raw: *mut Launch = &mut *launch;
    let counters = run_workers(image, raw, &mut spaces);
    drop(states);
    let count = (launch.fault_count as usize).min(launch::MAX_FAULTS);
    if count > 0 {
        return Err(faults::to_error(function, &launch.faults[..count]));
    }
    Ok(counters)
}

/// Writes the values of the function constants into the image. The caller holds `Image::running`.
fn set_constants(function: &Function) {
    let image = &function.library.image;
    for (raw, value) in image.constants.iter().zip(function.values.iter()) {
        let bytes = value.map_or([0; 8], |value| value.to_bytes());
        // SAFETY: the table names variables of the image with their sizes, at most 8 bytes each; no kernel
        // of the image runs.
        unsafe {
            (raw.value as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), raw.bytes.min(8));
            *(raw.defined as *mut u8) = u8::from(value.is_some());
        }
    }
    // SAFETY: the function computes variables of the image from those just set.
    unsafe { (image.derive)() };
}

struct Pass(*mut launch::WorkerHead, Run, signals::Trap);
// SAFETY: each worker is passed to one thread; what they share is accessed atomically by the runtime.
unsafe impl Send for Pass {}

impl Pass {
    fn run(self) {
        let _handler = signals::Handler::new(self.2);
        // SAFETY: the worker is filled, has the runtime's size, and is this thread's own.
        unsafe { (self.1)(self.0) }
    }
}

fn run_workers(image: &Image, launch: *mut Launch, spaces: &mut [Workspace]) -> Counters {
    let mut passes: Vec<Pass> =
        spaces.iter_mut().map(|space| Pass(space.fill(launch), image.run, image.trap)).collect();
    let first = passes.swap_remove(0);
    std::thread::scope(|scope| {
        for pass in passes {
            scope.spawn(move || {
                let _stack = workspace::SignalStack::new();
                pass.run();
            });
        }
        let _stack = workspace::SignalStack::new();
        first.run();
    });
    let mut sum = Counters::default();
    for space in spaces {
        let RawCounters {
            device_read,
            device_written,
            constant_read,
            threadgroup_read,
            threadgroup_written,
            atomics,
            threadgroup_barriers,
            simdgroup_barriers,
            collectives,
            partial_collectives,
            threadgroup_memory,
            threads,
            threadgroups,
        } = space.counters();
        sum.device_bytes_read += device_read;
        sum.device_bytes_written += device_written;
        sum.constant_bytes_read += constant_read;
        sum.threadgroup_bytes_read += threadgroup_read;
        sum.threadgroup_bytes_written += threadgroup_written;
        sum.atomics += atomics;
        sum.threadgroup_barriers += threadgroup_barriers;
        sum.simdgroup_barriers += simdgroup_barriers;
        sum.collectives += collectives;
        sum.partial_collectives += partial_collectives;
        sum.threadgroup_memory = sum.threadgroup_memory.max(threadgroup_memory);
        sum.threads += threads;
        sum.threadgroups += threadgroups;
    }
    sum
}
