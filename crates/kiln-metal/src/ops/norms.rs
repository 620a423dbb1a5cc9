//! The RMS normalisation family and layer normalisation: one threadgroup per row.

use super::row_groups::{KEPT_GROUPS, MAX_SIMDGROUPS, aligned, team};
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1};
use crate::view::View;
use kiln_core::ops::*;
use kiln_core::{DType, KernelArgs, kernel_args};

/// Declares argument structs: strides in elements between rows, then the length of a row.
macro_rules! row_args {
    ($($Name:ident { $($stride:ident),* })*) => {
        $(kernel_args! {
            /// Strides in elements between rows, the length of a row, added to the mean of squares.
            struct $Name {
                $($stride: u64,)*
                dim: u32,
                eps: f32,
            }
        })*
    };
}

row_args! {
    RmsNormArgs { input_stride, output_stride }
    RmsNormMulArgs { input_stride, scale_stride, output_stride }
    RmsNormTripleArgs { input_stride, output_a_stride, output_b_stride, output_c_stride }
    PostAttnTripleNormArgs {
        hidden_stride, attn_stride, residual_stride,
        output_a_stride, output_b_stride, output_c_stride
    }
    PostFfNormEndLayerArgs { attn_stride, moe_stride, residual_stride, mlp_stride, output_stride }
    AddRmsNormArgs { a_stride, b_stride, residual_stride, output_stride }
    LayerNormArgs { input_stride, output_stride }
}

kernel_args! {
    /// As [`PostFfNormEndLayerArgs`], with the experts of a token.
    struct MoePostFfNormEndLayerArgs {
        attn_stride: u64,
        experts_stride: u64,
        expert_stride: u64,
        route_stride: u64,
        residual_stride: u64,
        mlp_stride: u64,
        output_stride: u64,
        dim: u32,
        eps: f32,
        top_k: u32,
        reserved: u32,
    }
}

const HAS_WEIGHT: FunctionConstant = FunctionConstant::flag("HAS_WEIGHT", 1);
const HAS_BIAS: FunctionConstant = FunctionConstant::flag("HAS_BIAS", 2);
/// The layer's scalar is one number, not a vector.
const SCALAR_BROADCAST: FunctionConstant = FunctionConstant::flag("SCALAR_BROADCAST", 3);
/// Bit `i` is set where weight `i` is f32, otherwise it has the type of the rows.
const WEIGHTS_F32: FunctionConstant = FunctionConstant::uint("WEIGHTS_F32", 4);

pub(super) static LIBRARY: Library = Library {
    name: "norms",
    texts: &[COMMON, include_str!("../../kernels/norms.metal")],
    arguments: || {
        [
            RmsNormArgs::msl(),
            RmsNormMulArgs::msl(),
            RmsNormTripleArgs::msl(),
            PostAttnTripleNormArgs::msl(),
            PostFfNormEndLayerArgs::msl(),
            MoePostFfNormEndLayerArgs::msl(),
            AddRmsNormArgs::msl(),
            LayerNormArgs::msl(),
        ]
        .concat()
    },
    sizes: &[("KEPT_GROUPS", KEPT_GROUPS), ("MAX_SIMDGROUPS", MAX_SIMDGROUPS)],
    constants: &[ALIGNED, HAS_WEIGHT, HAS_BIAS, SCALAR_BROADCAST, WEIGHTS_F32],
    version: MSL_3_1,
};

/// Starts a dispatch of one threadgroup per row. `rows` are all matrices, `weights` all vectors, those
/// absent left out.
fn per_row(name: &str, rows: &[&View], weights: &[Option<&View>]) -> Result<Dispatch, Missing> {
    let (count, dim) = (rows[0].extent(0), rows[0].last());
    let function = format!("{name}_{}", rows[0].dtype());
    // A vector of one value stands for all of a row: it is not loaded in groups.
    let vectors = weights.iter().copied().flatten().filter(|weight| weight.last() == dim);
    let operands = rows.iter().copied().chain(vectors);
    let mut f32_weights = 0;
    for (index, weight) in weights.iter().enumerate() {
        if weight.is_some_and(|weight| weight.dtype() == DType::F32) {
            f32_weights |= 1 << index;
        }
    }
    Ok(Dispatch::new(&LIBRARY, function)
        .flag(ALIGNED, aligned(dim, operands))
        .constant(WEIGHTS_F32, f32_weights)
        .grid([count, 1, 1], [team(dim), 1, 1]))
}

