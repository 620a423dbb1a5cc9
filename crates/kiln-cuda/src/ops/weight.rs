//! Weights as kernels take them.

use super::matmul::PackArgs;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering, Made};
use crate::planes::{BLOCK, PlaneAddresses, Planes};
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::DType;

/// Threads of a block of `pack.cu`.
const PACK_THREADS: u64 = 128;

/// A weight ready to be read: planes of a quantised type, or plain rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weight {
    pub(crate) dtype: DType,
    /// Rows of a matrix.
    pub(crate) n: u64,
    /// Values of a row.
    pub(crate) k: u64,
    /// Blocks of 32 values of a row, the last may be a part.
    pub(crate) blocks: u64,
    /// Planes; `q` is the first row of a plain weight.
    pub(crate) planes: PlaneAddresses,
    /// Bytes from row to row of a plain weight.
    pub(crate) stride: u64,
    /// Bytes from matrix to matrix of a plain weight.
    pub(crate) expert_stride: u64,
    /// Whether rows of a plain weight start at multiples of 16 bytes.
    pub(crate) wide: bool,
    /// Whether it was imported: nothing in a plan writes it.
    pub(crate) at_rest: bool,
}

impl Weight {
    /// The matrix or matrices `[.., n, k]`. A quantised weight that was not imported is repacked to
    /// the workspace in every run.
    pub(crate) fn new(view: View, lowering: &mut Lowering) -> Self {
        let rank = view.rank();
        let (n, k) = (view.extent(rank - 2), view.last());
        let blocks = k.div_ceil(BLOCK as u64);
        let plain = PlaneAddresses { q: view.address, h: 0, s: 0, d: 0 };
        let planes = match view.prepared() {
            Some(prepared) => prepared.addresses(),
            None if view.dtype().is_quantized() => packed(view, lowering),
            None => plain,
        };
        let expert_stride = if rank == 3 { view.stride(0) } else { 0 };
        Self {
            dtype: view.dtype(),
            n,
            k,
            blocks,
            planes,
            stride: view.stride(rank - 2),
            expert_stride,
            wide: view.is_wide(),
            at_rest: view.prepared().is_some(),
        }
    }
}

/// Repacks a weight of blocks to the workspace.
fn packed(view: View, lowering: &mut Lowering) -> PlaneAddresses {
    let outer = view.rank() - 2;
    let matrices = if outer == 1 { view.extent(0) } else { 1 };
    let n = view.extent(outer);
    let rows = matrices * n;
    let Some(planes) = Planes::new(view.dtype(), rows as usize, view.last() as usize) else {
        return PlaneAddresses { q: view.address, h: 0, s: 0, d: 0 };
    };
    let made = Made::new("planes", view);
    let base = lowering.shared(made, planes.bytes() as u64, |lowering, base| {
        for matrix in 0..matrices {
            let source = view.address + if outer == 1 { matrix * view.stride(0) } else { 0 };
            let args = pack_args(planes, base, (matrix * n) as usize);
            let args = PackArgs { source, source_stride: view.stride(outer), rows: n, ..args };
            lowering.launch(pack_kernel(planes, n), &args);
        }
    });
    planes.addresses(base, 0)
}

/// Arguments that put rows at `first_row` of planes at `base`, without the source.
pub(crate) fn pack_args(planes: Planes, base: u64, first_row: usize) -> PackArgs {
    let to = planes.addresses(base, 0);
    PackArgs {
        q: to.q,
        h: to.h,
        s: to.s,
        d: to.d,
        blocks: planes.row_blocks() as u64,
        first_block: (first_row * planes.row_blocks()) as u64,
        ..PackArgs::zeroed()
    }
}

/// The kernel that packs that many rows.
pub(crate) fn pack_kernel(planes: Planes, rows: u64) -> Kernel {
    let blocks = (rows * planes.row_blocks() as u64).div_ceil(PACK_THREADS);
    Kernel::new(Unit::Pack, format!("pack_{}", planes.dtype), blocks, PACK_THREADS as u32)
}
