//! Plans as commands: every step lowered, every pipeline made, every address resolved.

use crate::dispatch::{ALIGNMENT, Binding, Dispatch, Lowering};
use crate::memory::{AccessLock, MetalBuffer};
use crate::ops;
use crate::pipelines::Pipelines;
use crate::runtime::{BoundBuffer, Command, DeviceMemory, Fault, Runtime};
use crate::view::{Memory, View};
use kiln_core::backend::Execute;
use kiln_core::{Error, Location, Plan, Result, Step, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A compiled plan.
pub(crate) struct MetalExecutable<R: Runtime> {
    runtime: Arc<R>,
    prepared: R::Prepared,
    lock: AccessLock,
    /// Keeps alive the storages that the commands point into.
    plan: Arc<Plan>,
}

impl<R: Runtime> MetalExecutable<R> {
    pub(crate) fn new(
        plan: Arc<Plan>,
        runtime: Arc<R>,
        pipelines: &Pipelines<R>,
        lock: AccessLock,
    ) -> Result<Self> {
        let commands = Baking::new(&plan, &*runtime, pipelines)?.bake()?;
        let prepared = runtime.prepare(commands)?;
        Ok(Self { runtime, prepared, lock, plan })
    }

    fn error(&self, fault: Fault) -> Error {
        let step = fault.step.and_then(|index| self.plan.steps().get(index).map(|s| (index, s)));
        let problem = match step {
            Some((index, step)) => {
                format!("step {index}, {}: {}", step.op.describe(), fault.problem)
            }
            None => fault.problem,
        };
        Error::Device { device: self.runtime.name().to_owned(), problem }
    }
}

impl<R: Runtime> Execute for MetalExecutable<R> {
    fn run(&self) -> Result<()> {
        let _guard = self.lock.lock();
        self.runtime.run(&self.prepared).map_err(|fault| self.error(fault))
    }

    fn profile(&self) -> Result<Vec<Duration>> {
        let _guard = self.lock.lock();
        let steps = self.plan.steps().len();
        self.runtime.profile(&self.prepared, steps).map_err(|fault| self.error(fault))
    }
}

/// One step as dispatches.
struct Lowered {
    phases: Vec<Vec<Dispatch>>,
    /// Where its workspace begins in that of the plan.
    workspace: usize,
    /// The index of its first piece of constant data.
    data: usize,
}

/// A plan on its way to commands.
struct Baking<'a, R: Runtime> {
    plan: &'a Plan,
    runtime: &'a R,
    pipelines: &'a Pipelines<R>,
    /// Buffers of the operands; the first is the arena.
    buffers: Vec<Arc<R::Buffer>>,
    steps: Vec<Lowered>,
    workspace: Option<Arc<R::Buffer>>,
    data: Option<Arc<R::Buffer>>,
    /// Where each piece of constant data is.
    pieces: Vec<usize>,
}

impl<'a, R: Runtime> Baking<'a, R> {
    fn new(plan: &'a Plan, runtime: &'a R, pipelines: &'a Pipelines<R>) -> Result<Self> {
        let arena = Arc::new(runtime.scratch(plan.arena_bytes().max(1))?);
        let mut baking = Self {
            plan,
            runtime,
            pipelines,
            buffers: vec![arena],
            steps: Vec::new(),
            workspace: None,
            data: None,
            pieces: Vec::new(),
        };
        baking.lower()?;
        Ok(baking)
    }

    fn lower(&mut self) -> Result<()> {
        let caps = self.runtime.caps();
        let mut constants: Vec<u8> = Vec::new();
        let (mut workspace, mut workspace_bytes) = (0, 0);
        for step in self.plan.steps() {
            let op = step.op.try_map(|_, tensor| self.resolve(tensor))?;
            let mut lowering = Lowering::new(&caps);
            ops::lower(&op, &mut lowering).map_err(|missing| {
                Error::Unsupported(ops::unsupported(&step.op, self.runtime.name(), &missing))
            })?;
            if step.barrier {
                // Whoever used the workspace has finished.
                workspace = 0;
            }
            let data = self.pieces.len();
            for piece in &lowering.data {
                constants.resize(constants.len().next_multiple_of(ALIGNMENT), 0);
                self.pieces.push(constants.len());
                constants.extend(piece);
            }
            self.steps.push(Lowered { phases: lowering.phases, workspace, data });
            workspace += lowering.workspace;
            workspace_bytes = workspace_bytes.max(workspace);
        }
        if workspace_bytes > 0 {
            self.workspace = Some(Arc::new(self.runtime.scratch(workspace_bytes)?));
        }
        if !constants.is_empty() {
            let buffer = self.runtime.allocate(constants.len())?;
            buffer.write(0, &constants)?;
            self.data = Some(Arc::new(buffer));
        }
        Ok(())
    }

