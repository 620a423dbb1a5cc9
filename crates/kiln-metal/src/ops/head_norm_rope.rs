//! Per-head RMS normalisation and rotary embedding: one simdgroup per head of a token.

use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{COMMON, FunctionConstant, Library, MSL_3_1};
use crate::view::View;
use kiln_core::ops::{HeadLayout, HeadNormRope, RopePairing};
use kiln_core::{DType, KernelArgs, kernel_args};
use std::f64::consts::TAU;

kernel_args! {
    /// Strides in elements; those of the tables are 0 where one row is for all tokens.
    struct HeadNormRopeArgs {
        input_token_stride: u64,
        input_head_stride: u64,
        cosine_stride: u64,
        sine_stride: u64,
        output_token_stride: u64,
        output_head_stride: u64,
        bf16_token_stride: u64,
        bf16_head_stride: u64,
        f32_token_stride: u64,
        f32_head_stride: u64,
        cache_head_stride: u64,
        cache_slot_stride: u64,
        capacity: u32,
        tokens: u32,
        heads: u32,
        dim: u32,
        /// Rotated pairs.
        half_pairs: u32,
        eps: f32,
    }
}

/// Heads that share a threadgroup, one simdgroup each.
const HEADS_PER_THREADGROUP: usize = 4;

/// Pairs that a lane keeps in registers: those of a head of 512 values.
const KEPT_PAIRS: usize = 8;

const NORMALIZE: FunctionConstant = FunctionConstant::flag("NORMALIZE", 0);
const HAS_WEIGHT: FunctionConstant = FunctionConstant::flag("HAS_WEIGHT", 1);
const WEIGHT_F32: FunctionConstant = FunctionConstant::flag("WEIGHT_F32", 2);
const HAS_POSITIONS: FunctionConstant = FunctionConstant::flag("HAS_POSITIONS", 3);
const HAS_FACTORS: FunctionConstant = FunctionConstant::flag("HAS_FACTORS", 4);
const HAS_TABLES: FunctionConstant = FunctionConstant::flag("HAS_TABLES", 5);
const HAS_OUTPUT: FunctionConstant = FunctionConstant::flag("HAS_OUTPUT", 6);
const HAS_BF16: FunctionConstant = FunctionConstant::flag("HAS_BF16", 7);
const HAS_F32: FunctionConstant = FunctionConstant::flag("HAS_F32", 8);
const HAS_CACHE: FunctionConstant = FunctionConstant::flag("HAS_CACHE", 9);
const PAIRING: FunctionConstant = FunctionConstant::uint("PAIRING", 10);

/// Values of [`PAIRING`].
const INTERLEAVED: usize = 0;
const LEADING: usize = 1;
const SPANNING: usize = 2;

pub(super) static LIBRARY: Library = Library {
    name: "head_norm_rope",
    texts: &[COMMON, include_str!("../../kernels/head_norm_rope.metal")],
    arguments: HeadNormRopeArgs::msl,
    sizes: &[
        ("HEADS_PER_THREADGROUP", HEADS_PER_THREADGROUP),
        ("KEPT_PAIRS", KEPT_PAIRS),
        ("PAIRING_INTERLEAVED", INTERLEAVED),
        ("PAIRING_LEADING", LEADING),
        ("PAIRING_SPANNING", SPANNING),
    ],
    constants: &[
        NORMALIZE,
        HAS_WEIGHT,
        WEIGHT_F32,
        HAS_POSITIONS,
        HAS_FACTORS,
        HAS_TABLES,
        HAS_OUTPUT,
        HAS_BF16,
        HAS_F32,
        HAS_CACHE,
        PAIRING,
    ],
    version: MSL_3_1,
};

/// Turns per position of every pair, each as a high and a low part: one f32 is off by radians at
/// position 131071.
fn frequencies(op: &HeadNormRope<View>) -> Vec<f32> {
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * op.half,
        RopePairing::Spanning => op.input.last(),
    };
    let split = |i: usize| {
        let exponent = -2.0 * i as f64 / turned as f64;
        let turns = f64::from(op.theta).powf(exponent) / TAU;
        let high = turns as f32;
        [high, (turns - f64::from(high)) as f32]
    };
    (0..op.half.max(1)).flat_map(split).collect()
}

/// Strides of the token and the head axis; 0 without a view.
fn strides(view: Option<&View>, layout: HeadLayout) -> [u64; 2] {
    let Some(view) = view else { return [0; 2] };
    match layout {
        HeadLayout::TokenMajor => [view.stride(0), view.stride(1)],
        HeadLayout::HeadMajor => [view.stride(1), view.stride(0)],
    }
}

/// Elements between the rows of a table; 0 where there is one.
fn table_stride(table: Option<&View>) -> u64 {
    table.filter(|table| table.extent(0) > 1).map_or(0, View::row_stride)
}

