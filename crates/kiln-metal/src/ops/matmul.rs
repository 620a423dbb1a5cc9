//! Matrix products: a simdgroup per rows of weights for few rows of inputs, tiles for many.

use super::row_groups::GROUP;
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, MatmulId, Precision};
use kiln_core::{DType, KernelArgs, kernel_args};

kernel_args! {
    /// Arguments of a product of few rows. Strides of inputs and outputs are elements; slots belong to
    /// the routed form.
    struct MatVecArgs {
        input_stride: u64,
        input_slot_stride: u64,
        head_stride: u64,
        /// Bytes of a row of the weight.
        row_bytes: u64,
        /// Bytes of the weight of an expert.
        expert_bytes: u64,
        output_stride: u64,
        output_slot_stride: u64,
        ids_stride: u64,
        n: u32,
        k: u32,
        head_dim: u32,
        top_k: u32,
        experts: u32,
        reserved: u32,
    }
}

kernel_args! {
    /// Arguments of a product of many rows, as those of few.
    struct MatMatArgs {
        input_stride: u64,
        input_slot_stride: u64,
        head_stride: u64,
        row_bytes: u64,
        expert_bytes: u64,
        output_stride: u64,
        output_slot_stride: u64,
        m: u32,
        n: u32,
        k: u32,
        head_dim: u32,
        top_k: u32,
        experts: u32,
    }
}

kernel_args! {
    /// Arguments of the grouping of slots by expert.
    struct ExpertTilesArgs {
        ids_stride: u64,
        slots: u32,
        top_k: u32,
        experts: u32,
        reserved: u32,
    }
}

/// The input is `[H, m, D]`.
const HEAD_MAJOR: FunctionConstant = FunctionConstant::flag("HEAD_MAJOR", 1);
/// The weight is that of an expert.
const ROUTED: FunctionConstant = FunctionConstant::flag("ROUTED", 2);
/// The activation is `gelu`, else `silu`.
const GELU: FunctionConstant = FunctionConstant::flag("GELU", 3);
/// What a product is combined with.
const MODE: FunctionConstant = FunctionConstant::uint("MODE", 4);
/// Rows of the weight of a simdgroup.
const ROWS: FunctionConstant = FunctionConstant::uint("ROWS", 5);
/// Rows of the input.
const COLUMNS: FunctionConstant = FunctionConstant::uint("COLUMNS", 6);

/// Rows of the input up to which each row of weights is read by one simdgroup.
pub(super) const MAT_VEC_MAX_ROWS: usize = 8;

/// Most rows of weights of a simdgroup.
const MAX_ROWS: usize = 4;

/// Rows of the input and of the weight of a tile, and the values of them at a time.
const TILE: [usize; 3] = [32, 64, 32];

/// Threads that compute a tile.
const TILE_THREADS: usize = 4 * SIMD_WIDTH;

/// Simdgroups of a threadgroup that groups slots by expert.
const EXPERT_SIMDGROUPS: usize = 8;

const WEIGHTS: &str = include_str!("../../kernels/weights.metal");

pub(super) static MAT_VEC: Library = Library {
    name: "mat_vec",
    texts: &[COMMON, QUANT, WEIGHTS, include_str!("../../kernels/mat_vec.metal")],
    arguments: MatVecArgs::msl,
    sizes: &[("MAX_ROWS", MAX_ROWS), ("MAX_COLUMNS", MAT_VEC_MAX_ROWS)],
    constants: &[ALIGNED, HEAD_MAJOR, ROUTED, GELU, MODE, ROWS, COLUMNS],
    version: MSL_3_1,
};

pub(super) static MAT_MAT: Library = Library {
    name: "mat_mat",
    texts: &[COMMON, QUANT, WEIGHTS, include_str!("../../kernels/mat_mat.metal")],
    arguments: || MatMatArgs::msl() + &ExpertTilesArgs::msl(),
    sizes: &[("TILE_M", TILE[0]), ("TILE_N", TILE[1]), ("TILE_K", TILE[2])],
    constants: &[ALIGNED, HEAD_MAJOR, ROUTED, GELU, MODE],
    version: MSL_3_1,
};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// A simdgroup per few rows of weights, all rows of the input at once.
    MatVec,
    /// Tiles of both, by simdgroup matrices.
    MatMat,
}