    fn resolve(&mut self, tensor: &Tensor) -> Result<View> {
        match self.plan.locate(tensor) {
            Location::Arena(offset) => Ok(View::new(Memory::Buffer(0), offset, tensor)),
            Location::Buffer(offset) => {
                let buffer = tensor.storage().buffer().ok_or(Error::Temporary)?;
                let buffer = buffer.as_any().downcast_ref::<MetalBuffer<R::Buffer>>();
                let memory =
                    &buffer.ok_or_else(|| self.problem("a tensor of another backend"))?.memory;
                let known = self.buffers.iter().position(|known| Arc::ptr_eq(known, memory));
                let index = known.unwrap_or_else(|| {
                    self.buffers.push(Arc::clone(memory));
                    self.buffers.len() - 1
                });
                Ok(View::new(Memory::Buffer(index), memory.base() + offset, tensor))
            }
        }
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::Device { device: self.runtime.name().to_owned(), problem: problem.into() }
    }

    /// Commands in order. Steps between two barriers are independent of each other, so that their
    /// phases share barriers.
    fn bake(self) -> Result<Vec<Command<R>>> {
        let mut commands = Vec::new();
        for group in groups(self.plan.steps()) {
            let steps = &self.steps[group.clone()];
            let phases = steps.iter().map(|step| step.phases.len()).max().unwrap_or(0);
            for phase in 0..phases {
                let mut barrier = !commands.is_empty();
                for (index, step) in group.clone().zip(steps) {
                    for dispatch in step.phases.get(phase).into_iter().flatten() {
                        let command = self.command((index, phase), barrier, dispatch)?;
                        commands.push(command);
                        barrier = false;
                    }
                }
            }
        }
        Ok(commands)
    }

    fn command(
        &self,
        (index, phase): (usize, usize),
        barrier: bool,
        dispatch: &Dispatch,
    ) -> Result<Command<R>> {
        let step = &self.plan.steps()[index];
        let named = |problem: String| {
            self.problem(format!("step {index}, {}: {problem}", step.op.describe()))
        };
        let threads: usize = dispatch.threads.iter().product();
        let pipeline = self.pipelines.get(self.runtime, &dispatch.kernel, threads);
        let pipeline = pipeline.map_err(named)?;
        let limit = self.runtime.threads(&pipeline);
        if threads > limit {
            let function = &dispatch.kernel.function;
            return Err(named(format!("{function} takes {threads} threads, it can have {limit}")));
        }
        let memory =
            dispatch.threadgroup_memory + self.runtime.static_threadgroup_memory(&pipeline);
        let limit = self.runtime.caps().threadgroup_memory;
        if memory > limit {
            let function = &dispatch.kernel.function;
            return Err(named(format!(
                "{function} takes {memory} bytes of threadgroup memory, the device has {limit}"
            )));
        }
        let bindings = dispatch.bindings.iter();
        let buffers = bindings.map(|binding| self.bound(index, binding)).collect::<Result<_>>()?;
        Ok(Command {
            step: index,
            phase,
            barrier,
            pipeline,
            arguments: dispatch.arguments.clone(),
            buffers,
            threadgroups: dispatch.threadgroups,
            threads: dispatch.threads,
            threadgroup_memory: dispatch.threadgroup_memory,
        })
    }

    fn bound(&self, index: usize, binding: &Binding) -> Result<BoundBuffer<R>> {
        let step = &self.steps[index];
        let (buffer, start) = match binding.memory {
            Memory::Buffer(at) => (self.buffers.get(at), 0),
            Memory::Workspace => (self.workspace.as_ref(), step.workspace),
            Memory::Data(at) => {
                (self.data.as_ref(), self.pieces.get(step.data + at).copied().unwrap_or(0))
            }
        };
        let buffer = buffer.ok_or_else(|| self.problem("a binding of no buffer"))?;
        let offset = start + binding.offset;
        Ok(BoundBuffer {
            buffer: Arc::clone(buffer),
            offset,
            bytes: binding.bytes,
            writes: binding.writes,
        })
    }
}

/// Ranges of steps between barriers.
fn groups(steps: &[Step]) -> Vec<Range<usize>> {
    let mut starts: Vec<usize> =
        (0..steps.len()).filter(|&index| index == 0 || steps[index].barrier).collect();
    starts.push(steps.len());
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

#[cfg(test)]
mod tests;
