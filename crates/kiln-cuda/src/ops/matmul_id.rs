//! Expert-routed products.

use super::activations::Input;
use super::matmul::{
    FloatMatVecArgs, MAT_VEC_ROWS, MatVecArgs, Route, TileArgs, exact_kernel, float_mat_vec_args,
    float_mat_vec_kernel, mat_vec_args, mat_vec_kernel, mma_kernel, select, tile_args,
};
use super::rows;
use super::weight::Weight;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::runtime::context::Caps;
use crate::view::View;
use kiln_core::ops::{MatmulId, Precision};

kiln_core::kernel_args! {
    /// Arguments of `expert_sort.cu`.
    pub(crate) struct ExpertSortArgs {
        /// `[m, top_k]` u32
        ids: u64,
        /// Bytes from row to row.
        ids_stride: u64,
        /// Where the slots of an expert begin, `E + 2` u32.
        offsets: u64,
        /// `E + 1` u32
        next: u64,
        /// Slots by expert, u32.
        list: u64,
        /// All slots.
        slots: u64,
        /// Matrices.
        experts: u64,
        /// Slots of a token.
        top_k: u64,
    }
}

/// The route for so many tokens: few have a matrix-vector product for each slot, the slots of more are
/// sorted by expert. It depends on tokens alone, so that chunks of a prompt take one route.
pub(crate) fn select_tokens(
    weight: Weight,
    precision: Precision,
    tokens: u64,
    caps: Caps,
) -> Route {
    let m = if tokens <= MAT_VEC_ROWS { 1 } else { tokens };
    select(weight.dtype, precision, m, caps)
}

/// Rows and columns of a tile of `wgmma_matmul_id.cu`.
const WGMMA_TILE: u64 = 128;
/// Bytes of its shared memory: four stages of 64 values of every row of both factors, and room to align
/// them.
const WGMMA_SHARED: u64 = 4 * 2 * WGMMA_TILE * 64 * 2 + 1024;

/// The kernel of warpgroup products for so many slots.
fn wgmma_kernel(weight: Weight, slots: u64) -> Kernel {
    let grid = [weight.n.div_ceil(WGMMA_TILE), slots.div_ceil(WGMMA_TILE), 1];
    let unit = Unit::WgmmaMatmulId(weight.dtype);
    Kernel::new(unit, "wgmma_matmul_id", 1, 512).grid(grid).shared(WGMMA_SHARED)
}

pub(super) fn matmul_id(op: &MatmulId<View>, lowering: &mut Lowering) {
    let MatmulId { input, weight, ids, output, precision } = *op;
    let [tokens, top_k] = [ids.extent(0), ids.extent(1)];
    let slots = tokens * top_k;
    let slots_per_row = if input.rank() == 2 { top_k } else { 1 };
    let input = Input::slots(input).unwrap_or_else(|| {
        let packed = rows::contiguous(input, lowering);
        Input::new(packed, kiln_core::ops::InputLayout::RowMajor)
    });
    let experts = weight.extent(0);
    let weight = Weight::new(weight, lowering);
    let (ids_address, ids_stride) = (ids.address, ids.stride(0));
    let (address, output_stride, output_stride_slot) =
        (output.address, output.stride(0), output.stride(1));
    match select_tokens(weight, precision, tokens, lowering.caps) {
        Route::MatVec => {
            let args = MatVecArgs {
                activations: input.q15(lowering),
                output: address,
                output_stride,
                output_stride_slot,
                ids: ids_address,
                ids_stride,
                experts,
                top_k,
                slots_per_row,
                m: 1,
                early: 0,
                ..mat_vec_args(weight)
            };
            let kernel = mat_vec_kernel("mat_vec", weight, 1, lowering.caps);
            let grid = [kernel.grid[0], slots, 1];
            lowering.launch(kernel.grid(grid), &args);
        }
        Route::FloatMatVec => {
            let (rows, input_stride, wide) = input.f32(lowering);
            let args = FloatMatVecArgs {
                input: rows,
                input_stride,
                output: address,
                output_stride,
                output_stride_slot,
                ids: ids_address,
                ids_stride,
                experts,
                top_k,
                slots_per_row,
                m: 1,
                wide: (wide && weight.wide).into(),
                ..float_mat_vec_args(weight)
            };
            let kernel = float_mat_vec_kernel(weight, 1);
            let grid = [kernel.grid[0], slots, 1];
            lowering.launch(kernel.grid(grid), &args);
        }
        route @ (Route::Exact | Route::Mma | Route::Wgmma) => {
            let words = lowering.workspace(4 * (2 * (experts + 2) + slots));
            let (offsets, next, list) =
                (words, words + 4 * (experts + 2), words + 8 * (experts + 2));
            let sort = ExpertSortArgs {
                ids: ids_address,
                ids_stride,
                offsets,
                next,
                list,
                slots,
                experts,
                top_k,
            };
            lowering.launch(Kernel::new(Unit::ExpertSort, "expert_sort", 1, 1024), &sort);
            let exact = route == Route::Exact;
            let (rows, input_stride) = if exact {
                let (rows, stride, _) = input.f32(lowering);
                (rows, stride)
            } else {
                input.bf16(lowering)
            };
            let args = TileArgs {
                input: rows,
                input_stride,
                output: address,
                output_stride,
                output_stride_slot,
                list,
                offsets,
                experts,
                top_k,
                slots_per_row,
                m: slots,
                ..tile_args(weight)
            };
            let kernel = match route {
                Route::Exact => exact_kernel(weight, slots),
                Route::Wgmma => wgmma_kernel(weight, slots),
                _ => mma_kernel(weight, slots),
            };
            // A layer of the grid for each expert, and one for slots without.
            let [x, y, _] = kernel.grid;
            lowering.launch(kernel.grid([x, y, experts + 1]), &args);
        }
    }
}
