//! Metal on any machine: kernels compiled by the system's C++ compiler and run under checks.
//!
//! Between two barriers the dispatches run in an order that the seed decides, and so do the threads of
//! a dispatch. Small runs are repeated under several seeds and must give the same bits.

use super::{BoundBuffer, Command, DeviceMemory, Fault, Runtime};
use crate::caps::Caps;
use crate::library::{ConstantKind, FunctionConstant, Library};
use kiln_core::{Error, Result, SharedBytes};
use msl_host::{
    Binding, Buffer, Compiler, ConstantValue, Dispatch, Function, FunctionConstants, RunOptions,
};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The name of the device.
const NAME: &str = "metal-host";

/// The last language version that the host compiles.
const LAST_VERSION: (u32, u32) = (3, 2);

/// The most written bytes that are kept to compare schedules.
const COMPARED_BYTES: usize = 64 << 20;

/// Choices of the host device.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Decides the order of threads and of independent dispatches.
    pub seed: u64,
    /// Orders under which a run is repeated; all must give the same bits.
    pub schedules: usize,
    /// Runs of more threads than this take one schedule.
    pub schedule_threads: usize,
    /// Whether two threads that touch the same address without a barrier between, one writing, are an
    /// error.
    pub detect_conflicts: bool,
    /// System threads that run threadgroups.
    pub workers: usize,
    /// Folder of compiled kernels, which nobody else may write; `None` compiles them for every device.
    pub cache: Option<PathBuf>,
    /// Gets a count for every dispatch that runs.
    pub counts: Option<Counts>,
}

impl Default for HostConfig {
    /// Every check, and 8 schedules for runs of up to 16384 threads.
    fn default() -> Self {
        Self {
            seed: 1,
            schedules: 8,
            schedule_threads: 16_384,
            detect_conflicts: true,
            workers: 1,
            cache: None,
            counts: None,
        }
    }
}

/// Counts of the dispatches that ran, in order.
pub type Counts = Arc<Mutex<Vec<DispatchCount>>>;

/// What one dispatch did.
#[derive(Clone, Debug, PartialEq)]
pub struct DispatchCount {
    /// The step of the plan it belongs to.
    pub step: usize,
    /// Its place among the phases of the step.
    pub phase: usize,
    /// The kernel.
    pub kernel: String,
    /// Whether a barrier came before it.
    pub barrier: bool,
    /// Threadgroups.
    pub threadgroups: usize,
    /// Threads of a threadgroup.
    pub threads: usize,
    /// Bytes of threadgroup memory of a threadgroup.
    pub threadgroup_memory: u64,
    /// Barriers that each threadgroup passed.
    pub threadgroup_barriers: u64,
    /// Bytes loaded from device memory.
    pub device_bytes_read: u64,
    /// Bytes stored to device memory.
    pub device_bytes_written: u64,
}

/// The host as a Metal device.
pub(crate) struct Host {
    config: HostConfig,
    compiler: Compiler,
    runs: AtomicU64,
    /// What is compiled instead of a source: tests plant faults.
    source: fn(&str) -> String,
}

impl Host {
    /// Finds a C++ compiler.
    ///
    /// # Errors
    /// [`Error::Device`] where there is none.
    pub(crate) fn open(config: HostConfig) -> Result<Self> {
        let settings =
            msl_host::Config { cache: config.cache.clone(), ..msl_host::Config::default() };
        let compiler = Compiler::new(settings).map_err(device_error)?;
        Ok(Self { config, compiler, runs: AtomicU64::new(0), source: str::to_owned })
    }

    /// Runs the commands once, those between two barriers in an order that `seed` decides.
    fn run_once(&self, prepared: &Prepared, seed: u64) -> Result<(), Fault> {
        prepared.poison()?;
        let mut random = Random(seed);
        for range in &prepared.groups {
            for index in random.order(range.clone()) {
                let first = index == range.start;
                self.dispatch(&prepared.commands[index], first && index > 0, random.next())?;
            }
        }
        Ok(())
    }

    fn dispatch(&self, command: &Command<Self>, barrier: bool, seed: u64) -> Result<(), Fault> {
        let narrow = |extents: [usize; 3]| extents.map(|extent| extent as u32);
        let options = RunOptions {
            seed,
            detect_conflicts: self.config.detect_conflicts,
            report_unwritten: true,
            workers: self.config.workers,
            ..RunOptions::default()
        };
        let mut dispatch =
            Dispatch::threadgroups(narrow(command.threadgroups), narrow(command.threads))
                .options(options);
        if !command.arguments.is_empty() {
            dispatch = dispatch.bind(Binding::bytes(0, &command.arguments));
        }
        for (index, bound) in command.buffers.iter().enumerate() {
            let (index, buffer) = (index as u32 + 1, &bound.buffer.buffer);
            let binding = Binding::buffer_part(index, buffer, bound.offset, bound.bytes);
            dispatch = dispatch.bind(binding);
        }
        if command.threadgroup_memory > 0 {
            dispatch = dispatch.threadgroup(0, command.threadgroup_memory);
        }
        let counters = command.pipeline.function.dispatch(&dispatch);
        let counters = counters.map_err(|error| Fault {
            step: Some(command.step),
            problem: format!("{}: {error}", command.pipeline.name),
        })?;
        if let Some(counts) = &self.config.counts {
            let count = DispatchCount {
                step: command.step,
                phase: command.phase,
                kernel: command.pipeline.name.clone(),
                barrier,
                threadgroups: command.threadgroups.iter().product(),
                threads: command.threads.iter().product(),
                threadgroup_memory: counters.threadgroup_memory,
                threadgroup_barriers: counters.threadgroup_barriers / counters.threadgroups.max(1),
                device_bytes_read: counters.device_bytes_read,
                device_bytes_written: counters.device_bytes_written,
            };
            counts.lock().unwrap_or_else(PoisonError::into_inner).push(count);
        }
        Ok(())
    }
}

