//! Products of few rows on Hopper: `stream_mat_vec.cu`.

use super::activations::{Input, Q15_BLOCK};
use super::matmul::{MMA_MAT_VEC_ROWS, join_products, mat_vec_tile};
use super::weight::Weight;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::planes::Planes;
use crate::runtime::context::Caps;
use crate::runtime::graph::Param;
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::Activation;

kiln_core::kernel_args! {
    /// Arguments of `stream_mat_vec.cu`.
    pub(crate) struct StreamMatVecArgs {
        /// Rows made by `activations_q15`, or one row of f32 values.
        activations: u64,
        /// Blocks of 32 values of a row.
        blocks: u32,
        /// Rows of activations.
        m: u32,
        /// 0 SiLU, 1 GELU.
        activation: u32,
        /// Whether the row of f32 values starts at a multiple of 16 bytes.
        wide: u32,
    }
}

kiln_core::kernel_args! {
    /// A weight of `stream_mat_vec.cu` and where its products go.
    pub(crate) struct MatVecSegment {
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
    }
}

/// Warps of a block.
const WARPS: u64 = 16;
/// Rows of the weight that a warp has at once.
const ROWS: u64 = 2;
/// Weights that one launch has.
const SEGMENTS: usize = 3;
/// Bytes of shared memory of a block that leave room for as many on the processor, of other kernels.
const RINGS: u64 = 100 << 10;

/// How weights pass through shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Blocks of 32 values of a row in a stage.
    chunk: u64,
    /// Stages of a warp.
    stages: u64,
    /// Bytes of a stage.
    stage: u64,
}

impl Ring {
    /// The ring for a type: long chunks, where there is room for two.
    pub(crate) fn new(dtype: DType) -> Self {
        let long = Self::of_chunks(dtype, 64);
        if long.stages >= 2 { long } else { Self::of_chunks(dtype, 32) }
    }

    fn of_chunks(dtype: DType, chunk: u64) -> Self {
        let planes = Planes::per_256(dtype).map(|bytes| bytes as u64 * (chunk / 8));
        // Copies are whole 16 bytes; planes of less than that for a block may begin inside them.
        let room = planes.map(|bytes| match bytes {
            0 => 0,
            _ if bytes >= 16 * chunk => bytes,
            _ => (bytes + 30) / 16 * 16,
        });
        let stage = 2 * room.iter().sum::<u64>();
        Self { chunk, stages: RINGS / (WARPS * stage.max(1)), stage }
    }

    /// The same for the kernels.
    pub(crate) fn define(self) -> String {
        let Self { chunk, stages, .. } = self;
        format!(
            "#define WARPS {WARPS}u\n#define ROWS {ROWS}\n#define CHUNK {chunk}u\n#define STAGES {stages}\n"
        )
    }

    /// Bytes of shared memory of a block.
    fn shared(self) -> u64 {
        WARPS * self.stages * self.stage
    }
}

/// Most rows of activations: the tensor cores multiply more.
const MOST_ROWS: u64 = MMA_MAT_VEC_ROWS - 1;

/// Whether a weight's products of `m` rows take this way.
pub(crate) fn fits(weight: &View, m: u64, caps: Caps) -> bool {
    caps.hopper() && m <= MOST_ROWS && weight.prepared().is_some()
}

fn segment(weight: Weight, output: u64, output_stride: u64) -> MatVecSegment {
    let planes = weight.planes;
    MatVecSegment {
        q: planes.q,
        h: planes.h,
        s: planes.s,
        d: planes.d,
        output,
        output_stride,
        n: weight.n,
    }
}

/// Most values of a row that every block rounds to 15 bits for itself; more are rounded once, before.
const ROUNDED: u64 = 8192;

/// Whether the products of so many rows of `k` values round them.
pub(crate) fn rounds(rows: u64, k: u64) -> bool {
    rows == 1 && k <= ROUNDED
}

/// Arguments that the forms share.
fn args(input: Input, weight: Weight, lowering: &mut Lowering) -> StreamMatVecArgs {
    let (activations, wide) = if rounds(input.rows, input.k) {
        let (address, _, wide) = input.f32(lowering);
        (address, wide)
    } else {
        (input.q15(lowering), true)
    };
    let (blocks, m) = (weight.blocks as u32, input.rows as u32);
    StreamMatVecArgs { activations, blocks, m, wide: wide.into(), ..Zeroable::zeroed() }
}

fn launch(
    name: &str,
    weight: Weight,
    units: u64,
    params: (StreamMatVecArgs, &[MatVecSegment]),
    lowering: &mut Lowering,
) {
    let (args, segments) = params;
    let blocks = units.div_ceil(WARPS).min(u64::from(lowering.caps.processors));
    let rings = Ring::new(weight.dtype).shared();
    let (form, shared) = if rounds(u64::from(args.m), weight.k) {
        ("f32".to_owned(), rings + weight.blocks * Q15_BLOCK)
    } else {
        (mat_vec_tile(u64::from(args.m)).rows.to_string(), rings)
    };
    let unit = Unit::StreamMatVec(weight.dtype);
    let kernel = Kernel::new(unit, format!("{name}_{form}"), blocks, 32 * WARPS as u32);
    let mut params = vec![Param::Bytes(bytemuck::bytes_of(&args).to_vec())];
    params.extend(segments.iter().map(|s| Param::Bytes(bytemuck::bytes_of(s).to_vec())));
    lowering.launch_with(kernel.shared(shared), params);
}

/// A product, and the products of the same input by weights of the same type that follow it.
pub(super) fn products(
    input: Input,
    weight: View,
    (output, output_stride): (u64, u64),
    lowering: &mut Lowering,
) {
    let first = Weight::new(weight, lowering);
    let args = args(input, first, lowering);
    let mut segments = vec![segment(first, output, output_stride)];
    let others = join_products(input, first.dtype, fits, SEGMENTS - 1, lowering);
    segments
        .extend(others.into_iter().map(|(weight, to)| segment(weight, to.address, to.stride(0))));
    let units = segments.iter().map(|segment| segment.n.div_ceil(ROWS)).sum();
    segments.resize(SEGMENTS, Zeroable::zeroed());
    launch("stream_mat_vec", first, units, (args, &segments), lowering);
}

/// Both products of a gated operation, with the activation.
pub(super) fn gated(
    input: Input,
    [gate, up]: [View; 2],
    activation: Activation,
    output: View,
    lowering: &mut Lowering,
) {
    let [gate, up] = [gate, up].map(|weight| Weight::new(weight, lowering));
    let activation = u32::from(activation == Activation::GeluTanh);
    let args = StreamMatVecArgs { activation, ..args(input, gate, lowering) };
    let segments = [gate, up].map(|weight| segment(weight, output.address, output.stride(0)));
    launch("gated_stream_mat_vec", gate, gate.n, (args, &segments), lowering);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kernels_share_a_processor() {
        for dtype in DType::QUANTIZED {
            let ring = Ring::new(dtype);
            assert!(ring.stages >= 2, "{dtype}: {ring:?}");
            // A block takes 1 KiB more, for the driver.
            assert!(2 * (ring.shared() + 1024) <= 228 << 10, "{dtype}: {ring:?}");
        }
    }
}
