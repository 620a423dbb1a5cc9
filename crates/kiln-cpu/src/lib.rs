//! The CPU backend: block-quantised weights where they lie, integer dot products, one parallel
//! region per plan.
//!
//! ```
//! use kiln_core::{DType, ops::RmsNorm};
//! let device = kiln_cpu::device(kiln_cpu::Config::default())?;
//! let x = device.upload(&[3.0f32, 4.0], [1, 2])?;
//! let y = device.tensor(DType::F32, [1, 2])?;
//! let mut rec = device.record();
//! rec.push(RmsNorm { input: &x, weight: None, output: &y, eps: 0.0 })?;
//! rec.finish()?.run()?;
//! assert!((y.to_vec::<f32>()?[1] - 4.0 / 12.5f32.sqrt()).abs() < 1e-6);
//! # Ok::<(), kiln_core::Error>(())
//! ```

mod exec;
mod isa;
mod limits;
mod matmul;
mod memory;
mod ops;
mod threads;
mod view;

use exec::CpuExecutable;
use isa::Isa;
use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::Op;
use kiln_core::{DType, Device, Error, Plan, Result, Shape, SharedBytes, Tensor, Unsupported};
pub use limits::{Limits, limits};
use memory::{AccessLock, CpuBuffer};
use std::sync::Arc;
use threads::Pool;

/// Choices of the CPU device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Threads of a run, the caller's included; `None` for one per core the system offers.
    ///
    /// Results do not depend on it.
    pub threads: Option<usize>,
    /// Instruction set, one of [`instruction_sets`]; `None` for the best of this machine.
    ///
    /// Whatever is chosen, Linux is asked for the state of AMX tiles, for the whole process: see
    /// [`instruction_sets`].
    pub instruction_set: Option<String>,
}

/// Names of the instruction sets this machine has kernels for, the fastest first.
///
/// On Linux, where the processor has AMX with bf16, the first call of this, [`device()`] or [`limits()`]
/// asks the kernel for the state of its tiles (`arch_prctl`). The permission is that of the whole
/// process and cannot be given back.
pub fn instruction_sets() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

/// Opens the CPU as a device.
///
/// # Errors
/// [`Error::Device`] where the instruction set is not one of this machine, the number of threads
/// is 0, or threads cannot be started.
pub fn device(config: Config) -> Result<Device> {
    let (isa, pool) = choose(&config)?;
    Ok(Device::new(Cpu { isa, pool: Arc::new(pool), lock: AccessLock::default() }))
}

fn fail(problem: String) -> Error {
    Error::Device { device: "cpu".to_owned(), problem }
}

fn choose(config: &Config) -> Result<(Isa, Pool)> {
    let mut sets = Isa::available().into_iter();
    let isa = match &config.instruction_set {
        None => sets.next(),
        Some(name) => sets.find(|isa| isa.name() == name),
    };
    let isa = isa.ok_or_else(|| {
        let name = config.instruction_set.as_deref().unwrap_or_default();
        fail(format!("no instruction set {name:?} here: choose from {:?}", instruction_sets()))
    })?;
    let threads = match config.threads {
        Some(0) => return Err(fail("0 threads asked for: give at least 1".to_owned())),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = Pool::new(threads)
        .map_err(|error| fail(format!("cannot start {threads} threads: {error}")))?;
    Ok((isa, pool))
}

struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
    lock: AccessLock,
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn description(&self) -> String {
        let threads = self.pool.count();
        let plural = if threads == 1 { "" } else { "s" };
        format!("{} on {threads} thread{plural}", self.isa.name())
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>> {
        Ok(Box::new(CpuBuffer::zeroed(bytes, &self.lock)?))
    }

    fn import(&self, _: DType, _: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>> {
        Ok(Box::new(CpuBuffer::import(bytes, &self.lock)?))
    }

    fn supports(&self, _: &Op<Tensor>) -> Result<(), Unsupported> {
        Ok(())
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>> {
        let pool = Arc::clone(&self.pool);
        Ok(Box::new(CpuExecutable::new(plan, self.isa, pool, self.lock.clone())?))
    }
}
