//! Products whose weights are those of experts.

use super::{
    ALIGNED, COLUMNS, ExpertTilesArgs, GELU, GROUP, HEAD_MAJOR, MAT_MAT, MAT_VEC, MODE, MatMatArgs,
    MatVecArgs, Mode, ROUTED, ROWS, Route, TILE, TILE_THREADS, mat_mat_name, mat_vec_name,
    mat_vec_shape, select, tile_bytes,
};
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::view::View;
use kiln_core::DType;
use kiln_core::ops::MatmulId;

/// Simdgroups of a threadgroup that groups slots by expert.
const EXPERT_SIMDGROUPS: usize = 8;

/// A routed product in the terms of both kernels.
struct Routed<'a> {
    op: &'a MatmulId<View>,
    m: usize,
    top_k: usize,
    experts: usize,
    n: usize,
    k: usize,
}

/// `output[m, s] = weight[ids[m, s]] * input[m, s]`
pub(in crate::ops) fn matmul_id(
    op: &MatmulId<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let [m, top_k] = [op.ids.extent(0), op.ids.extent(1)];
    let [experts, n, k] = [op.weight.extent(0), op.weight.extent(1), op.weight.extent(2)];
    let routed = Routed { op, m, top_k, experts, n, k };
    match select(m, false) {
        Route::MatVec => routed.mat_vec(lowering),
        Route::MatMat | Route::Tensor => routed.mat_mat(lowering),
    }
}

impl Routed<'_> {
    fn is_aligned(&self) -> bool {
        let MatmulId { input, weight, .. } = self.op;
        self.k.is_multiple_of(GROUP)
            && input.is_aligned(GROUP)
            && (weight.dtype().is_quantized() || weight.is_aligned(GROUP))
    }

    /// Elements from the input of a slot to that of the next: 0 where slots share it.
    fn input_slot_stride(&self) -> u64 {
        let input = &self.op.input;
        if input.rank() == 3 { input.stride(1) } else { 0 }
    }

    fn mat_vec(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        let MatmulId { input, weight, ids, output, .. } = self.op;
        let arguments = MatVecArgs {
            input_stride: input.stride(0),
            input_slot_stride: self.input_slot_stride(),
            head_stride: 0,
            row_bytes: weight.stride_bytes(1) as u64,
            expert_bytes: weight.stride_bytes(0) as u64,
            output_stride: output.stride(0),
            output_slot_stride: output.stride(1),
            ids_stride: ids.stride(0),
            n: self.n as u32,
            k: self.k as u32,
            head_dim: self.k as u32,
            top_k: self.top_k as u32,
            experts: self.experts as u32,
            reserved: 0,
        };
        let [rows, simdgroups] = mat_vec_shape(weight.dtype(), 1, Mode::Product);
        let groups = [self.n.div_ceil(rows * simdgroups), self.m * self.top_k, 1];
        lowering.dispatch(
            self.flags(Dispatch::new(&MAT_VEC, mat_vec_name(weight, input)))
                .constant(ROWS, rows as u32)
                .constant(COLUMNS, 1)
                .arguments(&arguments)
                .read(input)
                .read(weight)
                .read(input)
                .read(ids)
                .write(output)
                .grid(groups, [SIMD_WIDTH * simdgroups, 1, 1]),
        )
    }

    fn mat_mat(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        let MatmulId { input, weight, ids, output, precision } = self.op;
        let count = self.m * self.top_k;
        let slots = lowering.workspace(DType::U32, count);
        // An expert has at most one tile that is not full; one entry more for the slots of none.
        let entries = count / TILE[0] + self.experts + 1;
        let tiles = lowering.workspace(DType::U32, 3 * entries);
        let arguments = ExpertTilesArgs {
            ids_stride: ids.stride(0),
            slots: count as u32,
            top_k: self.top_k as u32,
            experts: self.experts as u32,
            reserved: 0,
        };
        let groups = (self.experts + 1).div_ceil(EXPERT_SIMDGROUPS);
        lowering.dispatch(
            Dispatch::new(&MAT_MAT, "expert_tiles")
                .arguments(&arguments)
                .read(ids)
                .write(&slots)
                .write(&tiles)
                .grid([groups, 1, 1], [SIMD_WIDTH * EXPERT_SIMDGROUPS, 1, 1]),
        )?;
        lowering.barrier();
        let arguments = MatMatArgs {
            input_stride: input.stride(0),
            input_slot_stride: self.input_slot_stride(),
            head_stride: 0,
            row_bytes: weight.stride_bytes(1) as u64,
            expert_bytes: weight.stride_bytes(0) as u64,
            output_stride: output.stride(0),
            output_slot_stride: output.stride(1),
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            head_dim: self.k as u32,
            top_k: self.top_k as u32,
            experts: self.experts as u32,
        };
        lowering.dispatch(
            self.flags(Dispatch::new(&MAT_MAT, mat_mat_name(weight, input, *precision)))
                .arguments(&arguments)
                .read(input)
                .read(weight)
                .read(input)
                .read(&slots)
                .read(&tiles)
                .write(output)
                .threadgroup_memory(tile_bytes(weight.dtype(), *precision, Mode::Product))
                .grid([entries, self.n.div_ceil(TILE[1]), 1], [TILE_THREADS, 1, 1]),
        )
    }

    fn flags(&self, dispatch: Dispatch) -> Dispatch {
        dispatch
            .flag(ALIGNED, self.is_aligned())
            .flag(HEAD_MAJOR, false)
            .flag(GELU, false)
            .constant(MODE, Mode::Product as u32)
            .flag(ROUTED, true)
    }
}
