//! The reference as a backend: plans run one step after the other.

use crate::memory::{HostBuffer, Memory, Turn, problem};
use crate::ops;
use crate::view::View;
use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::Op;
use kiln_core::{DType, Error, Location, Plan, Result, Shape, SharedBytes, Tensor, Unsupported};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Computes every operation in f64 on the host: no vectors, no threads, no shortcuts.
///
/// Weights are borrowed where they lie. Before each run every byte of the arena is set to 255, so
/// that a value nobody wrote is read as NaN.
#[derive(Debug, Default)]
pub struct ReferenceBackend {
    turn: Turn,
}

impl ReferenceBackend {
    fn buffer(&self, memory: Memory, bytes: usize) -> Box<dyn Buffer> {
        Box::new(HostBuffer { memory: Arc::new(memory), bytes, turn: self.turn.clone() })
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn description(&self) -> String {
        "definitions of the operations in f64 on the host".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>> {
        Ok(self.buffer(Memory::filled(bytes, 0)?, bytes))
    }

    fn import(&self, _: DType, _: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>> {
        let len = bytes.len();
        Ok(self.buffer(Memory::Borrowed(bytes), len))
    }

    fn supports(&self, _: &Op<Tensor>) -> Result<(), Unsupported> {
        Ok(())
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>> {
        let arena = Arc::new(Memory::filled(plan.arena_bytes(), UNWRITTEN)?);
        let view = |tensor: &Tensor| match plan.locate(tensor) {
            Location::Arena(offset) => Ok(View::new(tensor, Arc::clone(&arena), offset)),
            Location::Buffer(offset) => {
                let buffer = tensor.storage().buffer().map(Buffer::as_any);
                let host = buffer.and_then(|buffer| buffer.downcast_ref::<HostBuffer>());
                let host = host.ok_or_else(|| problem("a tensor of another device".to_owned()))?;
                Ok(View::new(tensor, Arc::clone(&host.memory), offset))
            }
        };
        let steps = plan.steps().iter().map(|step| step.op.try_map(|_, tensor| view(tensor)));
        let steps = steps.collect::<Result<_>>()?;
        Ok(Box::new(Compiled { steps, arena, turn: self.turn.clone() }))
    }
}

/// The byte of memory that no step of a run has written.
const UNWRITTEN: u8 = 0xff;

struct Compiled {
    steps: Vec<Op<View>>,
    arena: Arc<Memory>,
    turn: Turn,
}

impl Compiled {
    fn run_step(&self, index: usize) -> Result<()> {
        let op = &self.steps[index];
        ops::execute(op).map_err(|error| match error {
            Error::Device { device, problem } => {
                let problem = format!("step {index}, {}: {problem}", op.name());
                Error::Device { device, problem }
            }
            error => error,
        })
    }
}

impl Execute for Compiled {
    fn run(&self) -> Result<()> {
        self.profile().map(drop)
    }

    fn profile(&self) -> Result<Vec<Duration>> {
        let _turn = self.turn.take();
        self.arena.fill(UNWRITTEN)?;
        let timed = |index| {
            let start = Instant::now();
            self.run_step(index).map(|()| start.elapsed())
        };
        (0..self.steps.len()).map(timed).collect()
    }
}
