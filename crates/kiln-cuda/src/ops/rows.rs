//! Gathering, copying and pooling of rows.

use super::weight::Weight;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering, Made};
use crate::planes::BLOCK;
use crate::view::View;
use kiln_core::ops::{Copy, Embed, Pool, PoolMode};

kiln_core::kernel_args! {
    /// Arguments of `copy` in `rows.cu`. Axes of lower rank are padded in front with extents of 1.
    pub(crate) struct CopyArgs {
        /// Source.
        input: u64,
        /// Bytes along the first axis.
        input_stride_0: u64,
        /// Bytes along the second axis.
        input_stride_1: u64,
        /// Bytes along the third axis.
        input_stride_2: u64,
        /// Target.
        output: u64,
        /// Bytes along the first axis.
        output_stride_0: u64,
        /// Bytes along the second axis.
        output_stride_1: u64,
        /// Bytes along the third axis.
        output_stride_2: u64,
        /// Extent of the second axis.
        extent_1: u64,
        /// Extent of the third axis.
        extent_2: u64,
        /// Extent of the last axis.
        extent_3: u64,
        /// All values.
        values: u64,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `pool` in `rows.cu`.
    pub(crate) struct PoolArgs {
        /// `[B, T, dim]`
        input: u64,
        /// Bytes from sequence to sequence.
        input_stride_b: u64,
        /// Bytes from token to token.
        input_stride_t: u64,
        /// `[B]` u32
        lengths: u64,
        /// `[B, dim]`
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// T
        tokens: u64,
        /// Length of a row.
        dim: u32,
        /// 0 mean, 1 first, 2 last.
        mode: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `embed` in `dequantize.cu`.
    pub(crate) struct EmbedArgs {
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
        /// `[rows]` u32
        ids: u64,
        /// `[rows, dim]`
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// Rows of the weight.
        rows: u64,
        /// Length of a row.
        dim: u32,
        /// Blocks of 32 values that a row of the output has, the last may be a part.
        blocks: u32,
        /// Blocks that a row of the weight has in memory.
        row_blocks: u32,
        /// Blocks before the first.
        first_block: u32,
        /// Multiplies every value.
        scale: f32,
        /// Whether rows of a plain weight start at multiples of 16 bytes.
        wide: u32,
    }
}

/// Threads of a block.
const THREADS: u64 = 256;
/// Most blocks of a copy.
const BLOCKS: u64 = 1 << 20;

/// Strides of the three outer axes, in front those that are not there.
fn strides(view: View) -> [u64; 3] {
    let missing = 4 - view.rank();
    std::array::from_fn(|axis| if axis < missing { 0 } else { view.stride(axis - missing) })
}

fn extent(view: View, axis: usize) -> u64 {
    let missing = 4 - view.rank();
    if axis < missing { 1 } else { view.extent(axis - missing) }
}

pub(super) fn copy(op: &Copy<View>, lowering: &mut Lowering) {
    let Copy { input, output } = *op;
    copy_to(input, output.address, strides(output), output.dtype().name(), lowering);
}

fn copy_to(input: View, output: u64, to: [u64; 3], output_type: &str, lowering: &mut Lowering) {
    let from = strides(input);
    let [extent_1, extent_2, extent_3] = [1, 2, 3].map(|axis| extent(input, axis));
    let args = CopyArgs {
        input: input.address,
        input_stride_0: from[0],
        input_stride_1: from[1],
        input_stride_2: from[2],
        output,
        output_stride_0: to[0],
        output_stride_1: to[1],
        output_stride_2: to[2],
        extent_1,
        extent_2,
        extent_3,
        values: extent(input, 0) * extent_1 * extent_2 * extent_3,
    };
    let kernel = format!("copy_{}_{output_type}", input.dtype());
    let blocks = args.values.div_ceil(THREADS).min(BLOCKS);
    lowering.launch(Kernel::new(Unit::Rows, kernel, blocks, THREADS as u32), &args);
}

/// A copy of rows `[a, b, k]` in the workspace as `[a * b, k]` without gaps.
pub(super) fn contiguous(view: View, lowering: &mut Lowering) -> View {
    let row = view.stride(view.rank() - 1);
    let rows = view.extent(0) * view.extent(1);
    let made = Made::new("rows", view);
    let address = lowering.shared(made, rows * row, |lowering, output| {
        let to = [0, view.extent(1) * row, row];
        copy_to(view, output, to, view.dtype().name(), lowering);
    });
    view.as_rows(address, rows)
}

pub(super) fn embed(op: &Embed<View>, lowering: &mut Lowering) {
    let Embed { weight: view, ids, output, scale } = *op;
    let weight = Weight::new(view, lowering);
    let (row_blocks, first_block) = match view.prepared() {
        Some(prepared) => (prepared.planes.row_blocks(), prepared.column / BLOCK),
        None => (weight.blocks as usize, 0),
    };
    let args = EmbedArgs {
        q: weight.planes.q,
        h: weight.planes.h,
        s: weight.planes.s,
        d: weight.planes.d,
        weight_stride: weight.stride,
        ids: ids.address,
        output: output.address,
        output_stride: output.stride(0),
        rows: weight.n,
        dim: output.last() as u32,
        blocks: weight.blocks as u32,
        row_blocks: row_blocks as u32,
        first_block: first_block as u32,
        scale,
        wide: weight.wide.into(),
    };
    let threads = weight.blocks.next_multiple_of(32).min(128);
    let kernel = format!("embed_{}", output.dtype());
    let kernel = Kernel::new(Unit::Dequantize(weight.dtype), kernel, 1, threads as u32);
    let grid = [output.extent(0), weight.blocks.div_ceil(threads), 1];
    lowering.launch(kernel.grid(grid), &args);
}

pub(super) fn pool(op: &Pool<View>, lowering: &mut Lowering) {
    let Pool { input, lengths, output, mode } = *op;
    let args = PoolArgs {
        input: input.address,
        input_stride_b: input.stride(0),
        input_stride_t: input.stride(1),
        lengths: lengths.address,
        output: output.address,
        output_stride: output.stride(0),
        tokens: input.extent(1),
        dim: input.last() as u32,
        mode: match mode {
            PoolMode::Mean => 0,
            PoolMode::Cls => 1,
            PoolMode::Last => 2,
        },
    };
    let kernel = Kernel::new(Unit::Rows, format!("pool_{}", input.dtype()), 1, THREADS as u32);
    let grid = [input.last().div_ceil(THREADS), input.extent(0), 1];
    lowering.launch(kernel.grid(grid), &args);
}
