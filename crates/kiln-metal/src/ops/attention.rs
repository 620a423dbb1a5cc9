//! Attention: tiles of queries and keys for many queries, keys split among simdgroups for few.

use super::row_groups::GROUP;
use crate::caps::SIMD_WIDTH;
use crate::dispatch::{Dispatch, Lowering, Missing};
use crate::library::{ALIGNED, COMMON, FunctionConstant, Library, MSL_3_1, QUANT};
use crate::view::View;
use kiln_core::ops::{AttentionLayout, CachedAttention, FlashAttention, FlashAttentionBlocks};
use kiln_core::{DType, KernelArgs, kernel_args};

kernel_args! {
    /// Arguments of an attention by tiles. Strides are elements, those of keys and values bytes.
    struct AttentionArgs {
        q_batch: u64,
        q_head: u64,
        q_row: u64,
        k_batch: u64,
        k_head: u64,
        k_row: u64,
        v_batch: u64,
        v_head: u64,
        v_row: u64,
        output_batch: u64,
        output_head: u64,
        output_row: u64,
        mask_batch: u64,
        mask_head: u64,
        mask_row: u64,
        block_batch: u64,
        block_head: u64,
        block_stride: u64,
        q_len: u32,
        /// Keys that are given, or slots of a cache.
        capacity: u32,
        heads_per_kv: u32,
        dim: u32,
        q_offset: u32,
        window: u32,
        block_rows: u32,
        block_columns: u32,
        scale: f32,
        softcap: f32,
    }
}

kernel_args! {
    /// Arguments of the map of a mask: strides in elements.
    struct BlocksArgs {
        mask_batch: u64,
        mask_head: u64,
        mask_row: u64,
        block_batch: u64,
        block_head: u64,
        block_stride: u64,
        heads: u32,
        q_len: u32,
        kv_len: u32,
        /// Rows and columns of a tile.
        rows: u32,
        columns: u32,
        reserved: u32,
    }
}

kernel_args! {
    /// Arguments of an attention by splits. Strides are elements, those of keys and values bytes.
    struct SplitArgs {
        q_row: u64,
        q_head: u64,
        k_head: u64,
        k_row: u64,
        v_head: u64,
        v_row: u64,
        output_row: u64,
        output_head: u64,
        tokens: u32,
        heads: u32,
        heads_per_kv: u32,
        dim: u32,
        capacity: u32,
        window: u32,
        splits: u32,
        split_keys: u32,
        scale: f32,
        softcap: f32,
    }
}

const RING: FunctionConstant = FunctionConstant::flag("RING", 1);
const WINDOW: FunctionConstant = FunctionConstant::flag("WINDOW", 2);
const SOFTCAP: FunctionConstant = FunctionConstant::flag("SOFTCAP", 3);
const SINKS: FunctionConstant = FunctionConstant::flag("SINKS", 4);
/// Keys are in a cache, and their number is on the device.
const CACHED: FunctionConstant = FunctionConstant::flag("CACHED", 5);
const CAUSAL: FunctionConstant = FunctionConstant::flag("CAUSAL", 6);
const MASK: FunctionConstant = FunctionConstant::flag("MASK", 7);
/// The mask says which keys take part; else it is added.
const MASK_BOOL: FunctionConstant = FunctionConstant::flag("MASK_BOOL", 8);
/// There is a map of the mask.
const BLOCKS: FunctionConstant = FunctionConstant::flag("BLOCKS", 9);
/// One split has all keys, so that nothing is merged.
const SINGLE: FunctionConstant = FunctionConstant::flag("SINGLE", 10);
/// Heads that share the reading of their keys.
const HEADS: FunctionConstant = FunctionConstant::uint("HEADS", 11);
/// Groups of four values of a row that a lane has.
const PARTS: FunctionConstant = FunctionConstant::uint("PARTS", 12);

const ATTENTION: &str = include_str!("../../kernels/attention.metal");

