//! Products of some tens or hundreds of rows by quantised weights on Hopper: `dequant_matmul.cu`.

use super::activations::{self, Input};
use super::matmul::join_products;
use super::weight::Weight;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::runtime::context::Caps;
use crate::runtime::graph::{Matrix, Param};
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::ops::{Activation, GatedMatmul};

kiln_core::kernel_args! {
    /// Arguments of `dequant_matmul.cu`.
    pub(crate) struct DequantArgs {
        /// The output of a gated product in bf16 too, or 0.
        copy: u64,
        /// Bytes from row to row of it.
        copy_stride: u64,
        /// Rows of the input.
        m: u32,
        /// Blocks of 32 values of a row.
        blocks: u32,
        /// Slices of 64 values, a multiple of four.
        steps: u32,
        /// Tiles along the rows of the input.
        row_tiles: u32,
        /// Tiles of a cluster, of all weights.
        tiles: u32,
        /// Whether two weights make one output.
        gated: u32,
        /// 0 SiLU, 1 GELU.
        activation: u32,
        /// Rows that a block copies for its cluster.
        box_rows: u32,
    }
}

kiln_core::kernel_args! {
    /// A weight of `dequant_matmul.cu` and where its products go.
    pub(crate) struct DequantSegment {
        /// Planes: codes.
        q: u64,
        /// High bits.
        h: u64,
        /// Scales of 32 values.
        s: u64,
        /// Scales of 256 values.
        d: u64,
        /// f32
        output: u64,
        /// Bytes from row to row.
        output_stride: u64,
        /// Rows of the weight.
        n: u64,
        /// Tiles of columns.
        tiles: u32,
        /// Whether pairs of outputs are aligned.
        wide: u32,
    }
}

/// Columns of a tile that kernels are compiled for.
pub(crate) const COLUMNS: [u32; 5] = [16, 32, 48, 64, 112];
/// Rows of a tile that kernels are compiled for.
const ROWS: [u64; 3] = [64, 128, 256];
/// Blocks of a cluster.
const CLUSTER: u64 = 2;
/// Weights that one launch has.
const SEGMENTS: usize = 3;
/// Bytes of shared memory for the stages of both factors, and with room to align them.
const STAGES: u64 = 224 << 10;
const SHARED: u64 = STAGES + 1024;
/// Most rows of the input: of more, dequantising the whole weight once is a small part.
const MOST_ROWS: u64 = 512;

/// Whether products of `m` rows take this way.
pub(super) fn fits(weight: &View, m: u64, caps: Caps) -> bool {
    let quantized = weight.dtype().is_quantized() && weight.prepared().is_some();
    quantized && caps.hopper() && m <= MOST_ROWS
}

/// What the kernels for tiles of so many columns are compiled with.
pub(crate) fn define(columns: u32) -> String {
    let sums = columns / 2;
    let list = |item: &dyn Fn(u32) -> String| (0..sums).map(item).collect::<Vec<_>>().join(", ");
    let registers = list(&|i| format!("%{i}"));
    let operands = list(&|i| format!("\"+f\"(d[{i}])"));
    let next = (0..3).map(|i| format!("#define D_NEXT_{i} \"{}\"\n", sums + i)).collect::<String>();
    format!(
        "#define COLUMNS {columns}u\n#define D_COLUMNS \"{columns}\"\n#define CLUSTER {CLUSTER}u\n\
         #define STAGES_BYTES {STAGES}u\n#define D_REGISTERS \"{registers}\"\n\
         #define D_OPERANDS {operands}\n{next}#define D_NEXT(i) D_NEXT_##i\n"
    )
}

/// Tiles of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    rows: u64,
    columns: u64,
    row_tiles: u64,
    clusters: u64,
}

impl Tiling {
    /// The fastest for the products of `m` rows by weights of so many rows.
    fn new(m: u64, weights: &[u64], gated: bool, caps: Caps) -> Self {
        let [.., most] = ROWS;
        let rows = ROWS.into_iter().find(|rows| *rows >= m).unwrap_or(most);
        let row_tiles = m.div_ceil(rows);
        let clusters = u64::from(caps.processors) / CLUSTER;
        // Steps of the slowest processor: a part for the columns, one for the rows, one for the step.
        let time = |columns: u64| {
            let tiles = Self::cluster_tiles(weights, Self::outputs(columns, gated)) * row_tiles;
            tiles.div_ceil(clusters.max(1)) * (5 * columns + 3 * rows.min(m) + 60)
        };
        let columns = COLUMNS.map(u64::from).into_iter().min_by_key(|columns| time(*columns));
        let columns = columns.unwrap_or(most);
        Self { rows, columns, row_tiles, clusters: clusters.max(1) }
    }

    /// Columns of the output that a tile has.
    fn outputs(columns: u64, gated: bool) -> u64 {
        if gated { columns / 2 } else { columns }
    }

