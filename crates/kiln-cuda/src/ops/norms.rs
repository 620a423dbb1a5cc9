//! The RMS normalisation family and layer normalisation.

use super::activations;
use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::runtime::context::Caps;
use crate::view::View;
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{
    AddRmsNorm, LayerNorm, MoePostFfNormEndLayer, PostAttnTripleNorm, PostFfNormEndLayer, RmsNorm,
    RmsNormMul, RmsNormTriple,
};

kiln_core::kernel_args! {
    /// Arguments of `norms.cu`. Addresses of absent operands are 0.
    pub(crate) struct NormArgs {
        /// The rows of the first statistic.
        input: u64,
        /// Bytes from row to row.
        input_stride: u64,
        /// Bytes from expert to expert.
        expert_stride: u64,
        /// Second operand: what is added, or the scale.
        other: u64,
        /// Bytes from row to row.
        other_stride: u64,
        /// What is added at the end.
        residual_in: u64,
        /// Bytes from row to row.
        residual_in_stride: u64,
        /// Weights of experts, f32.
        route: u64,
        /// Bytes from row to row.
        route_stride: u64,
        /// Weight of the first of two statistics.
        weight_first: u64,
        /// Weight of the first output.
        weight_a: u64,
        /// Weight of the second output, or the bias.
        weight_b: u64,
        /// Weight of the third output.
        weight_c: u64,
        /// Factor at the end, one or for each value.
        scalar: u64,
        /// The rows between two statistics.
        residual: u64,
        /// Bytes from row to row.
        residual_stride: u64,
        /// First output.
        output_a: u64,
        /// Bytes from row to row.
        output_a_stride: u64,
        /// Second output.
        output_b: u64,
        /// Bytes from row to row.
        output_b_stride: u64,
        /// Third output.
        output_c: u64,
        /// Bytes from row to row.
        output_c_stride: u64,
        /// The first output in 15 bits too, as `store_q15` lays it out, or 0.
        q15: u64,
        /// The first output in bf16 too, rows without gaps, or 0.
        bf16: u64,
        /// Length of a row.
        dim: u32,
        /// Experts of a row.
        top_k: u32,
        /// Bits of the vectors that are f32: first, a, b, c, scalar.
        single: u32,
        /// Whether the factor at the end is one value.
        scalar_single: u32,
        /// Rows.
        rows: u32,
        /// Added to means of squares.
        eps: f32,
    }
}

/// Threads of a block and chunks of four values that each keeps in registers; 0 for rows that are
/// longer. The bits of a sum depend on this choice, which the length of the row alone decides.
pub(crate) fn geometry(dim: u64) -> (u32, u32) {
    match dim.div_ceil(4) {
        quads @ 0..=256 => (quads.next_multiple_of(32).max(32) as u32, 1),
        257..=512 => (256, 2),
        513..=1024 => (512, 2),
        1025..=2048 => (512, 4),
        _ => (1024, 0),
    }
}

/// Rows in shared memory for each block of the kernels that stage them.
const STAGES: u64 = 2;
/// Rows of a processor from which on they are worth their beginning.
const STAGED_ROWS: u64 = 8;

/// Blocks, and their bytes of shared memory, that many rows with so many bytes of inputs are staged by.
fn staged(rows: u64, input_bytes: u64, caps: Caps) -> Option<(u64, u64)> {
    /// What the system takes of each block's share.
    const RESERVED: u64 = 1 << 10;
    /// More do not fit into the registers.
    const MOST: u64 = 4;
    let processors = u64::from(caps.processors);
    let shared = STAGES * input_bytes;
    let blocks = (u64::from(caps.shared) / (shared + RESERVED)).min(MOST);
    (blocks > 0 && rows >= STAGED_ROWS * processors).then_some((blocks * processors, shared))
}

/// The arguments while they are made.
struct Norm {
    args: NormArgs,
    views: Vec<View>,
    /// Inputs of a row, where it is worth to stage those of many rows.
    inputs: u64,
    /// Fewest chunks of a row for that.
    chunks: u32,
}

