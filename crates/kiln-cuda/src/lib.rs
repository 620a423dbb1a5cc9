//! The CUDA backend: kernels compiled at run time by NVRTC, a whole plan as one graph.
//!
//! Nothing of CUDA is needed to build; the driver and the compiler are loaded where a device is
//! opened. Weights are repacked at import into planes of the same size.
//!
//! ```no_run
//! use kiln_core::{DType, ops::RmsNorm};
//! let device = kiln_cuda::device(kiln_cuda::Config::default())?;
//! let x = device.upload(&[3.0f32, 4.0], [1, 2])?;
//! let y = device.tensor(DType::F32, [1, 2])?;
//! let mut rec = device.record();
//! rec.push(RmsNorm { input: &x, weight: None, output: &y, eps: 0.0 })?;
//! rec.finish()?.run()?;
//! # Ok::<(), kiln_core::Error>(())
//! ```

mod kernels;
mod limits;
mod lower;
mod ops;
mod planes;
mod runtime;
mod supports;
mod view;

pub use kernels::Unit;
pub use limits::{Limits, limits};
pub use runtime::cubin::{Resources, resources};
pub use runtime::nvrtc::Nvrtc;

use kiln_core::backend::{Backend, Buffer, Execute};
use kiln_core::ops::Op;
use kiln_core::{DType, Device, Location, Plan, Result, Shape, SharedBytes, Tensor, Unsupported};
use lower::Lowering;
use planes::Planes;
use runtime::context::Context;
use runtime::graph::{CudaExecutable, Launch, Param};
use runtime::memory::{CudaBuffer, Memory, STAGING, Staging};
use runtime::modules::Modules;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use view::View;

/// Choices of the CUDA device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Which of the machine's devices, counted from 0 as the driver does.
    pub ordinal: usize,
    /// Folder of compiled kernels; without it they are compiled in every process.
    pub cache: Option<PathBuf>,
    /// The NVRTC library; `None` for the one that the system knows.
    pub nvrtc: Option<PathBuf>,
}

/// Opens a CUDA device.
///
/// # Errors
/// [`Error::Device`](kiln_core::Error::Device), which says in one line what is missing: the driver,
/// a device of compute capability 8.0, NVRTC, or what the driver reports.
pub fn device(config: Config) -> Result<Device> {
    let context = Arc::new(Context::open(config.ordinal)?);
    let modules = Arc::new(Modules::new(&context, config.cache, config.nvrtc));
    // Asked for now, so that a machine without it gets another device.
    modules.nvrtc()?;
    Ok(Device::new(Cuda { context, modules, upload: Mutex::default() }))
}

struct Cuda {
    context: Arc<Context>,
    modules: Arc<Modules>,
    upload: Mutex<Option<Upload>>,
}

/// What imports share.
struct Upload {
    staging: Staging,
    /// Device memory for GGUF blocks on their way to planes, as large as a staging piece.
    raw: Memory,
}

impl Cuda {
    /// Copies plain bytes.
    fn upload_plain(&self, upload: &mut Upload, memory: &Memory, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(STAGING).enumerate() {
            upload.staging.copy(memory.address() + (index * STAGING) as u64, piece)?;
        }
        Ok(())
    }

