//! Inputs of products in the form that their kernels read.

use super::matmul::{MAT_VEC_ROWS, MMA_MAT_VEC_ROWS};
use super::stream_mat_vec;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering, Made};
use crate::planes::BLOCK;
use crate::view::{View, element};
use kiln_core::DType;
use kiln_core::ops::InputLayout;

kiln_core::kernel_args! {
    /// Arguments of `activations.cu`.
    pub(crate) struct ActivationArgs {
        /// The input.
        input: u64,
        /// Bytes from row to row.
        stride_row: u64,
        /// Bytes from head to head.
        stride_head: u64,
        /// Values of a head: all of a row where there are no heads.
        head_dim: u64,
        /// Where the rows go.
        output: u64,
        /// Rows.
        rows: u64,
        /// Values of a row.
        k: u64,
        /// Values of a row with padding.
        padded: u64,
        /// Type of the input.
        element: u32,
        /// Unused.
        reserved: u32,
    }
}

/// Bytes of a block of 32 activations in 15 bits.
pub(super) const Q15_BLOCK: u64 = 80;
/// Bytes of a block of 32 activations of eight rows, in the order of the tensor cores.
const FRAGMENT_BLOCK: u64 = 640;
/// Threads of a block.
const THREADS: u64 = 256;
/// Threads of a block that rounds.
const SMALL: u64 = 64;

/// Names of the forms of plain rows.
const ROWS: [&str; 4] = ["q15", "f32", "bf16", "fragments"];

/// The input of a product as rows of `k` values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Input {
    view: View,
    stride_row: u64,
    stride_head: u64,
    head_dim: u64,
    /// What its forms in the workspace are called: 15 bits, f32, bf16, fragments of the tensor cores.
    kinds: [&'static str; 4],
    pub(crate) rows: u64,
    pub(crate) k: u64,
}

impl Input {
    pub(crate) fn new(view: View, layout: InputLayout) -> Self {
        match (layout, view.rank()) {
            (InputLayout::HeadMajor, _) => Self {
                view,
                stride_row: view.stride(1),
                stride_head: view.stride(0),
                head_dim: view.last(),
                rows: view.extent(1),
                kinds: ["q15 of heads", "f32 of heads", "bf16 of heads", "fragments of heads"],
                k: view.extent(0) * view.last(),
            },
            (InputLayout::RowMajor, _) => Self {
                view,
                stride_row: view.stride(0),
                stride_head: 0,
                head_dim: view.last(),
                kinds: ROWS,
                rows: view.extent(0),
                k: view.last(),
            },
        }
    }

    /// Rows of the slots of an expert-routed product, `[m, k]` or `[m, top_k, k]`; `None` where the
    /// two outer axes of the latter are not one in memory.
    pub(crate) fn slots(view: View) -> Option<Self> {
        if view.rank() == 2 {
            return Some(Self::new(view, InputLayout::RowMajor));
        }
        let [m, top_k] = [view.extent(0), view.extent(1)];
        let one = m == 1 || view.stride(0) == top_k * view.stride(1);
        one.then(|| Self {
            view,
            stride_row: view.stride(1),
            stride_head: 0,
            head_dim: view.last(),
            kinds: ROWS,
            rows: m * top_k,
            k: view.last(),
        })
    }

    /// What it was made from.
    pub(crate) fn view(&self) -> View {
        self.view
    }

    fn args(&self, output: u64, padded: u64) -> ActivationArgs {
        ActivationArgs {
            input: self.view.address,
            stride_row: self.stride_row,
            stride_head: self.stride_head,
            head_dim: self.head_dim,
            output,
            rows: self.rows,
            k: self.k,
            padded,
            element: element(self.view.dtype()),
            reserved: 0,
        }
    }

