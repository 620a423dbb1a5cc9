//! Attention.

use super::activations;
use super::flash_attention_wgmma;
use super::head_norm_rope::{HeadNormRopeArgs, JOBS, WARP_VALUES};
use crate::kernels::{HEAD_DIMS, Unit};
use crate::lower::{Kernel, Lowering};
use crate::runtime::graph::Param;
use crate::view::{View, element};
use bytemuck::Zeroable;
use kiln_core::DType;
use kiln_core::ops::{AttentionLayout, CachedAttention, FlashAttention, FlashAttentionBlocks};

kiln_core::kernel_args! {
    /// Arguments of `flash_attention.cu`. Addresses of absent operands are 0.
    pub(crate) struct FlashArgs {
        /// Queries.
        q: u64,
        /// Bytes from batch to batch.
        q_stride_b: u64,
        /// Bytes from head to head.
        q_stride_h: u64,
        /// Bytes from row to row.
        q_stride_l: u64,
        /// Keys.
        k: u64,
        /// Bytes from batch to batch.
        k_stride_b: u64,
        /// Bytes from head to head.
        k_stride_h: u64,
        /// Bytes from row to row.
        k_stride_l: u64,
        /// Values.
        v: u64,
        /// Bytes from batch to batch.
        v_stride_b: u64,
        /// Bytes from head to head.
        v_stride_h: u64,
        /// Bytes from row to row.
        v_stride_l: u64,
        /// Output, of the type of the queries.
        output: u64,
        /// Bytes from batch to batch.
        output_stride_b: u64,
        /// Bytes from head to head.
        output_stride_h: u64,
        /// Bytes from row to row.
        output_stride_l: u64,
        /// Mask.
        mask: u64,
        /// Bytes from batch to batch, 0 for one mask for all.
        mask_stride_b: u64,
        /// Bytes from head to head.
        mask_stride_h: u64,
        /// Bytes from row to row.
        mask_stride_l: u64,
        /// Tile map of the mask.
        blocks: u64,
        /// Bytes from batch to batch.
        blocks_stride_b: u64,
        /// Bytes from head to head.
        blocks_stride_h: u64,
        /// Bytes from row to row.
        blocks_stride_l: u64,
        /// `[H]` f32
        sinks: u64,
        /// `[1]` u32 on the device, in place of `kv_len`: a cache.
        kv_len_at: u64,
        /// Slots of a cache.
        capacity: u64,
        /// Query rows.
        q_len: u64,
        /// Keys.
        kv_len: i64,
        /// Position of the first query row.
        q_offset: i64,
        /// Keys that a query sees at most, or 0.
        window: u64,
        /// Rows of a tile of the map.
        tile_rows: u64,
        /// Columns of a tile of the map.
        tile_columns: u64,
        /// Query heads of a key-value head.
        group: u32,
        /// Head dimension.
        dim: u32,
        /// Type of queries and output.
        q_element: u32,
        /// 0 none, 1 boolean, 2 added.
        mask_kind: u32,
        /// Whether keys after the query are masked.
        causal: u32,
        /// Whether a cache wraps around.
        ring: u32,
        /// Whether rows of keys and values start at multiples of 16 bytes.
        wide: u32,
        /// Multiplies the scores.
        scale: f32,
        /// Soft limit of the scores, or 0.
        softcap: f32,
        /// Query heads.
        heads: u32,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `flash_attention_blocks` in `flash_attention.cu`.
    pub(crate) struct FlashBlocksArgs {
        /// Mask.
        mask: u64,
        /// Bytes from batch to batch.
        mask_stride_b: u64,
        /// Bytes from head to head.
        mask_stride_h: u64,
        /// Bytes from row to row.
        mask_stride_l: u64,
        /// Tile map.
        blocks: u64,
        /// Bytes from batch to batch.
        blocks_stride_b: u64,
        /// Bytes from head to head.
        blocks_stride_h: u64,
        /// Bytes from row to row.
        blocks_stride_l: u64,
        /// Rows of the mask.
        q_len: u64,
        /// Columns of the mask.
        kv_len: u64,
        /// Rows of a tile.
        tile_rows: u64,
        /// Columns of a tile.
        tile_columns: u64,
        /// Heads of the mask.
        heads: u64,
    }
}

kiln_core::kernel_args! {
    /// Arguments of `cached_attention.cu`.
    pub(crate) struct CachedAttentionArgs {
        /// `[T, H, D]`
        q: u64,
        /// Bytes from token to token.
        q_stride_t: u64,
        /// Bytes from head to head.
        q_stride_h: u64,
        /// `[H_kv, capacity, D]`
        k: u64,
        /// Bytes from head to head.
        k_stride_h: u64,
        /// Bytes from slot to slot.
        k_stride_s: u64,
        /// `[H_kv, capacity, D]`
        v: u64,
        /// Bytes from head to head.
        v_stride_h: u64,
        /// Bytes from slot to slot.
        v_stride_s: u64,
        /// `[T, H, D]`, of the type of the queries.
        output: u64,
        /// Bytes from token to token.
        output_stride_t: u64,
        /// Bytes from head to head.
        output_stride_h: u64,
        /// `[H]` f32, or 0
        sinks: u64,
        /// `[1]` u32
        kv_len: u64,
        /// f32 sums of values by token, head and part.
        partial: u64,
        /// Largest score and sum of weights by token, head and part.
        statistics: u64,
        /// T
        tokens: u64,
        /// H
        heads: u64,
        /// Slots of the cache.
        capacity: u64,
        /// Keys that a query sees at most, or 0.
        window: u64,
        /// The output in 15 bits too, by rows of all heads, or 0.
        q15: u64,
        /// How many parts are done, u32 by token, key-value head and group of query heads.
        counters: u64,
        /// Most parts.
        parts: u32,
        /// Query heads of a key-value head.
        group: u32,
        /// Head dimension.
        dim: u32,
        /// Lanes of a key.
        lanes: u32,
        /// Type of queries and output.
        element: u32,
        /// Whether the cache wraps around.
        ring: u32,
        /// Multiplies the scores.
        scale: f32,
        /// Soft limit of the scores, or 0.
        softcap: f32,
    }
}

/// Least rows for which an attention to a cache takes the way of a prompt. Prompts run in multiples of
/// so many rows: all their chunks take one route, and how a prompt is cut changes no bit.
pub(crate) const PROMPT_ROWS: u64 = 16;

/// Least keys of a part, a power of two.
const PART_KEYS: u64 = 64;
/// Most parts: a warp merges them, and those of 8 heads fill a device.
const PARTS: u64 = 32;
/// Warps of a block of `cached_attention.cu`.
const PART_WARPS: u64 = 8;

/// Sizes that `cached_attention.cu` shares.
pub(crate) fn define_parts() -> String {
    format!("#define PART_SHIFT {}\n#define WARPS {PART_WARPS}u\n", PART_KEYS.ilog2())
}

/// Parts of a cache of `capacity` slots; a ring's keys need not begin with a part.
fn parts(capacity: u64, ring: bool) -> u64 {
    (capacity.div_ceil(PART_KEYS) + u64::from(ring)).min(PARTS)
}

/// A tile of the attention kernels for a head dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Head dimension with padding.
    pub(crate) dim: u32,
    /// Query rows.
    pub(crate) rows: u64,
    /// Keys.
    pub(crate) keys: u64,
    /// Threads of a block.
    pub(crate) threads: u32,
}

