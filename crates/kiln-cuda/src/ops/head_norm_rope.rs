//! Per-head RMS normalisation and rotation.

use crate::kernels::Unit;
use crate::lower::{Has, Kernel, Lowering, Made};
use crate::runtime::graph::Param;
use crate::view::{View, element};
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{HeadLayout, HeadNormRope, KvAppend, Op, RopePairing};

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
        /// Groups of heads, a block for each.
        groups: u32,
        /// Unused.
        reserved: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `rope_table` in `head_norm_rope.cu`.
    pub(crate) struct RopeTableArgs {
        /// `[T]` u32
        positions: u64,
        /// `[half]` f32, or 0
        factors: u64,
        /// `[2, T, half]` f32: cosines, then sines.
        output: u64,
        /// f64 bits: the power of two by which the frequency grows from pair to pair.
        exponent: u64,
        /// T
        tokens: u64,
        /// Rotated pairs.
        half: u64,
    }
}

/// Most warps of a block.
const WARPS: u64 = 4;
/// Threads of a block of the table.
const TABLE_THREADS: u64 = 128;
/// Bytes of shared memory that a block takes.
const SHARED: u64 = 48 << 10;

/// Warps of a block, by the shared memory that they need; `None` where one needs too much.
pub(crate) fn warps(dim: u64) -> Option<u64> {
    let fit = SHARED / (4 * dim);
    (fit > 0).then(|| fit.min(WARPS))
}

/// Most operations on heads in one launch.
const JOBS: usize = 3;

/// Cosines and sines of all tokens, computed once for all operations that rotate alike: addresses and
/// bytes from row to row.
fn rope_table(op: &HeadNormRope<View>, lowering: &mut Lowering) -> [(u64, u64); 2] {
    let Some(positions) = op.positions.filter(|_| op.half > 0) else { return [(0, 0); 2] };
    let half = op.half as u64;
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * half,
        RopePairing::Spanning => op.input.last(),
    };
    let exponent = (-2.0 * f64::from(op.theta).log2() / turned.max(1) as f64).to_bits();
    let tokens = op.input.extent(0);
    let made = Made::new("rope", positions).with(op.freq_factors, [exponent, half]);
    let bytes = tokens * half * 4;
    let output = lowering.shared(made, 2 * bytes, |lowering, output| {
        let args = RopeTableArgs {
            positions: positions.address,
            factors: op.freq_factors.map_or(0, |factors| factors.address),
            output,
            exponent,
            tokens,
            half,
        };
        let blocks = (tokens * half).div_ceil(TABLE_THREADS);
        let unit = Unit::HeadNormRope;
        lowering.launch(Kernel::new(unit, "rope_table", blocks, TABLE_THREADS as u32), &args);
    });
    [output, output + bytes].map(|table| (table, half * 4))
}

/// Blocks of a job: few tokens have one for each group of heads, of many one goes through all heads.
fn groups(tokens: u64, heads: u64, warps: u64) -> u32 {
    let groups = heads.div_ceil(warps);
    (if tokens >= 1024 { groups.min(2) } else { groups }) as u32
}

fn job(op: &HeadNormRope<View>, lowering: &mut Lowering) -> HeadNormRopeArgs {
    let input = op.input;
    let [tokens, heads, dim] = [input.extent(0), input.extent(1), input.last()];
    let address = |view: &Option<View>| view.as_ref().map_or(0, |view| view.address);
    let stride = |view: &Option<View>, axis| view.as_ref().map_or(0, |view| view.stride(axis));
    // Axes of tokens and of heads in the bf16 copy.
    let [copy_t, copy_h] = match op.copy_layout {
        HeadLayout::TokenMajor => [0, 1],
        HeadLayout::HeadMajor => [1, 0],
    };
    let [(cosines, cosines_stride), (sines, sines_stride)] = match op.cos {
        Some(_) => [&op.cos, &op.sin].map(|table| (address(table), stride(table, 0))),
        None => rope_table(op, lowering),
    };
    HeadNormRopeArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        weight: address(&op.weight),
        cosines,
        cosines_stride,
        sines,
        sines_stride,
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
        heads,
        dim: dim as u32,
        half: op.half as u32,
        pairing: match op.pairing {
            RopePairing::Interleaved => 0,
            RopePairing::Leading => 1,
            RopePairing::Spanning => 2,
        },
        normalize: op.normalize.into(),
        weight_single: op.weight.is_some_and(|weight| weight.dtype() == DType::F32).into(),
        table_rows: op.cos.as_ref().map_or(tokens, |cos| cos.extent(0)) as u32,
        cache_element: op.cache.as_ref().map_or(0, |cache| element(cache.dtype())),
        eps: op.eps,
        ..HeadNormRopeArgs::zeroed()
    }
}

/// Appending to a cache without a rotation.
fn append(op: &KvAppend<View>) -> HeadNormRopeArgs {
    let KvAppend { input, start, cache, .. } = *op;
    HeadNormRopeArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        cache: cache.address,
        cache_stride_h: cache.stride(0),
        cache_stride_s: cache.stride(1),
        cache_start: start.address,
        capacity: cache.extent(1),
        heads: input.extent(1),
        dim: input.last() as u32,
        cache_element: element(cache.dtype()),
        ..HeadNormRopeArgs::zeroed()
    }
}

/// The operation, and the next ones on the heads of the same tokens: rotations and appending to caches.
pub(super) fn head_norm_rope(op: &HeadNormRope<View>, lowering: &mut Lowering) {
    let (tokens, dtype) = (op.input.extent(0), op.input.dtype());
    let mut jobs = vec![job(op, lowering)];
    let alike = |input: &View| input.extent(0) == tokens && input.dtype() == dtype;
    jobs.extend(lowering.join(JOBS - 1, Has::Nothing, |op, lowering| match op {
        Op::HeadNormRope(op) if alike(&op.input) => Some(job(op, lowering)),
        Op::KvAppend(op) if alike(&op.input) && !op.ring && !op.cache.dtype().is_quantized() => {
            Some(append(op))
        }
        _ => None,
    }));
    let dim = jobs.iter().map(|job| u64::from(job.dim)).max().unwrap_or(1);
    let heads = jobs.iter().map(|job| job.heads).max().unwrap_or(1);
    let warps = warps(dim).unwrap_or(1).min(heads);
    for job in &mut jobs {
        job.groups = groups(tokens, job.heads, warps);
    }
    let blocks = jobs.iter().map(|job| u64::from(job.groups)).sum();
    jobs.resize(JOBS, HeadNormRopeArgs::zeroed());
    let kernel =
        Kernel::new(Unit::HeadNormRope, format!("head_norm_rope_{dtype}"), 1, 32 * warps as u32)
            .grid([tokens, blocks, 1])
            .shared(4 * warps * dim);
    let params = jobs.iter().map(|job| Param::Bytes(bytemuck::bytes_of(job).to_vec()));
    lowering.launch_with(kernel, params.collect());
}