    /// 15 bits by blocks of 32 with scales: the address; rows are `Q15_BLOCK k / 32` bytes apart.
    pub(crate) fn q15(&self, lowering: &mut Lowering) -> u64 {
        let blocks = self.rows * self.k / BLOCK as u64;
        let made = Made::new(self.kinds[0], self.view);
        lowering.shared(made, blocks * Q15_BLOCK, |lowering, output| {
            let kernel = Kernel::new(Unit::Activations, "activations_q15", 1, SMALL as u32);
            let grid = [self.k.div_ceil(4 * SMALL), self.rows, 1];
            lowering.launch(kernel.grid(grid), &self.args(output, self.k));
        })
    }

    /// At most eight rows in 15 bits, in the order of the tensor cores: the address.
    pub(crate) fn fragments(&self, lowering: &mut Lowering) -> u64 {
        let blocks = self.k / BLOCK as u64;
        let made = Made::new(self.kinds[3], self.view);
        lowering.shared(made, blocks * FRAGMENT_BLOCK, |lowering, output| {
            let name = "activations_q15_fragments";
            let kernel = Kernel::new(Unit::Activations, name, 1, SMALL as u32);
            let grid = [self.k.div_ceil(4 * SMALL), self.rows, 1];
            lowering.launch(kernel.grid(grid), &self.args(output, self.k));
        })
    }

    /// f32 rows: address, bytes from row to row, and whether rows start at multiples of 16 bytes.
    pub(crate) fn f32(&self, lowering: &mut Lowering) -> (u64, u64, bool) {
        if self.view.dtype() == DType::F32 && self.head_dim == self.k {
            let wide = self.view.address.is_multiple_of(16) && self.stride_row.is_multiple_of(16);
            return (self.view.address, self.stride_row, wide);
        }
        let values = self.rows * self.k;
        let made = Made::new(self.kinds[1], self.view);
        let address = lowering.shared(made, values * 4, |lowering, output| {
            let blocks = values.div_ceil(THREADS);
            let kernel = Kernel::new(Unit::Activations, "activations_f32", blocks, THREADS as u32);
            lowering.launch(kernel, &self.args(output, self.k));
        });
        (address, self.k * 4, self.k.is_multiple_of(4))
    }

    /// bf16 rows padded with zeros to whole blocks: address and bytes from row to row.
    pub(crate) fn bf16(&self, lowering: &mut Lowering) -> (u64, u64) {
        let padded = self.k.next_multiple_of(BLOCK as u64);
        let values = self.rows * padded;
        let made = Made::new(self.kinds[2], self.view);
        let address = lowering.shared(made, values * 2, |lowering, output| {
            let blocks = values.div_ceil(THREADS);
            let kernel = Kernel::new(Unit::Activations, "activations_bf16", blocks, THREADS as u32);
            lowering.launch(kernel, &self.args(output, padded));
        });
        (address, padded * 2)
    }
}

/// Where a kernel that writes f32 rows puts them in 15 bits as well, for the products of one or two rows
/// that may read them; 0 where none can.
pub(super) fn provide_q15(output: View, lowering: &mut Lowering) -> u64 {
    let few = output.rank() == 2 && output.extent(0) < MMA_MAT_VEC_ROWS;
    let rounded = stream_mat_vec::takes(output.extent(0), output.last(), lowering.caps);
    if !few
        || rounded
        || output.dtype() != DType::F32
        || !output.last().is_multiple_of(BLOCK as u64)
    {
        return 0;
    }
    let bytes = output.extent(0) * output.last() / BLOCK as u64 * Q15_BLOCK;
    lowering.provide(Made::new(ROWS[0], output), bytes)
}

/// As [`provide_q15`], bf16 rows for products of many rows, which must be whole blocks long: the address
/// and bytes from row to row.
pub(super) fn provide_bf16(output: View, lowering: &mut Lowering) -> (u64, u64) {
    let many = output.rank() == 2 && output.extent(0) > MAT_VEC_ROWS;
    let whole = output.last().is_multiple_of(BLOCK as u64);
    if !many || !whole || output.dtype() != DType::F32 {
        return (0, 0);
    }
    let stride = output.last() * 2;
    let made = Made::new(ROWS[2], output);
    let address = lowering.provide(made, output.extent(0) * stride);
    (address, stride)
}