/// The tile for a head dimension; shared memory and registers of the accumulator set the limits.
pub(crate) fn tile(dim: u64) -> Tile {
    let dim = HEAD_DIMS.into_iter().find(|padded| u64::from(*padded) >= dim).unwrap_or(512);
    match dim {
        512 => Tile { dim, rows: 32, keys: 32, threads: 128 },
        256 => Tile { dim, rows: 64, keys: 32, threads: 256 },
        _ => Tile { dim, rows: 64, keys: 64, threads: 128 },
    }
}

impl Tile {
    /// Bytes of shared memory: queries once or twice, keys, values, each row with 8 values more.
    pub(crate) fn shared(self, split: bool) -> u64 {
        let queries = if split { 2 * self.rows } else { self.rows };
        (queries + 2 * self.keys) * u64::from(self.dim + 8) * 2
    }
}

/// Launches an attention on tiles: queries of a type against keys of another.
fn launch_flash(
    [queries, keys]: [DType; 2],
    [heads, batch]: [u64; 2],
    args: &FlashArgs,
    lowering: &mut Lowering,
) {
    let args = &FlashArgs { heads: heads as u32, ..*args };
    if flash_attention_wgmma::launch([queries, keys], batch, args, lowering) {
        return;
    }
    let tile = tile(u64::from(args.dim));
    let split = queries != keys;
    let suffix = if split { "_split" } else { "" };
    let kernel = format!("flash_attention_{keys}_{}{suffix}", tile.dim);
    let kernel = Kernel::new(Unit::FlashAttention(tile.dim), kernel, 1, tile.threads)
        .grid([args.q_len.div_ceil(tile.rows), heads, batch])
        .shared(tile.shared(split));
    lowering.launch(kernel, args);
}

