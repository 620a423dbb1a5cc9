//! Tensors, operations, recording, planning and the backend trait of Kiln; no device code.
//!
//! An operation is a struct with named fields. [`Recording::push`] checks it once; the planner fuses
//! operations, places temporaries and finds the hazards; a [`backend::Backend`] makes the
//! [`Plan`] executable; [`Executable::run`] replays it.

pub mod backend;
pub mod bytes;
mod device;
pub mod dtype;
mod error;
#[doc(hidden)]
pub mod kernel_args;
pub mod ops;
mod plan;
mod pool;
pub mod quant;
mod recording;
mod shape;
mod storage;
mod tensor;

pub use bytes::SharedBytes;
pub use device::Device;
pub use dtype::DType;
pub use error::{DTypes, Error, OpError, Result, Unsupported};
pub use kernel_args::KernelArgs;
pub use plan::{Barriers, Location, Plan, PlanOptions, Step};
pub use pool::{MemoryUse, Pool};
pub use recording::{Executable, Recording, StepProfile};
pub use shape::{MAX_RANK, Shape};
pub use storage::{Id, Storage};
pub use tensor::{Element, Tensor, contiguous_bytes};