/// Normalises each head over `D`, then rotates `half` pairs of it.
pub(super) fn head_norm_rope(
    op: &HeadNormRope<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let HeadNormRope { input, weight, positions, freq_factors, cos, sin, cache_start, .. } = op;
    let HeadNormRope { output, output_bf16, output_f32, cache, .. } = op;
    let [tokens, heads, dim] = [input.extent(0), input.extent(1), input.last()];
    let [input_token_stride, input_head_stride] = strides(Some(input), HeadLayout::TokenMajor);
    let [output_token_stride, output_head_stride] =
        strides(output.as_ref(), HeadLayout::TokenMajor);
    let [bf16_token_stride, bf16_head_stride] = strides(output_bf16.as_ref(), op.copy_layout);
    let [f32_token_stride, f32_head_stride] = strides(output_f32.as_ref(), HeadLayout::HeadMajor);
    let [cache_slot_stride, cache_head_stride] = strides(cache.as_ref(), HeadLayout::HeadMajor);
    let arguments = HeadNormRopeArgs {
        input_token_stride,
        input_head_stride,
        cosine_stride: table_stride(cos.as_ref()),
        sine_stride: table_stride(sin.as_ref()),
        output_token_stride,
        output_head_stride,
        bf16_token_stride,
        bf16_head_stride,
        f32_token_stride,
        f32_head_stride,
        cache_head_stride,
        cache_slot_stride,
        capacity: cache.as_ref().map_or(0, |cache| cache.extent(1)) as u32,
        tokens: tokens as u32,
        heads: heads as u32,
        dim: dim as u32,
        half_pairs: op.half as u32,
        eps: op.eps,
    };
    let pairing = match op.pairing {
        RopePairing::Interleaved => INTERLEAVED,
        RopePairing::Leading => LEADING,
        RopePairing::Spanning => SPANNING,
    };
    let table = lowering.data(&frequencies(op));
    let cache_type = cache.as_ref().map_or(DType::F32, View::dtype);
    lowering.dispatch(
        Dispatch::new(&LIBRARY, format!("head_norm_rope_{}_{cache_type}", input.dtype()))
            .flag(NORMALIZE, op.normalize)
            .flag(HAS_WEIGHT, weight.is_some())
            .flag(WEIGHT_F32, weight.as_ref().is_some_and(|weight| weight.dtype() == DType::F32))
            .flag(HAS_POSITIONS, positions.is_some())
            .flag(HAS_FACTORS, freq_factors.is_some())
            .flag(HAS_TABLES, cos.is_some())
            .flag(HAS_OUTPUT, output.is_some())
            .flag(HAS_BF16, output_bf16.is_some())
            .flag(HAS_F32, output_f32.is_some())
            .flag(HAS_CACHE, cache.is_some())
            .constant(PAIRING, pairing as u32)
            .arguments(&arguments)
            .read(input)
            .read_or(weight.as_ref(), input)
            .read_or(positions.as_ref(), input)
            .read(&table)
            .read_or(freq_factors.as_ref(), input)
            .read_or(cos.as_ref(), input)
            .read_or(sin.as_ref(), input)
            .read_or(cache_start.as_ref(), input)
            .write_or(output.as_ref(), input)
            .write_or(output_bf16.as_ref(), input)
            .write_or(output_f32.as_ref(), input)
            .write_or(cache.as_ref(), input)
            .grid(
                [(tokens * heads).div_ceil(HEADS_PER_THREADGROUP), 1, 1],
                [SIMD_WIDTH * HEADS_PER_THREADGROUP, 1, 1],
            ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::Caps;
    use crate::view::Memory;

    fn rope(half: usize) -> HeadNormRope<View> {
        let input = View::contiguous(Memory::Buffer(0), 0, DType::F16, [3, 5, 128]);
        let positions = View::contiguous(Memory::Buffer(1), 0, DType::U32, [3]);
        HeadNormRope {
            input,
            weight: None,
            positions: Some(positions),
            freq_factors: None,
            cos: None,
            sin: None,
            cache_start: None,
            output: Some(View::contiguous(Memory::Buffer(2), 0, DType::F16, [3, 5, 128])),
            output_bf16: None,
            output_f32: None,
            cache: None,
            pairing: RopePairing::Leading,
            half,
            theta: 1e4,
            normalize: true,
            eps: 1e-6,
            copy_layout: HeadLayout::TokenMajor,
        }
    }

    #[test]
    fn frequencies_are_right_to_more_than_one_f32() {
        let table = frequencies(&rope(64));
        for i in 0..64 {
            let exact = 1e4f64.powf(-(i as f64) / 64.0) / TAU;
            let got = f64::from(table[2 * i]) + f64::from(table[2 * i + 1]);
            assert!((got - exact).abs() < exact * 1e-14, "{i}: {got} {exact}");
        }
    }

    #[test]
    fn one_simdgroup_per_head_and_absent_arguments_bound() {
        let mut lowering = Lowering::new(&Caps::APPLE7);
        head_norm_rope(&rope(32), &mut lowering).unwrap();
        let dispatch = &lowering.phases[0][0];
        assert_eq!(dispatch.kernel.function, "head_norm_rope_f16_f32");
        assert_eq!((dispatch.threadgroups, dispatch.threads), ([4, 1, 1], [128, 1, 1]));
        assert_eq!(dispatch.bindings.len(), 12);
        assert_eq!(dispatch.bindings.iter().filter(|binding| binding.writes).count(), 1);
        assert_eq!(lowering.data.len(), 1);
    }
}