/// Bytes along batch, head and row of a view in a layout.
fn strides(view: View, layout: AttentionLayout) -> [u64; 3] {
    match layout {
        AttentionLayout::HeadMajor => [view.stride(0), view.stride(1), view.stride(2)],
        AttentionLayout::SeqMajor => [view.stride(0), view.stride(2), view.stride(1)],
    }
}

/// Bytes along batch, head and row of a mask or its map; 0 along axes that it does not have.
fn mask_strides(view: View) -> [u64; 3] {
    if view.rank() == 2 {
        return [0, 0, view.stride(0)];
    }
    let shared = |axis| if view.extent(axis) == 1 { 0 } else { view.stride(axis) };
    [shared(0), shared(1), view.stride(2)]
}

pub(super) fn flash_attention(op: &FlashAttention<View>, lowering: &mut Lowering) {
    let FlashAttention { q, k, v, output, layout, .. } = *op;
    let dims = |view: View| {
        layout.split([0, 1, 2, 3].map(|axis| view.extent(axis) as usize)).map(|dim| dim as u64)
    };
    let [batch, heads, q_len, dim] = dims(q);
    let [_, kv_heads, kv_len, _] = dims(k);
    let [q_stride_b, q_stride_h, q_stride_l] = strides(q, layout);
    let [k_stride_b, k_stride_h, k_stride_l] = strides(k, layout);
    let [v_stride_b, v_stride_h, v_stride_l] = strides(v, layout);
    let [output_stride_b, output_stride_h, output_stride_l] = strides(output, layout);
    let [mask_stride_b, mask_stride_h, mask_stride_l] = op.mask.map_or([0; 3], mask_strides);
    let [blocks_stride_b, blocks_stride_h, blocks_stride_l] =
        op.blocks.map_or([0; 3], mask_strides);
    let args = FlashArgs {
        q: q.address,
        q_stride_b,
        q_stride_h,
        q_stride_l,
        k: k.address,
        k_stride_b,
        k_stride_h,
        k_stride_l,
        v: v.address,
        v_stride_b,
        v_stride_h,
        v_stride_l,
        output: output.address,
        output_stride_b,
        output_stride_h,
        output_stride_l,
        mask: op.mask.map_or(0, |mask| mask.address),
        mask_stride_b,
        mask_stride_h,
        mask_stride_l,
        blocks: op.blocks.map_or(0, |blocks| blocks.address),
        blocks_stride_b,
        blocks_stride_h,
        blocks_stride_l,
        sinks: op.sinks.map_or(0, |sinks| sinks.address),
        q_len,
        kv_len: kv_len as i64,
        q_offset: op.q_offset.map_or(kv_len.saturating_sub(q_len), |at| at as u64) as i64,
        window: op.window.map_or(0, |window| window as u64),
        tile_rows: op.tile[0] as u64,
        tile_columns: op.tile[1] as u64,
        group: (heads / kv_heads) as u32,
        dim: dim as u32,
        q_element: element(q.dtype()),
        mask_kind: op.mask.map_or(0, |mask| if mask.dtype() == DType::U8 { 1 } else { 2 }),
        causal: op.causal.into(),
        wide: (k.is_wide() && v.is_wide()).into(),
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
        ..FlashArgs::zeroed()
    };
    launch_flash([q.dtype(), k.dtype()], [heads, batch], &args, lowering);
}

pub(super) fn flash_attention_blocks(op: &FlashAttentionBlocks<View>, lowering: &mut Lowering) {
    let FlashAttentionBlocks { mask, blocks, tile } = *op;
    let [mask_stride_b, mask_stride_h, mask_stride_l] = mask_strides(mask);
    let rank = mask.rank();
    let args = FlashBlocksArgs {
        mask: mask.address,
        mask_stride_b,
        mask_stride_h,
        mask_stride_l,
        blocks: blocks.address,
        blocks_stride_b: blocks.stride(0),
        blocks_stride_h: blocks.stride(1),
        blocks_stride_l: blocks.stride(2),
        q_len: mask.extent(rank - 2),
        kv_len: mask.last(),
        tile_rows: tile[0] as u64,
        tile_columns: tile[1] as u64,
        heads: blocks.extent(1),
    };
    let kernel = format!("flash_attention_blocks_{}", mask.dtype());
    let grid = [blocks.last(), blocks.extent(2), blocks.extent(0) * blocks.extent(1)];
    let kernel = Kernel::new(Unit::FlashAttentionBlocks, kernel, 1, 128).grid(grid);
    lowering.launch(kernel, &args);
}

