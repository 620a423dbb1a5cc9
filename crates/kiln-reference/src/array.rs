//! Decoded values: what operations compute on.

use kiln_core::Shape;

/// Values in row-major order.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) shape: Shape,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Self { shape, data: vec![0.0; shape.iter().product()] }
    }

    /// The rows along the last axis.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks_exact(self.shape.last())
    }

    /// The row at these indices of the outer axes.
    pub(crate) fn row(&self, outer: &[usize]) -> &[f64] {
        &self.data[self.row_range(outer)]
    }

    pub(crate) fn row_mut(&mut self, outer: &[usize]) -> &mut [f64] {
        let range = self.row_range(outer);
        &mut self.data[range]
    }

    fn row_range(&self, outer: &[usize]) -> std::ops::Range<usize> {
        debug_assert_eq!(outer.len() + 1, self.shape.len());
        let index = outer.iter().zip(self.shape.iter()).fold(0, |n, (&i, &extent)| {
            debug_assert!(i < extent);
            n * extent + i
        });
        let dim = self.shape.last();
        index * dim..(index + 1) * dim
    }

    /// An array of the same shape, row by row.
    pub(crate) fn map_rows(&self, mut f: impl FnMut(usize, &[f64]) -> Vec<f64>) -> Self {
        let rows = self.rows().enumerate();
        Self { shape: self.shape, data: rows.flat_map(|(index, row)| f(index, row)).collect() }
    }

    /// An array of the same shape, value by value.
    pub(crate) fn map(&self, f: impl FnMut(f64) -> f64) -> Self {
        Self { shape: self.shape, data: self.data.iter().copied().map(f).collect() }
    }

    /// An array of the same shape, from pairs of values.
    pub(crate) fn zip(&self, other: &Self, mut f: impl FnMut(f64, f64) -> f64) -> Self {
        let pairs = self.data.iter().zip(&other.data);
        Self { shape: self.shape, data: pairs.map(|(&a, &b)| f(a, b)).collect() }
    }
}

/// `a[i] + b[i]`
pub(crate) fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `a[i] * b[i]`
pub(crate) fn mul(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// The sum of `a[i] * b[i]`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