/// `output = rms(input) * weight`
pub(super) fn rms_norm(op: &RmsNorm<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let RmsNorm { input, weight, output, eps } = op;
    let arguments = RmsNormArgs {
        input_stride: input.row_stride(),
        output_stride: output.row_stride(),
        dim: input.last() as u32,
        eps: *eps,
    };
    let dispatch = per_row(RmsNorm::<()>::NAME, &[input, output], &[weight.as_ref()])?
        .flag(HAS_WEIGHT, weight.is_some())
        .arguments(&arguments)
        .read(input)
        .read_or(weight.as_ref(), input)
        .write(output);
    lowering.dispatch(dispatch)
}

/// `output = rms(input) * weight * scale`
pub(super) fn rms_norm_mul(op: &RmsNormMul<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let RmsNormMul { input, weight, scale, output, eps } = op;
    let arguments = RmsNormMulArgs {
        input_stride: input.row_stride(),
        scale_stride: scale.row_stride(),
        output_stride: output.row_stride(),
        dim: input.last() as u32,
        eps: *eps,
    };
    let rows = [input, scale, output];
    let dispatch = per_row(RmsNormMul::<()>::NAME, &rows, &[weight.as_ref()])?
        .flag(HAS_WEIGHT, weight.is_some())
        .arguments(&arguments)
        .read(input)
        .read_or(weight.as_ref(), input)
        .read(scale)
        .write(output);
    lowering.dispatch(dispatch)
}

/// `output_i = rms(input) * weight_i`
pub(super) fn rms_norm_triple(
    op: &RmsNormTriple<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let RmsNormTriple { input, weight_a, weight_b, weight_c, output_a, output_b, output_c, eps } =
        op;
    let arguments = RmsNormTripleArgs {
        input_stride: input.row_stride(),
        output_a_stride: output_a.row_stride(),
        output_b_stride: output_b.row_stride(),
        output_c_stride: output_c.row_stride(),
        dim: input.last() as u32,
        eps: *eps,
    };
    let rows = [input, output_a, output_b, output_c];
    let weights = [Some(weight_a), Some(weight_b), Some(weight_c)];
    let dispatch = per_row(RmsNormTriple::<()>::NAME, &rows, &weights)?
        .arguments(&arguments)
        .read(input)
        .read(weight_a)
        .read(weight_b)
        .read(weight_c)
        .write(output_a)
        .write(output_b)
        .write(output_c);
    lowering.dispatch(dispatch)
}

/// `residual = hidden + rms(attn) * weight_post`, `output_i = rms(residual) * weight_i`
pub(super) fn post_attn_triple_norm(
    op: &PostAttnTripleNorm<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let PostAttnTripleNorm { hidden, attn, weight_post, weight_a, weight_b, weight_c, .. } = op;
    let PostAttnTripleNorm { residual, output_a, output_b, output_c, eps, .. } = op;
    let arguments = PostAttnTripleNormArgs {
        hidden_stride: hidden.row_stride(),
        attn_stride: attn.row_stride(),
        residual_stride: residual.row_stride(),
        output_a_stride: output_a.row_stride(),
        output_b_stride: output_b.row_stride(),
        output_c_stride: output_c.row_stride(),
        dim: hidden.last() as u32,
        eps: *eps,
    };
    let rows = [hidden, attn, residual, output_a, output_b, output_c];
    let weights = [Some(weight_post), Some(weight_a), Some(weight_b), Some(weight_c)];
    let dispatch = per_row(PostAttnTripleNorm::<()>::NAME, &rows, &weights)?
        .arguments(&arguments)
        .read(hidden)
        .read(attn)
        .read(weight_post)
        .read(weight_a)
        .read(weight_b)
        .read(weight_c)
        .write(residual)
        .write(output_a)
        .write(output_b)
        .write(output_c);
    lowering.dispatch(dispatch)
}

