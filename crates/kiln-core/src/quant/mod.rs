//! Block layouts of quantised weights, their decoding and their encoding.
//!
//! A row of a weight matrix is a run of blocks, byte for byte what a GGUF file holds. Every block
//! type here has alignment 1, so any byte range of a whole number of blocks can be viewed as
//! blocks ([`blocks`]), wherever a file or a buffer puts it.
//!
//! # Values
//! `q` is the code of a value, `d` and `m` the f16 scale and minimum of a block, `dmin` the f16
//! scale of the minima, `s` and `t` the integer scale and minimum of a sub-block, `c` the
//! [`IQ4_CODEBOOK`].
//!
//! | block | values, in groups of | value |
//! |---|---|---|
//! | [`BlockQ4_0`] | 32 | `d * (q - 8)` |
//! | [`BlockQ4_1`] | 32 | `d * q + m` |
//! | [`BlockQ5_0`] | 32 | `d * (q - 16)` |
//! | [`BlockQ5_1`] | 32 | `d * q + m` |
//! | [`BlockQ8_0`] | 32 | `d * q` |
//! | [`BlockIq4Nl`] | 32 | `d * c[q]` |
//! | [`BlockQ2K`] | 256, 16 | `(d * s) * q - dmin * t` |
//! | [`BlockQ3K`] | 256, 16 | `(d * (s - 32)) * (q - 4)` |
//! | [`BlockQ4K`] | 256, 32 | `(d * s) * q - dmin * t` |
//! | [`BlockQ5K`] | 256, 32 | `(d * s) * q - dmin * t` |
//! | [`BlockQ6K`] | 256, 16 | `(d * s) * (q - 32)` |
//! | [`BlockIq4Xs`] | 256, 32 | `(d * (s - 32)) * c[q]` |
//!
//! Every product above is exact in f32, so the f32 value is the true value rounded once, and
//! contraction to a fused multiply-add cannot change it. In f64 the values are exact. Scales that
//! are infinite or NaN decode to infinite or NaN values.
//!
//! # Code fields
//! Codes are stored as bit fields of a power-of-two width `w`, spread over *lanes*: a group of
//! `l` bytes holds `l * 8 / w` values, the first `l` of them in the lowest field of each byte, the
//! next `l` in the next field. "4-bit codes over 16 lanes" means `l = 16`, `w = 4`. A 5-bit code
//! is a 4-bit field and a 1-bit field, and so on.

mod fields;
mod fit;
mod iq4;
mod k_quants;
mod legacy;
mod plain;
mod row;

use std::ops::{Add, Mul, Sub};

use bytemuck::Pod;
use thiserror::Error;

use crate::DType;

pub use iq4::{BlockIq4Nl, BlockIq4Xs, IQ4_CODEBOOK};
pub use k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K};
pub use legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
pub use plain::{Bf16Bytes, F16Bytes, F32Bytes};
pub use row::{blocks, dequantize_row, quantize_row};

/// The number a block is decoded to: `f32`, or `f64` for exact values.
pub trait Real:
    Pod + From<f32> + From<u8> + From<i8> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
}

impl Real for f32 {}
impl Real for f64 {}

/// A block of a weight row, as it lies in a file.
///
/// ```
/// use kiln_core::quant::{Block, BlockQ8_0};
/// let block = BlockQ8_0 { d: 0.5.into(), qs: [-3; 32] };
/// let mut values = [0.0f32; 32];
/// block.dequantize(&mut values);
/// assert_eq!(values, [-1.5; 32]);
/// ```
pub trait Block: Pod {
    /// The element type whose rows are made of these blocks.
    const DTYPE: DType;

    /// The values of one block: an array of [`DType::block_len`] numbers.
    type Values<T: Real>: Pod + AsRef<[T]> + AsMut<[T]>;

    /// Writes the values of the block, in row order. Exact for `T = f64`; rounded once for
    /// `T = f32`.
    fn dequantize<T: Real>(&self, out: &mut Self::Values<T>);
}

/// A block that can be made from values.
pub(crate) trait Encode: Block {
    /// The block nearest to finite `values`. Values beyond its range saturate.
    fn encode(values: &Self::Values<f32>) -> Self;
}

/// Why a row could not be decoded or encoded.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum QuantError {
    /// The type is not one of [`DType::WEIGHTS`].
    #[error("{dtype} is not a weight type; use a float or a block-quantised type")]
    NotAWeight {
        /// The type asked for.
        dtype: DType,
    },
    /// The bytes are not a whole number of blocks.
    #[error("{bytes} bytes are not a whole number of {dtype} blocks of {block_bytes} bytes")]
    PartialBlock {
        /// The type of the row.
        dtype: DType,
        /// Bytes given.
        bytes: usize,
        /// Bytes in one block.
        block_bytes: usize,
    },
    /// The row is not a whole number of blocks.
    #[error("a {dtype} row of {values} values is not a whole number of blocks of {block_len}")]
    PartialRow {
        /// The type of the row.
        dtype: DType,
        /// Values given.
        values: usize,
        /// Values in one block.
        block_len: usize,
    },
    /// The bytes and the values are not the same number of blocks.
    #[error("a {dtype} row of {values} values takes {expected} bytes, got {got}")]
    LengthMismatch {
        /// The type of the row.
        dtype: DType,
        /// Values given.
        values: usize,
        /// Bytes that many values take.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A value to encode is infinite or NaN.
    #[error("value {index} of the row is {value}; {dtype} encodes finite values only")]
    NonFinite {
        /// The type asked for.
        dtype: DType,
        /// Position in the row.
        index: usize,
        /// The offending value.
        value: f32,
    },
}
