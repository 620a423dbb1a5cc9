//! Views of memory: how operations load and store their tensors.

use crate::array::Array;
use crate::memory::{Memory, problem};
use crate::round::{encode, encode_q8_0, round};
use kiln_core::quant::dequantize_row;
use kiln_core::{DType, Result, Shape, Tensor};
use std::sync::Arc;

/// A tensor of a plan with its memory resolved.
#[derive(Clone, Debug)]
pub(crate) struct View {
    memory: Arc<Memory>,
    dtype: DType,
    shape: Shape,
    /// Bytes between neighbours along each outer axis.
    strides: Vec<usize>,
    row_bytes: usize,
    offset: usize,
}

impl View {
    /// The view of `tensor`, whose first byte is at `offset` of `memory`.
    pub(crate) fn new(tensor: &Tensor, memory: Arc<Memory>, offset: usize) -> Self {
        let strides = (0..tensor.rank() - 1).map(|axis| tensor.stride_bytes(axis)).collect();
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        Self { memory, dtype, shape, strides, row_bytes: tensor.row_bytes(), offset }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Extent of an axis.
    pub(crate) fn extent(&self, axis: usize) -> usize {
        self.shape[axis]
    }

    /// The exact values.
    pub(crate) fn load(&self) -> Result<Array> {
        let rows: Result<Vec<_>> = self.outer_indices().map(|at| self.load_row(&at)).collect();
        Ok(Array { shape: self.shape, data: rows?.concat() })
    }

    /// The exact values of the row at these indices of the outer axes.
    pub(crate) fn load_row(&self, outer: &[usize]) -> Result<Vec<f64>> {
        let mut bytes = vec![0; self.row_bytes];
        self.memory.read(self.row_offset(outer), &mut bytes)?;
        let values = match self.dtype {
            DType::U8 => bytes.iter().map(|&byte| byte.into()).collect(),
            DType::U32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|&word| u32::from_le_bytes(word).into()).collect()
            }
            dtype => {
                let mut values = vec![0.0; self.shape.last()];
                dequantize_row(dtype, &bytes, &mut values).map_err(|e| problem(e.to_string()))?;
                values
            }
        };
        Ok(values)
    }

    /// Token ids, positions or lengths.
    pub(crate) fn load_indices(&self) -> Result<Vec<usize>> {
        Ok(self.load()?.data.into_iter().map(|index| index as usize).collect())
    }

    /// Stores values, rounded to the type of the view.
    pub(crate) fn store(&self, array: &Array) -> Result<()> {
        if array.shape != self.shape {
            return Err(problem(format!("{} stored as {}", array.shape, self.shape)));
        }
        let mut rows = self.outer_indices().zip(array.rows());
        rows.try_for_each(|(outer, row)| self.store_row(&outer, row))
    }

    /// Stores one row.
    pub(crate) fn store_row(&self, outer: &[usize], row: &[f64]) -> Result<()> {
        let mut bytes = Vec::with_capacity(self.row_bytes);
        match self.dtype {
            DType::Q8_0 => row.chunks(32).for_each(|block| encode_q8_0(block, &mut bytes)),
            dtype if dtype.is_quantized() => {
                return Err(problem(format!("{dtype} is not the type of any output")));
            }
            dtype => row.iter().for_each(|&x| encode(x, dtype, &mut bytes)),
        }
        self.memory.write(self.row_offset(outer), &bytes)
    }

    /// Values as this view would keep them.
    pub(crate) fn rounded(&self, array: &Array) -> Array {
        array.map(|x| round(x, self.dtype))
    }

    fn row_offset(&self, outer: &[usize]) -> usize {
        debug_assert_eq!(outer.len(), self.strides.len());
        let steps = outer.iter().zip(&self.strides).map(|(&index, &stride)| index * stride);
        self.offset + steps.sum::<usize>()
    }

    /// All indices of the outer axes, in row-major order.
    fn outer_indices(&self) -> impl Iterator<Item = Vec<usize>> {
        let extents = &self.shape[..self.strides.len()];
        (0..extents.iter().product()).map(move |row: usize| {
            let mut rest = row;
            let mut indices = vec![0; extents.len()];
            for (index, extent) in indices.iter_mut().zip(extents).rev() {
                *index = rest % extent;
                rest /= extent;
            }
            indices
        })
    }
}
