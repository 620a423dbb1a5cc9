//! A plan as one graph of kernels.

use super::context::{Context, Entered};
use super::driver::{Driver, EdgeData, Handle, KernelNode, LaunchConfig};
use super::memory::Memory;
use super::modules::Modules;
use super::tensor_map::{self, Heads};
use crate::kernels::Unit;
use kiln_core::backend::Execute;
use kiln_core::{DType, Plan, Result};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch {
    pub(crate) unit: Unit,
    pub(crate) name: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
    pub(crate) params: Vec<Param>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Param {
    /// The bytes of an argument struct.
    Bytes(Vec<u8>),
    /// A matrix for bulk tensor copies.
    Matrix(Matrix),
    /// Rows of heads for bulk tensor copies.
    Heads(Heads),
}

/// A bf16 matrix, of which boxes of 64 columns are copied to shared memory in the 128-byte swizzle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) address: u64,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    /// Bytes from row to row, a multiple of 16.
    pub(crate) stride: u64,
    /// Rows of a box.
    pub(crate) box_rows: u32,
}

impl Matrix {
    fn encode(&self, driver: &Driver) -> Result<Vec<u8>> {
        let boxes = [64, self.box_rows];
        let extents = [self.columns, self.rows];
        tensor_map::encode(driver, DType::BF16, self.address, extents, [self.stride], boxes)
    }
}

/// The launches of a step, one after the other, and the steps before that they wait for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Launches {
    pub(crate) launches: Vec<Launch>,
    pub(crate) depends_on: Vec<usize>,
    /// Launches that need nothing that the plan computes: they run beside earlier steps.
    pub(crate) ahead: Vec<Ahead>,
}

/// A launch beside earlier steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ahead {
    pub(crate) launch: Launch,
    /// Steps that it waits for all the same: they use the memory that it fills.
    pub(crate) waits: Vec<usize>,
    /// The launch of the step that waits for it.
    pub(crate) before: usize,
}

/// The launches of a step with their kernels.
struct Step {
    /// A launch, the steps that it waits for, and the index of the launch that waits for it.
    ahead: Vec<(Ready, Vec<usize>, usize)>,
    chain: Vec<Ready>,
    depends_on: Vec<usize>,
}

/// A launch with its kernel.
struct Ready {
    function: Handle,
    launch: Launch,
    /// The bytes of each parameter.
    params: Vec<Vec<u8>>,
}

impl Ready {
    fn new(context: &Context, modules: &Modules, launch: Launch) -> Result<Self> {
        let function = modules.function(launch.unit, &launch.name, launch.shared)?;
        let params = launch.params.iter().map(|param| match param {
            Param::Bytes(bytes) => Ok(bytes.clone()),
            Param::Matrix(matrix) => matrix.encode(&context.driver),
            Param::Heads(heads) => heads.encode(&context.driver),
        });
        let params = params.collect::<Result<_>>()?;
        Ok(Self { function, launch, params })
    }

    /// Calls `f` with pointers to the parameters.
    fn with_params<T>(&self, f: impl FnOnce(*mut *mut c_void) -> T) -> T {
        let params = self.params.iter();
        let mut pointers: Vec<*mut c_void> =
            params.map(|bytes| bytes.as_ptr().cast_mut().cast()).collect();
        f(pointers.as_mut_ptr())
    }

    /// Launches it on the stream.
    fn start(&self, entered: &Entered<'_>) -> Result<()> {
        let Launch { grid, block, shared, .. } = self.launch;
        let config = LaunchConfig {
            grid,
            block: [block, 1, 1],
            shared,
            stream: entered.stream,
            attributes: ptr::null(),
            attribute_count: 0,
        };
        let status = self.with_params(|params| {
            // SAFETY: parameters of the kernel's sizes, which the driver copies.
            unsafe { (entered.driver.launch)(&config, self.function, params, ptr::null_mut()) }
        });
        entered.driver.check(&format!("kernel {}", self.launch.name), status)
    }
}