/// The number of rows alone decides, so that a prompt in chunks takes the route of the whole.
fn select(rows: usize) -> Route {
    if rows <= MAT_VEC_MAX_ROWS { Route::MatVec } else { Route::MatMat }
}

/// Rows of weights of a simdgroup, and simdgroups of a threadgroup: what fits in registers beside
/// the inputs and sums.
fn mat_vec_shape(weight: DType, columns: usize, mode: Mode) -> [usize; 2] {
    let [rows, simdgroups] = match weight {
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Iq4Nl => [4, 2],
        DType::Q8_0 => [2, 4],
        DType::Q5K => [1, 2],
        _ => [2, 2],
    };
    let rows: usize = if columns > 4 { rows.min(2) } else { rows };
    [if mode == Mode::Gated { rows.div_ceil(2) } else { rows }, simdgroups]
}

/// What a product is combined with, by its value in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Product = 0,
    /// With the product of a second matrix of the same type.
    Gated = 1,
    /// With a gate that is there already.
    Up = 2,
}

/// A product in the terms of both kernels.
struct Product<'a> {
    input: &'a View,
    weight: &'a View,
    /// The second matrix, or the gate.
    second: Option<&'a View>,
    output: &'a View,
    input_layout: InputLayout,
    precision: Precision,
    mode: Mode,
    activation: Activation,
}

impl Product<'_> {
    fn dims(&self) -> [usize; 3] {
        let weight = self.weight.rank();
        [self.output.extent(0), self.weight.extent(weight - 2), self.weight.last()]
    }

    /// Whether inputs, and weights of a plain type, can be loaded in groups.
    fn is_aligned(&self) -> bool {
        let plain = |view: &View| {
            view.dtype().is_quantized()
                || (view.last().is_multiple_of(GROUP) && view.is_aligned(GROUP))
        };
        let second = if self.mode == Mode::Gated { self.second } else { None };
        plain(self.input) && plain(self.weight) && second.is_none_or(plain)
    }

    fn is_head_major(&self) -> bool {
        self.input_layout == InputLayout::HeadMajor
    }

    /// Elements between rows and between heads of the input, and values of a head.
    fn input_strides(&self) -> (u64, u64, u32) {
        let x = self.input;
        if self.is_head_major() {
            (x.stride(1), x.stride(0), x.last() as u32)
        } else {
            (x.stride(0), 0, x.last() as u32)
        }
    }

    fn common(&self, dispatch: Dispatch) -> Dispatch {
        dispatch
            .flag(ALIGNED, self.is_aligned())
            .flag(HEAD_MAJOR, self.is_head_major())
            .flag(GELU, self.activation == Activation::GeluTanh)
            .constant(MODE, self.mode as u32)
    }

    fn mat_vec(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        let [m, n, k] = self.dims();
        let (input_stride, head_stride, head_dim) = self.input_strides();
        let arguments = MatVecArgs {
            input_stride,
            input_slot_stride: 0,
            head_stride,
            row_bytes: self.weight.stride_bytes(0) as u64,
            expert_bytes: 0,
            output_stride: self.output.stride(0),
            output_slot_stride: 0,
            ids_stride: 0,
            n: n as u32,
            k: k as u32,
            head_dim,
            top_k: 1,
            experts: 1,
            reserved: 0,
        };
        let [rows, simdgroups] = mat_vec_shape(self.weight.dtype(), m, self.mode);
        let dispatch = Dispatch::new(&MAT_VEC, mat_vec_name(self.weight, self.input));
        lowering.dispatch(
            self.common(dispatch)
                .flag(ROUTED, false)
                .constant(ROWS, rows as u32)
                .constant(COLUMNS, m as u32)
                .arguments(&arguments)
                .read(self.input)
                .read(self.weight)
                .read_or(self.second, self.input)
                .read(self.input)
                .write(self.output)
                .grid([n.div_ceil(rows * simdgroups), 1, 1], [SIMD_WIDTH * simdgroups, 1, 1]),
        )
    }

    fn mat_mat(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        let [m, n, k] = self.dims();
        let (input_stride, head_stride, head_dim) = self.input_strides();
        let arguments = MatMatArgs {
            input_stride,
            input_slot_stride: 0,
            head_stride,
            row_bytes: self.weight.stride_bytes(0) as u64,
            expert_bytes: 0,
            output_stride: self.output.stride(0),
            output_slot_stride: 0,
            m: m as u32,
            n: n as u32,
            k: k as u32,
            head_dim,
            top_k: 1,
            experts: 1,
        };
        let name = mat_mat_name(self.weight, self.input, self.precision);
        lowering.dispatch(
            self.common(Dispatch::new(&MAT_MAT, name))
                .flag(ROUTED, false)
                .arguments(&arguments)
                .read(self.input)
                .read(self.weight)
                .read_or(self.second, self.input)
                .read(self.input)
                .read(self.input)
                .write(self.output)
                .threadgroup_memory(tile_bytes(self.weight.dtype(), self.precision, self.mode))
                .grid([m.div_ceil(TILE[0]), n.div_ceil(TILE[1]), 1], [TILE_THREADS, 1, 1]),
        )
    }

    fn lower(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        match select(self.output.extent(0)) {
            Route::MatVec => self.mat_vec(lowering),
            Route::MatMat => self.mat_mat(lowering),
        }
    }
}

