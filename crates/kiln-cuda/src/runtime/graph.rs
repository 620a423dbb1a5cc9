//! A plan as one graph of kernels.

use super::context::{Context, Entered};
use super::driver::{Handle, KernelNode, LaunchConfig};
use super::memory::Memory;
use super::modules::Modules;
use crate::kernels::Unit;
use kiln_core::backend::Execute;
use kiln_core::{Plan, Result};
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
    /// The bytes of each parameter.
    pub(crate) params: Vec<Vec<u8>>,
}

/// The launches of a step, one after the other, and the steps before that they wait for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Launches {
    pub(crate) launches: Vec<Launch>,
    pub(crate) depends_on: Vec<usize>,
}

/// A launch with its kernel.
struct Ready {
    function: Handle,
    launch: Launch,
}

impl Ready {
    /// Calls `f` with pointers to the parameters.
    fn with_params<T>(&self, f: impl FnOnce(*mut *mut c_void) -> T) -> T {
        let params = self.launch.params.iter();
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

    fn since(&self, earlier: &Event, entered: &Entered<'_>) -> Result<Duration> {
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
    steps: Vec<Vec<Ready>>,
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
        let units = steps.iter().flat_map(|step| &step.launches).map(|launch| launch.unit);
        modules.load(&units.collect())?;
        let depends_on: Vec<_> = steps.iter().map(|step| step.depends_on.clone()).collect();
        let ready = |launch: Launch| {
            let function = modules.function(launch.unit, &launch.name, launch.shared)?;
            Ok(Ready { function, launch })
        };
        let steps = steps.into_iter().map(|step| step.launches.into_iter().map(ready).collect());
        let steps: Vec<Vec<Ready>> = steps.collect::<Result<_>>()?;
        let executable = instantiate(context, &steps, &depends_on)?;
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

/// The launches of each step in a row; the first waits for the last of the steps before.
fn instantiate(
    context: &Context,
    steps: &[Vec<Ready>],
    depends_on: &[Vec<usize>],
) -> Result<Handle> {
    let entered = context.enter()?;
    let driver = entered.driver;
    let mut graph = ptr::null_mut();
    // SAFETY: the driver writes the handle.
    driver.check("cuGraphCreate", unsafe { (driver.graph_create)(&mut graph, 0) })?;
    let mut ends: Vec<Vec<Handle>> = Vec::with_capacity(steps.len());
    let built = (|| {
        for (step, before) in steps.iter().zip(depends_on) {
            let mut last: Vec<Handle> =
                before.iter().flat_map(|&step| ends[step].iter().copied()).collect();
            last.sort_unstable();
            last.dedup();
            for ready in step {
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
                    // SAFETY: nodes of this graph; parameters of the kernel's sizes, which the
                    // driver copies.
                    unsafe {
                        (driver.graph_kernel)(&mut node, graph, last.as_ptr(), last.len(), &kernel)
                    }
                });
                driver.check(&format!("adding kernel {}", ready.launch.name), status)?;
                last = vec![node];
            }
            ends.push(last);
        }
        let mut executable = ptr::null_mut();
        // SAFETY: a live graph.
        let status = unsafe { (driver.graph_instantiate)(&mut executable, graph, 0) };
        driver.check("cuGraphInstantiate", status)?;
        Ok(executable)
    })();
    // SAFETY: created above; the executable does not need it.
    unsafe { (driver.graph_destroy)(graph) };
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
            for ready in step {
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
    let function = modules.function(launch.unit, &launch.name, launch.shared)?;
    let entered = context.enter()?;
    Ready { function, launch }.start(&entered)
}
