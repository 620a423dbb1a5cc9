//! Matrix products: a simdgroup per rows of weights for few rows of inputs, tiles for many.

mod routed;
#[cfg(test)]
mod tests;

use super::elementwise;
use super::row_groups::GROUP;
use crate::caps::{Caps, SIMD_WIDTH};
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::{Activation, GatedMatmul, GeluMul, InputLayout, Matmul, Precision, SiluMul};
use kiln_core::{DType, KernelArgs, kernel_args};
pub(super) use routed::matmul_id;

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

pub(crate) static TENSOR: Library = Library {
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