fn device_error(problem: impl fmt::Display) -> Error {
    Error::Device { device: NAME.to_owned(), problem: problem.to_string() }
}

/// A sequence of numbers from a seed (SplitMix64; Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The range in some order.
    fn order(&mut self, range: Range<usize>) -> Vec<usize> {
        let mut order: Vec<usize> = range.collect();
        for last in (1..order.len()).rev() {
            let other = (self.next() % (last as u64 + 1)) as usize;
            order.swap(last, other);
        }
        order
    }
}

/// Host memory with bounds.
pub(crate) struct HostBuffer {
    buffer: Buffer,
    bytes: usize,
    borrowed: bool,
    /// Holds nothing between runs.
    scratch: bool,
}

impl fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBuffer").field("bytes", &self.bytes).finish()
    }
}

impl DeviceMemory for HostBuffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_borrowed(&self) -> bool {
        self.borrowed
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.buffer.read(offset, out).map_err(device_error)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.buffer.write(offset, data).map_err(device_error)
    }

    fn clear(&self) -> Result<()> {
        self.buffer.write(0, &vec![0; self.bytes]).map_err(device_error)
    }
}

/// A specialised kernel.
pub(crate) struct HostPipeline {
    function: Function,
    name: String,
}

/// Commands in groups between barriers.
pub(crate) struct Prepared {
    commands: Vec<Command<Host>>,
    groups: Vec<Range<usize>>,
    scratch: Vec<Arc<HostBuffer>>,
    /// What the commands write outside scratch memory.
    written: Vec<(Arc<HostBuffer>, Range<usize>)>,
    schedules: usize,
}

