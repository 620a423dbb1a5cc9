//! Per-head RMS normalisation and rotation.

use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::view::{View, element};
use kiln_core::DType;
use kiln_core::ops::{HeadLayout, HeadNormRope, RopePairing};

kiln_core::kernel_args! {
    /// Arguments of `head_norm_rope.cu`. Addresses of absent operands are 0.
    pub(crate) struct HeadNormRopeArgs {
        /// `[T, H, D]`
        input: u64,
        /// Bytes from token to token.
        input_stride_t: u64,
        /// Bytes from head to head.
        input_stride_h: u64,
        /// `[D]`
        weight: u64,
        /// `[T]` u32
        positions: u64,
        /// `[half]` f32
        factors: u64,
        /// `[T or 1, half]` f32
        cosines: u64,
        /// Bytes from row to row.
        cosines_stride: u64,
        /// `[T or 1, half]` f32
        sines: u64,
        /// Bytes from row to row.
        sines_stride: u64,
        /// Of the type of the input.
        output: u64,
        /// Bytes from token to token.
        output_stride_t: u64,
        /// Bytes from head to head.
        output_stride_h: u64,
        /// bf16
        copy_bf16: u64,
        /// Bytes from token to token.
        copy_bf16_stride_t: u64,
        /// Bytes from head to head.
        copy_bf16_stride_h: u64,
        /// f32
        copy_f32: u64,
        /// Bytes from token to token.
        copy_f32_stride_t: u64,
        /// Bytes from head to head.
        copy_f32_stride_h: u64,
        /// `[H, capacity, D]`
        cache: u64,
        /// Bytes from head to head.
        cache_stride_h: u64,
        /// Bytes from slot to slot.
        cache_stride_s: u64,
        /// `[1]` u32
        cache_start: u64,
        /// Slots of the cache.
        capacity: u64,
        /// f64 bits: the power of two by which the frequency grows from pair to pair.
        exponent: u64,
        /// H
        heads: u64,
        /// D
        dim: u32,
        /// Rotated pairs.
        half: u32,
        /// 0 interleaved, 1 leading, 2 spanning.
        pairing: u32,
        /// Whether heads are normalised.
        normalize: u32,
        /// Whether the weight is f32.
        weight_single: u32,
        /// Rows of the tables.
        table_rows: u32,
        /// Type of the cache.
        cache_element: u32,
        /// Added to the mean of squares.
        eps: f32,
    }
}

/// Most warps of a block.
const WARPS: u64 = 4;
/// Bytes of shared memory that a block takes.
const SHARED: u64 = 48 << 10;

/// Warps of a block, by the shared memory that they need; `None` where one needs too much.
pub(crate) fn warps(dim: u64, half: u64, heads: u64) -> Option<u64> {
    let rest = SHARED.checked_sub(8 * half)?;
    let fit = rest / (4 * dim);
    (fit > 0).then(|| fit.min(WARPS).min(heads))
}

pub(super) fn head_norm_rope(op: &HeadNormRope<View>, lowering: &mut Lowering) {
    let input = op.input;
    let [tokens, heads, dim, half] =
        [input.extent(0), input.extent(1), input.last(), op.half as u64];
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * half,
        RopePairing::Spanning => dim,
    };
    let exponent = -2.0 * f64::from(op.theta).log2() / turned.max(1) as f64;
    let address = |view: &Option<View>| view.as_ref().map_or(0, |view| view.address);
    let stride = |view: &Option<View>, axis| view.as_ref().map_or(0, |view| view.stride(axis));
    // Axes of tokens and of heads in the bf16 copy.
    let [copy_t, copy_h] = match op.copy_layout {
        HeadLayout::TokenMajor => [0, 1],
        HeadLayout::HeadMajor => [1, 0],
    };
    let args = HeadNormRopeArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        weight: address(&op.weight),
        positions: address(&op.positions),
        factors: address(&op.freq_factors),
        cosines: address(&op.cos),
        cosines_stride: stride(&op.cos, 0),
        sines: address(&op.sin),
        sines_stride: stride(&op.sin, 0),
        output: address(&op.output),
        output_stride_t: stride(&op.output, 0),
        output_stride_h: stride(&op.output, 1),
        copy_bf16: address(&op.output_bf16),
        copy_bf16_stride_t: stride(&op.output_bf16, copy_t),
        copy_bf16_stride_h: stride(&op.output_bf16, copy_h),
        copy_f32: address(&op.output_f32),
        copy_f32_stride_t: stride(&op.output_f32, 1),
        copy_f32_stride_h: stride(&op.output_f32, 0),
        cache: address(&op.cache),
        cache_stride_h: stride(&op.cache, 0),
        cache_stride_s: stride(&op.cache, 1),
        cache_start: address(&op.cache_start),
        capacity: op.cache.as_ref().map_or(0, |cache| cache.extent(1)),
        exponent: exponent.to_bits(),
        heads,
        dim: dim as u32,
        half: half as u32,
        pairing: match op.pairing {
            RopePairing::Interleaved => 0,
            RopePairing::Leading => 1,
            RopePairing::Spanning => 2,
        },
        normalize: op.normalize.into(),
        weight_single: op.weight.is_some_and(|weight| weight.dtype() == DType::F32).into(),
        table_rows: op.cos.as_ref().map_or(0, |cos| cos.extent(0) as u32),
        cache_element: op.cache.as_ref().map_or(0, |cache| element(cache.dtype())),
        eps: op.eps,
    };
    let warps = warps(dim, half, heads).unwrap_or(1);
    // Few tokens: a block for each group of heads; many: one block goes through all heads.
    let groups = heads.div_ceil(warps);
    let groups = if tokens >= 1024 { groups.min(2) } else { groups };
    let kernel = format!("head_norm_rope_{}", input.dtype());
    let kernel = Kernel::new(Unit::HeadNormRope, kernel, 1, 32 * warps as u32)
        .grid([tokens, groups, 1])
        .shared(4 * (2 * half + warps * dim));
    lowering.launch(kernel, &args);
}