/// Most queries whose keys are split.
const MAX_SPLIT_TOKENS: usize = 8;

/// Simdgroups that divide the keys of a split.
const SIMDGROUPS: usize = 8;

/// Least keys of a split, and most splits.
const SPLIT_KEYS: usize = 256;
const MAX_SPLITS: usize = 64;

/// Keys that all simdgroups of a split take at a time.
const KEYS_AT_A_TIME: usize = 4 * SIMDGROUPS;

/// Most heads that share keys, and most groups of values of theirs that a lane has: what fits in
/// registers beside the values.
const MAX_HEADS: usize = 8;
const MAX_PARTS: usize = 8;

/// Threads that merge the records of a row: one for each group of the longest.
const MERGE_THREADS: usize = 128;

/// Threads of a tile.
const TILE_THREADS: usize = 4 * SIMD_WIDTH;

pub(super) static TILES: Library = Library {
    name: "attention_tiles",
    texts: &[COMMON, QUANT, ATTENTION, include_str!("../../kernels/attention_tiles.metal")],
    arguments: || AttentionArgs::msl() + &BlocksArgs::msl(),
    sizes: &[],
    constants: &[ALIGNED, RING, WINDOW, SOFTCAP, SINKS, CACHED, CAUSAL, MASK, MASK_BOOL, BLOCKS],
    version: MSL_3_1,
};

pub(super) static SPLIT: Library = Library {
    name: "attention_split",
    texts: &[COMMON, QUANT, ATTENTION, include_str!("../../kernels/attention_split.metal")],
    arguments: SplitArgs::msl,
    sizes: &[
        ("SIMDGROUPS", SIMDGROUPS),
        ("MAX_HEADS", MAX_HEADS),
        ("MAX_PARTS", MAX_PARTS),
        ("MERGE_THREADS", MERGE_THREADS),
    ],
    constants: &[ALIGNED, RING, WINDOW, SOFTCAP, SINKS, SINGLE, HEADS, PARTS],
    version: MSL_3_1,
};

/// How an attention against a cache is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Simdgroups with keys of their own.
    Split,
    /// Tiles of queries and keys, by simdgroup matrices.
    Tiles,
}

/// The number of tokens decides. Tiles of f32 keys do not fit beside f32 queries.
fn select(tokens: usize, cache: DType) -> Route {
    if tokens <= MAX_SPLIT_TOKENS || cache == DType::F32 { Route::Split } else { Route::Tiles }
}

/// Head dimensions of kernels by tiles; others take the next.
const TILE_DIMS: [usize; 6] = [64, 80, 96, 128, 256, 512];

fn tile_dim(dim: usize) -> Result<usize, Missing> {
    let fitting = TILE_DIMS.into_iter().find(|&tile| dim <= tile);
    fitting.ok_or_else(|| Missing(format!("no kernel for a head dimension of {dim}")))
}

/// Rows of queries of a tile, by the head dimension of the kernel: what fits in threadgroup memory.
fn tile_rows(dim: usize, cached: bool) -> usize {
    match (dim, cached) {
        (512, _) => 8,
        (256, true) => 16,
        _ => 32,
    }
}

fn aligned(view: &View) -> bool {
    view.dtype().is_quantized() || view.is_aligned(GROUP)
}

/// Batch, head and row axes of a layout.
fn axes(layout: AttentionLayout) -> [usize; 3] {
    match layout {
        AttentionLayout::HeadMajor => [0, 1, 2],
        AttentionLayout::SeqMajor => [0, 2, 1],
    }
}

/// A window in 32 bits; `None` where no key can be outside it.
fn narrow(window: Option<usize>) -> Option<u32> {
    window.and_then(|window| u32::try_from(window).ok())
}

