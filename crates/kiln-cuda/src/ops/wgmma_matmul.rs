//! Products of many rows on Hopper: `wgmma_matmul.cu`.

use super::activations::{self, Input};
use super::matmul::{TileArgs, tile_args};
use super::weight::Weight;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::runtime::graph::{Matrix, Param};
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{Activation, GatedMatmul};

kiln_core::kernel_args! {
    /// Arguments of `wgmma_matmul.cu`.
    pub(crate) struct GemmArgs {
        /// f32
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// Rows of the input.
        m: u64,
        /// Rows of the weight.
        n: u64,
        /// Values of a row.
        k: u32,
        /// Tiles along the rows of the input.
        row_tiles: u32,
        /// Tiles along the rows of the weight.
        column_tiles: u32,
        /// Whether pairs of outputs are aligned.
        wide: u32,
        /// The output in bf16 too, padded to whole blocks of 32, or 0.
        copy: u64,
        /// Bytes from row to row.
        copy_stride: u64,
        /// 0 SiLU, 1 GELU.
        activation: u32,
        /// Unused.
        reserved: u32,
    }
}

/// Rows of the input of a tile of `wgmma_matmul.cu`.
const TILE_ROWS: u64 = 128;

/// Columns of a tile: the wider needs less shared memory traffic; the narrower fills more processors
/// where there are few tiles, and leaves room for the dequantising of the next weight, which counts
/// where rows are few.
fn columns(m: u64, n: u64, processors: u64) -> u64 {
    // Time of all waves, in columns of one processor.
    let time =
        |columns: u64| (m.div_ceil(TILE_ROWS) * n.div_ceil(columns)).div_ceil(processors) * columns;
    if time(128) * 10 < time(256) * 9 || m <= 1024 && time(128) <= time(256) { 128 } else { 256 }
}

/// Dequantises the weight, then multiplies.
pub(super) fn product(input: Input, weight: Weight, to: (u64, u64), lowering: &mut Lowering) {
    let m = input.rows;
    let columns = columns(m, weight.n, u64::from(lowering.caps.processors));
    let x = input_matrix(input, lowering);
    let w = weight_matrix(weight, columns, lowering);
    let args = gemm_args([m, weight.n, columns], weight, to);
    let kernel = kernel(format!("wgmma_matmul_{columns}"), columns, args, lowering);
    lowering.launch_with(kernel, params(args, &[x, w]));
}

/// The input of a warpgroup product.
fn input_matrix(input: Input, lowering: &mut Lowering) -> Matrix {
    let (address, stride) = input.bf16(lowering);
    let columns = input.k.next_multiple_of(32);
    Matrix { address, rows: input.rows, columns, stride, box_rows: TILE_ROWS as u32 }
}

/// A weight in bf16, of which tiles have so many rows: where it lies, or dequantised.
fn weight_matrix(weight: Weight, box_rows: u64, lowering: &mut Lowering) -> Matrix {
    let box_rows = box_rows as u32;
    if weight.dtype == DType::BF16 && weight.wide {
        let (address, stride) = (weight.planes.q, weight.stride);
        return Matrix { address, rows: weight.n, columns: weight.k, stride, box_rows };
    }
    let columns = weight.blocks * 32;
    let bytes = weight.n * columns * 2;
    let fill = |output| (dequantize_kernel(weight), TileArgs { output, ..tile_args(weight) });
    let address = if weight.at_rest {
        lowering.fill_ahead(bytes, fill)
    } else {
        let address = lowering.workspace(bytes);
        let (kernel, args) = fill(address);
        lowering.launch(kernel, &args);
        address
    };
    Matrix { address, rows: weight.n, columns, stride: columns * 2, box_rows }
}

/// Arguments of a product of `m` rows with tiles of so many columns of the output.
fn gemm_args(
    [m, n, columns]: [u64; 3],
    weight: Weight,
    (output, output_stride): (u64, u64),
) -> GemmArgs {
    GemmArgs {
        output,
        output_stride,
        m,
        n,
        k: (weight.blocks * 32) as u32,
        row_tiles: m.div_ceil(TILE_ROWS) as u32,
        column_tiles: n.div_ceil(columns) as u32,
        wide: (output.is_multiple_of(8) && output_stride.is_multiple_of(8)).into(),
        ..GemmArgs::zeroed()
    }
}

/// A kernel of `wgmma_matmul.cu` whose stages hold so many rows of weights.
fn kernel(name: String, rows: u64, args: GemmArgs, lowering: &Lowering) -> Kernel {
    let tiles = u64::from(args.row_tiles) * u64::from(args.column_tiles);
    let blocks = tiles.min(u64::from(lowering.caps.processors));
    Kernel::new(Unit::WgmmaMatmul, name, blocks, 384).shared(shared(rows))
}

fn params(args: GemmArgs, matrices: &[Matrix]) -> Vec<Param> {
    let mut params = vec![Param::Bytes(bytemuck::bytes_of(&args).to_vec())];
    params.extend(matrices.iter().map(|matrix| Param::Matrix(*matrix)));
    params
}

/// Bytes of shared memory of `wgmma_matmul.cu`: stages of 64 values of every row of a tile, and
/// room to align them.
fn shared(columns: u64) -> u64 {
    let stages = if columns == 256 { 4 } else { 6 };
    stages * (TILE_ROWS + columns) * 64 * 2 + 1024
}

/// The kernel that makes a weight bf16.
fn dequantize_kernel(weight: Weight) -> Kernel {
    let blocks = (weight.n * weight.blocks).div_ceil(128);
    Kernel::new(Unit::Dequantize(weight.dtype), "dequantize_bf16", blocks, 128)
}

/// Columns of the output that a tile of the gated warpgroup product has.
const GATED_COLUMNS: u64 = 128;

/// Both weights dequantised, then one product with both halves of each tile.
pub(super) fn gated(op: &GatedMatmul<View>, input: Input, lowering: &mut Lowering) {
    let GatedMatmul { gate, up, output, activation, .. } = *op;
    let [gate, up] = [gate, up].map(|weight| Weight::new(weight, lowering));
    let x = input_matrix(input, lowering);
    let [gate_matrix, up_matrix] =
        [gate, up].map(|weight| weight_matrix(weight, GATED_COLUMNS, lowering));
    let (copy, copy_stride) = activations::provide_bf16(output, lowering);
    let to = (output.address, output.stride(0));
    let args = GemmArgs {
        copy,
        copy_stride,
        activation: (activation == Activation::GeluTanh).into(),
        ..gemm_args([input.rows, output.last(), GATED_COLUMNS], gate, to)
    };
    let name = "wgmma_gated_matmul".to_owned();
    let kernel = kernel(name, 2 * GATED_COLUMNS, args, lowering);
    lowering.launch_with(kernel, params(args, &[x, gate_matrix, up_matrix]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_tiles_where_there_are_many() {
        assert_eq!(columns(4096, 4096, 132), 256);
        assert_eq!(columns(512, 1024, 132), 128);
        assert!(shared(256).max(shared(128)) <= 227 << 10);
    }
}
