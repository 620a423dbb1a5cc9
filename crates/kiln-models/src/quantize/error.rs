//! Errors of quantising a file.

use std::path::PathBuf;

use kiln::format::{FormatError, GgmlType};
use kiln::quant::QuantError;

/// Why a file could not be quantised. The target is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The source could not be read, or the target not written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The target is the source, or a part of it.
    #[error("{path:?} is the source itself: give the result another name")]
    SameFile {
        /// The target.
        path: PathBuf,
    },
    /// A tensor of the source has few bits already, and that was not allowed.
    #[error(
        "tensor {tensor:?} is quantised already ({got}), and {to} of that would add its error to the \
         first: start from an F32, F16, BF16 or Q8_0 file, or set `allow_requantize`"
    )]
    Requantize {
        /// The tensor.
        tensor: String,
        /// Its type in the source.
        got: GgmlType,
        /// The type it would get.
        to: GgmlType,
    },
    /// A tensor to be quantised has a type that cannot be decoded.
    #[error(
        "tensor {tensor:?} has type {got}, which cannot be turned into {to}: start from an F32, F16, BF16 or Q8_0 file"
    )]
    Unreadable {
        /// The tensor.
        tensor: String,
        /// Its type in the source.
        got: GgmlType,
        /// The type it would get.
        to: GgmlType,
    },
    /// A weight is infinite or NaN.
    #[error(
        "tensor {tensor:?}: value {index} is {value}: the model is damaged, convert or download it again"
    )]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Position in the tensor, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Blocks could not be decoded or encoded.
    #[error("tensor {tensor:?}: {error}")]
    Quant {
        /// The tensor.
        tensor: String,
        /// What is wrong with its blocks.
        error: QuantError,
    },
    /// The callback asked to stop.
    #[error("cancelled")]
    Cancelled,
}
