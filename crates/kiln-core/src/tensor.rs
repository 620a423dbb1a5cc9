//! Tensors: a storage, an element type, a shape and strides.

use crate::error::{Error, Result};
use crate::shape::MAX_RANK;
use crate::storage::Storage;
use crate::{DType, Shape};
use half::{bf16, f16};
use std::ops::Range;

/// A host type that is the element of a plain [`DType`].
pub trait Element: bytemuck::Pod {
    /// Its element type.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// A view of device memory: storage, element type, shape, strides of the outer axes and an offset.
///
/// The last axis is always contiguous. A view never reaches outside its storage: every way to make
/// one checks it. Cloning is cheap and shares the memory.
///
/// Two tensors are equal when they are the same view of the same storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    storage: Storage,
    dtype: DType,
    shape: Shape,
    /// Bytes between neighbours along each axis; the entry of the last axis is the bytes of a row.
    strides: [usize; MAX_RANK],
    offset: usize,
}

/// Bytes of a contiguous tensor.
///
/// # Errors
/// [`Error::Shape`] where the last axis is not a whole number of blocks or the size overflows.
pub fn contiguous_bytes(dtype: DType, shape: Shape) -> Result<usize> {
    let fail = |problem| Error::Shape { shape: shape.to_string(), dtype, problem };
    let row = dtype.row_bytes(shape.last());
    let row = row.ok_or_else(|| fail("the last axis is not a whole number of blocks"))?;
    shape[..shape.len() - 1]
        .iter()
        .try_fold(row, |bytes, &extent| bytes.checked_mul(extent))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| fail("its bytes overflow the address space"))
}

impl Tensor {
    /// A contiguous tensor at the start of `storage`, which the caller has made large enough.
    pub(crate) fn at_start(storage: Storage, dtype: DType, shape: Shape) -> Result<Self> {
        let needed = contiguous_bytes(dtype, shape)?;
        if needed > storage.bytes() {
            let got = storage.bytes();
            return Err(Error::Length { operation: "a view", expected: needed, got });
        }
        let strides = contiguous_strides(dtype, shape);
        Ok(Self { storage, dtype, shape, strides, offset: 0 })
    }

    /// The memory behind the view.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents by axis.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Extent of `axis`.
    ///
    /// # Panics
    /// Where the tensor has no such axis.
    pub fn extent(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes between neighbours along an outer axis; for the last axis, bytes of a row.
    ///
    /// # Panics
    /// Where the tensor has no such axis.
    pub fn stride_bytes(&self, axis: usize) -> usize {
        assert!(axis < self.rank(), "axis {axis} of a tensor of rank {}", self.rank());
        self.strides[axis]
    }

    /// First byte of the view in its storage.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes of one row (the last axis).
    pub fn row_bytes(&self) -> usize {
        self.strides[self.rank() - 1]
    }

    /// Bytes of the values of the view, without gaps.
    pub fn bytes(&self) -> usize {
        self.shape[..self.rank() - 1].iter().product::<usize>() * self.row_bytes()
    }

    /// The range of storage bytes from the first to the last value, gaps included.
    pub fn byte_range(&self) -> Range<usize> {
        if self.shape.contains(&0) {
            return self.offset..self.offset;
        }
        let outer = self.shape[..self.rank() - 1].iter().zip(&self.strides);
        let span: usize = outer.map(|(&extent, &stride)| (extent - 1) * stride).sum();
        self.offset..self.offset + span + self.row_bytes()
    }

    /// True where rows follow each other without gaps in the order of the axes.
    pub fn is_contiguous(&self) -> bool {
        let contiguous = contiguous_strides(self.dtype, self.shape);
        (0..self.rank()).all(|axis| self.shape[axis] == 1 || self.strides[axis] == contiguous[axis])
    }

    /// True for a tensor that only exists inside a plan.
    pub fn is_temporary(&self) -> bool {
        self.storage.is_temporary()
    }

    /// Indices `range` of `axis`. On the last axis the range must be whole blocks.
    ///
    /// # Errors
    /// [`Error::View`] where the range is empty, reaches outside or cuts a block.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Self> {
        let extent = self.shape.get(axis).copied().unwrap_or(0);
        let fail = || Error::View { view: format!("slice {range:?}"), axis, extent };
        if range.start >= range.end || range.end > extent {
            return Err(fail());
        }
        let mut view = self.clone();
        view.shape.set(axis, range.len());
        if axis + 1 == self.rank() {
            let start = self.dtype.row_bytes(range.start).ok_or_else(fail)?;
            view.strides[axis] = self.dtype.row_bytes(range.len()).ok_or_else(fail)?;
            view.offset += start;
        } else {
            view.offset += range.start * self.strides[axis];
        }
        Ok(view)
    }

