//! LLM inference kernels for Rust: GGUF weights as they lie in the file, one recorded graph, every
//! device.
//!
//! Everything of `kiln-core` is at the root: [`Device`], [`Tensor`], [`Recording`] and the
//! operations in [`ops`]. File formats are in [`format`](mod@format), devices in modules of their
//! own; [`prelude`] opens the best one.

pub use kiln_core::*;

mod open;

/// The CPU device.
pub use kiln_cpu as cpu;
/// The CUDA device.
pub use kiln_cuda as cuda;
/// GGUF and safetensors files.
pub use kiln_format as format;
/// The Metal device.
pub use kiln_metal as metal;
pub use open::{DeviceOpen, DeviceOptions, OpenError, devices};

/// What most programs begin with: `use kiln::prelude::*;`.
pub mod prelude {
    pub use crate::{DType, Device, DeviceOpen, DeviceOptions, OpenError, Tensor};
}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