/// `mlp = attn + rms(moe) * weight_moe`, `output = (residual + rms(mlp) * weight_mlp) * layer_scalar`
pub(super) fn post_ff_norm_end_layer(
    op: &PostFfNormEndLayer<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let PostFfNormEndLayer { attn, moe, weight_moe, residual, weight_mlp, .. } = op;
    let PostFfNormEndLayer { layer_scalar, mlp, output, eps, .. } = op;
    let arguments = PostFfNormEndLayerArgs {
        attn_stride: attn.row_stride(),
        moe_stride: moe.row_stride(),
        residual_stride: residual.row_stride(),
        mlp_stride: mlp.row_stride(),
        output_stride: output.row_stride(),
        dim: attn.last() as u32,
        eps: *eps,
    };
    let rows = [attn, moe, residual, mlp, output];
    let weights = [Some(weight_moe), Some(weight_mlp), Some(layer_scalar)];
    let dispatch = per_row(PostFfNormEndLayer::<()>::NAME, &rows, &weights)?
        .flag(SCALAR_BROADCAST, layer_scalar.last() == 1)
        .arguments(&arguments)
        .read(attn)
        .read(moe)
        .read(weight_moe)
        .read(residual)
        .read(weight_mlp)
        .read(layer_scalar)
        .write(mlp)
        .write(output);
    lowering.dispatch(dispatch)
}

/// As [`post_ff_norm_end_layer`], of the weighted sum of the experts' rows.
pub(super) fn moe_post_ff_norm_end_layer(
    op: &MoePostFfNormEndLayer<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let MoePostFfNormEndLayer { attn, experts, route, weight_moe, residual, .. } = op;
    let MoePostFfNormEndLayer { weight_mlp, layer_scalar, mlp, output, eps, .. } = op;
    let arguments = MoePostFfNormEndLayerArgs {
        attn_stride: attn.row_stride(),
        experts_stride: experts.stride(0),
        expert_stride: experts.stride(1),
        route_stride: route.row_stride(),
        residual_stride: residual.row_stride(),
        mlp_stride: mlp.row_stride(),
        output_stride: output.row_stride(),
        dim: attn.last() as u32,
        eps: *eps,
        top_k: experts.extent(1) as u32,
        reserved: 0,
    };
    let rows = [attn, experts, residual, mlp, output];
    let weights = [Some(weight_moe), Some(weight_mlp), Some(layer_scalar)];
    let dispatch = per_row(MoePostFfNormEndLayer::<()>::NAME, &rows, &weights)?
        .flag(SCALAR_BROADCAST, layer_scalar.last() == 1)
        .arguments(&arguments)
        .read(attn)
        .read(experts)
        .read(route)
        .read(weight_moe)
        .read(residual)
        .read(weight_mlp)
        .read(layer_scalar)
        .write(mlp)
        .write(output);
    lowering.dispatch(dispatch)
}

/// `residual = a + b`, `output = rms(residual) * weight`, of the residual as stored.
pub(super) fn add_rms_norm(op: &AddRmsNorm<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let AddRmsNorm { a, b, weight, residual, output, eps } = op;
    let arguments = AddRmsNormArgs {
        a_stride: a.row_stride(),
        b_stride: b.row_stride(),
        residual_stride: residual.row_stride(),
        output_stride: output.row_stride(),
        dim: a.last() as u32,
        eps: *eps,
    };
    let rows = [a, b, residual, output];
    let dispatch = per_row(AddRmsNorm::<()>::NAME, &rows, &[weight.as_ref()])?
        .flag(HAS_WEIGHT, weight.is_some())
        .arguments(&arguments)
        .read(a)
        .read(b)
        .read_or(weight.as_ref(), a)
        .write(residual)
        .write(output);
    lowering.dispatch(dispatch)
}