fn mat_vec_name(weight: &View, input: &View) -> String {
    format!("mat_vec_{}_{}", weight.dtype(), input.dtype())
}

/// Unpacked weights are rounded to f16 in the fast form; plain ones keep their type.
fn mat_mat_name(weight: &View, input: &View, precision: Precision) -> String {
    let exact = weight.dtype().is_quantized() && precision == Precision::Exact;
    let exact = if exact { "_exact" } else { "" };
    format!("mat_mat_{}{exact}_{}", weight.dtype(), input.dtype())
}

/// Threadgroup memory: weights and inputs of a step, or the sums on their way out.
fn tile_bytes(weight: DType, precision: Precision, mode: Mode) -> usize {
    let [m, n, k] = TILE;
    let value = match (weight.is_quantized(), precision) {
        (false, _) => weight.block_bytes(),
        (true, Precision::Fast) => 2,
        (true, Precision::Exact) => 4,
    };
    let matrices = if mode == Mode::Gated { 2 } else { 1 };
    let inputs = m * k * size_of::<f32>();
    let sums = m * n * size_of::<f32>();
    (matrices * n * k * value + inputs).max(matrices * sums)
}

/// `output = input * weight^T`
pub(super) fn matmul(op: &Matmul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Matmul { input, weight, output, input_layout, precision } = op;
    Product {
        input,
        weight,
        second: None,
        output,
        input_layout: *input_layout,
        precision: *precision,
        mode: Mode::Product,
        activation: Activation::Silu,
    }
    .lower(lowering)
}

/// `output = activation(input * gate^T) * (input * up^T)`: in one dispatch where both matrices are of
/// one type, else the gate first.
pub(super) fn gated_matmul(op: &GatedMatmul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let GatedMatmul { input, gate, up, output, activation, precision } = op;
    let product = |weight, second, output, mode| Product {
        input,
        weight,
        second,
        output,
        input_layout: InputLayout::RowMajor,
        precision: *precision,
        mode,
        activation: *activation,
    };
    if gate.dtype() == up.dtype() {
        return product(gate, Some(up), output, Mode::Gated).lower(lowering);
    }
    let [m, n] = [output.extent(0), output.extent(1)];
    let values = lowering.workspace(DType::F32, m * n);
    let gated = View::contiguous(values.memory(), values.offset(), DType::F32, [m, n]);
    product(gate, None, &gated, Mode::Product).lower(lowering)?;
    lowering.barrier();
    product(up, Some(&gated), output, Mode::Up).lower(lowering)
}

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
pub(super) fn matmul_id(op: &MatmulId<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let [m, top_k] = [op.ids.extent(0), op.ids.extent(1)];
    let [experts, n, k] = [op.weight.extent(0), op.weight.extent(1), op.weight.extent(2)];
    let routed = Routed { op, m, top_k, experts, n, k };
    match select(m) {
        Route::MatVec => routed.mat_vec(lowering),
        Route::MatMat => routed.mat_mat(lowering),
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
