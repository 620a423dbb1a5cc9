//! Matrix products: a simdgroup per rows of weights for few rows of inputs, tiles for many.

use super::elementwise;
use super::row_groups::GROUP;
use crate::caps::{Caps, SIMD_WIDTH};
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::{
    Activation, GatedMatmul, GeluMul, InputLayout, Matmul, MatmulId, Precision, SiluMul,
};
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

kernel_args! {
    /// Arguments of a product by the tensor units: strides in elements, in the 32 bits that tensors of
    /// kernels have.
    struct TensorArgs {
        row_bytes: u64,
        input_stride: i32,
        output_stride: i32,
        m: i32,
        n: i32,
        k: i32,
        reserved: i32,
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

/// As [`TILE`], by the tensor units.
const TENSOR_TILE: [usize; 3] = [128, 64, 32];

/// The language version of the tensor API.
const MSL_4_0: (u32, u32) = (4, 0);

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

pub(super) static TENSOR: Library = Library {
    name: "mat_mat_tensor",
    texts: &[COMMON, QUANT, include_str!("../../kernels/mat_mat_tensor.metal")],
    arguments: TensorArgs::msl,
    sizes: &[
        ("TENSOR_M", TENSOR_TILE[0]),
        ("TENSOR_N", TENSOR_TILE[1]),
        ("TENSOR_K", TENSOR_TILE[2]),
    ],
    constants: &[],
    version: MSL_4_0,
};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// A simdgroup per few rows of weights, all rows of the input at once.
    MatVec,
    /// Tiles of both, by simdgroup matrices.
    MatMat,
    /// Larger tiles, by the tensor units.
    Tensor,
}

/// The number of rows decides between few and many, so that a prompt in chunks takes the route of the
/// whole.
fn select(rows: usize, tensor: bool) -> Route {
    match rows {
        0..=MAT_VEC_MAX_ROWS => Route::MatVec,
        _ if tensor => Route::Tensor,
        _ => Route::MatMat,
    }
}

/// Whether the tensor units can take a product: the fast form of weights that become f16 in whole
/// steps, on rows that can be described by 32 bits.
fn fits_tensor(caps: &Caps, product: &Product) -> bool {
    let [m, n, k] = product.dims();
    let weight = product.weight.dtype();
    let narrow = |value: u64| i32::try_from(value).is_ok();
    caps.tensor_ops
        && product.precision == Precision::Fast
        && product.mode == Mode::Product
        && !product.is_head_major()
        && (weight.is_quantized() || weight == DType::F16)
        && k.is_multiple_of(TENSOR_TILE[2])
        && product.is_aligned()
        && [m, n, k].into_iter().all(|extent| narrow(extent as u64))
        && narrow(product.input.stride(0))
        && narrow(product.output.stride(0))
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

    fn tensor(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        let [m, n, k] = self.dims();
        let arguments = TensorArgs {
            row_bytes: self.weight.stride_bytes(0) as u64,
            input_stride: self.input.stride(0) as i32,
            output_stride: self.output.stride(0) as i32,
            m: m as i32,
            n: n as i32,
            k: k as i32,
            reserved: 0,
        };
        let [tile_m, tile_n, _] = TENSOR_TILE;
        let name = format!("mat_mat_tensor_{}_{}", self.weight.dtype(), self.input.dtype());
        lowering.dispatch(
            Dispatch::new(&TENSOR, name)
                .arguments(&arguments)
                .read(self.input)
                .read(self.weight)
                .write(self.output)
                .grid([m.div_ceil(tile_m), n.div_ceil(tile_n), 1], [TILE_THREADS, 1, 1]),
        )
    }

    fn lower(&self, lowering: &mut Lowering) -> Result<(), Missing> {
        match select(self.output.extent(0), fits_tensor(lowering.caps, self)) {
            Route::MatVec => self.mat_vec(lowering),
            Route::MatMat => self.mat_mat(lowering),
            Route::Tensor => self.tensor(lowering),
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
    let tensor = |weight| {
        let product = product(weight, None, output, Mode::Product);
        fits_tensor(lowering.caps, &product) && output.extent(0) > MAT_VEC_MAX_ROWS
    };
    // Where one half takes the tensor units, both are products of their own, with the bits of those.
    let tensors = tensor(gate) || tensor(up);
    if gate.dtype() == up.dtype() && !tensors {
        return product(gate, Some(up), output, Mode::Gated).lower(lowering);
    }
    let [m, n] = [output.extent(0), output.extent(1)];
    let values = lowering.workspace(DType::F32, m * n);
    let gated = View::contiguous(values.memory(), values.offset(), DType::F32, [m, n]);
    product(gate, None, &gated, Mode::Product).lower(lowering)?;
    if tensors {
        product(up, None, output, Mode::Product).lower(lowering)?;
        lowering.barrier();
        let (gate, up) = (gated, *output);
        return match activation {
            Activation::Silu => elementwise::silu_mul(&SiluMul { gate, up, output: up }, lowering),
            Activation::GeluTanh => {
                elementwise::gelu_mul(&GeluMul { gate, up, output: up }, lowering)
            }
        };
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Memory;

    fn view(memory: usize, dtype: DType, shape: impl Into<kiln_core::Shape>) -> View {
        View::contiguous(Memory::Buffer(memory), 0, dtype, shape)
    }

    fn product(m: usize, weight: DType, precision: Precision) -> Matmul<View> {
        Matmul {
            input: view(0, DType::F32, [m, 512]),
            weight: view(1, weight, [100, 512]),
            output: view(2, DType::F32, [m, 100]),
            input_layout: InputLayout::RowMajor,
            precision,
        }
    }

    fn lowered(op: &Matmul<View>, caps: &Caps) -> Dispatch {
        let mut lowering = Lowering::new(caps);
        matmul(op, &mut lowering).unwrap();
        assert_eq!(lowering.phases.len(), 1);
        lowering.phases[0][0].clone()
    }

    fn value(dispatch: &Dispatch, constant: FunctionConstant) -> u32 {
        dispatch.kernel.constants.iter().find(|(c, _)| *c == constant).unwrap().1
    }

    const TENSOR_CAPS: Caps = Caps { tensor_ops: true, ..Caps::APPLE7 };

    #[test]
    fn few_rows_are_columns_of_a_mat_vec() {
        for m in [1, 7, MAT_VEC_MAX_ROWS] {
            let op = product(m, DType::Q4_0, Precision::Fast);
            let dispatch = lowered(&op, &TENSOR_CAPS);
            assert_eq!(dispatch.kernel.function, "mat_vec_q4_0_f32");
            assert_eq!(value(&dispatch, COLUMNS), m as u32);
            let rows = if m > 4 { 2 } else { 4 };
            assert_eq!(value(&dispatch, ROWS), rows);
            assert_eq!(dispatch.threadgroups, [100usize.div_ceil(2 * rows as usize), 1, 1]);
            assert_eq!(dispatch.threads, [64, 1, 1]);
        }
    }

    #[test]
    fn many_rows_are_tiles() {
        let m = MAT_VEC_MAX_ROWS + 1;
        let fast = lowered(&product(m, DType::Q4K, Precision::Fast), &Caps::APPLE7);
        assert_eq!(fast.kernel.function, "mat_mat_q4_k_f32");
        assert_eq!((fast.threadgroups, fast.threads), ([1, 2, 1], [128, 1, 1]));
        assert_eq!(fast.threadgroup_memory, 8 << 10);
        let exact = lowered(&product(65, DType::Q4K, Precision::Exact), &Caps::APPLE7);
        assert_eq!(exact.kernel.function, "mat_mat_q4_k_exact_f32");
        assert_eq!((exact.threadgroups, exact.threadgroup_memory), ([3, 2, 1], 12 << 10));
        let plain = lowered(&product(m, DType::BF16, Precision::Exact), &Caps::APPLE7);
        assert_eq!(plain.kernel.function, "mat_mat_bf16_f32");
    }

    #[test]
    fn the_tensor_units_take_what_becomes_f16() {
        let name = |weight, precision| {
            lowered(&product(33, weight, precision), &TENSOR_CAPS).kernel.function
        };
        assert_eq!(name(DType::Q6K, Precision::Fast), "mat_mat_tensor_q6_k_f32");
        assert_eq!(name(DType::F16, Precision::Fast), "mat_mat_tensor_f16_f32");
        assert_eq!(name(DType::Q6K, Precision::Exact), "mat_mat_q6_k_exact_f32");
        assert_eq!(name(DType::BF16, Precision::Fast), "mat_mat_bf16_f32");
        let mut by_head = product(33, DType::Q6K, Precision::Fast);
        by_head.input = view(0, DType::F32, [4, 33, 128]);
        by_head.input_layout = InputLayout::HeadMajor;
        assert_eq!(lowered(&by_head, &TENSOR_CAPS).kernel.function, "mat_mat_q6_k_f32");
    }

    #[test]
    fn every_tile_fits_in_threadgroup_memory() {
        for weight in DType::WEIGHTS {
            for precision in [Precision::Fast, Precision::Exact] {
                for mode in [Mode::Product, Mode::Gated, Mode::Up] {
                    let bytes = tile_bytes(weight, precision, mode);
                    assert!(bytes <= Caps::APPLE7.threadgroup_memory, "{weight} {mode:?}");
                }
                let rows = (1..=MAT_VEC_MAX_ROWS).map(|m| mat_vec_shape(weight, m, Mode::Product));
                assert!(rows.into_iter().all(|[rows, _]| (1..=MAX_ROWS).contains(&rows)));
            }
        }
    }

    fn gated(caps: &Caps, m: usize, up: DType) -> Vec<Vec<String>> {
        let op = GatedMatmul {
            input: view(0, DType::F32, [m, 512]),
            gate: view(1, DType::Q4K, [100, 512]),
            up: view(2, up, [100, 512]),
            output: view(3, DType::F32, [m, 100]),
            activation: Activation::Silu,
            precision: Precision::Fast,
        };
        let mut lowering = Lowering::new(caps);
        gated_matmul(&op, &mut lowering).unwrap();
        let names = |phase: Vec<Dispatch>| phase.into_iter().map(|d| d.kernel.function).collect();
        lowering.phases.into_iter().map(names).collect()
    }

    #[test]
    fn a_gated_product_of_one_type_is_one_dispatch() {
        assert_eq!(gated(&Caps::APPLE7, 1, DType::Q4K), [["mat_vec_q4_k_f32"]]);
        assert_eq!(gated(&Caps::APPLE7, 9, DType::Q4K), [["mat_mat_q4_k_f32"]]);
        let two = [["mat_mat_q4_k_f32"], ["mat_mat_q6_k_f32"]];
        assert_eq!(gated(&Caps::APPLE7, 9, DType::Q6K), two);
        let tensors = gated(&TENSOR_CAPS, 9, DType::Q4K);
        assert_eq!(tensors[0], ["mat_mat_tensor_q4_k_f32"; 2]);
        assert_eq!(tensors[1], ["silu_mul_f32"]);
    }

    #[test]
    fn many_routed_rows_are_grouped_by_expert_first() {
        let op = MatmulId {
            input: view(0, DType::F32, [40, 512]),
            weight: view(1, DType::Q4K, [5, 100, 512]),
            ids: view(2, DType::U32, [40, 2]),
            output: view(3, DType::F32, [40, 2, 100]),
            precision: Precision::Fast,
        };
        let mut lowering = Lowering::new(&Caps::APPLE7);
        matmul_id(&op, &mut lowering).unwrap();
        assert_eq!(lowering.phases[0][0].kernel.function, "expert_tiles");
        // 80 slots in two full tiles, one that is not for each expert, one of slots without.
        assert_eq!(lowering.phases[1][0].threadgroups, [2 + 5 + 1, 2, 1]);
    }
}
