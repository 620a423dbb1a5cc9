//! Hazards between steps: read after write, write after read and write after write on overlapping
//! bytes. Two reads never conflict.

use crate::Tensor;
use crate::ops::Op;
use crate::storage::Id;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

type Space = (Option<Id>, Range<usize>);

struct Use {
    step: usize,
    range: Range<usize>,
    writes: bool,
}

/// For each step, the earlier steps it must wait for, without those that others imply.
pub(super) fn edges(ops: &[Op<Tensor>], space: &dyn Fn(&Tensor) -> Space) -> Vec<Vec<usize>> {
    let operands: Vec<_> = ops.iter().map(|op| op.operands()).collect();
    let written: HashSet<Option<Id>> = operands
        .iter()
        .flatten()
        .filter(|(role, _)| role.access.writes())
        .map(|(_, tensor)| space(tensor).0)
        .collect();
    let mut uses: HashMap<Option<Id>, Vec<Use>> = HashMap::new();
    let mut ancestors: Vec<Bits> = Vec::with_capacity(ops.len());
    let mut edges = Vec::with_capacity(ops.len());
    for (step, operands) in operands.iter().enumerate() {
        let mut before = Vec::new();
        for (role, tensor) in operands {
            let (memory, range) = space(tensor);
            if !written.contains(&memory) {
                continue;
            }
            let writes = role.access.writes();
            let earlier = uses.entry(memory).or_default();
            let conflicts = earlier.iter().filter(|other| {
                other.step != step
                    && (writes || other.writes)
                    && other.range.start < range.end
                    && range.start < other.range.end
            });
            before.extend(conflicts.map(|other| other.step));
            if writes {
                // Whoever conflicts with an access that this one covers conflicts with this one.
                earlier.retain(|other| {
                    other.step == step
                        || other.range.start < range.start
                        || other.range.end > range.end
                });
            }
            earlier.push(Use { step, range, writes });
        }
        before.sort_unstable_by(|a, b| b.cmp(a));
        before.dedup();
        let mut reached = Bits::new(ops.len());
        let mut direct = Vec::new();
        for earlier in before {
            if !reached.contains(earlier) {
                direct.push(earlier);
                reached.insert(earlier);
                reached.extend(&ancestors[earlier]);
            }
        }
        direct.reverse();
        ancestors.push(reached);
        edges.push(direct);
    }
    edges
}

/// A set of step indices.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn extend(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}