/// An event on the stream.
pub(crate) struct Event {
    context: Arc<Context>,
    handle: Handle,
}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        let entered = context.enter()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the driver writes the handle.
        let status = unsafe { (entered.driver.event_create)(&mut handle, 0) };
        entered.driver.check("cuEventCreate", status)?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    pub(crate) fn record(&self, entered: &Entered<'_>) -> Result<()> {
        // SAFETY: a live event and stream.
        let status = unsafe { (entered.driver.event_record)(self.handle, entered.stream) };
        entered.driver.check("cuEventRecord", status)
    }

    pub(crate) fn wait(&self) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: a live event.
        let status = unsafe { (entered.driver.event_wait)(self.handle) };
        entered.driver.check("cuEventSynchronize", status)
    }

    pub(crate) fn since(&self, earlier: &Event, entered: &Entered<'_>) -> Result<Duration> {
        let mut milliseconds = 0f32;
        // SAFETY: both events have been recorded and reached.
        let status = unsafe {
            (entered.driver.event_elapsed)(&mut milliseconds, earlier.handle, self.handle)
        };
        entered.driver.check("cuEventElapsedTime", status)?;
        Ok(Duration::from_secs_f32(milliseconds.max(0.0) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once.
            unsafe { (entered.driver.event_destroy)(self.handle) };
        }
    }
}

/// A compiled plan.
pub(crate) struct CudaExecutable {
    context: Arc<Context>,
    executable: Handle,
    steps: Vec<Step>,
    /// Keep alive what the launches use.
    _modules: Arc<Modules>,
    _plan: Arc<Plan>,
    _memory: Vec<Memory>,
}

// SAFETY: handles of the driver, used with the context current and the stream taken.
unsafe impl Send for CudaExecutable {}
// SAFETY: as above.
unsafe impl Sync for CudaExecutable {}

impl CudaExecutable {
    /// A graph of the launches; `memory` is what they use beside the plan's buffers.
    pub(crate) fn new(
        context: &Arc<Context>,
        modules: &Arc<Modules>,
        plan: Arc<Plan>,
        steps: Vec<Launches>,
        memory: Vec<Memory>,
    ) -> Result<Self> {
        let all = steps.iter().flat_map(|step| {
            step.launches.iter().chain(step.ahead.iter().map(|ahead| &ahead.launch))
        });
        modules.load(&all.map(|launch| launch.unit).collect())?;
        let ready = |launch| Ready::new(context, modules, launch);
        let step = |step: Launches| {
            let ahead = step.ahead.into_iter();
            let ahead =
                ahead.map(|Ahead { launch, waits, before }| Ok((ready(launch)?, waits, before)));
            Ok(Step {
                ahead: ahead.collect::<Result<_>>()?,
                chain: step.launches.into_iter().map(ready).collect::<Result<_>>()?,
                depends_on: step.depends_on,
            })
        };
        let steps: Vec<Step> = steps.into_iter().map(step).collect::<Result<_>>()?;
        let executable = instantiate(context, &steps)?;
        Ok(Self {
            context: Arc::clone(context),
            executable,
            steps,
            _modules: Arc::clone(modules),
            _plan: plan,
            _memory: memory,
        })
    }
}

/// A graph while it is made.
struct Graph<'a> {
    driver: &'a Driver,
    handle: Handle,
    /// Whether a kernel may be launched before the one that it waits for has ended.
    overlap: bool,
    /// Whether all kernels run one after the other.
    chain: bool,
}

impl Graph<'_> {
    /// A node that waits for others.
    fn add(&self, ready: &Ready, before: &[Handle]) -> Result<Handle> {
        let driver = self.driver;
        let mut node = ptr::null_mut();
        let status = ready.with_params(|params| {
            let Launch { grid, block, shared, .. } = ready.launch;
            let kernel = KernelNode {
                function: ready.function,
                grid,
                block: [block, 1, 1],
                shared,
                params,
                extra: ptr::null_mut(),
            };
            // SAFETY: parameters of the kernel's sizes, which the driver copies; no dependencies.
            unsafe { (driver.graph_kernel)(&mut node, self.handle, ptr::null(), 0, &kernel) }
        });
        driver.check(&format!("adding kernel {}", ready.launch.name), status)?;
        let mut before = before.to_vec();
        before.sort_unstable();
        before.dedup();
        // Kernels begin with a wait of their own; of several edges none is programmatic.
        let edge = match before.len() {
            1 if self.overlap => EdgeData::PROGRAMMATIC,
            _ => EdgeData::default(),
        };
        let (to, edges) = (vec![node; before.len()], vec![edge; before.len()]);
        // SAFETY: nodes of this graph, as many of each as said.
        let status = unsafe {
            (driver.graph_edges)(
                self.handle,
                before.as_ptr(),
                to.as_ptr(),
                edges.as_ptr(),
                before.len(),
            )
        };
        driver.check("cuGraphAddDependencies", status)?;
        Ok(node)
    }

    /// The launches of each step in a row; the first waits for the last of the steps before.
    fn fill(&self, steps: &[Step]) -> Result<()> {
        if self.chain {
            let mut last = Vec::new();
            for ready in steps.iter().flat_map(|step| &step.chain) {
                last = vec![self.add(ready, &last)?];
            }
            return Ok(());
        }
        // The last node of each step. A step without launches stands for those that it waits for.
        let mut ends: Vec<Vec<Handle>> = Vec::with_capacity(steps.len());
        for step in steps {
            let after = |steps: &[usize]| -> Vec<Handle> {
                steps.iter().flat_map(|&step| ends[step].iter().copied()).collect()
            };
            let ahead = step
                .ahead
                .iter()
                .map(|(ready, waits, before)| Ok((self.add(ready, &after(waits))?, *before)));
            let ahead: Vec<(Handle, usize)> = ahead.collect::<Result<_>>()?;
            let mut last = after(&step.depends_on);
            for (index, ready) in step.chain.iter().enumerate() {
                let filled = ahead.iter().filter(|(_, before)| *before == index);
                last.extend(filled.map(|(node, _)| *node));
                last = vec![self.add(ready, &last)?];
            }
            ends.push(last);
        }
        Ok(())
    }
}

