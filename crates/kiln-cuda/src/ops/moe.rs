//! Routing of a mixture of experts.

use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::view::View;
use kiln_core::ops::MoeRoute;

kiln_core::kernel_args! {
    /// Arguments of `moe_route` in `sampling.cu`.
    pub(crate) struct MoeRouteArgs {
        /// `[rows, E]` f32
        logits: u64,
        /// Bytes from row to row.
        logits_stride: u64,
        /// `[rows, top_k]` u32
        ids: u64,
        /// Bytes from row to row.
        ids_stride: u64,
        /// `[rows, top_k]` f32
        weights: u64,
        /// Bytes from row to row.
        weights_stride: u64,
        /// E
        experts: u32,
        /// Chosen experts.
        top_k: u32,
        /// Whether the chosen weights sum to 1.
        renormalize: u32,
        /// Unused.
        reserved: u32,
    }
}

pub(super) fn moe_route(op: &MoeRoute<View>, lowering: &mut Lowering) {
    let MoeRoute { logits, ids, weights, renormalize } = *op;
    let args = MoeRouteArgs {
        logits: logits.address,
        logits_stride: logits.stride(0),
        ids: ids.address,
        ids_stride: ids.stride(0),
        weights: weights.address,
        weights_stride: weights.stride(0),
        experts: logits.last() as u32,
        top_k: ids.last() as u32,
        renormalize: renormalize.into(),
        reserved: 0,
    };
    let threads = logits.last().next_multiple_of(32).clamp(32, 256) as u32;
    let kernel = Kernel::new(Unit::Sampling, "moe_route_f32", logits.extent(0), threads);
    lowering.launch(kernel, &args);
}