/// The way of an attention to a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheRoute {
    /// Tiles on the tensor cores.
    Tiles,
    /// f32, keys in parts.
    Parts,
    /// f32, all keys in one block.
    Whole,
}

/// The route of `tokens` query rows against a cache of a type.
pub(crate) fn select_cache(cache: DType, tokens: u64) -> CacheRoute {
    match cache {
        _ if tokens < PROMPT_ROWS => CacheRoute::Parts,
        DType::F16 | DType::BF16 => CacheRoute::Tiles,
        _ => CacheRoute::Whole,
    }
}

pub(super) fn cached_attention(op: &CachedAttention<View>, lowering: &mut Lowering) {
    let tokens = op.q.extent(0);
    match select_cache(op.k_cache.dtype(), tokens) {
        CacheRoute::Tiles => tiles(op, lowering),
        CacheRoute::Parts => parted(op, parts(op.k_cache.extent(1), op.ring), lowering),
        CacheRoute::Whole => parted(op, 1, lowering),
    }
}

fn tiles(op: &CachedAttention<View>, lowering: &mut Lowering) {
    let CachedAttention { q, k_cache, v_cache, kv_len, sinks, output, .. } = *op;
    let args = FlashArgs {
        q: q.address,
        q_stride_h: q.stride(1),
        q_stride_l: q.stride(0),
        k: k_cache.address,
        k_stride_h: k_cache.stride(0),
        k_stride_l: k_cache.stride(1),
        v: v_cache.address,
        v_stride_h: v_cache.stride(0),
        v_stride_l: v_cache.stride(1),
        output: output.address,
        output_stride_h: output.stride(1),
        output_stride_l: output.stride(0),
        sinks: sinks.map_or(0, |sinks| sinks.address),
        kv_len_at: kv_len.address,
        capacity: k_cache.extent(1),
        q_len: q.extent(0),
        window: op.window.map_or(0, |window| window as u64),
        group: (q.extent(1) / k_cache.extent(0)) as u32,
        dim: q.last() as u32,
        q_element: element(q.dtype()),
        causal: 1,
        ring: op.ring.into(),
        wide: (k_cache.is_wide() && v_cache.is_wide()).into(),
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
        ..FlashArgs::zeroed()
    };
    launch_flash([q.dtype(), k_cache.dtype()], [q.extent(1), 1], &args, lowering);
}

fn parted(op: &CachedAttention<View>, parts: u64, lowering: &mut Lowering) {
    let (kernel, args) = parts_kernel("", op, parts, lowering);
    lowering.launch(kernel, &args);
}

/// Whether there is a kernel that makes the query, the new key and the new value ready itself.
pub(super) fn can_rotate(op: &CachedAttention<View>) -> bool {
    let CachedAttention { q, k_cache, v_cache, ring, .. } = *op;
    let (tokens, dim) = (q.extent(0), q.last());
    tokens == 1
        && select_cache(k_cache.dtype(), tokens) == CacheRoute::Parts
        && q.dtype() == DType::F32
        && !k_cache.dtype().is_quantized()
        && k_cache.is_wide()
        && v_cache.is_wide()
        && !ring
        && dim <= WARP_VALUES
}

/// The attention of a token, with the operations before it that rotate its query and its key and append its key
/// and its value, in this order.
pub(super) fn rope_cached_attention(
    op: &CachedAttention<View>,
    jobs: [HeadNormRopeArgs; JOBS],
    lowering: &mut Lowering,
) {
    let parts = parts(op.k_cache.extent(1), op.ring);
    let (kernel, args) = parts_kernel("rope_", op, parts, lowering);
    let params = [bytemuck::bytes_of(&args), bytemuck::cast_slice(&jobs)];
    lowering.launch_with(kernel, params.map(|bytes| Param::Bytes(bytes.to_vec())).to_vec());
}

