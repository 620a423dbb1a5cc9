//! What there are kernels for.

use crate::runtime::memory::CudaBuffer;
use kiln_core::ops::Op;
use kiln_core::{Tensor, Unsupported};

/// The buffer of a tensor of this backend.
pub(crate) fn buffer(tensor: &Tensor) -> Option<&CudaBuffer> {
    tensor.storage().buffer()?.as_any().downcast_ref::<CudaBuffer>()
}

pub(crate) fn check(op: &Op<Tensor>) -> Result<(), Unsupported> {
    let fail = |problem: String| Err(Unsupported { op: op.name(), problem, backend: "cuda" });
    for (role, tensor) in op.operands() {
        // Kernels count the values of a row in 32 bits, those of a head by pairs.
        let bits = if matches!(op, Op::HeadNormRope(_)) { 31 } else { 32 };
        if tensor.shape().last() as u64 >= (1 << bits) - 1 {
            return fail(format!("`{}` has rows of 2^{bits} values or more", role.tensor));
        }
        let Some(planes) = buffer(&tensor).and_then(CudaBuffer::planes) else { continue };
        if !whole_rows(&tensor, planes.row_values, matches!(op, Op::Embed(_))) {
            return fail(format!(
                "`{}` is a view of a repacked weight that is not made of its whole rows",
                role.tensor
            ));
        }
    }
    Ok(())
}

/// Whether a view of a repacked weight has its rows, one after the other; or parts of them.
fn whole_rows(tensor: &Tensor, row_values: usize, parts: bool) -> bool {
    let Some(row_bytes) = tensor.dtype().row_bytes(row_values) else { return false };
    let rank = tensor.rank();
    if rank < 2 {
        return false;
    }
    let in_row = tensor.offset() % row_bytes;
    let whole = in_row == 0 && tensor.shape().last() == row_values;
    let part = parts && rank == 2 && in_row + tensor.row_bytes() <= row_bytes;
    let starts_group = in_row.is_multiple_of(tensor.dtype().block_bytes());
    let mut next = row_bytes;
    let mut contiguous = true;
    for axis in (0..rank - 1).rev() {
        contiguous &= tensor.extent(axis) == 1 || tensor.stride_bytes(axis) == next;
        next *= tensor.extent(axis);
    }
    contiguous && starts_group && (whole || part)
}
