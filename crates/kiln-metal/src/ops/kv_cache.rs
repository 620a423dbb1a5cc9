//! Appending to a key-value cache.

use super::row_groups::{GROUP, aligned, cover};
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::KvAppend;
use kiln_core::{KernelArgs, kernel_args};

kernel_args! {
    /// Strides in elements, those of a cache of blocks in bytes.
    struct KvAppendArgs {
        token_stride: u64,
        head_stride: u64,
        cache_head_stride: u64,
        cache_slot_stride: u64,
        tokens: u32,
        heads: u32,
        dim: u32,
        capacity: u32,
    }
}

/// The cache wraps around at its capacity.
const RING: FunctionConstant = FunctionConstant::flag("RING", 1);

pub(super) static LIBRARY: Library = Library {
    name: "kv_cache",
    texts: &[COMMON, QUANT, include_str!("../../kernels/kv_cache.metal")],
    arguments: KvAppendArgs::msl,
    sizes: &[],
    constants: &[ALIGNED, RING],
    version: MSL_3_1,
};

/// Writes token `i` into slot `start + i` of every head's cache.
pub(super) fn kv_append(op: &KvAppend<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let KvAppend { input, start, cache, ring } = op;
    let [tokens, heads, dim] = [input.extent(0), input.extent(1), input.last()];
    let quantized = cache.dtype().is_quantized();
    let unit = if quantized { 1 } else { cache.dtype().block_bytes() };
    let arguments = KvAppendArgs {
        token_stride: input.stride(0),
        head_stride: input.stride(1),
        cache_head_stride: (cache.stride_bytes(0) / unit) as u64,
        cache_slot_stride: (cache.stride_bytes(1) / unit) as u64,
        tokens: tokens as u32,
        heads: heads as u32,
        dim: dim as u32,
        capacity: cache.extent(1) as u32,
    };
    let columns = if quantized { dim / cache.dtype().block_len() } else { dim.div_ceil(GROUP) };
    let is_aligned = aligned(dim, [input]) && (quantized || aligned(dim, [cache]));
    let (threadgroups, threads) = cover(columns, tokens * heads);
    lowering.dispatch(
        Dispatch::new(&LIBRARY, format!("kv_append_{}_{}", input.dtype(), cache.dtype()))
            .flag(ALIGNED, is_aligned)
            .flag(RING, *ring)
            .arguments(&arguments)
            .read(input)
            .read(start)
            .write(cache)
            .grid(threadgroups, threads),
    )
}
