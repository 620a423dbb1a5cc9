//! Attention: tiles of keys for many query rows, one pass over the cache for few.

mod element;
mod kernel;
mod mask;
mod problem;
mod softmax;
mod split;
mod tiles;

use crate::exec::Lowering;
use crate::view::View;
use kiln_core::ops::{AttentionLayout, CachedAttention, FlashAttention, FlashAttentionBlocks};
use mask::Mask;
use problem::{Keys, Problem, Rows};

/// How an attention against a cache is computed, a pure function of the number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// One pass over the cache, split by keys.
    Split,
    /// Tiles of rows and keys.
    Tiles,
}

/// Most tokens of the route that is split by keys.
const MAX_SPLIT_TOKENS: usize = 8;

/// Chooses the route of an attention of `tokens` tokens against a cache.
pub(crate) fn select(tokens: usize) -> Route {
    if tokens <= MAX_SPLIT_TOKENS { Route::Split } else { Route::Tiles }
}

/// `softmax(scale * Q K^T + mask) V` of given keys and values.
pub(super) fn flash_attention(op: &FlashAttention<View>, lowering: &mut Lowering) {
    let (q, k) = (&op.q, &op.k);
    let axes = match op.layout {
        AttentionLayout::HeadMajor => [0, 1, 2],
        AttentionLayout::SeqMajor => [0, 2, 1],
    };
    let rows = |view: &View| Rows::batched(view, axes);
    let [_, head, position] = axes;
    let (tokens, len) = (q.extent(position), k.extent(position));
    let offset = op.q_offset.unwrap_or(len.saturating_sub(tokens));
    let blocks = op.blocks.map(|blocks| (blocks, op.tile));
    let problem = Problem {
        q: rows(q),
        k: rows(k),
        v: rows(&op.v),
        output: rows(&op.output),
        keys: Keys::Given { len, offset },
        mask: op.mask.map(|values| Mask { values, blocks }),
        sinks: op.sinks,
        batch: q.extent(0),
        kv_heads: k.extent(head),
        group: q.extent(head) / k.extent(head),
        tokens,
        scale: op.scale,
        softcap: op.softcap,
        causal: op.causal,
        window: op.window,
    };
    tiles::lower(problem, lowering);
}

/// Classifies the tiles of a mask.
pub(super) fn flash_attention_blocks(op: &FlashAttentionBlocks<View>, lowering: &mut Lowering) {
    mask::blocks(op, lowering);
}

/// Causal attention against a cache.
pub(super) fn cached_attention(op: &CachedAttention<View>, lowering: &mut Lowering) {
    let (tokens, heads) = (op.q.extent(0), op.q.extent(1));
    let (kv_heads, capacity) = (op.k_cache.extent(0), op.k_cache.extent(1));
    let problem = Problem {
        q: Rows::single(&op.q, [1, 0]),
        k: Rows::single(&op.k_cache, [0, 1]),
        v: Rows::single(&op.v_cache, [0, 1]),
        output: Rows::single(&op.output, [1, 0]),
        keys: Keys::Cache { len: op.kv_len, capacity, ring: op.ring },
        mask: None,
        sinks: op.sinks,
        batch: 1,
        kv_heads,
        group: heads / kv_heads,
        tokens,
        scale: op.scale,
        softcap: op.softcap,
        causal: true,
        window: op.window,
    };
    match select(tokens) {
        Route::Split => split::lower(problem, lowering),
        Route::Tiles => tiles::lower(problem, lowering),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        for tokens in [1, 2, 8] {
            assert_eq!(select(tokens), Route::Split);
        }
        for tokens in [9, 16, 512] {
            assert_eq!(select(tokens), Route::Tiles);
        }
    }
}