impl Norm {
    fn new(input: View, eps: f32) -> Self {
        let dim = input.last() as u32;
        let mut args = NormArgs { dim, eps, ..NormArgs::zeroed() };
        args.input = input.address;
        args.input_stride = input.stride(0);
        args.rows = input.extent(0).min(u64::from(u32::MAX)) as u32;
        Self { args, views: vec![input], inputs: 0, chunks: 0 }
    }

    /// Stages so many inputs of many rows that have so many chunks or more.
    fn staged(self, inputs: u64, chunks: u32) -> Self {
        Self { inputs, chunks, ..self }
    }

    /// Address and stride of rows.
    fn rows(&mut self, view: View) -> [u64; 2] {
        self.views.push(view);
        [view.address, view.stride(0)]
    }

    /// Address of a vector; `bit` is its place in [`NormArgs::single`].
    fn vector(&mut self, view: Option<View>, bit: u32) -> u64 {
        let Some(view) = view else { return 0 };
        self.views.push(view);
        self.args.single |= u32::from(view.dtype() == DType::F32) << bit;
        view.address
    }

    fn launch(self, name: &str, lowering: &mut Lowering) {
        let first = self.views[0];
        let (threads, chunks) = geometry(first.last());
        let whole = first.last().is_multiple_of(4) && self.views.iter().all(View::is_wide);
        let chunks = if whole { chunks } else { 0 };
        let kernel = format!("{name}_{}_{chunks}", first.dtype());
        let rows = first.extent(0);
        let bytes = self.inputs * first.last() * first.dtype().block_bytes() as u64;
        let fits = self.inputs > 0 && chunks >= self.chunks && threads == 512;
        let kernel = match staged(rows, bytes, lowering.caps).filter(|_| fits && chunks > 0) {
            Some((blocks, shared)) => {
                Kernel::new(Unit::Norms, kernel + "_staged", blocks, threads).shared(shared)
            }
            None => Kernel::new(Unit::Norms, kernel, rows, threads),
        };
        lowering.launch(kernel, &self.args);
    }
}

pub(super) fn rms_norm(op: &RmsNorm<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.input, op.eps).staged(1, 4);
    norm.args.weight_a = norm.vector(op.weight, 1);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output);
    norm.args.q15 = activations::provide_q15(op.output, lowering);
    norm.args.bf16 = activations::provide_bf16(op.output, lowering).0;
    norm.launch("rms_norm", lowering);
}

pub(super) fn rms_norm_mul(op: &RmsNormMul<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.input, op.eps).staged(2, 2);
    norm.args.weight_a = norm.vector(op.weight, 1);
    [norm.args.other, norm.args.other_stride] = norm.rows(op.scale);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output);
    norm.launch("rms_norm_mul", lowering);
}

pub(super) fn rms_norm_triple(op: &RmsNormTriple<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.input, op.eps);
    norm.args.weight_a = norm.vector(Some(op.weight_a), 1);
    norm.args.weight_b = norm.vector(Some(op.weight_b), 2);
    norm.args.weight_c = norm.vector(Some(op.weight_c), 3);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output_a);
    [norm.args.output_b, norm.args.output_b_stride] = norm.rows(op.output_b);
    [norm.args.output_c, norm.args.output_c_stride] = norm.rows(op.output_c);
    norm.launch("rms_norm_triple", lowering);
}

pub(super) fn post_attn_triple_norm(op: &PostAttnTripleNorm<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.attn, op.eps);
    [norm.args.other, norm.args.other_stride] = norm.rows(op.hidden);
    norm.args.weight_first = norm.vector(Some(op.weight_post), 0);
    norm.args.weight_a = norm.vector(Some(op.weight_a), 1);
    norm.args.weight_b = norm.vector(Some(op.weight_b), 2);
    norm.args.weight_c = norm.vector(Some(op.weight_c), 3);
    [norm.args.residual, norm.args.residual_stride] = norm.rows(op.residual);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output_a);
    [norm.args.output_b, norm.args.output_b_stride] = norm.rows(op.output_b);
    [norm.args.output_c, norm.args.output_c_stride] = norm.rows(op.output_c);
    norm.launch("post_attn_triple_norm", lowering);
}

/// What the two operations that end a layer have in common.
struct EndLayer {
    attn: View,
    weight_moe: View,
    residual: View,
    weight_mlp: View,
    layer_scalar: View,
    mlp: View,
    output: View,
}

