//! The driver, memory, kernels and graphs. Nothing here knows an operation.

pub(crate) mod cache;
pub(crate) mod context;
pub(crate) mod cubin;
pub(crate) mod driver;
pub(crate) mod graph;
pub(crate) mod memory;
pub(crate) mod modules;
pub(crate) mod nvrtc;
pub(crate) mod tensor_map;

use kiln_core::Error;

/// An error of this device.
pub(crate) fn error(problem: impl Into<String>) -> Error {
    Error::Device { device: "cuda".to_owned(), problem: problem.into() }
}