/// Elements between batches, heads and rows of a mask or of its map; a mask of rank 2 is that of all.
fn plane_strides(view: Option<&View>) -> [u64; 3] {
    match view {
        None => [0; 3],
        Some(view) if view.rank() == 2 => [0, 0, view.stride(0)],
        Some(view) => {
            // A map of a mask of rank 2 has one plane.
            let shared = |axis: usize| if view.extent(axis) == 1 { 0 } else { view.stride(axis) };
            [shared(0), shared(1), view.stride(2)]
        }
    }
}

/// `softmax(scale * Q K^T + mask) V` of given keys and values.
pub(super) fn flash_attention(
    op: &FlashAttention<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let FlashAttention { q, k, v, mask, blocks, sinks, output, .. } = op;
    let [batch, head, row] = axes(op.layout);
    let dim = tile_dim(q.last())?;
    let [q_len, kv_len] = [q.extent(row), k.extent(row)];
    let [mask_batch, mask_head, mask_row] = plane_strides(mask.as_ref());
    let [block_batch, block_head, block_stride] = plane_strides(blocks.as_ref());
    let bytes = |view: &View, axis: usize| view.stride_bytes(axis) as u64;
    let window = narrow(op.window);
    let arguments = AttentionArgs {
        q_batch: q.stride(batch),
        q_head: q.stride(head),
        q_row: q.stride(row),
        k_batch: bytes(k, batch),
        k_head: bytes(k, head),
        k_row: bytes(k, row),
        v_batch: bytes(v, batch),
        v_head: bytes(v, head),
        v_row: bytes(v, row),
        output_batch: output.stride(batch),
        output_head: output.stride(head),
        output_row: output.stride(row),
        mask_batch,
        mask_head,
        mask_row,
        block_batch,
        block_head,
        block_stride,
        q_len: q_len as u32,
        capacity: kv_len as u32,
        heads_per_kv: (q.extent(head) / k.extent(head)) as u32,
        dim: q.last() as u32,
        q_offset: op.q_offset.unwrap_or(kv_len.saturating_sub(q_len)) as u32,
        window: window.unwrap_or(0),
        block_rows: op.tile[0].min(q_len) as u32,
        block_columns: op.tile[1].min(kv_len) as u32,
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    };
    let rows = tile_rows(dim, false);
    lowering.dispatch(
        Dispatch::new(&TILES, format!("flash_attention_{}_{dim}", q.dtype()))
            .flag(ALIGNED, [q, k, v].into_iter().all(aligned))
            .flag(RING, false)
            .flag(WINDOW, window.is_some())
            .flag(SOFTCAP, op.softcap.is_some())
            .flag(SINKS, sinks.is_some())
            .flag(CACHED, false)
            .flag(CAUSAL, op.causal)
            .flag(MASK, mask.is_some())
            .flag(MASK_BOOL, mask.is_some_and(|mask| mask.dtype() == DType::U8))
            .flag(BLOCKS, blocks.is_some())
            .arguments(&arguments)
            .read(q)
            .read(k)
            .read(v)
            .read_or(mask.as_ref(), q)
            .read_or(blocks.as_ref(), q)
            .read_or(sinks.as_ref(), q)
            .read(q)
            .write(output)
            .grid([q_len.div_ceil(rows), q.extent(head), q.extent(batch)], [TILE_THREADS, 1, 1]),
    )
}