/// `output = (input - mean) * rsqrt(variance + eps) * weight + bias`
pub(super) fn layer_norm(op: &LayerNorm<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let LayerNorm { input, weight, bias, output, eps } = op;
    let arguments = LayerNormArgs {
        input_stride: input.row_stride(),
        output_stride: output.row_stride(),
        dim: input.last() as u32,
        eps: *eps,
    };
    let weights = [Some(weight), bias.as_ref()];
    let dispatch = per_row(LayerNorm::<()>::NAME, &[input, output], &weights)?
        .flag(HAS_BIAS, bias.is_some())
        .arguments(&arguments)
        .read(input)
        .read(weight)
        .read_or(bias.as_ref(), weight)
        .write(output);
    lowering.dispatch(dispatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::Caps;
    use crate::view::Memory;

    fn rows(dtype: DType, offset: usize, dims: [usize; 2]) -> View {
        View::contiguous(Memory::Buffer(0), offset, dtype, dims)
    }

    fn vector(dtype: DType, dim: usize) -> View {
        View::contiguous(Memory::Buffer(1), 0, dtype, [dim])
    }

    fn flags(dispatch: &Dispatch) -> Vec<(&str, u32)> {
        let mut flags: Vec<_> =
            dispatch.kernel.constants.iter().map(|(c, value)| (c.name, *value)).collect();
        flags.sort_unstable();
        flags
    }

    fn lowered(op: &RmsNorm<View>) -> Dispatch {
        let mut lowering = Lowering::new(&Caps::APPLE7);
        rms_norm(op, &mut lowering).unwrap();
        lowering.phases[0][0].clone()
    }

    #[test]
    fn one_threadgroup_per_row() {
        let [input, output] = [0, 1 << 20].map(|at| rows(DType::F16, at, [7, 2816]));
        let weight = Some(vector(DType::F32, 2816));
        let dispatch = lowered(&RmsNorm { input, weight, output, eps: 1e-6 });
        assert_eq!(dispatch.kernel.function, "rms_norm_f16");
        assert_eq!((dispatch.threadgroups, dispatch.threads), ([7, 1, 1], [256, 1, 1]));
        assert_eq!(flags(&dispatch), [("ALIGNED", 1), ("HAS_WEIGHT", 1), ("WEIGHTS_F32", 1)]);
        let arguments: &RmsNormArgs = bytemuck::from_bytes(&dispatch.arguments);
        assert_eq!((arguments.dim, arguments.input_stride, arguments.eps), (2816, 2816, 1e-6));
    }

    #[test]
    fn rows_that_are_not_whole_groups_are_loaded_value_by_value() {
        let [input, output] = [0, 4096].map(|at| rows(DType::F32, at, [2, 33]));
        let dispatch = lowered(&RmsNorm { input, weight: None, output, eps: 0.0 });
        assert_eq!(flags(&dispatch), [("ALIGNED", 0), ("HAS_WEIGHT", 0), ("WEIGHTS_F32", 0)]);
        assert_eq!(dispatch.threads, [32, 1, 1]);
        assert_eq!(dispatch.bindings.len(), 3);
    }

    #[test]
    fn each_weight_has_a_type_of_its_own() {
        let input = rows(DType::BF16, 0, [1, 64]);
        let outputs = [1024, 2048, 3072].map(|at| rows(DType::BF16, at, [1, 64]));
        let [output_a, output_b, output_c] = outputs;
        let op = RmsNormTriple {
            input,
            weight_a: vector(DType::BF16, 64),
            weight_b: vector(DType::F32, 64),
            weight_c: vector(DType::F32, 64),
            output_a,
            output_b,
            output_c,
            eps: 1e-6,
        };
        let mut lowering = Lowering::new(&Caps::APPLE7);
        rms_norm_triple(&op, &mut lowering).unwrap();
        assert_eq!(flags(&lowering.phases[0][0]), [("ALIGNED", 1), ("WEIGHTS_F32", 0b110)]);
    }
}
