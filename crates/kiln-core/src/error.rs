//! Errors as values: every one names what was wrong, where, and what was expected.

use crate::DType;
use std::fmt;

/// A list of element types, shown as `f32, f16 or bf16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DTypes(pub &'static [DType]);

impl fmt::Display for DTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, dtype) in self.0.iter().enumerate() {
            let separator = match i {
                0 => "",
                _ if i + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{separator}{dtype}")?;
        }
        Ok(())
    }
}

/// An operation that breaks its contract, found when it is recorded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpError {
    /// The number of axes is wrong.
    #[error("{op}: `{tensor}` has {got} axes, expected {expected}")]
    Rank {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// Axes required.
        expected: usize,
        /// Axes found.
        got: usize,
    },
    /// An axis has another extent than the other arguments ask for.
    #[error("{op}: axis {axis} of `{tensor}` is {got}, expected {expected}")]
    Extent {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// Axis, counted from the outermost.
        axis: usize,
        /// Extent required.
        expected: usize,
        /// Extent found.
        got: usize,
    },
    /// An axis breaks a rule of the operation, for example a divisibility.
    #[error("{op}: axis {axis} of `{tensor}` is {got}, it must be {rule}")]
    ExtentRule {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// Axis, counted from the outermost.
        axis: usize,
        /// What the extent must be.
        rule: &'static str,
        /// Extent found.
        got: usize,
    },
    /// The element type is not one the operation takes there.
    #[error("{op}: `{tensor}` is {got}, expected {expected}")]
    DType {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// Types accepted.
        expected: DTypes,
        /// Type found.
        got: DType,
    },
    /// The element type differs from that of another argument.
    #[error("{op}: `{tensor}` is {got}, expected {expected} like `{like}`")]
    DTypeLike {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// The argument that sets the type.
        like: &'static str,
        /// Type required.
        expected: DType,
        /// Type found.
        got: DType,
    },
    /// The strides are not ones the operation takes.
    #[error("{op}: the layout of `{tensor}` must be {rule}: copy it first")]
    Layout {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// What the layout must be.
        rule: &'static str,
    },
    /// An output shares bytes with another argument.
    #[error("{op}: output `{output}` overlaps `{other}`; give it storage of its own")]
    Alias {
        /// Operation.
        op: &'static str,
        /// Output argument.
        output: &'static str,
        /// The argument it overlaps.
        other: &'static str,
    },
    /// A scalar parameter is out of range.
    #[error("{op}: {param} is {got}, it must be {rule}")]
    Param {
        /// Operation.
        op: &'static str,
        /// Parameter.
        param: &'static str,
        /// What it must be.
        rule: &'static str,
        /// Value found.
        got: String,
    },
    /// An optional tensor is needed, or not allowed, in this combination.
    #[error("{op}: `{tensor}` {rule}")]
    Combination {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// A tensor of another device or another recording.
    #[error("{op}: `{tensor}` belongs to another {owner} than this recording")]
    Foreign {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
        /// `device` or `recording`.
        owner: &'static str,
    },
    /// A temporary is read before any operation wrote it.
    #[error("{op}: temporary `{tensor}` is read before it is written")]
    Unwritten {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
    },
    /// A read-only tensor (a mapped weight) is an output.
    #[error("{op}: `{tensor}` is read-only and cannot be an output")]
    ReadOnly {
        /// Operation.
        op: &'static str,
        /// Tensor argument.
        tensor: &'static str,
    },
}

/// A backend has no kernel for an operation; never a silent slow path.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{backend} has no kernel for {op}: {problem}")]
pub struct Unsupported {
    /// Operation.
    pub op: &'static str,
    /// The whole problem: shapes, types, options.
    pub problem: String,
    /// Backend.
    pub backend: &'static str,
}

/// Anything that can go wrong between a tensor and a finished run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// An operation breaks its contract.
    #[error(transparent)]
    Op(#[from] OpError),
    /// The backend has no kernel for an operation.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A shape with more axes than supported, or with more bytes than an address can name.
    #[error("shape {shape} of {dtype} is not possible: {problem}")]
    Shape {
        /// The shape.
        shape: String,
        /// Element type.
        dtype: DType,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A view reaches outside its tensor.
    #[error("{view} of axis {axis} reaches outside its extent {extent}")]
    View {
        /// The view asked for.
        view: String,
        /// Axis.
        axis: usize,
        /// Extent of that axis.
        extent: usize,
    },
    /// Host data of another length than the tensor.
    #[error("{operation} of {got} bytes, the tensor has {expected}")]
    Length {
        /// `read` or `write`.
        operation: &'static str,
        /// Bytes of the tensor.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Host data of another element type than the tensor.
    #[error("{operation} as {got}, the tensor is {expected}")]
    ElementType {
        /// `read` or `write`.
        operation: &'static str,
        /// Type of the tensor.
        expected: DType,
        /// Type of the host data.
        got: DType,
    },
    /// The tensor has no bytes the host could read or write.
    #[error("a temporary has no bytes outside a run: use a tensor of the device")]
    Temporary,
    /// The tensor may not be written.
    #[error("the tensor is read-only: it borrows mapped weights")]
    ReadOnly,
    /// The device cannot give that much memory.
    #[error("{device} cannot allocate {requested} bytes")]
    OutOfMemory {
        /// Device.
        device: String,
        /// Bytes asked for.
        requested: usize,
    },
    /// The device or its driver failed.
    #[error("{device}: {problem}")]
    Device {
        /// Device.
        device: String,
        /// What it reported, with the step it was at where known.
        problem: String,
    },
}

/// Result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
