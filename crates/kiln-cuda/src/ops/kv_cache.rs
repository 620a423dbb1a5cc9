//! Appending to a key-value cache.

use crate::kernels::Unit;
use crate::lower::{Kernel, Lowering};
use crate::view::View;
use kiln_core::ops::KvAppend;

kiln_core::kernel_args! {
    /// Arguments of `kv_cache.cu`.
    pub(crate) struct KvAppendArgs {
        /// `[T, H, D]`
        input: u64,
        /// Bytes from token to token.
        input_stride_t: u64,
        /// Bytes from head to head.
        input_stride_h: u64,
        /// `[H, capacity, D]`
        cache: u64,
        /// Bytes from head to head.
        cache_stride_h: u64,
        /// Bytes from slot to slot.
        cache_stride_s: u64,
        /// `[1]` u32
        start: u64,
        /// T
        tokens: u64,
        /// H
        heads: u64,
        /// Slots of the cache.
        capacity: u64,
        /// D
        dim: u32,
        /// Whether the cache wraps around.
        ring: u32,
    }
}

/// Warps of a block, a row each.
const WARPS: u64 = 4;

pub(super) fn kv_append(op: &KvAppend<View>, lowering: &mut Lowering) {
    let KvAppend { input, start, cache, ring } = *op;
    let args = KvAppendArgs {
        input: input.address,
        input_stride_t: input.stride(0),
        input_stride_h: input.stride(1),
        cache: cache.address,
        cache_stride_h: cache.stride(0),
        cache_stride_s: cache.stride(1),
        start: start.address,
        tokens: input.extent(0),
        heads: input.extent(1),
        capacity: cache.extent(1),
        dim: input.last() as u32,
        ring: ring.into(),
    };
    let kernel = format!("kv_append_{}_{}", input.dtype(), cache.dtype());
    let blocks = (args.tokens * args.heads).div_ceil(WARPS);
    lowering.launch(Kernel::new(Unit::KvCache, kernel, blocks, 32 * WARPS as u32), &args);
}
