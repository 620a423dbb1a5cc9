//! Matrix products.

use super::activations::Input;
use super::dequant_matmul;
use super::elementwise;
use super::stream_mat_vec;
use super::weight::Weight;
use super::wgmma_matmul;
use crate::kernels::Unit;
use crate::lower::{Has, Kernel, Lowering};
use crate::runtime::context::Caps;
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, Op, Precision};

kiln_core::kernel_args! {
    /// Arguments of `pack.cu`.
    pub(crate) struct PackArgs {
        /// Rows of GGUF blocks.
        source: u64,
        /// Bytes from row to row.
        source_stride: u64,
        /// Planes: codes.
        q: u64,
        /// High bits.
        h: u64,
        /// Scales of 32 values.
        s: u64,
        /// Scales of 256 values.
        d: u64,
        /// Rows.
        rows: u64,
        /// Blocks of 32 values of a row.
        blocks: u64,
        /// Blocks before the first row in the planes.
        first_block: u64,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `mat_vec.cu` and `mma_mat_vec.cu`.
    pub(crate) struct MatVecArgs {
        /// Planes of the weight, or of the gate: codes.
        q: u64,
        /// High bits.
        h: u64,
        /// Scales of 32 values.
        s: u64,
        /// Scales of 256 values.
        d: u64,
        /// Planes of the second weight.
        up_q: u64,
        /// High bits.
        up_h: u64,
        /// Scales of 32 values.
        up_s: u64,
        /// Scales of 256 values.
        up_d: u64,
        /// Rows made by `activations_q15`, or by `activations_q15_fragments`.
        activations: u64,
        /// f32
        output: u64,
        /// Bytes from row to row, or from token to token.
        output_stride: u64,
        /// Bytes from slot to slot of a token.
        output_stride_slot: u64,
        /// `[m, top_k]` u32, or 0 for a plain product.
        ids: u64,
        /// Bytes from row to row of the ids.
        ids_stride: u64,
        /// Rows of the weight.
        n: u64,
        /// Blocks of 32 values of a row.
        blocks: u64,
        /// Matrices.
        experts: u64,
        /// Slots of a token.
        top_k: u64,
        /// Slots that share a row of activations.
        slots_per_row: u64,
        /// Rows of activations.
        m: u32,
        /// 0 SiLU, 1 GELU.
        activation: u32,
        /// Whether nothing in the plan writes the weights, so that they may be read ahead.
        early: u32,
        /// Unused.
        reserved: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `float_mat_vec.cu`.
    pub(crate) struct FloatMatVecArgs {
        /// `[n, k]` or `[E, n, k]`
        weight: u64,
        /// Bytes from row to row.
        weight_stride: u64,
        /// Bytes from matrix to matrix.
        expert_stride: u64,
        /// f32 rows.
        input: u64,
        /// Bytes from row to row.
        input_stride: u64,
        /// f32
        output: u64,
        /// Bytes from row to row, or from token to token.
        output_stride: u64,
        /// Bytes from slot to slot of a token.
        output_stride_slot: u64,
        /// `[m, top_k]` u32, or 0 for a plain product.
        ids: u64,
        /// Bytes from row to row of the ids.
        ids_stride: u64,
        /// Rows of the weight.
        n: u64,
        /// Matrices.
        experts: u64,
        /// Slots of a token.
        top_k: u64,
        /// Slots that share a row of the input.
        slots_per_row: u64,
        /// Values of a row.
        k: u32,
        /// Rows of the input.
        m: u32,
        /// Whether all rows start at multiples of 16 bytes.
        wide: u32,
        /// Unused.
        reserved: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of the products on tiles and of `dequantize.cu`.
    pub(crate) struct TileArgs {
        /// Planes of the weight; the first row of a plain one.
        q: u64,
        /// High bits.
        h: u64,
        /// Scales of 32 values.
        s: u64,
        /// Scales of 256 values.
        d: u64,
        /// Bytes from row to row of a plain weight.
        weight_stride: u64,
        /// Bytes from matrix to matrix of a plain weight.
        expert_stride: u64,
        /// Rows of the input, f32 or bf16.
        input: u64,
        /// Bytes from row to row.
        input_stride: u64,
        /// f32, or bf16 where weights are dequantised.
        output: u64,
        /// Bytes from row to row, or from token to token.
        output_stride: u64,
        /// Bytes from slot to slot of a token.
        output_stride_slot: u64,
        /// Slots by expert, or 0 for a plain product.
        list: u64,
        /// Where the slots of an expert begin in the list.
        offsets: u64,
        /// Rows of the weight.
        n: u64,
        /// Rows of the input.
        m: u64,
        /// Matrices.
        experts: u64,
        /// Slots of a token.
        top_k: u64,
        /// Slots that share a row of the input.
        slots_per_row: u64,
        /// Values of a row.
        k: u32,
        /// Blocks of 32 values of a row.
        blocks: u32,
        /// Whether rows of a plain weight start at multiples of 16 bytes.
        wide: u32,
        /// Unused.
        reserved: u32,
    }
}

/// Most rows of a matrix-vector product: above, tiles on the tensor cores win.
pub(crate) const MAT_VEC_ROWS: u64 = 8;

/// Least rows of a product with quantised weights that the tensor cores multiply: below, a warp for each few
/// rows of the weight wins. Both give the same bits.
pub(crate) const MMA_MAT_VEC_ROWS: u64 = 3;

/// The way a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Integer dot products of activations in 15 bits.
    MatVec,
    /// f32 dot products with a plain weight.
    FloatMatVec,
    /// f32 tiles.
    Exact,
    /// bf16 tiles on the tensor cores.
    Mma,
    /// Warpgroup products with the weight in bf16: dequantised on the way where rows are few, or whole,
    /// before. Both give the same bits.
    Wgmma,
}

/// Least rows of a product with warpgroups. Prompts run in multiples of so many rows: all their chunks
/// take one route, and how a prompt is cut changes no bit.
pub(crate) const WGMMA_ROWS: u64 = 16;

/// The route of a product of `m` rows.
pub(crate) fn select(dtype: DType, precision: Precision, m: u64, caps: Caps) -> Route {
    let few = m <= MAT_VEC_ROWS;
    match (dtype.is_quantized(), precision) {
        (false, _) if few => Route::FloatMatVec,
        (true, Precision::Fast) if few => Route::MatVec,
        (_, Precision::Exact) => Route::Exact,
        (_, Precision::Fast) if m >= WGMMA_ROWS && caps.hopper() => Route::Wgmma,
        (_, Precision::Fast) => Route::Mma,
    }
}

/// Fast products of the same input that follow, by weights of one type that take the same way, become
/// part of this step: at most `most`, each with its weight and its output.
pub(super) fn join_products(
    input: Input,
    dtype: DType,
    fits: fn(&View, u64, Caps) -> bool,
    most: usize,
    lowering: &mut Lowering,
) -> Vec<(Weight, View)> {
    lowering.join(most, Has::Nothing, |op, lowering| {
        let Op::Matmul(Matmul { input: other, weight, output, input_layout, precision }) = *op
        else {
            return None;
        };
        let same = other == input.view() && Input::new(other, input_layout) == input;
        let alike = weight.dtype() == dtype && fits(&weight, input.rows, lowering.caps);
        if !same || !alike || precision != Precision::Fast {
            return None;
        }
        Some((Weight::new(weight, lowering), output))
    })
}

/// A form of `mat_vec.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatVecTile {
    /// Rows of activations.
    pub(crate) rows: u64,
    /// Rows of the weight that a warp has at once; the gated form has one of each weight.
    pub(crate) per_warp: u64,
    /// Blocks that a processor holds: registers set the limit.
    pub(crate) blocks: u64,
}

/// The forms that are compiled.
const MAT_VEC_TILES: [MatVecTile; 2] = [
    MatVecTile { rows: 1, per_warp: 1, blocks: 4 },
    MatVecTile { rows: 2, per_warp: 2, blocks: 4 },
];
/// Warps of a block of the matrix-vector kernels.
const MAT_VEC_WARPS: u64 = 4;

/// The least form that is enough.
pub(crate) fn mat_vec_tile(m: u64) -> MatVecTile {
    let [.., last] = MAT_VEC_TILES;
    MAT_VEC_TILES.into_iter().find(|tile| tile.rows >= m).unwrap_or(last)
}

/// Threads of the kernels on tiles.
const TILE_THREADS: u32 = 128;

/// A product: rows of an input by a weight, to f32 rows at `output`.
#[derive(Clone, Copy)]
struct Product {
    input: Input,
    weight: View,
    output: u64,
    output_stride: u64,
}

impl Product {
    fn lower(self, precision: Precision, lowering: &mut Lowering) {
        let Self { input, output, output_stride, .. } = self;
        let m = input.rows;
        let route = select(self.weight.dtype(), precision, m, lowering.caps);
        if route == Route::MatVec && stream_mat_vec::fits(&self.weight, m, lowering.caps) {
            return stream_mat_vec::products(input, self.weight, output, lowering);
        }
        if route == Route::Wgmma && dequant_matmul::fits(&self.weight, m, lowering.caps) {
            let to = (output, output_stride);
            return dequant_matmul::products(input, self.weight, to, lowering);
        }
        let weight = Weight::new(self.weight, lowering);
        match route {
            Route::MatVec => {
                let args = MatVecArgs {
                    activations: mat_vec_input(input, lowering),
                    output,
                    output_stride,
                    m: m as u32,
                    ..mat_vec_args(weight)
                };
                lowering.launch(mat_vec_kernel("mat_vec", weight, m, lowering.caps), &args);
            }
            Route::FloatMatVec => {
                let (address, input_stride, wide) = input.f32(lowering);
                let args = FloatMatVecArgs {
                    input: address,
                    input_stride,
                    output,
                    output_stride,
                    m: m as u32,
                    wide: (wide && weight.wide).into(),
                    ..float_mat_vec_args(weight)
                };
                lowering.launch(float_mat_vec_kernel(weight, m), &args);
            }
            Route::Exact => {
                let (address, input_stride, _) = input.f32(lowering);
                let args = TileArgs {
                    input: address,
                    input_stride,
                    output,
                    output_stride,
                    m,
                    ..tile_args(weight)
                };
                lowering.launch(exact_kernel(weight, m), &args);
            }
            Route::Mma => {
                let (address, input_stride) = input.bf16(lowering);
                let args = TileArgs {
                    input: address,
                    input_stride,
                    output,
                    output_stride,
                    m,
                    ..tile_args(weight)
                };
                lowering.launch(mma_kernel(weight, m), &args);
            }
            Route::Wgmma => {
                wgmma_matmul::product(input, weight, (output, output_stride), lowering);
            }
        }
    }
}

pub(super) fn mat_vec_args(weight: Weight) -> MatVecArgs {
    let planes = weight.planes;
    MatVecArgs {
        q: planes.q,
        h: planes.h,
        s: planes.s,
        d: planes.d,
        n: weight.n,
        blocks: weight.blocks,
        early: weight.at_rest.into(),
        ..MatVecArgs::zeroed()
    }
}

/// The input of a product of few rows with a quantised weight.
fn mat_vec_input(input: Input, lowering: &mut Lowering) -> u64 {
    if input.rows < MMA_MAT_VEC_ROWS { input.q15(lowering) } else { input.fragments(lowering) }
}

pub(super) fn mat_vec_kernel(name: &str, weight: Weight, m: u64, caps: Caps) -> Kernel {
    if m >= MMA_MAT_VEC_ROWS {
        let name = if name == "gated_mat_vec" { "gated_mma_mat_vec" } else { "mma_mat_vec" };
        return Kernel::new(Unit::MmaMatVec(weight.dtype), name, weight.n.div_ceil(16), 256);
    }
    let tile = mat_vec_tile(m);
    let per_warp = if name == "gated_mat_vec" { 1 } else { tile.per_warp };
    let blocks = weight.n.div_ceil(per_warp * MAT_VEC_WARPS);
    let blocks = blocks.min(tile.blocks * u64::from(caps.processors));
    let unit = Unit::MatVec(weight.dtype);
    Kernel::new(unit, format!("{name}_{}", tile.rows), blocks, 32 * MAT_VEC_WARPS as u32)
}

pub(super) fn float_mat_vec_args(weight: Weight) -> FloatMatVecArgs {
    FloatMatVecArgs {
        weight: weight.planes.q,
        weight_stride: weight.stride,
        expert_stride: weight.expert_stride,
        n: weight.n,
        k: weight.k as u32,
        ..FloatMatVecArgs::zeroed()
    }
}

pub(super) fn float_mat_vec_kernel(weight: Weight, m: u64) -> Kernel {
    let rows = [1, 4, 8].into_iter().find(|rows| *rows >= m).unwrap_or(8);
    let name = format!("mat_vec_{}_{rows}", weight.dtype);
    let blocks = weight.n.div_ceil(MAT_VEC_WARPS);
    Kernel::new(Unit::FloatMatVec, name, blocks, 32 * MAT_VEC_WARPS as u32)
}

pub(super) fn tile_args(weight: Weight) -> TileArgs {
    let planes = weight.planes;
    TileArgs {
        q: planes.q,
        h: planes.h,
        s: planes.s,
        d: planes.d,
        weight_stride: weight.stride,
        expert_stride: weight.expert_stride,
        n: weight.n,
        k: weight.k as u32,
        blocks: weight.blocks as u32,
        wide: weight.wide.into(),
        ..TileArgs::zeroed()
    }
}

pub(super) fn exact_kernel(weight: Weight, m: u64) -> Kernel {
    let unit = Unit::ExactMatmul(weight.dtype);
    let grid = [weight.n.div_ceil(64), m.div_ceil(32), 1];
    Kernel::new(unit, "exact_matmul", 1, TILE_THREADS).grid(grid)
}

pub(super) fn mma_kernel(weight: Weight, m: u64) -> Kernel {
    let unit = Unit::MmaMatmul(weight.dtype);
    let grid = [weight.n.div_ceil(64), m.div_ceil(64), 1];
    Kernel::new(unit, "mma_matmul", 1, TILE_THREADS).grid(grid)
}

pub(super) fn matmul(op: &Matmul<View>, lowering: &mut Lowering) {
    let Matmul { input, weight, output, input_layout, precision } = *op;
    let input = Input::new(input, input_layout);
    let product =
        Product { input, weight, output: output.address, output_stride: output.stride(0) };
    product.lower(precision, lowering);
}

pub(super) fn gated_matmul(op: &GatedMatmul<View>, lowering: &mut Lowering) {
    let GatedMatmul { input, gate, up, output, activation, precision } = *op;
    let rows = Input::new(input, InputLayout::RowMajor);
    let (m, n) = (rows.rows, output.last());
    let one_type = gate.dtype() == up.dtype();
    if one_type && select(gate.dtype(), precision, m, lowering.caps) == Route::MatVec {
        if [gate, up].iter().all(|weight| stream_mat_vec::fits(weight, m, lowering.caps)) {
            return stream_mat_vec::gated(rows, [gate, up], activation, output, lowering);
        }
        let weight = Weight::new(gate, lowering);
        let second = Weight::new(up, lowering).planes;
        let args = MatVecArgs {
            up_q: second.q,
            up_h: second.h,
            up_s: second.s,
            up_d: second.d,
            activations: mat_vec_input(rows, lowering),
            output: output.address,
            output_stride: output.stride(0),
            m: m as u32,
            activation: (activation == Activation::GeluTanh).into(),
            ..mat_vec_args(weight)
        };
        return lowering.launch(mat_vec_kernel("gated_mat_vec", weight, m, lowering.caps), &args);
    }
    if one_route(gate, up, precision, m, lowering.caps) == Some(Route::Wgmma) {
        if one_type && [gate, up].iter().all(|w| dequant_matmul::fits(w, m, lowering.caps)) {
            return dequant_matmul::gated(op, rows, lowering);
        }
        return wgmma_matmul::gated(op, rows, lowering);
    }
    // Both products, then the activation: the steps that the operation stands for.
    let output_stride = (n * 4).next_multiple_of(16);
    let [gate_output, up_output] = [(); 2].map(|()| lowering.workspace(m * output_stride));
    for (weight, output) in [(gate, gate_output), (up, up_output)] {
        Product { input: rows, weight, output, output_stride }.lower(precision, lowering);
    }
    let parts = [(gate_output, output_stride), (up_output, output_stride)];
    elementwise::gated(activation, parts, output, lowering);
}

/// The route of two products, where it is the same.
fn one_route(gate: View, up: View, precision: Precision, m: u64, caps: Caps) -> Option<Route> {
    let [gate, up] = [gate, up].map(|weight| select(weight.dtype(), precision, m, caps));
    (gate == up).then_some(gate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: Caps = Caps { compute: [9, 0], processors: 132, shared: 227 << 10 };
    const AMPERE: Caps = Caps { compute: [8, 0], processors: 108, shared: 163 << 10 };

    #[test]
    fn routes_change_at_their_thresholds() {
        for dtype in DType::WEIGHTS {
            let route = |precision, m, caps| select(dtype, precision, m, caps);
            let few = if dtype.is_quantized() { Route::MatVec } else { Route::FloatMatVec };
            assert_eq!(route(Precision::Fast, 1, HOPPER), few);
            assert_eq!(route(Precision::Fast, MAT_VEC_ROWS, HOPPER), few);
            assert_eq!(route(Precision::Fast, MAT_VEC_ROWS + 1, HOPPER), Route::Mma);
            assert_eq!(route(Precision::Exact, MAT_VEC_ROWS + 1, HOPPER), Route::Exact);
            assert_eq!(route(Precision::Fast, WGMMA_ROWS, HOPPER), Route::Wgmma);
            assert_eq!(route(Precision::Fast, WGMMA_ROWS, AMPERE), Route::Mma);
        }
    }

    #[test]
    fn tiles_are_large_enough() {
        for m in 1..MMA_MAT_VEC_ROWS {
            assert_eq!(mat_vec_tile(m).rows, m);
        }
    }
}