impl EndLayer {
    fn fill(self, norm: &mut Norm) {
        [norm.args.other, norm.args.other_stride] = norm.rows(self.attn);
        norm.args.weight_first = norm.vector(Some(self.weight_moe), 0);
        norm.args.weight_a = norm.vector(Some(self.weight_mlp), 1);
        [norm.args.residual_in, norm.args.residual_in_stride] = norm.rows(self.residual);
        norm.args.scalar = norm.vector(Some(self.layer_scalar), 4);
        norm.args.scalar_single = (self.layer_scalar.last() == 1).into();
        [norm.args.residual, norm.args.residual_stride] = norm.rows(self.mlp);
        [norm.args.output_a, norm.args.output_a_stride] = norm.rows(self.output);
    }
}

pub(super) fn post_ff_norm_end_layer(op: &PostFfNormEndLayer<View>, lowering: &mut Lowering) {
    let PostFfNormEndLayer { attn, moe, weight_moe, residual, weight_mlp, .. } = *op;
    let PostFfNormEndLayer { layer_scalar, mlp, output, eps, .. } = *op;
    let mut norm = Norm::new(moe, eps).staged(3, 2);
    EndLayer { attn, weight_moe, residual, weight_mlp, layer_scalar, mlp, output }.fill(&mut norm);
    norm.launch("post_ff_norm_end_layer", lowering);
}

pub(super) fn moe_post_ff_norm_end_layer(
    op: &MoePostFfNormEndLayer<View>,
    lowering: &mut Lowering,
) {
    let MoePostFfNormEndLayer { attn, experts, route, weight_moe, residual, .. } = *op;
    let MoePostFfNormEndLayer { weight_mlp, layer_scalar, mlp, output, eps, .. } = *op;
    let mut norm = Norm::new(experts, eps);
    norm.args.expert_stride = experts.stride(1);
    norm.args.top_k = experts.extent(1) as u32;
    norm.args.route = route.address;
    norm.args.route_stride = route.stride(0);
    EndLayer { attn, weight_moe, residual, weight_mlp, layer_scalar, mlp, output }.fill(&mut norm);
    norm.launch("moe_post_ff_norm_end_layer", lowering);
}

pub(super) fn add_rms_norm(op: &AddRmsNorm<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.a, op.eps);
    [norm.args.other, norm.args.other_stride] = norm.rows(op.b);
    norm.args.weight_a = norm.vector(op.weight, 1);
    [norm.args.residual, norm.args.residual_stride] = norm.rows(op.residual);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output);
    norm.args.q15 = activations::provide_q15(op.output, lowering);
    norm.args.bf16 = activations::provide_bf16(op.output, lowering).0;
    norm.launch("add_rms_norm", lowering);
}

pub(super) fn layer_norm(op: &LayerNorm<View>, lowering: &mut Lowering) {
    let mut norm = Norm::new(op.input, op.eps).staged(1, 2);
    norm.args.weight_a = norm.vector(Some(op.weight), 1);
    norm.args.weight_b = norm.vector(op.bias, 2);
    [norm.args.output_a, norm.args.output_a_stride] = norm.rows(op.output);
    norm.launch("layer_norm", lowering);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_staged() {
        let caps = Caps { compute: [9, 0], processors: 132, shared: 227 << 10 };
        assert_eq!(staged(1000, 16384, caps), None);
        assert_eq!(staged(8192, 16384, caps), Some((528, 32768)));
        assert_eq!(staged(8192, 3 * 32768, caps), Some((132, 6 * 32768)));
        assert_eq!(staged(8192, 4 * 32768, caps), None);
    }

    #[test]
    fn every_row_has_a_geometry() {
        for dim in [1, 4, 127, 128, 129, 1024, 1025, 4096, 4097, 8192, 8193, 100_000] {
            let (threads, chunks) = geometry(dim);
            assert!(threads.is_multiple_of(32) && threads <= 1024, "{dim}");
            let kept = u64::from(threads * chunks * 4);
            assert!(chunks == 0 || kept >= dim, "{dim}: {kept}");
        }
    }
}
