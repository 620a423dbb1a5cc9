//! Recording operations and running what was recorded.

use crate::backend::Execute;
use crate::device::Device;
use crate::error::{OpError, Result};
use crate::ops::{Access, Op, Role};
use crate::plan::{Plan, PlanOptions};
use crate::storage::{Id, Storage};
use crate::tensor::contiguous_bytes;
use crate::{DType, Shape, Tensor};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// A list of checked operations on one device, to be planned and made executable.
///
/// What may change between runs (token ids, positions, lengths) lives in device tensors; an
/// executable replays without recording again.
///
/// ```
/// # fn example(device: kiln_core::Device) -> kiln_core::Result<()> {
/// use kiln_core::{DType, ops::{Add, RmsNorm}};
/// let x = device.upload(&[1.0f32, 2.0, 3.0, 4.0], [1, 4])?;
/// let y = device.tensor(DType::F32, [1, 4])?;
/// let mut rec = device.record();
/// let h = rec.temp(DType::F32, [1, 4])?;
/// rec.push(Add { a: &x, b: &x, output: &h })?;
/// rec.push(RmsNorm { input: &h, weight: None, output: &y, eps: 1e-6 })?;
/// let step = rec.finish()?;
/// step.run()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Recording {
    device: Device,
    id: Id,
    ops: Vec<Op<Tensor>>,
    written: HashSet<Id>,
}

impl Recording {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, id: Id::next(), ops: Vec::new(), written: HashSet::new() }
    }

    /// The device it will run on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor that lives only inside the plan, which places it in one arena by its lifetime.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn temp(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let storage = Storage::temporary(self.id, contiguous_bytes(dtype, shape)?);
        Tensor::at_start(storage, dtype, shape)
    }

    /// Checks an operation and appends it.
    ///
    /// # Errors
    /// An [`OpError`] that names the argument at fault, or [`Unsupported`](crate::Unsupported).
    pub fn push(&mut self, op: impl Into<Op<Tensor>>) -> Result<()> {
        let op = op.into();
        op.check()?;
        let operands = op.operands();
        for (role, tensor) in &operands {
            self.check_owner(*role, tensor)?;
        }
        check_aliases(&op, &operands)?;
        self.device.backend().supports(&op)?;
        let written = operands.iter().filter(|(role, _)| role.access.writes());
        self.written.extend(written.map(|(_, tensor)| tensor.storage().id()));
        self.ops.push(op);
        Ok(())
    }

    fn check_owner(&self, role: Role, tensor: &Tensor) -> Result<(), OpError> {
        let Role { op, tensor: name, access } = role;
        let storage = tensor.storage();
        let (owner, expected) = match storage.buffer() {
            None => ("recording", self.id),
            Some(_) => ("device", self.device.id()),
        };
        if storage.owner() != expected {
            return Err(OpError::Foreign { op, tensor: name, owner });
        }
        match storage.buffer() {
            None if access.reads() && !self.written.contains(&storage.id()) => {
                Err(OpError::Unwritten { op, tensor: name })
            }
            Some(buffer) if access.writes() && buffer.read_only() => {
                Err(OpError::ReadOnly { op, tensor: name })
            }
            _ => Ok(()),
        }
    }

    /// The operations recorded so far, unfused.
    pub fn ops(&self) -> &[Op<Tensor>] {
        &self.ops
    }

    /// Fuses, plans and compiles.
    ///
    /// # Errors
    /// Out of memory for the arena, or what the backend's compiler reports.
    pub fn finish(self) -> Result<Executable> {
        self.finish_with(PlanOptions::default())
    }

    /// As [`Recording::finish`], with choices of the planner.
    ///
    /// # Errors
    /// As [`Recording::finish`].
    pub fn finish_with(self, options: PlanOptions) -> Result<Executable> {
        let backend = self.device.backend();
        let supported = |op: &Op<Tensor>| backend.supports(op).is_ok();
        let plan = Plan::new(self.ops, options, backend.joins(), &supported);
        let plan = Arc::new(plan);
        let compiled = backend.compile(Arc::clone(&plan))?;
        Ok(Executable { device: self.device, plan, compiled })
    }
}

/// Checks that no output shares bytes with another argument, except pairs that may be in place.
pub(crate) fn check_aliases(op: &Op<Tensor>, operands: &[(Role, Tensor)]) -> Result<(), OpError> {
    for (i, (output_role, output)) in operands.iter().enumerate() {
        if output_role.access == Access::Read {
            continue;
        }
        for (j, (role, tensor)) in operands.iter().enumerate() {
            if i == j || !overlap(output, tensor) {
                continue;
            }
            let pair = (output_role.tensor, role.tensor);
            if role.access == Access::Read && op.in_place().contains(&pair) && output == tensor {
                continue;
            }
            let (output, other) = pair;
            return Err(OpError::Alias { op: op.name(), output, other });
        }
    }
    Ok(())
}

/// True where two views share bytes of one storage, gaps of strided views counted as theirs.
pub(crate) fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let (ra, rb) = (a.byte_range(), b.byte_range());
    a.storage() == b.storage() && ra.start < rb.end && rb.start < ra.end
}

/// A compiled recording. Run it as often as you like.
pub struct Executable {
    // Dropped before the device handle whose memory it uses.
    compiled: Box<dyn Execute>,
    plan: Arc<Plan>,
    device: Device,
}

/// Time, bytes and operations of one step of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct StepProfile {
    /// Operation.
    pub name: &'static str,
    /// Shapes and types in one line.
    pub description: String,
    /// Bytes that had to be moved.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Time it took.
    pub time: Duration,
}

impl Executable {
    /// Runs every step once and waits for the end.
    ///
    /// # Errors
    /// What the device reports, with the step it was at.
    pub fn run(&self) -> Result<()> {
        self.compiled.run()
    }

    /// The steps, barriers and placements.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs every step once, one after the other, and times each.
    ///
    /// # Errors
    /// As [`Executable::run`].
    pub fn profile(&self) -> Result<Vec<StepProfile>> {
        let times = self.compiled.profile()?;
        let steps = self.plan.steps().iter().zip(times);
        Ok(steps
            .map(|(step, time)| StepProfile {
                name: step.op.name(),
                description: step.op.describe(),
                bytes: step.op.bytes(),
                flops: step.op.flops(),
                time,
            })
            .collect())
    }
}

impl std::fmt::Debug for Executable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executable").field("steps", &self.plan.steps().len()).finish()
    }
}