    /// The same values under another shape. The tensor must be contiguous and keep whole blocks.
    ///
    /// # Errors
    /// [`Error::Shape`] where the number of values differs or the layout has gaps.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let fail = |problem| Error::Shape { shape: shape.to_string(), dtype: self.dtype, problem };
        if shape.values() != Some(self.values()) {
            return Err(fail("another number of values than the tensor reshaped"));
        }
        if !self.is_contiguous() {
            return Err(fail("the tensor reshaped has gaps: copy it first"));
        }
        contiguous_bytes(self.dtype, shape)?;
        let strides = contiguous_strides(self.dtype, shape);
        Ok(Self { shape, strides, ..self.clone() })
    }

    /// Exchanges two outer axes; the last axis stays.
    ///
    /// # Errors
    /// [`Error::View`] where an axis is the last or does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        for axis in [a, b] {
            if axis + 1 >= self.rank() {
                let extent = self.shape.get(axis).copied().unwrap_or(0);
                return Err(Error::View { view: format!("transpose({a}, {b})"), axis, extent });
            }
        }
        let mut view = self.clone();
        view.shape.set(a, self.shape[b]);
        view.shape.set(b, self.shape[a]);
        view.strides.swap(a, b);
        Ok(view)
    }

    /// Copies the values to the host, in the order of the axes.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Temporary`], or what the device reports.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_element::<T>("read")?;
        let mut values = vec![T::zeroed(); self.values()];
        self.read_bytes(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Copies values from the host, in the order of the axes.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Length`], [`Error::ReadOnly`], [`Error::Temporary`], or
    /// what the device reports.
    pub fn write<T: Element>(&self, values: &[T]) -> Result<()> {
        self.expect_element::<T>("write")?;
        self.write_bytes(bytemuck::cast_slice(values))
    }

    /// Copies the bytes of the values, rows in the order of the axes, to `out`.
    ///
    /// # Errors
    /// As [`Tensor::to_vec`].
    pub fn read_bytes(&self, out: &mut [u8]) -> Result<()> {
        self.expect_length("read", out.len())?;
        let buffer = self.storage.buffer().ok_or(Error::Temporary)?;
        self.for_each_run(|offset, run| buffer.read(offset, &mut out[run]))
    }

    /// Copies bytes of values, rows in the order of the axes, from `data`.
    ///
    /// # Errors
    /// As [`Tensor::write`].
    pub fn write_bytes(&self, data: &[u8]) -> Result<()> {
        self.expect_length("write", data.len())?;
        let buffer = self.storage.buffer().ok_or(Error::Temporary)?;
        if buffer.read_only() {
            return Err(Error::ReadOnly);
        }
        self.for_each_run(|offset, run| buffer.write(offset, &data[run]))
    }

    fn expect_element<T: Element>(&self, operation: &'static str) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Error::ElementType { operation, expected: self.dtype, got: T::DTYPE })
    }

    fn expect_length(&self, operation: &'static str, got: usize) -> Result<()> {
        if got == self.bytes() {
            return Ok(());
        }
        Err(Error::Length { operation, expected: self.bytes(), got })
    }

    /// Calls `f` with the storage offset and the host range of each contiguous run of bytes.
    fn for_each_run(&self, mut f: impl FnMut(usize, Range<usize>) -> Result<()>) -> Result<()> {
        if self.is_contiguous() {
            return f(self.offset, 0..self.bytes());
        }
        let row = self.row_bytes();
        let outer = self.rank() - 1;
        let rows: usize = self.shape[..outer].iter().product();
        for index in 0..rows {
            let mut rest = index;
            let mut offset = self.offset;
            for axis in (0..outer).rev() {
                offset += rest % self.shape[axis] * self.strides[axis];
                rest /= self.shape[axis];
            }
            f(offset, index * row..(index + 1) * row)?;
        }
        Ok(())
    }
}

fn contiguous_strides(dtype: DType, shape: Shape) -> [usize; MAX_RANK] {
    let mut strides = [0; MAX_RANK];
    let last = shape.len() - 1;
    strides[last] = dtype.row_bytes(shape[last]).unwrap_or(0);
    for axis in (0..last).rev() {
        let inner = if axis + 1 == last { 1 } else { shape[axis + 1] };
        strides[axis] = strides[axis + 1].saturating_mul(inner);
    }
    strides
}
