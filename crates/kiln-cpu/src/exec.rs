//! Plans as tasks: one parallel region walks all steps.

use crate::Isa;
use crate::memory::{AccessLock, CpuBuffer};
use crate::ops;
use crate::threads::{Pool, Scratch, Tickets, Worker};
use crate::view::View;
use kiln_core::backend::Execute;
use kiln_core::ops::{Op, Role};
use kiln_core::{Error, Location, Plan, Result, Tensor};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One piece of work: its index, and the scratch memory of its thread.
type Work = dyn Fn(usize, &mut Scratch) + Send + Sync;

/// What every thread does before its tasks, into what it keeps in its scratch memory.
#[derive(Clone)]
pub(crate) struct Preparation {
    /// Equal for what is equal: a thread skips what it prepared last.
    key: usize,
    work: Arc<dyn Fn(&mut Scratch) + Send + Sync>,
}

/// Independent pieces of work, which the threads share.
pub(crate) struct Tasks {
    count: usize,
    work: Box<Work>,
    preparation: Option<Preparation>,
}

impl Tasks {
    /// `count` calls of `work`, in any order and on any thread.
    pub(crate) fn new(
        count: usize,
        work: impl Fn(usize, &mut Scratch) + Send + Sync + 'static,
    ) -> Self {
        Self { count, work: Box::new(work), preparation: None }
    }

    /// The same after a preparation on every thread.
    pub(crate) fn after(self, preparation: Preparation) -> Self {
        Self { preparation: Some(preparation), ..self }
    }
}

/// Tasks of one step between two barriers.
struct Phase {
    barrier: bool,
    tasks: Tasks,
    tickets: Tickets,
}

impl Phase {
    /// A thread's part.
    fn run(&self, worker: &Worker<'_>, scratch: &mut Scratch, prepared: &mut Option<usize>) {
        for task in self.tickets.take(worker) {
            if let Some(Preparation { key, work }) = &self.tasks.preparation
                && *prepared != Some(*key)
            {
                work(scratch);
                *prepared = Some(*key);
            }
            (self.tasks.work)(task, scratch);
        }
    }
}

struct Step {
    name: &'static str,
    phases: Vec<Phase>,
}

/// Memory that the steps of a plan use one after the other, sized when all are lowered.
#[derive(Clone, Default)]
pub(crate) struct Workspace(Arc<OnceLock<CpuBuffer>>);

impl Workspace {
    /// Its first byte. Only valid while the plan runs.
    pub(crate) fn start(&self) -> *mut u8 {
        self.0.get().map_or(std::ptr::null_mut(), CpuBuffer::start)
    }
}

/// What the workspace, or every thread, holds between steps.
#[derive(Clone, PartialEq)]
pub(crate) struct Held {
    /// Addresses of the memory it was made from.
    pub(crate) source: Range<usize>,
    /// What was made of it.
    pub(crate) key: ops::matmul::PackKey,
}

/// Lowers operations to phases of tasks.
pub(crate) struct Lowering {
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    workspace: Workspace,
    workspace_bytes: usize,
    held: Option<Held>,
    prepared: Option<(Held, Preparation)>,
    preparations: usize,
    phases: Vec<Phase>,
    /// Whether the next phase must wait for all before it.
    barrier: bool,
}

impl Lowering {
    /// Appends tasks that may run beside those before, except after a barrier.
    pub(crate) fn tasks(&mut self, tasks: Tasks) {
        let barrier = std::mem::take(&mut self.barrier);
        let tickets = Tickets::new(tasks.count, self.threads);
        self.phases.push(Phase { barrier, tasks, tickets });
    }

    /// What comes next waits for all before it.
    pub(crate) fn barrier(&mut self) {
        self.barrier = true;
    }

    /// The shared workspace, at least `bytes` long, free to be overwritten: waits for earlier uses.
    pub(crate) fn workspace(&mut self, bytes: usize) -> Workspace {
        self.workspace_bytes = self.workspace_bytes.max(bytes);
        self.held = None;
        self.barrier = true;
        self.workspace.clone()
    }

    /// Notes what the workspace holds from now on.
    pub(crate) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// The workspace, where it still holds that.
    pub(crate) fn held(&self, held: &Held) -> Option<Workspace> {
        (self.held.as_ref() == Some(held)).then(|| self.workspace.clone())
    }

    /// What every thread makes for itself of memory that the step reads; threads that have it
    /// from an earlier step skip `work`.
    pub(crate) fn prepare(
        &mut self,
        held: Held,
        work: impl Fn(&mut Scratch) + Send + Sync + 'static,
    ) -> Preparation {
        if let Some((of, preparation)) = &self.prepared
            && *of == held
        {
            return preparation.clone();
        }
        self.preparations += 1;
        let preparation = Preparation { key: self.preparations, work: Arc::new(work) };
        self.prepared = Some((held, preparation.clone()));
        preparation
    }

