//! Routing of a mixture of experts: one threadgroup per row.

use super::row_groups::MAX_SIMDGROUPS;
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{COMMON, FunctionConstant, Library, MSL_3_1};
use crate::view::View;
use kiln_core::ops::MoeRoute;
use kiln_core::{KernelArgs, kernel_args};

kernel_args! {
    /// Elements between rows, and how many experts there are and are chosen.
    struct MoeRouteArgs {
        logits_stride: u64,
        ids_stride: u64,
        weights_stride: u64,
        experts: u32,
        top_k: u32,
    }
}

/// The chosen weights are divided by their sum.
const RENORMALIZE: FunctionConstant = FunctionConstant::flag("RENORMALIZE", 0);

pub(super) static LIBRARY: Library = Library {
    name: "moe",
    texts: &[COMMON, include_str!("../../kernels/moe.metal")],
    arguments: MoeRouteArgs::msl,
    sizes: &[("MAX_SIMDGROUPS", MAX_SIMDGROUPS)],
    constants: &[RENORMALIZE],
    version: MSL_3_1,
};

/// Threads of a row, one for each expert as far as they go.
fn rankers(experts: usize) -> usize {
    experts.clamp(1, 512).next_multiple_of(SIMD_WIDTH)
}

/// Softmax over all experts, then the `top_k` largest.
pub(super) fn moe_route(op: &MoeRoute<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let MoeRoute { logits, ids, weights, renormalize } = op;
    let experts = logits.last();
    let arguments = MoeRouteArgs {
        logits_stride: logits.row_stride(),
        ids_stride: ids.row_stride(),
        weights_stride: weights.row_stride(),
        experts: experts as u32,
        top_k: ids.last() as u32,
    };
    lowering.dispatch(
        Dispatch::new(&LIBRARY, "moe_route_f32")
            .flag(RENORMALIZE, *renormalize)
            .arguments(&arguments)
            .read(logits)
            .write(ids)
            .write(weights)
            .grid([logits.extent(0), 1, 1], [rankers(experts), 1, 1]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_per_expert_in_whole_simdgroups() {
        assert_eq!([1, 32, 128, 129, 5000].map(rankers), [32, 32, 128, 160, 512]);
    }
}