/// Whether the kernels of a plan are to run one after the other: each then has a single predecessor, so
/// that it is launched early and reads weights ahead, which is worth more to products of few rows than
/// running beside others. Every kernel waits for the one before, and so for all before.
fn is_chain(steps: &[Step]) -> bool {
    let mut launches = steps.iter().flat_map(|step| &step.chain).map(|ready| ready.launch.unit);
    steps.iter().all(|step| step.ahead.is_empty())
        && launches.clone().any(Unit::waits_for_weights)
        && !launches.any(Unit::is_tiled)
}

fn instantiate(context: &Context, steps: &[Step]) -> Result<Handle> {
    let entered = context.enter()?;
    let driver = entered.driver;
    let mut handle = ptr::null_mut();
    // SAFETY: the driver writes the handle.
    driver.check("cuGraphCreate", unsafe { (driver.graph_create)(&mut handle, 0) })?;
    let overlap = context.caps.compute >= [9, 0];
    let chain = overlap && is_chain(steps);
    let built = Graph { driver, handle, overlap, chain }.fill(steps).and_then(|()| {
        let mut executable = ptr::null_mut();
        // SAFETY: a live graph.
        let status = unsafe { (driver.graph_instantiate)(&mut executable, handle, 0) };
        driver.check("cuGraphInstantiate", status).map(|()| executable)
    });
    // SAFETY: created above; the executable does not need it.
    unsafe { (driver.graph_destroy)(handle) };
    built
}

impl Execute for CudaExecutable {
    fn run(&self) -> Result<()> {
        let entered = self.context.enter()?;
        // SAFETY: a live graph on a live stream; all memory it uses is kept.
        let status = unsafe { (entered.driver.graph_launch)(self.executable, entered.stream) };
        entered.driver.check("cuGraphLaunch", status)?;
        entered.wait()
    }

    fn profile(&self) -> Result<Vec<Duration>> {
        let events = (0..=self.steps.len()).map(|_| Event::new(&self.context));
        let events: Vec<Event> = events.collect::<Result<_>>()?;
        let entered = self.context.enter()?;
        let (first, rest) = events.split_at(1);
        first[0].record(&entered)?;
        for (step, event) in self.steps.iter().zip(rest) {
            for ready in step.ahead.iter().map(|(ready, ..)| ready).chain(&step.chain) {
                ready.start(&entered)?;
            }
            event.record(&entered)?;
        }
        entered.wait()?;
        events.windows(2).map(|pair| pair[1].since(&pair[0], &entered)).collect()
    }
}

impl Drop for CudaExecutable {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: instantiated in `new`, destroyed once, after every run has ended.
            unsafe { (entered.driver.graph_release)(self.executable) };
        }
    }
}

/// Launches a kernel at once, behind what is on the stream.
pub(crate) fn launch_now(
    context: &Arc<Context>,
    modules: &Arc<Modules>,
    launch: Launch,
) -> Result<()> {
    modules.load(&[launch.unit].into_iter().collect())?;
    let ready = Ready::new(context, modules, launch)?;
    ready.start(&context.enter()?)
}
