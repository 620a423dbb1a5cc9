//! Resolved operands: device addresses with a shape.

use crate::planes::{PlaneAddresses, Planes};
use kiln_core::{DType, MAX_RANK, Shape, Tensor};

/// An operand of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) address: u64,
    dtype: DType,
    shape: Shape,
    strides: [u64; MAX_RANK],
    /// For a weight that was repacked at import: its planes and where the view starts in them.
    prepared: Option<Prepared>,
}

/// A part of a repacked weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) planes: Planes,
    /// First byte of the planes.
    pub(crate) base: u64,
    /// First row.
    pub(crate) row: usize,
    /// First value of the rows.
    pub(crate) column: usize,
}

impl Prepared {
    pub(crate) fn addresses(&self) -> PlaneAddresses {
        self.planes.addresses(self.base, self.row)
    }
}

impl View {
    /// A view of the memory that `tensor` is a view of, whose storage is at `base`.
    pub(crate) fn new(base: u64, offset: usize, tensor: &Tensor, planes: Option<Planes>) -> Self {
        let mut strides = [0; MAX_RANK];
        for (axis, stride) in strides.iter_mut().enumerate().take(tensor.rank()) {
            *stride = tensor.stride_bytes(axis) as u64;
        }
        let dtype = tensor.dtype();
        let prepared = planes.and_then(|planes| {
            let row_bytes = dtype.row_bytes(planes.row_values)?;
            let column = offset % row_bytes / dtype.block_bytes() * dtype.block_len();
            Some(Prepared { planes, base, row: offset / row_bytes, column })
        });
        let address = base + offset as u64;
        Self { address, dtype, shape: tensor.shape(), strides, prepared }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(crate) fn extent(&self, axis: usize) -> u64 {
        self.shape[axis] as u64
    }

    /// Extent of the last axis.
    pub(crate) fn last(&self) -> u64 {
        self.shape.last() as u64
    }

    /// Bytes between neighbours along an outer axis.
    pub(crate) fn stride(&self, axis: usize) -> u64 {
        self.strides[axis]
    }

    pub(crate) fn prepared(&self) -> Option<Prepared> {
        self.prepared
    }

    /// `[T, H, D]` as `[T, H * D]`, where it has no gaps.
    pub(crate) fn heads_as_rows(&self) -> Option<Self> {
        let row = self.extent(1) * self.strides[2];
        let contiguous = self.rank() == 3
            && (self.extent(1) == 1 || self.strides[1] == self.strides[2])
            && (self.extent(0) == 1 || self.strides[0] == row);
        let shape = Shape::from([self.shape[0], self.shape[1] * self.shape.last()]);
        contiguous.then_some(Self { shape, strides: [row, row, 0, 0], ..*self })
    }

    /// The same rows of the last axis at another place, one after the other.
    pub(crate) fn as_rows(&self, address: u64, rows: u64) -> Self {
        let row = self.strides[self.rank() - 1];
        let shape = Shape::from([rows as usize, self.shape.last()]);
        Self { address, shape, strides: [row, row, 0, 0], prepared: None, ..*self }
    }

    /// Bytes from the first to the last value, gaps included.
    pub(crate) fn span(&self) -> u64 {
        let last = self.rank() - 1;
        let outer = (0..last).map(|axis| (self.extent(axis) - 1) * self.strides[axis]);
        outer.sum::<u64>() + self.strides[last]
    }

    /// Whether both have a byte in common, gaps included.
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        self.address < other.address + other.span() && other.address < self.address + self.span()
    }

    /// Whether the address and all strides are multiples of 16 bytes, the widest access.
    pub(crate) fn is_wide(&self) -> bool {
        let outer = &self.strides[..self.rank() - 1];
        let used = outer.iter().zip(self.shape.iter()).filter(|(_, extent)| **extent > 1);
        self.address.is_multiple_of(16) && used.into_iter().all(|(s, _)| s.is_multiple_of(16))
    }
}

/// A float type as the kernels name it.
pub(crate) fn element(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}
