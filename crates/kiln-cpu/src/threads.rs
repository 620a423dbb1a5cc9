//! A persistent pool of threads and the parallel region a plan runs in.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spins before a thread at a barrier offers its core to others: some microseconds.
const BARRIER_SPINS: u32 = 5_000;

/// Spins before an idle thread goes to sleep: long enough to span the host's work between tokens.
const IDLE_SPINS: u32 = 100_000;

/// Memory of one thread, kept between runs; contents are stale.
#[derive(Default)]
pub(crate) struct Scratch {
    memory: Vec<u64>,
    kept: Vec<u64>,
}

/// Makes the memory at least `bytes` long, from its first multiple of [`LINE`] on.
fn aligned(memory: &mut Vec<u64>, bytes: usize) -> &mut [u8] {
    let words = (bytes + LINE).div_ceil(8);
    if memory.len() < words {
        memory.resize(words, 0);
    }
    let all: &mut [u8] = bytemuck::cast_slice_mut(memory);
    let start = all.as_ptr().align_offset(LINE);
    &mut all[start..]
}

fn parts<const N: usize>(memory: &mut Vec<u64>, bytes: [usize; N]) -> [&mut [u8]; N] {
    let total = bytes.iter().map(|bytes| bytes.next_multiple_of(LINE)).sum();
    let mut rest = aligned(memory, total);
    bytes.map(|bytes| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(LINE));
        rest = tail;
        &mut part[..bytes]
    })
}

const LINE: usize = crate::memory::ALIGNMENT;

impl Scratch {
    /// Disjoint parts, each starting at a multiple of 64 bytes.
    pub(crate) fn parts<const N: usize>(&mut self, bytes: [usize; N]) -> [&mut [u8]; N] {
        parts(&mut self.memory, bytes)
    }

    /// Bytes that stay as they are until they are asked for again, beside `N` slices of f32.
    pub(crate) fn keep_beside<const N: usize>(
        &mut self,
        bytes: usize,
        lens: [usize; N],
    ) -> (&mut [u8], [&mut [f32]; N]) {
        let Self { memory, kept } = self;
        let parts = parts(memory, lens.map(|len| len * size_of::<f32>()));
        (&mut aligned(kept, bytes)[..bytes], parts.map(bytemuck::cast_slice_mut))
    }

    /// `N` disjoint slices of f32.
    pub(crate) fn floats<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        self.parts(lens.map(|len| len * size_of::<f32>())).map(bytemuck::cast_slice_mut)
    }
}

/// What the threads of a pool share.
#[derive(Default)]
struct Shared {
    count: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
    /// Number of jobs started; a change wakes the workers.
    epoch: AtomicUsize,
    running: AtomicUsize,
    job: Mutex<Job>,
    wake: Condvar,
}

#[derive(Default)]
struct Job {
    work: Option<Work>,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// The closure of the region that runs, its lifetime erased: `Pool::run` outlives every use.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn(&Worker<'_>, &mut Scratch) + Sync));

// SAFETY: the pointee is `Sync`, and `Pool::run` keeps it alive until all threads are done.
unsafe impl Send for Work {}

/// A thread's access to its parallel region.
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    /// Which of the threads this is.
    index: usize,
}

/// The payload with which threads leave a region that another one has panicked in.
struct Poisoned;

impl Worker<'_> {
    /// Waits until every thread of the region is here. All threads must call it equally often.
    pub(crate) fn barrier(&self) {
        if self.shared.count == 1 {
            return;
        }
        let shared = self.shared;
        let generation = shared.generation.load(Ordering::Acquire);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.count {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.generation.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            let mut spins = 0;
            while shared.generation.load(Ordering::Acquire) == generation
                && !shared.poisoned.load(Ordering::Relaxed)
            {
                spins += 1;
                if spins < BARRIER_SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
        if shared.poisoned.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Poisoned));
        }
    }
}

/// Tasks that the threads of a region share. Each thread has a range of neighbouring ones, so that it
/// goes through memory in one direction, and takes from the others' ranges when its own is done.
pub(crate) struct Tickets {
    total: usize,
    taken: Vec<Ticket>,
}

/// How many tasks of a range are taken; in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Ticket(AtomicUsize);

impl Tickets {
    /// Tasks `0..total` for `threads` threads.
    pub(crate) fn new(total: usize, threads: usize) -> Self {
        let ranges = threads.min(total).max(1);
        Self { total, taken: std::iter::repeat_with(Ticket::default).take(ranges).collect() }
    }

    /// Makes all tasks available again.
    pub(crate) fn reset(&self) {
        self.taken.iter().for_each(|ticket| ticket.0.store(0, Ordering::Relaxed));
    }