    /// Copies GGUF blocks, some rows at a time, and sorts them into planes.
    fn upload_planes(
        &self,
        upload: &mut Upload,
        memory: &Memory,
        planes: Planes,
        bytes: &[u8],
    ) -> Result<()> {
        let blocks = bytes.len() / planes.dtype.block_bytes();
        // As many whole groups of 256 values as fit: a row may be longer than the staging memory.
        let group = 256 / planes.dtype.block_len();
        let piece_blocks = STAGING / planes.dtype.block_bytes() / group * group;
        let piece_bytes = piece_blocks * planes.dtype.block_bytes();
        let mut done = 0;
        for piece in bytes.chunks(piece_bytes) {
            upload.staging.copy(upload.raw.address(), piece)?;
            let count = piece.len() / planes.dtype.block_bytes();
            let values = count * planes.dtype.block_len();
            // The piece as one long row: planes count blocks, and know no rows.
            let row = Planes { rows: 1, row_values: values, ..planes };
            let args = ops::matmul::PackArgs {
                source: upload.raw.address(),
                source_stride: piece.len() as u64,
                rows: 1,
                blocks: row.row_blocks() as u64,
                first_block: (done * planes.dtype.block_len() / planes::BLOCK) as u64,
                ..ops::weight::pack_args(planes, memory.address(), 0)
            };
            let kernel = ops::weight::pack_kernel(row, 1);
            let launch = Launch {
                unit: kernel.unit,
                name: kernel.name,
                grid: kernel.grid.map(|extent| extent as u32),
                block: kernel.block,
                shared: 0,
                params: vec![Param::Bytes(bytemuck::bytes_of(&args).to_vec())],
            };
            runtime::graph::launch_now(&self.context, &self.modules, launch)?;
            done += count;
        }
        debug_assert_eq!(done, blocks);
        Ok(())
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn description(&self) -> String {
        self.context.description.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Buffer>> {
        Ok(Box::new(CudaBuffer::zeroed(&self.context, bytes)?))
    }

    fn import(&self, dtype: DType, shape: Shape, bytes: SharedBytes) -> Result<Box<dyn Buffer>> {
        let row_values = shape.last();
        let rows = shape[..shape.len() - 1].iter().product();
        let planes = Planes::new(dtype, rows, row_values);
        let size = planes.map_or(bytes.len(), |planes| planes.bytes());
        let memory = Memory::new(&self.context, size)?;
        // The value is replaced as a whole: a panic leaves nothing half done.
        let mut upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner);
        let upload = match &mut *upload {
            Some(upload) => upload,
            none => none.insert(Upload {
                staging: Staging::new(&self.context)?,
                raw: Memory::new(&self.context, STAGING)?,
            }),
        };
        match planes {
            Some(planes) => self.upload_planes(upload, &memory, planes, bytes.as_ref())?,
            None => self.upload_plain(upload, &memory, bytes.as_ref())?,
        }
        Ok(Box::new(CudaBuffer::weight(memory, bytes.len(), planes)))
    }

    fn supports(&self, op: &Op<Tensor>) -> Result<(), Unsupported> {
        supports::check(op)
    }

    fn joins(&self) -> usize {
        lower::JOINED_WITHIN
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Box<dyn Execute>> {
        let arena = Memory::new(&self.context, plan.arena_bytes())?;
        let mut steps = Vec::with_capacity(plan.steps().len());
        // Every step waits for the one before, and so for all before.
        let chain = plan.steps().iter().skip(1).all(|step| step.barrier);
        for step in plan.steps() {
            let resolve = |tensor: &Tensor| -> Result<View> {
                Ok(match plan.locate(tensor) {
                    Location::Arena(offset) => View::new(arena.address(), offset, tensor, None),
                    Location::Buffer(offset) => {
                        let buffer = supports::buffer(tensor).ok_or_else(|| {
                            runtime::error("a tensor of another backend in a plan")
                        })?;
                        View::new(buffer.address(), offset, tensor, buffer.planes())
                    }
                })
            };
            let depends_on = match steps.len() {
                index @ 1.. if chain => vec![index - 1],
                _ => step.depends_on.clone(),
            };
            steps.push((step.op.try_map(|_, tensor| resolve(tensor))?, depends_on));
        }
        // The workspace's addresses are part of the arguments: measure, allocate, lower.
        let caps = self.context.caps;
        let measured = Lowering::run(caps, &steps, [0; 2], Lowering::unlimited());
        let mut size = measured.ring;
        if !Lowering::run(caps, &steps, [0; 2], size).fits {
            size = measured.total;
        }
        let workspace = Memory::new(&self.context, size.bytes() as usize)?;
        let counters = Memory::zeroed(&self.context, measured.counters as usize)?;
        let bases = [&workspace, &counters].map(Memory::address);
        let launches = Lowering::run(caps, &steps, bases, size).steps;
        let memory = vec![arena, workspace, counters];
        let (context, modules) = (&self.context, &self.modules);
        Ok(Box::new(CudaExecutable::new(context, modules, plan, launches, memory)?))
    }
}