/// The kernel of few queries, in a form that its name begins with.
fn parts_kernel(
    form: &str,
    op: &CachedAttention<View>,
    parts: u64,
    lowering: &mut Lowering,
) -> (Kernel, CachedAttentionArgs) {
    let CachedAttention { q, k_cache, v_cache, kv_len, sinks, output, .. } = *op;
    let [tokens, heads, dim] = [q.extent(0), q.extent(1), q.last()];
    let kv_heads = k_cache.extent(0);
    let group = heads / kv_heads;
    let rows = tokens * heads * parts;
    let partial = lowering.workspace(rows * dim * 4);
    let statistics = lowering.workspace(rows * 8);
    let rows_of_heads = output.heads_as_rows().filter(|_| dim.is_multiple_of(32));
    let q15 = rows_of_heads.map_or(0, |rows| activations::provide_q15(rows, lowering));
    let (lanes, chunks) = lanes(dim);
    // Query heads of a block.
    let together = if group == 1 { 1 } else { 4 / chunks };
    let groups = group.div_ceil(together);
    let args = CachedAttentionArgs {
        q: q.address,
        q_stride_t: q.stride(0),
        q_stride_h: q.stride(1),
        k: k_cache.address,
        k_stride_h: k_cache.stride(0),
        k_stride_s: k_cache.stride(1),
        v: v_cache.address,
        v_stride_h: v_cache.stride(0),
        v_stride_s: v_cache.stride(1),
        output: output.address,
        output_stride_t: output.stride(0),
        output_stride_h: output.stride(1),
        sinks: sinks.map_or(0, |sinks| sinks.address),
        kv_len: kv_len.address,
        partial,
        statistics,
        tokens,
        heads,
        capacity: k_cache.extent(1),
        window: op.window.map_or(0, |window| window as u64),
        q15,
        counters: lowering.counters(tokens * kv_heads * groups),
        parts: parts as u32,
        group: group as u32,
        dim: dim as u32,
        lanes,
        element: element(q.dtype()),
        ring: op.ring.into(),
        scale: op.scale,
        softcap: op.softcap.unwrap_or(0.0),
    };
    let wide = k_cache.dtype().is_quantized() || k_cache.is_wide() && v_cache.is_wide();
    let narrow = if wide { "" } else { "narrow_" };
    let cache = k_cache.dtype();
    let kernel = format!("{form}cached_attention_{narrow}{cache}_g{together}_c{chunks}");
    let slots = PART_WARPS * u64::from(32 / lanes);
    let kernel = Kernel::new(Unit::CachedAttention, kernel, 1, 32 * PART_WARPS as u32)
        .grid([parts, kv_heads, tokens * groups])
        .shared(together * slots * dim * 4);
    (kernel, args)
}

/// Lanes of a key, eight values each, and how many times they go along it.
pub(crate) fn lanes(dim: u64) -> (u32, u64) {
    let lanes = dim.div_ceil(8).next_power_of_two().clamp(8, 32);
    (lanes as u32, dim.div_ceil(8 * lanes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_dimension_has_a_tile_that_fits() {
        for dim in (8..=512).step_by(8) {
            let tile = tile(dim);
            assert!(u64::from(tile.dim) >= dim);
            assert!(tile.shared(true) <= 163 << 10, "{dim}: {}", tile.shared(true));
        }
    }

    #[test]
    fn parts_have_room_for_a_cache() {
        assert_eq!([64, 65, 2048, 1 << 20].map(|capacity| parts(capacity, false)), [1, 2, 32, 32]);
        assert_eq!([63, 64, 65].map(|capacity| parts(capacity, true)), [2, 2, 3]);
    }

    #[test]
    fn lanes_reach_the_end_of_a_row() {
        for dim in (8..=512).step_by(8) {
            let (lanes, chunks) = lanes(dim);
            assert!(u64::from(lanes) * chunks * 8 >= dim && chunks <= 2, "{dim}");
            assert!(PART_WARPS * u64::from(32 / lanes) <= 32, "{dim}");
        }
    }

    #[test]
    fn chunks_of_a_prompt_take_one_route() {
        for cache in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
            assert_eq!(select_cache(cache, 16), select_cache(cache, 4096), "{cache}");
        }
        assert_eq!(select_cache(DType::F16, 1), CacheRoute::Parts);
        assert_eq!(select_cache(DType::F32, 64), CacheRoute::Whole);
    }
}