    fn cluster_tiles(weights: &[u64], outputs: u64) -> u64 {
        weights.iter().map(|n| n.div_ceil(outputs)).sum::<u64>().div_ceil(CLUSTER)
    }
}

fn segment(weight: Weight, output: u64, output_stride: u64) -> DequantSegment {
    let planes = weight.planes;
    DequantSegment {
        q: planes.q,
        h: planes.h,
        s: planes.s,
        d: planes.d,
        output,
        output_stride,
        n: weight.n,
        tiles: 0,
        wide: (output.is_multiple_of(8) && output_stride.is_multiple_of(8)).into(),
    }
}

/// Launches a plain or gated product of weights of one type.
fn launch(
    input: Input,
    weight: Weight,
    mut segments: Vec<DequantSegment>,
    args: DequantArgs,
    lowering: &mut Lowering,
) {
    let m = input.rows;
    let gated = args.gated != 0;
    let widths: Vec<u64> = segments.iter().map(|segment| segment.n).collect();
    let widths = if gated { &widths[..1] } else { &widths[..] };
    let tiling = Tiling::new(m, widths, gated, lowering.caps);
    let outputs = Tiling::outputs(tiling.columns, gated);
    for segment in &mut segments {
        segment.tiles = segment.n.div_ceil(outputs) as u32;
    }
    // What lies past the tiles of the first two belongs to the third.
    if let Some(last) = segments.pop() {
        segments.resize(SEGMENTS - 1, DequantSegment { tiles: 0, ..last });
        segments.push(last);
    }
    let tiles = Tiling::cluster_tiles(widths, outputs) * tiling.row_tiles;
    // A multiple of the eight rows that the swizzle of shared memory repeats after.
    let box_rows = (tiling.rows.min(m.next_multiple_of(8 * CLUSTER)) / CLUSTER) as u32;
    let args = DequantArgs {
        m: m as u32,
        box_rows,
        blocks: weight.blocks as u32,
        steps: (4 * weight.blocks.div_ceil(8)) as u32,
        row_tiles: tiling.row_tiles as u32,
        tiles: tiles as u32,
        ..args
    };
    let (address, stride) = input.bf16(lowering);
    let columns = input.k.next_multiple_of(32);
    let x = Matrix { address, rows: m, columns, stride, box_rows };
    let unit = Unit::DequantMatmul(weight.dtype, tiling.columns as u32);
    let name = format!("dequant_matmul_{}", tiling.rows);
    let threads = if tiling.rows == 256 { 512 } else { 640 };
    let blocks = tiles.min(tiling.clusters) * CLUSTER;
    let kernel = Kernel::new(unit, name, blocks, threads).shared(SHARED);
    let args = Param::Bytes(bytemuck::bytes_of(&args).to_vec());
    let segments = Param::Bytes(bytemuck::cast_slice(&segments).to_vec());
    let params = vec![args, segments, Param::Matrix(x)];
    lowering.launch_with(kernel, params);
}

/// A product, and the products of the same input by weights of the same type that follow it.
pub(super) fn products(
    input: Input,
    weight: View,
    (output, output_stride): (u64, u64),
    lowering: &mut Lowering,
) {
    let first = Weight::new(weight, lowering);
    let mut segments = vec![segment(first, output, output_stride)];
    let others = join_products(input, first.dtype, fits, SEGMENTS - 1, lowering);
    segments
        .extend(others.into_iter().map(|(weight, to)| segment(weight, to.address, to.stride(0))));
    launch(input, first, segments, Zeroable::zeroed(), lowering);
}

/// Both products of a gated operation, with the activation.
pub(super) fn gated(op: &GatedMatmul<View>, input: Input, lowering: &mut Lowering) {
    let GatedMatmul { gate, up, output, activation, .. } = *op;
    let [gate, up] = [gate, up].map(|weight| Weight::new(weight, lowering));
    let to = (output.address, output.stride(0));
    let segments = [gate, up].map(|weight| segment(weight, to.0, to.1)).to_vec();
    let (copy, copy_stride) = activations::provide_bf16(output, lowering);
    let activation = u32::from(activation == Activation::GeluTanh);
    let args = DequantArgs { copy, copy_stride, gated: 1, activation, ..Zeroable::zeroed() };
    launch(input, gate, segments, args, lowering);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: Caps = Caps { compute: [9, 0], processors: 132, shared: 227 << 10 };

    #[test]
    fn tiles_fill_the_processors() {
        let columns = |weights: &[u64], gated| Tiling::new(16, weights, gated, HOPPER).columns;
        assert_eq!(columns(&[4096], false), 32);
        assert_eq!(columns(&[4096, 1024, 1024], false), 48);
        assert_eq!(columns(&[14336], false), 112);
        assert_eq!(columns(&[14336], true), 112);
        assert_eq!(columns(&[40], false), 16);
        assert_eq!(Tiling::new(300, &[4096], false, HOPPER).row_tiles, 2);
    }
}