/// Classifies the tiles of a mask.
pub(super) fn flash_attention_blocks(
    op: &FlashAttentionBlocks<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    let FlashAttentionBlocks { mask, blocks, tile } = op;
    let [mask_batch, mask_head, mask_row] = plane_strides(Some(mask));
    let [block_batch, block_head, block_stride] = plane_strides(Some(blocks));
    let [batch, heads] = [blocks.extent(0), blocks.extent(1)];
    let [q_len, kv_len] = [mask.extent(mask.rank() - 2), mask.last()];
    let arguments = BlocksArgs {
        mask_batch,
        mask_head,
        mask_row,
        block_batch,
        block_head,
        block_stride,
        heads: heads as u32,
        q_len: q_len as u32,
        kv_len: kv_len as u32,
        rows: tile[0].min(q_len) as u32,
        columns: tile[1].min(kv_len) as u32,
        reserved: 0,
    };
    lowering.dispatch(
        Dispatch::new(&TILES, format!("attention_blocks_{}", mask.dtype()))
            .flag(MASK_BOOL, mask.dtype() == DType::U8)
            .arguments(&arguments)
            .read(mask)
            .write(blocks)
            .grid([blocks.extent(3), blocks.extent(2), batch * heads], [SIMD_WIDTH, 1, 1]),
    )
}

/// Causal attention against a key-value cache.
pub(super) fn cached_attention(
    op: &CachedAttention<View>,
    lowering: &mut Lowering,
) -> Result<(), Missing> {
    match select(op.q.extent(0), op.k_cache.dtype()) {
        Route::Split => cached_split(op, lowering),
        Route::Tiles => cached_tiles(op, lowering),
    }
}

fn cached_tiles(op: &CachedAttention<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let CachedAttention { q, k_cache, v_cache, kv_len, sinks, output, .. } = op;
    let dim = tile_dim(q.last())?;
    let [tokens, heads] = [q.extent(0), q.extent(1)];
    let window = narrow(op.window);
    let arguments = AttentionArgs {
        q_batch: 0,
        q_head: q.stride(1),
        q_row: q.stride(0),
        k_batch: 0,
        k_head: k_cache.stride_bytes(0) as u64,
        k_row: k_cache.stride_bytes(1) as u64,
        v_batch: 0,
        v_head: v_cache.stride_bytes(0) as u64,
        v_row: v_cache.stride_bytes(1) as u64,
        output_batch: 0,
        output_head: output.stride(1),
        output_row: output.stride(0),
        mask_batch: 0,
        mask_head: 0,
        mask_row: 0,
        block_batch: 0,
        block_head: 0,
        block_stride: 0,
        q_len: tokens as u32,
        capacity: k_cache.extent(1) as u32,
        heads_per_kv: (heads / k_cache.extent(0)) as u32,
        dim: q.last() as u32,
        q_offset: 0,
        window: window.unwrap_or(0),
        block_rows: 1,
        block_columns: 1,
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    };
    let rows = tile_rows(dim, true);
    let name = format!("cached_tiles_{}_{}_{dim}", q.dtype(), k_cache.dtype());
    lowering.dispatch(
        Dispatch::new(&TILES, name)
            .flag(ALIGNED, [q, k_cache, v_cache, output].into_iter().all(aligned))
            .flag(RING, op.ring)
            .flag(WINDOW, window.is_some())
            .flag(SOFTCAP, op.softcap.is_some())
            .flag(SINKS, sinks.is_some())
            .flag(CACHED, true)
            .flag(CAUSAL, true)
            .flag(MASK, false)
            .flag(MASK_BOOL, false)
            .flag(BLOCKS, false)
            .arguments(&arguments)
            .read(q)
            .read(k_cache)
            .read(v_cache)
            .read(q)
            .read(q)
            .read_or(sinks.as_ref(), q)
            .read(kv_len)
            .write(output)
            .grid([tokens.div_ceil(rows), heads, 1], [TILE_THREADS, 1, 1]),
    )
}

/// How the keys and heads of an attention by splits are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    splits: usize,
    split_keys: usize,
    /// Heads that share keys.
    heads: usize,
    /// Groups of a row that a lane has.
    parts: usize,
}