impl Prepared {
    /// Forgets what temporaries and workspaces held.
    fn poison(&self) -> Result<(), Fault> {
        for scratch in &self.scratch {
            let poisoned = scratch.buffer.poison();
            poisoned.map_err(|error| Fault { step: None, problem: error.to_string() })?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Vec<Vec<u8>>> {
        let read = |(buffer, range): &(Arc<HostBuffer>, Range<usize>)| {
            let mut bytes = vec![0; range.len()];
            buffer.read(range.start, &mut bytes)?;
            Ok(bytes)
        };
        self.written.iter().map(read).collect()
    }

    fn restore(&self, snapshot: &[Vec<u8>]) -> Result<()> {
        for ((buffer, range), bytes) in self.written.iter().zip(snapshot) {
            buffer.write(range.start, bytes)?;
        }
        Ok(())
    }
}

/// Ranges of commands between barriers.
fn groups(commands: &[Command<Host>]) -> Vec<Range<usize>> {
    let mut starts: Vec<usize> =
        (0..commands.len()).filter(|&index| index == 0 || commands[index].barrier).collect();
    starts.push(commands.len());
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn conflict(a: &BoundBuffer<Host>, b: &BoundBuffer<Host>) -> bool {
    (a.writes || b.writes)
        && Arc::ptr_eq(&a.buffer, &b.buffer)
        && a.offset < b.offset + b.bytes
        && b.offset < a.offset + a.bytes
}

/// The first two commands without a barrier between of which one writes what the other uses.
fn hazard(commands: &[Command<Host>]) -> Option<(&Command<Host>, &Command<Host>)> {
    commands.iter().enumerate().find_map(|(index, b)| {
        let meets =
            |a: &&Command<Host>| a.buffers.iter().any(|x| b.buffers.iter().any(|y| conflict(x, y)));
        commands[..index].iter().find(meets).map(|a| (a, b))
    })
}

impl Runtime for Host {
    type Buffer = HostBuffer;
    type Library = msl_host::Library;
    type Pipeline = HostPipeline;
    type Prepared = Prepared;

    fn name(&self) -> &'static str {
        NAME
    }

    fn description(&self) -> String {
        let HostConfig { seed, schedules, .. } = self.config;
        format!("Metal kernels on the host, {schedules} schedules from seed {seed}")
    }

    fn caps(&self) -> Caps {
        Caps::APPLE7
    }

    fn allocate(&self, bytes: usize) -> Result<HostBuffer> {
        let buffer = Buffer::from_slice(&vec![0u8; bytes]).map_err(device_error)?;
        Ok(HostBuffer { buffer, bytes, borrowed: false, scratch: false })
    }

    fn scratch(&self, bytes: usize) -> Result<HostBuffer> {
        let buffer = Buffer::new(bytes).map_err(device_error)?;
        Ok(HostBuffer { buffer, bytes, borrowed: false, scratch: true })
    }

    fn import(&self, bytes: SharedBytes) -> Result<HostBuffer> {
        if bytes.as_ref().as_ptr().cast::<f32>().is_aligned() {
            let length = bytes.len();
            let buffer = Buffer::borrow(bytes);
            return Ok(HostBuffer { buffer, bytes: length, borrowed: true, scratch: false });
        }
        let buffer = Buffer::from_slice(bytes.as_ref()).map_err(device_error)?;
        Ok(HostBuffer { buffer, bytes: bytes.len(), borrowed: false, scratch: false })
    }

    fn library(&self, library: &Library, source: &str) -> Result<msl_host::Library, String> {
        if library.version > LAST_VERSION {
            let (major, minor) = library.version;
            return Err(format!("the host has no Metal {major}.{minor}"));
        }
        let source = (self.source)(source);
        self.compiler.compile(&source).map_err(|error| error.to_string())
    }

    fn pipeline(
        &self,
        library: &msl_host::Library,
        function: &str,
        constants: &[(FunctionConstant, u32)],
        _: usize,
    ) -> Result<HostPipeline, String> {
        let mut values = FunctionConstants::new();
        for (constant, value) in constants {
            values = match constant.kind {
                ConstantKind::Bool => values.set(constant.index, ConstantValue::Bool(*value != 0)),
                ConstantKind::Uint => values.set(constant.index, ConstantValue::UInt(*value)),
            };
        }
        let name = function.to_owned();
        let function = library.function(function, &values).map_err(|error| error.to_string())?;
        Ok(HostPipeline { function, name })
    }

    fn threads(&self, _: &HostPipeline) -> usize {
        self.caps().threads
    }

    fn static_threadgroup_memory(&self, _: &HostPipeline) -> usize {
        // Counted, and held to the limit, while a kernel runs.
        0
    }

    fn prepare(&self, commands: Vec<Command<Self>>) -> Result<Prepared> {
        let groups = groups(&commands);
        for range in &groups {
            if let Some((a, b)) = hazard(&commands[range.clone()]) {
                let kernels = [a, b].map(|command| command.pipeline.name.as_str());
                return Err(device_error(format!(
                    "steps {} and {} ({} and {}) share memory without a barrier between",
                    a.step, b.step, kernels[0], kernels[1]
                )));
            }
        }
        let (mut scratch, mut written) = (Vec::<Arc<HostBuffer>>::new(), Vec::new());
        for bound in commands.iter().flat_map(|command| &command.buffers) {
            let buffer = &bound.buffer;
            if buffer.scratch {
                if !scratch.iter().any(|known| Arc::ptr_eq(known, buffer)) {
                    scratch.push(Arc::clone(buffer));
                }
            } else if bound.writes {
                written.push((Arc::clone(buffer), bound.offset..bound.offset + bound.bytes));
            }
        }
        let threads =
            |c: &Command<Self>| c.threadgroups.iter().chain(&c.threads).product::<usize>();
        let small = commands.iter().map(threads).sum::<usize>() <= self.config.schedule_threads
            && written.iter().map(|(_, range)| range.len()).sum::<usize>() <= COMPARED_BYTES;
        let schedules = if small { self.config.schedules.max(1) } else { 1 };
        Ok(Prepared { commands, groups, scratch, written, schedules })
    }

    fn run(&self, prepared: &Prepared) -> Result<(), Fault> {
        let fault = |error: Error| Fault { step: None, problem: error.to_string() };
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let seed = |schedule: usize| {
            Random(self.config.seed ^ run.rotate_left(32) ^ schedule as u64).next()
        };
        if prepared.schedules == 1 {
            return self.run_once(prepared, seed(0));
        }
        let before = prepared.snapshot().map_err(fault)?;
        self.run_once(prepared, seed(0))?;
        let first = prepared.snapshot().map_err(fault)?;
        for schedule in 1..prepared.schedules {
            prepared.restore(&before).map_err(fault)?;
            self.run_once(prepared, seed(schedule))?;
            if prepared.snapshot().map_err(fault)? != first {
                return Err(Fault {
                    step: None,
                    problem: format!("schedule {schedule} gives other bits than the first"),
                });
            }
        }
        Ok(())
    }

    fn profile(&self, prepared: &Prepared, steps: usize) -> Result<Vec<Duration>, Fault> {
        let mut times = vec![Duration::ZERO; steps];
        prepared.poison()?;
        for command in &prepared.commands {
            let start = Instant::now();
            self.dispatch(command, command.barrier, 0)?;
            if let Some(time) = times.get_mut(command.step) {
                *time += start.elapsed();
            }
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests;