    /// The tasks that a thread gets, until none is left.
    pub(crate) fn take(&self, worker: &Worker<'_>) -> impl Iterator<Item = usize> + '_ {
        let (ranges, own) = (self.taken.len(), worker.index);
        let mut visited = 0;
        std::iter::from_fn(move || {
            while visited < ranges {
                let range = (own + visited) % ranges;
                let start = (range * self.total).div_ceil(ranges);
                let end = ((range + 1) * self.total).div_ceil(ranges);
                let task = start + self.taken[range].0.fetch_add(1, Ordering::Relaxed);
                if task < end {
                    return Some(task);
                }
                visited += 1;
            }
            None
        })
    }
}

/// Threads that wait for regions. The caller of a region is one of its threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Scratch of the calling thread; held during a region, so that only one runs at a time.
    caller: Mutex<Scratch>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool for regions of `count` threads.
    pub(crate) fn new(count: usize) -> std::io::Result<Self> {
        let count = count.max(1);
        let shared = Arc::new(Shared { count, ..Shared::default() });
        let mut pool = Self { shared, threads: Vec::new(), caller: Mutex::default() };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            let name = format!("kiln-cpu-{index}");
            let thread = std::thread::Builder::new().name(name);
            pool.threads.push(thread.spawn(move || worker_loop(&shared, index))?);
        }
        Ok(pool)
    }

    /// Threads in a region.
    pub(crate) fn count(&self) -> usize {
        self.shared.count
    }

    /// Runs `work` once on every thread and returns when all are done.
    ///
    /// # Errors
    /// The message of a thread that panicked.
    pub(crate) fn run(
        &self,
        work: &(dyn Fn(&Worker<'_>, &mut Scratch) + Sync),
    ) -> Result<(), String> {
        let mut scratch = lock(&self.caller);
        let shared = &*self.shared;
        shared.poisoned.store(false, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        if shared.count > 1 {
            let pointer: *const (dyn Fn(&Worker<'_>, &mut Scratch) + Sync) = work;
            // SAFETY: only the lifetime changes; this function does not return before `running` is
            // back at zero, after which no thread uses the pointer.
            let pointer: *const (dyn Fn(&Worker<'_>, &mut Scratch) + Sync + 'static) =
                unsafe { std::mem::transmute(pointer) };
            shared.running.store(shared.count - 1, Ordering::Relaxed);
            let mut job = lock(&shared.job);
            job.work = Some(Work(pointer));
            job.panic = None;
            shared.epoch.fetch_add(1, Ordering::Release);
            drop(job);
            shared.wake.notify_all();
        }
        take_part(&Worker { shared, index: 0 }, work, &mut scratch);
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < BARRIER_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        match lock(&shared.job).panic.take() {
            Some(payload) => Err(panic_message(&*payload)),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.job).stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A worker never panics outside `take_part`, which catches.
            let _ = thread.join();
        }
    }
}

fn take_part(
    worker: &Worker<'_>,
    work: &(dyn Fn(&Worker<'_>, &mut Scratch) + Sync),
    scratch: &mut Scratch,
) {
    let result = catch_unwind(AssertUnwindSafe(|| work(worker, scratch)));
    if let Err(payload) = result
        && !payload.is::<Poisoned>()
    {
        lock(&worker.shared.job).panic = Some(payload);
        worker.shared.poisoned.store(true, Ordering::Relaxed);
    }
}

fn worker_loop(shared: &Shared, index: usize) {
    let worker = Worker { shared, index };
    let mut scratch = Scratch::default();
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && spins < IDLE_SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let mut job = lock(&shared.job);
        while shared.epoch.load(Ordering::Acquire) == seen {
            job = shared.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
        seen = shared.epoch.load(Ordering::Acquire);
        if job.stop {
            return;
        }
        let work = job.work;
        drop(job);
        if let Some(Work(work)) = work {
            // SAFETY: `Pool::run` keeps the closure alive until `running` reaches zero.
            take_part(&worker, unsafe { &*work }, &mut scratch);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a kernel panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_and_barriers_order_phases() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..200 {
            let first = AtomicUsize::new(0);
            let wrong = AtomicUsize::new(0);
            pool.run(&|worker, _| {
                first.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                if first.load(Ordering::Relaxed) != 3 {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
            assert_eq!(wrong.into_inner(), 0);
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        let arrivals = AtomicUsize::new(0);
        let error = pool.run(&|worker, _| {
            if arrivals.fetch_add(1, Ordering::Relaxed) == 1 {
                panic!("planted");
            }
            worker.barrier();
        });
        assert_eq!(error, Err("planted".to_owned()));
        let ran = AtomicUsize::new(0);
        pool.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(ran.into_inner(), 2);
    }

    #[test]
    fn tasks_are_taken_once() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            for total in [0, 1, 2, 5, 1000] {
                let tickets = Tickets::new(total, threads);
                let taken: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                for run in 1..3 {
                    tickets.reset();
                    pool.run(&|worker, _| {
                        for task in tickets.take(worker) {
                            taken[task].fetch_add(1, Ordering::Relaxed);
                        }
                    })
                    .unwrap();
                    assert!(taken.iter().all(|count| count.load(Ordering::Relaxed) == run));
                }
            }
        }
    }

    #[test]
    fn scratch_parts_are_aligned_and_disjoint() {
        let mut scratch = Scratch::default();
        let [a, b, c] = scratch.parts([3, 65, 128]);
        assert_eq!([a.len(), b.len(), c.len()], [3, 65, 128]);
        for part in [&*a, &*b, &*c] {
            assert_eq!(part.as_ptr().align_offset(64), 0);
        }
        assert!(a.as_ptr_range().end <= b.as_ptr() && b.as_ptr_range().end <= c.as_ptr());
    }
}
