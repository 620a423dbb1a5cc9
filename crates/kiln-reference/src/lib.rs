//! Every Kiln operation, slow and obvious, in f64: the definition of right.
//!
//! Inputs are decoded to exact f64 values, the formula of the operation's documentation is
//! evaluated in f64, and each output value is rounded to the type of its tensor. Where an operation
//! stands for several, values between its parts are rounded too, so that it gives their bits:
//!
//! | operation | rounded on the way |
//! |---|---|
//! | [`AddRmsNorm`](kiln_core::ops::AddRmsNorm) | the sum, to the type of `residual` |
//! | [`RmsNormMul`](kiln_core::ops::RmsNormMul) | the normalised row, to f32 |
//! | [`GatedMatmul`](kiln_core::ops::GatedMatmul) | both products, to f32 |
//! | [`HeadNormRope`](kiln_core::ops::HeadNormRope) | the rotated heads, to f32, before the types of the outputs |
//!
//! ```
//! use kiln_core::{DType, ops::{Add, Softcap}};
//! let device = kiln_reference::device();
//! let x = device.upload(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
//! let bias = device.upload(&[0.5f32, -0.5], [2])?;
//! let y = device.tensor(DType::F32, [2, 2])?;
//! let mut rec = device.record();
//! rec.push(Add { a: &x, b: &bias, output: &y })?;
//! rec.finish()?.run()?;
//! assert_eq!(y.to_vec::<f32>()?, [1.5, 1.5, 3.5, 3.5]);
//! # Ok::<(), kiln_core::Error>(())
//! ```

mod array;
mod backend;
mod memory;
mod ops;
mod round;
mod view;

pub use backend::ReferenceBackend;

/// A device that computes every operation by its definition, on the host, one value at a time.
pub fn device() -> kiln_core::Device {
    kiln_core::Device::new(ReferenceBackend::default())
}
