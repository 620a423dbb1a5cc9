//! Resolved operands: where they are and how they lie there.

use kiln_core::{DType, MAX_RANK, Shape, Tensor};

/// The memory that a view lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Memory {
    /// A buffer of the plan, by its index in the executable.
    Buffer(usize),
    /// Scratch memory of the step.
    Workspace,
    /// Constant data of the step, by its index.
    Data(usize),
}

/// An operand of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    memory: Memory,
    offset: usize,
    span: usize,
    dtype: DType,
    shape: Shape,
    strides: [usize; MAX_RANK],
}

impl View {
    /// A view laid out like `tensor` whose first byte is at `offset` of `memory`.
    pub(crate) fn new(memory: Memory, offset: usize, tensor: &Tensor) -> Self {
        let mut strides = [0; MAX_RANK];
        for (axis, stride) in strides.iter_mut().enumerate().take(tensor.rank()) {
            *stride = tensor.stride_bytes(axis);
        }
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        Self { memory, offset, span: tensor.byte_range().len(), dtype, shape, strides }
    }

    /// Contiguous values of a plain type.
    pub(crate) fn contiguous(
        memory: Memory,
        offset: usize,
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Self {
        let shape = shape.into();
        let mut strides = [0; MAX_RANK];
        let mut bytes = dtype.block_bytes() * shape.last() / dtype.block_len();
        strides[shape.len() - 1] = bytes;
        for axis in (0..shape.len() - 1).rev() {
            strides[axis] = bytes;
            bytes *= shape[axis];
        }
        Self { memory, offset, span: bytes, dtype, shape, strides }
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }

    /// First byte in its memory.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes from the first to the last value, gaps included.
    pub(crate) fn span(&self) -> usize {
        self.span
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(crate) fn extent(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Extent of the last axis.
    pub(crate) fn last(&self) -> usize {
        self.shape.last()
    }

    /// Bytes between neighbours along an outer axis.
    pub(crate) fn stride_bytes(&self, axis: usize) -> usize {
        self.strides[axis]
    }

    /// Elements between neighbours along an outer axis of a plain type.
    pub(crate) fn stride(&self, axis: usize) -> u64 {
        (self.strides[axis] / self.dtype.block_bytes()) as u64
    }

    /// Elements between rows of a matrix; 0 for a vector, which every row uses.
    pub(crate) fn row_stride(&self) -> u64 {
        if self.rank() == 1 { 0 } else { self.stride(self.rank() - 2) }
    }

    /// Whether every row starts at a multiple of `values` elements, so that they can be loaded as
    /// one vector.
    pub(crate) fn is_aligned(&self, values: usize) -> bool {
        let unit = values * self.dtype.block_bytes();
        let outer = &self.strides[..self.rank() - 1];
        self.offset.is_multiple_of(unit)
            && outer
                .iter()
                .zip(&self.shape[..])
                .all(|(stride, &extent)| extent == 1 || stride.is_multiple_of(unit))
    }

    /// Whether rows follow each other without gaps in the order of the axes.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = self.strides[self.rank() - 1];
        for axis in (0..self.rank() - 1).rev() {
            if self.shape[axis] != 1 && self.strides[axis] != expected {
                return false;
            }
            expected *= self.shape[axis];
        }
        true
    }
}
