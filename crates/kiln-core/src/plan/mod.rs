//! Plans: recorded operations after fusion, with placements of temporaries and the hazards between
//! steps. Pure data, made and tested without any device.

mod arena;
mod fuse;
mod hazards;

use crate::Tensor;
use crate::ops::Op;
use crate::storage::Id;
use std::collections::HashMap;

/// Choices of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Whether operations are fused.
    pub fuse: bool,
    /// Where barriers go.
    pub barriers: Barriers,
}

/// Where the planner puts barriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barriers {
    /// Only where a hazard needs one.
    Hazards,
    /// Before every step: must give the same bits, and finds missing hazards.
    EveryStep,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { fuse: true, barriers: Barriers::Hazards }
    }
}

/// One operation of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The operation.
    pub op: Op<Tensor>,
    /// Whether everything before must have finished: what a single queue of steps needs.
    pub barrier: bool,
    /// Earlier steps that must have finished, those implied by others left out: the edges of a
    /// graph.
    pub depends_on: Vec<usize>,
}

/// Where the bytes of a tensor are when a plan runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// At an offset of the plan's arena.
    Arena(usize),
    /// At an offset of the tensor's own buffer.
    Buffer(usize),
}

/// Steps in order, with everything an executor needs.
#[derive(Clone, Debug)]
pub struct Plan {
    steps: Vec<Step>,
    placements: HashMap<Id, usize>,
    arena_bytes: usize,
}

impl Plan {
    pub(crate) fn new(
        mut ops: Vec<Op<Tensor>>,
        options: PlanOptions,
        joins: usize,
        supported: &dyn Fn(&Op<Tensor>) -> bool,
    ) -> Self {
        if options.fuse {
            ops = fuse::fuse(ops, supported);
        }
        let (placements, arena_bytes) = arena::place(&ops, joins);
        let mut plan = Self { steps: Vec::with_capacity(ops.len()), placements, arena_bytes };
        let edges = hazards::edges(&ops, &|tensor| plan.space(tensor));
        let mut since = 0;
        for (index, (op, depends_on)) in ops.into_iter().zip(edges).enumerate() {
            let hazard = depends_on.iter().any(|&before| before >= since);
            let barrier = index > 0 && (hazard || options.barriers == Barriers::EveryStep);
            if barrier {
                since = index;
            }
            plan.steps.push(Step { op, barrier, depends_on });
        }
        plan
    }

    /// The steps in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Number of barriers a single queue of steps needs.
    pub fn barriers(&self) -> usize {
        self.steps.iter().filter(|step| step.barrier).count()
    }

    /// Bytes of the arena that holds all temporaries.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Where a tensor of this plan is.
    pub fn locate(&self, tensor: &Tensor) -> Location {
        match self.placements.get(&tensor.storage().id()) {
            Some(&base) => Location::Arena(base + tensor.offset()),
            None => Location::Buffer(tensor.offset()),
        }
    }

    /// Memory and byte range of a tensor; `None` is the arena.
    fn space(&self, tensor: &Tensor) -> (Option<Id>, std::ops::Range<usize>) {
        let id = tensor.storage().id();
        let range = tensor.byte_range();
        match self.placements.get(&id) {
            Some(&base) => (None, base.saturating_add(range.start)..base.saturating_add(range.end)),
            None => (Some(id), range),
        }
    }
}
