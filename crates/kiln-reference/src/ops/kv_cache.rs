//! Appending to a key-value cache.

use crate::array::Array;
use crate::view::View;
use kiln_core::Result;
use kiln_core::ops::KvAppend;

pub(super) fn kv_append(op: &KvAppend<View>) -> Result<()> {
    append(&op.input.load()?, op.start.load_indices()?[0], &op.cache, op.ring)
}

/// Writes token `i` of `x`, `[T, H_kv, D]`, into slot `start + i` of `cache`, `[H_kv, capacity, D]`.
pub(super) fn append(x: &Array, start: usize, cache: &View, ring: bool) -> Result<()> {
    let [tokens, heads] = [x.shape[0], x.shape[1]];
    let capacity = cache.extent(1);
    for i in 0..tokens {
        let slot = if ring { (start + i) % capacity } else { start + i };
        let kept = if ring { i + capacity >= tokens } else { slot < capacity };
        for h in 0..heads {
            if kept {
                cache.store_row(&[h, slot], x.row(&[i, h]))?;
            }
        }
    }
    Ok(())
}
