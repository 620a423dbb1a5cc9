//! Placement of temporaries in one arena by their lifetimes.

use crate::Tensor;
use crate::ops::Op;
use crate::storage::Id;
use std::collections::HashMap;

/// Temporaries start at multiples of this, enough for any vector or cache line.
const ALIGNMENT: usize = 256;

/// Most bytes of a small temporary ([`Backend::joins`](crate::backend::Backend::joins)).
const SMALL: usize = 64 << 10;

struct Lifetime {
    id: Id,
    bytes: usize,
    first: usize,
    last: usize,
}

/// Offsets by storage, and the size of the arena. The largest come first; each takes the lowest
/// gap among those alive at the same time, small ones for `joins` steps more. Sums saturate: no device
/// can allocate such an arena.
pub(super) fn place(ops: &[Op<Tensor>], joins: usize) -> (HashMap<Id, usize>, usize) {
    let mut lifetimes = lifetimes(ops);
    for life in lifetimes.iter_mut().filter(|life| life.bytes <= SMALL) {
        life.last += joins;
    }
    lifetimes.sort_by_key(|life| (std::cmp::Reverse(life.bytes), life.first));
    let mut placed: Vec<(usize, &Lifetime)> = Vec::new();
    let mut size = 0;
    for life in &lifetimes {
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, other)| life.first <= other.last && other.first <= life.last)
            .map(|&(offset, other)| (offset, offset.saturating_add(other.bytes)))
            .collect();
        busy.sort_unstable();
        let mut offset = 0usize;
        for (start, end) in busy {
            if offset.saturating_add(life.bytes) <= start {
                break;
            }
            offset = offset.max(end);
        }
        size = size.max(offset.saturating_add(life.bytes));
        placed.push((offset, life));
    }
    (placed.into_iter().map(|(offset, life)| (life.id, offset)).collect(), size)
}

fn lifetimes(ops: &[Op<Tensor>]) -> Vec<Lifetime> {
    let mut lifetimes: Vec<Lifetime> = Vec::new();
    let mut index: HashMap<Id, usize> = HashMap::new();
    for (step, op) in ops.iter().enumerate() {
        for (_, tensor) in op.operands() {
            let storage = tensor.storage();
            if !storage.is_temporary() {
                continue;
            }
            let at = *index.entry(storage.id()).or_insert_with(|| {
                let bytes = storage.bytes().next_multiple_of(ALIGNMENT);
                lifetimes.push(Lifetime { id: storage.id(), bytes, first: step, last: step });
                lifetimes.len() - 1
            });
            lifetimes[at].last = step;
        }
    }
    lifetimes
}
