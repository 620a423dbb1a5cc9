//! Gathering, copying and pooling of rows.

use super::row_groups::{GROUP, aligned, cover};
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::{Copy, Embed, Pool, PoolMode};
use kiln_core::{KernelArgs, kernel_args};

kernel_args! {
    /// Arguments of a copy: strides in elements of the three outer axes, their extents, the length
    /// of a row.
    struct CopyArgs {
        input_stride_0: u64,
        input_stride_1: u64,
        input_stride_2: u64,
        output_stride_0: u64,
        output_stride_1: u64,
        output_stride_2: u64,
        extent_1: u32,
        extent_2: u32,
        rows: u32,
        dim: u32,
    }
}

kernel_args! {
    /// Arguments of a gather: bytes between rows of the weight, elements between rows of the output.
    struct EmbedArgs {
        weight_bytes: u64,
        output_stride: u64,
        rows: u32,
        dim: u32,
        /// Rows of the weight.
        count: u32,
        scale: f32,
    }
}

kernel_args! {
    /// Arguments of a pool: strides in elements.
    struct PoolArgs {
        batch_stride: u64,
        token_stride: u64,
        output_stride: u64,
        rows: u32,
        dim: u32,
        tokens: u32,
        reserved: u32,
    }
}

/// The last valid token, not the first.
const LAST: FunctionConstant = FunctionConstant::flag("LAST", 1);

/// Simdgroups that divide the tokens of a mean.
const POOL_SLICES: usize = 8;

pub(super) static LIBRARY: Library = Library {
    name: "rows",
    texts: &[COMMON, QUANT, include_str!("../../kernels/rows.metal")],
    arguments: || [CopyArgs::msl(), EmbedArgs::msl(), PoolArgs::msl()].concat(),
    sizes: &[("POOL_SLICES", POOL_SLICES)],
    constants: &[ALIGNED, LAST],
    version: MSL_3_1,
};

/// `output[i] = weight[ids[i]] * scale`
pub(super) fn embed(op: &Embed<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Embed { weight, ids, output, scale } = op;
    let [rows, dim] = [output.extent(0), output.last()];
    let arguments = EmbedArgs {
        weight_bytes: weight.stride_bytes(0) as u64,
        output_stride: output.row_stride(),
        rows: rows as u32,
        dim: dim as u32,
        count: weight.extent(0) as u32,
        scale: *scale,
    };
    let is_aligned =
        aligned(dim, [output]) && (weight.dtype().is_quantized() || aligned(dim, [weight]));
    let (threadgroups, threads) = cover(dim.div_ceil(GROUP), rows);
    let function = format!("embed_{}_{}", weight.dtype(), output.dtype());
    lowering.dispatch(
        Dispatch::new(&LIBRARY, function)
            .flag(ALIGNED, is_aligned)
            .arguments(&arguments)
            .read(weight)
            .read(ids)
            .write(output)
            .grid(threadgroups, threads),
    )
}

/// Extents and strides of the three outer axes of a view of at most four.
fn outer(view: &View) -> ([usize; 3], [u64; 3]) {
    let (mut extents, mut strides) = ([1; 3], [0; 3]);
    let axes = view.rank() - 1;
    for axis in 0..axes {
        extents[3 - axes + axis] = view.extent(axis);
        strides[3 - axes + axis] = view.stride(axis);
    }
    (extents, strides)
}

/// Copies values of any strides, converting between float types.
pub(super) fn copy(op: &Copy<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Copy { input, output } = op;
    let (extents, input_strides) = outer(input);
    let (_, output_strides) = outer(output);
    let dim = input.last();
    let rows: usize = extents.iter().product();
    let arguments = CopyArgs {
        input_stride_0: input_strides[0],
        input_stride_1: input_strides[1],
        input_stride_2: input_strides[2],
        output_stride_0: output_strides[0],
        output_stride_1: output_strides[1],
        output_stride_2: output_strides[2],
        extent_1: extents[1] as u32,
        extent_2: extents[2] as u32,
        rows: rows as u32,
        dim: dim as u32,
    };
    let (threadgroups, threads) = cover(dim.div_ceil(GROUP), rows);
    lowering.dispatch(
        Dispatch::new(&LIBRARY, format!("copy_{}_{}", input.dtype(), output.dtype()))
            .flag(ALIGNED, aligned(dim, [input, output]))
            .arguments(&arguments)
            .read(input)
            .write(output)
            .grid(threadgroups, threads),
    )
}

/// One row per sequence: its mean, first or last token.
pub(super) fn pool(op: &Pool<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let Pool { input, lengths, output, mode } = op;
    let [rows, dim] = [output.extent(0), output.last()];
    let arguments = PoolArgs {
        batch_stride: input.stride(0),
        token_stride: input.stride(1),
        output_stride: output.row_stride(),
        rows: rows as u32,
        dim: dim as u32,
        tokens: input.extent(1) as u32,
        reserved: 0,
    };
    let groups = dim.div_ceil(GROUP);
    let dispatch = match mode {
        PoolMode::Mean => Dispatch::new(&LIBRARY, format!("pool_mean_{}", input.dtype()))
            .grid([groups.div_ceil(SIMD_WIDTH), rows, 1], [SIMD_WIDTH * POOL_SLICES, 1, 1]),
        PoolMode::Cls | PoolMode::Last => {
            let (threadgroups, threads) = cover(groups, rows);
            Dispatch::new(&LIBRARY, format!("pool_token_{}", input.dtype()))
                .flag(LAST, *mode == PoolMode::Last)
                .grid(threadgroups, threads)
        }
    };
    lowering.dispatch(
        dispatch
            .flag(ALIGNED, aligned(dim, [input, output]))
            .arguments(&arguments)
            .read(input)
            .read(lengths)
            .write(output),
    )
}
