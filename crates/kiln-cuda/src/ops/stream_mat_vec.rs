//! Products of one row on Hopper: `stream_mat_vec.cu`.

use super::activations::{Input, Q15_BLOCK};
use super::matmul::join_products;
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
        /// A row of f32 values.
        activations: u64,
        /// Blocks of 32 values of a row.
        blocks: u32,
        /// Units of a round of a block.
        round: u32,
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
        /// Rows of the weight.
        n: u64,
    }
}

/// Warps of a block.
const WARPS: u64 = 16;
/// Rows of a unit, which a block has at once.
const UNIT: u64 = 16;
/// Values of a row that a warp has at once.
const PART: u64 = 256;
/// Bytes for the sums of a round, where that is enough for one unit.
const SUMS: u64 = 24 << 10;
/// Bytes of activations of a warp.
const ACTIVATIONS: u64 = PART / 32 * Q15_BLOCK;
/// Weights that one launch has.
const SEGMENTS: usize = 3;
/// Bytes of shared memory of a processor.
const PROCESSOR: u64 = 228 << 10;
/// Bytes of them that the driver takes for each block.
const DRIVER: u64 = 1 << 10;
/// Longest rows: the sums of a unit of the gated form have room beside the weights.
const LONGEST: u64 = 96 << 10;

/// How weights pass through shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Stages of a warp.
    stages: u64,
    /// Bytes of a stage.
    stage: u64,
}

impl Ring {
    /// The ring for a type: with so many stages that a processor has no room for two blocks, which would not
    /// lie evenly, and no more, so that small kernels have room.
    pub(crate) fn new(dtype: DType) -> Self {
        let planes = Planes::per_256(dtype).map(|bytes| bytes as u64);
        // Copies are whole words.
        let stage = UNIT * planes.map(|bytes| bytes.next_multiple_of(4)).iter().sum::<u64>();
        let more_than = PROCESSOR / 2 - DRIVER - WARPS * ACTIVATIONS;
        Self { stages: (more_than / (WARPS * stage.max(1)) + 1).max(2), stage }
    }

    /// The same for the kernels.
    pub(crate) fn define(self) -> String {
        let Self { stages, .. } = self;
        format!("#define WARPS {WARPS}u\n#define UNIT {UNIT}u\n#define STAGES {stages}\n")
    }

    /// Bytes of shared memory of a block with so many sums.
    fn shared(self, sums: u64) -> u64 {
        WARPS * (self.stages * self.stage + ACTIVATIONS) + sums * 4
    }
}

/// Whether products of `m` rows of `k` values by imported weights take this way.
pub(crate) fn takes(m: u64, k: u64, caps: Caps) -> bool {
    caps.hopper() && m == 1 && k.is_multiple_of(PART) && k <= LONGEST
}

/// Whether a weight's products of `m` rows take this way.
pub(crate) fn fits(weight: &View, m: u64, caps: Caps) -> bool {
    takes(m, weight.last(), caps) && weight.prepared().is_some()
}

fn segment(weight: Weight, output: u64) -> MatVecSegment {
    let planes = weight.planes;
    MatVecSegment { q: planes.q, h: planes.h, s: planes.s, d: planes.d, output, n: weight.n }
}

/// Arguments that the forms share.
fn args(input: Input, weight: Weight, lowering: &mut Lowering) -> StreamMatVecArgs {
    let (activations, _, wide) = input.f32(lowering);
    let blocks = weight.blocks as u32;
    StreamMatVecArgs { activations, blocks, wide: wide.into(), ..Zeroable::zeroed() }
}

fn launch(
    name: &str,
    weight: Weight,
    (units, matrices): (u64, u64),
    params: (StreamMatVecArgs, &[MatVecSegment; SEGMENTS]),
    lowering: &mut Lowering,
) {
    let (args, segments) = params;
    let processors = u64::from(lowering.caps.processors);
    // Of a unit.
    let sums = matrices * weight.k / PART * UNIT;
    let of_block = units.div_ceil(processors);
    // As few blocks as take the same time: processors are left for the small kernels before and behind.
    let blocks = units.div_ceil(of_block);
    let round = (SUMS / (sums * 4)).clamp(1, of_block);
    let args = StreamMatVecArgs { round: round as u32, ..args };
    let unit = Unit::StreamMatVec(weight.dtype);
    let kernel = Kernel::new(unit, name, blocks, 32 * WARPS as u32);
    let segments = bytemuck::cast_slice(segments).to_vec();
    let params = vec![Param::Bytes(bytemuck::bytes_of(&args).to_vec()), Param::Bytes(segments)];
    let shared = Ring::new(weight.dtype).shared(round * sums);
    lowering.launch_with(kernel.shared(shared), params);
}

/// A product, and the products of the same input by weights of the same type that follow it.
pub(super) fn products(input: Input, weight: View, output: u64, lowering: &mut Lowering) {
    let first = Weight::new(weight, lowering);
    let args = args(input, first, lowering);
    let mut segments = [MatVecSegment::zeroed(); SEGMENTS];
    segments[0] = segment(first, output);
    let others = join_products(input, first.dtype, fits, SEGMENTS - 1, lowering);
    for (place, (weight, to)) in segments[1..].iter_mut().zip(others) {
        *place = segment(weight, to.address);
    }
    let units = segments.iter().map(|segment| segment.n.div_ceil(UNIT)).sum();
    launch("stream_mat_vec", first, (units, 1), (args, &segments), lowering);
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
    let [gate_part, up_part] = [gate, up].map(|weight| segment(weight, output.address));
    let segments = [gate_part, up_part, MatVecSegment::zeroed()];
    let units = gate.n.div_ceil(UNIT);
    launch("gated_stream_mat_vec", gate, (units, 2), (args, &segments), lowering);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_room_for_one_block() {
        for dtype in DType::QUANTIZED {
            let ring = Ring::new(dtype);
            let least = ring.shared(UNIT) + DRIVER;
            assert!(2 * least > PROCESSOR, "{dtype}: {ring:?}");
            for sums in [2 * LONGEST / PART * UNIT, SUMS / 4] {
                assert!(ring.shared(sums) + DRIVER <= PROCESSOR, "{dtype}: {ring:?}");
            }
        }
    }
}
