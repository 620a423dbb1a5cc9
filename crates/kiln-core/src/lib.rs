//! Tensors, operations, recording, planning and the backend trait of Kiln; no device code.

pub mod dtype;

pub use dtype::DType;