/// `keys` is the most that a query can attend to, `group` the query heads of a key-value head.
fn divide(tokens: usize, keys: usize, group: usize, dim: usize) -> Division {
    let parts = dim.div_ceil(GROUP * SIMD_WIDTH);
    let most = (MAX_PARTS / parts).min(MAX_HEADS);
    let heads = (1..=most).rev().find(|&heads| group.is_multiple_of(heads)).unwrap_or(1);
    // Many queries fill the device without splits.
    let most = if tokens > MAX_SPLIT_TOKENS { 1 } else { MAX_SPLITS };
    let splits = keys.div_ceil(SPLIT_KEYS).clamp(1, most);
    let split_keys = keys.div_ceil(splits).next_multiple_of(KEYS_AT_A_TIME);
    Division { splits, split_keys, heads, parts }
}

fn cached_split(op: &CachedAttention<View>, lowering: &mut Lowering) -> Result<(), Missing> {
    let CachedAttention { q, k_cache, v_cache, kv_len, sinks, output, .. } = op;
    let [tokens, heads, dim] = [q.extent(0), q.extent(1), q.last()];
    let capacity = k_cache.extent(1);
    let group = heads / k_cache.extent(0);
    let keys = capacity.min(op.window.unwrap_or(capacity));
    let division = divide(tokens, keys, group, dim);
    let single = division.splits == 1;
    let window = narrow(op.window);
    let arguments = SplitArgs {
        q_row: q.stride(0),
        q_head: q.stride(1),
        k_head: k_cache.stride_bytes(0) as u64,
        k_row: k_cache.stride_bytes(1) as u64,
        v_head: v_cache.stride_bytes(0) as u64,
        v_row: v_cache.stride_bytes(1) as u64,
        output_row: output.stride(0),
        output_head: output.stride(1),
        tokens: tokens as u32,
        heads: heads as u32,
        heads_per_kv: group as u32,
        dim: dim as u32,
        capacity: capacity as u32,
        window: window.unwrap_or(0),
        splits: division.splits as u32,
        split_keys: division.split_keys as u32,
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    };
    let is_aligned = [q, k_cache, v_cache, output].into_iter().all(aligned);
    let flags = |dispatch: Dispatch| {
        dispatch
            .flag(ALIGNED, is_aligned)
            .flag(RING, op.ring)
            .flag(WINDOW, window.is_some())
            .flag(SOFTCAP, op.softcap.is_some())
            .flag(SINKS, sinks.is_some())
            .flag(SINGLE, single)
            .constant(HEADS, division.heads as u32)
            .constant(PARTS, division.parts as u32)
            .arguments(&arguments)
    };
    let records = if single { 0 } else { tokens * heads * division.splits };
    let partial = (records > 0).then(|| lowering.workspace(DType::F32, records * dim));
    let statistics = (records > 0).then(|| lowering.workspace(DType::F32, records * 2));
    let shared = SIMDGROUPS * division.parts * SIMD_WIDTH * GROUP * size_of::<f32>();
    let name = format!("cached_split_{}_{}", q.dtype(), k_cache.dtype());
    let split = flags(Dispatch::new(&SPLIT, name))
        .read(q)
        .read(k_cache)
        .read(v_cache)
        .read(kv_len)
        .read_or(sinks.as_ref(), q)
        .write_or(partial.as_ref(), q)
        .write_or(statistics.as_ref(), q);
    let split = if single { split.write(output) } else { split.read(q) };
    lowering.dispatch(split.threadgroup_memory(shared).grid(
        [division.splits, heads / division.heads, tokens],
        [SIMD_WIDTH * SIMDGROUPS, 1, 1],
    ))?;
    let (Some(partial), Some(statistics)) = (partial, statistics) else { return Ok(()) };
    lowering.barrier();
    lowering.dispatch(
        flags(Dispatch::new(&SPLIT, format!("cached_merge_{}", q.dtype())))
            .read(&partial)
            .read(&statistics)
            .read(kv_len)
            .read_or(sinks.as_ref(), q)
            .write(output)
            .grid([1, heads, tokens], [MERGE_THREADS, 1, 1]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::Caps;
    use crate::view::Memory;

    fn view(memory: usize, dtype: DType, shape: impl Into<kiln_core::Shape>) -> View {
        View::contiguous(Memory::Buffer(memory), 0, dtype, shape)
    }

    fn cached(tokens: usize, cache: DType, dim: usize, capacity: usize) -> Vec<Vec<Dispatch>> {
        let op = CachedAttention {
            q: view(0, DType::F32, [tokens, 8, dim]),
            k_cache: view(1, cache, [2, capacity, dim]),
            v_cache: view(2, cache, [2, capacity, dim]),
            kv_len: view(3, DType::U32, [1]),
            sinks: None,
            output: view(4, DType::F32, [tokens, 8, dim]),
            scale: 0.125,
            window: None,
            softcap: None,
            ring: false,
        };
        let mut lowering = Lowering::new(&Caps::APPLE7);
        cached_attention(&op, &mut lowering).unwrap();
        lowering.phases
    }

    #[test]
    fn few_queries_split_their_keys() {
        let phases = cached(1, DType::F16, 128, 4096);
        assert_eq!(phases[0][0].kernel.function, "cached_split_f32_f16");
        // 16 splits; the four heads of a key-value head share its keys.
        assert_eq!(phases[0][0].threadgroups, [16, 2, 1]);
        assert_eq!(phases[1][0].kernel.function, "cached_merge_f32");
        let short = cached(1, DType::F16, 128, 256);
        assert_eq!(short.len(), 1, "one split has nothing to merge");
    }

    #[test]
    fn many_queries_are_tiles_unless_keys_are_f32() {
        let tiles = cached(9, DType::Q8_0, 128, 4096);
        assert_eq!(tiles[0][0].kernel.function, "cached_tiles_f32_q8_0_128");
        assert_eq!(tiles[0][0].threadgroups, [1, 8, 1]);
        assert_eq!(cached(33, DType::F16, 256, 64)[0][0].threadgroups, [3, 8, 1]);
        let exact = cached(9, DType::F32, 128, 4096);
        assert_eq!(exact[0][0].kernel.function, "cached_split_f32_f32");
        assert_eq!(exact[0][0].threadgroups, [1, 2, 9]);
    }

    #[test]
    fn heads_share_keys_as_far_as_registers_go() {
        let heads = |group, dim| divide(1, 256, group, dim).heads;
        assert_eq!([heads(8, 128), heads(8, 256), heads(8, 512)], [8, 4, 2]);
        assert_eq!([heads(5, 128), heads(5, 256), heads(1, 64)], [5, 1, 1]);
    }

    #[test]
    fn splits_cover_the_keys() {
        for keys in [1, 31, 256, 257, 4096, 100_000, 1 << 20] {
            let Division { splits, split_keys, .. } = divide(1, keys, 1, 128);
            assert!(splits * split_keys >= keys && splits <= MAX_SPLITS, "{keys}");
            assert!(split_keys.is_multiple_of(KEYS_AT_A_TIME));
        }
    }

    #[test]
    fn tiles_fit_in_threadgroup_memory() {
        for (dim, cached) in TILE_DIMS.into_iter().flat_map(|dim| [(dim, false), (dim, true)]) {
            let keys = if dim == 512 && cached { 8 } else { 16 };
            let query = if cached { 4 } else { 2 };
            let row = dim + 8;
            let scores = 4 * (2 * 8 * keys + 64) * size_of::<f32>();
            let bytes = tile_rows(dim, cached) * row * query + keys * row * 2 + scores;
            assert!(bytes <= Caps::APPLE7.threadgroup_memory, "{dim} {cached}: {bytes}");
        }
    }

    #[test]
    fn other_head_dimensions_take_the_next_tile() {
        assert_eq!([8, 64, 72, 112, 192].map(|dim| tile_dim(dim).unwrap()), [64, 64, 80, 128, 256]);
        assert!(tile_dim(520).is_err());
    }
}
