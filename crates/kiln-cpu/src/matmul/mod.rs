//! The inner parts of matrix products.

pub(crate) mod activations;
pub(crate) mod bf16_tiles;
pub(crate) mod column_tiles;
pub(crate) mod float;
pub(crate) mod format;
pub(crate) mod interleave;
pub(crate) mod mat_mat;
pub(crate) mod mat_vec;

use crate::view::View;
use kiln_core::DType;

/// A weight matrix `[n, k]` of blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    start: *const u8,
    row_bytes: usize,
    pub(crate) dtype: DType,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

// SAFETY: weights are only read; the executable keeps their memory alive.
unsafe impl Send for Weights {}
// SAFETY: as above.
unsafe impl Sync for Weights {}

impl Weights {
    /// The matrix of a contiguous view, or expert `expert` of a stack of them.
    pub(crate) fn new(view: &View, expert: usize) -> Self {
        let outer = view.rank() - 2;
        let (n, k) = (view.extent(outer), view.last());
        let row_bytes = view.stride(outer + 1);
        let start = view.start().wrapping_add(expert * n * row_bytes);
        Self { start, row_bytes, dtype: view.dtype(), n, k }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Address of a row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> *const u8 {
        debug_assert!(row < self.n);
        self.start.wrapping_add(row * self.row_bytes)
    }
}