    /// Forgets what was made from memory that is written.
    fn note_write(&mut self, written: &Range<usize>) {
        let overlaps =
            |held: &Held| held.source.start < written.end && written.start < held.source.end;
        if self.held.as_ref().is_some_and(overlaps) {
            self.held = None;
        }
        if self.prepared.as_ref().is_some_and(|(held, _)| overlaps(held)) {
            self.prepared = None;
        }
    }
}

/// A compiled plan.
pub(crate) struct CpuExecutable {
    steps: Vec<Step>,
    pool: Arc<Pool>,
    lock: AccessLock,
    /// Keeps alive the storages that the views in the tasks point into.
    _plan: Arc<Plan>,
    _arena: CpuBuffer,
    _workspace: Workspace,
}

impl CpuExecutable {
    pub(crate) fn new(
        plan: Arc<Plan>,
        isa: Isa,
        pool: Arc<Pool>,
        lock: AccessLock,
    ) -> Result<Self> {
        let arena = CpuBuffer::zeroed(plan.arena_bytes(), &lock)?;
        let mut lowering = Lowering {
            isa,
            threads: pool.count(),
            workspace: Workspace::default(),
            workspace_bytes: 0,
            held: None,
            prepared: None,
            preparations: 0,
            phases: Vec::new(),
            barrier: false,
        };
        let mut steps = Vec::with_capacity(plan.steps().len());
        for step in plan.steps() {
            lowering.barrier |= step.barrier;
            let op = resolve(&step.op, &plan, &arena)?;
            ops::lower(&op, &mut lowering);
            for (role, tensor) in step.op.operands() {
                if role.access.writes() {
                    let start = address(&tensor, &plan, &arena)? as usize;
                    lowering.note_write(&(start..start + tensor.byte_range().len()));
                }
            }
            let phases = std::mem::take(&mut lowering.phases);
            steps.push(Step { name: step.op.name(), phases });
        }
        let workspace = lowering.workspace;
        let buffer = CpuBuffer::zeroed(lowering.workspace_bytes, &lock)?;
        workspace.0.get_or_init(|| buffer);
        Ok(Self { steps, pool, lock, _plan: plan, _arena: arena, _workspace: workspace })
    }

    fn run_steps(&self, steps: &[Step]) -> Result<()> {
        for phase in steps.iter().flat_map(|step| &step.phases) {
            phase.tickets.reset();
        }
        let at = AtomicUsize::new(0);
        let result = self.pool.run(&|worker, scratch| {
            let mut prepared = None;
            for (index, step) in steps.iter().enumerate() {
                for phase in &step.phases {
                    if phase.barrier {
                        worker.barrier();
                    }
                    at.fetch_max(index, Ordering::Relaxed);
                    phase.run(worker, scratch, &mut prepared);
                }
            }
        });
        result.map_err(|problem| {
            let name = steps.get(at.into_inner()).map_or("?", |step| step.name);
            Error::Device { device: "cpu".to_owned(), problem: format!("step {name}: {problem}") }
        })
    }
}

impl Execute for CpuExecutable {
    fn run(&self) -> Result<()> {
        let _guard = self.lock.lock();
        self.run_steps(&self.steps)
    }

    fn profile(&self) -> Result<Vec<Duration>> {
        let _guard = self.lock.lock();
        let time = |step| {
            let start = Instant::now();
            self.run_steps(std::slice::from_ref(step))?;
            Ok(start.elapsed())
        };
        self.steps.iter().map(time).collect()
    }
}

fn address(tensor: &Tensor, plan: &Plan, arena: &CpuBuffer) -> Result<*mut u8> {
    match plan.locate(tensor) {
        Location::Arena(offset) => Ok(arena.start().wrapping_add(offset)),
        Location::Buffer(offset) => {
            let buffer = tensor.storage().buffer().ok_or(Error::Temporary)?;
            let buffer = buffer.as_any().downcast_ref::<CpuBuffer>();
            let buffer = buffer.ok_or_else(|| Error::Device {
                device: "cpu".to_owned(),
                problem: "a tensor of another backend in a plan".to_owned(),
            })?;
            Ok(buffer.start().wrapping_add(offset))
        }
    }
}

fn resolve(op: &Op<Tensor>, plan: &Plan, arena: &CpuBuffer) -> Result<Op<View>> {
    op.try_map(|_: Role, tensor| Ok(View::new(address(tensor, plan, arena)?, tensor)))
}
