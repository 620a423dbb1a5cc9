//! The operations: each lowers itself to tasks.

mod activation;
pub(crate) mod matmul;

use crate::exec::Lowering;
use crate::view::View;
use kiln_core::ops::Op;

/// Appends the tasks of an operation.
pub(crate) fn lower(op: &Op<View>, lowering: &mut Lowering) {
    match op {
        Op::Matmul(op) => matmul::matmul(op, lowering),
        Op::GatedMatmul(op) => matmul::gated_matmul(op, lowering),
        _ => (),
    }
}
