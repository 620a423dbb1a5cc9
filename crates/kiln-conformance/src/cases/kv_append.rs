//! Appending to a key-value cache.

use super::cached_attention::{CACHES, cache_bytes};
use super::{Cases, turn, within};
use crate::bounds::Family;
use crate::program::{Agreement, Check, Layout, Program, Slot, ints};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "kv_append";

/// Tokens, capacity, position of the first token.
const LINEAR: [[u32; 3]; 8] = [
    [1, 8, 0],
    [1, 8, 7],
    [3, 8, 5],
    [5, 8, 6],
    [4, 8, 8],
    [3, 8, u32::MAX - 1],
    [17, 64, 3],
    [64, 64, 0],
];

/// Wrapping, longer than the ring, and far along.
const RING: [[u32; 3]; 9] = [
    [1, 8, 7],
    [1, 8, 8],
    [5, 8, 6],
    [8, 8, 3],
    [9, 8, 3],
    [20, 8, 5],
    [3, 7, 1_000_003],
    [64, 40, 100],
    [3, 7, 3_000_000_000],
];

pub(super) fn add(cases: &mut Cases) {
    for (i, x) in DType::FLOATS.into_iter().enumerate() {
        for (j, cache) in CACHES.into_iter().enumerate() {
            for step in 0..4 {
                let index = i + j + step * 2;
                add_one(cases, [x, cache], false, turn(&LINEAR, index), index);
                add_one(cases, [x, cache], true, turn(&RING, index), index + 1);
            }
        }
    }
    for ring in [false, true] {
        let kind = if ring { "ring" } else { "linear" };
        cases.add(OP, kind, "replay: one token after the other", move |p| {
            let op = build(p, [DType::F32, DType::F16], ring, [1, 8, 0], 0)?;
            let mut rounds = Vec::new();
            for start in 1..12u32 {
                let values = p.rng.values(2 * 64, Dist::Normal(1.0));
                let row = crate::host::encode(DType::F32, &values);
                rounds.push(vec![(op.start, ints(&[start])), (op.input, row)]);
            }
            p.push(Op::KvAppend(op));
            p.check = Check::Replay(rounds);
            Ok(())
        });
    }
}

fn add_one(cases: &mut Cases, types: [DType; 2], ring: bool, lengths: [u32; 3], index: usize) {
    let [x, cache] = types;
    let [tokens, capacity, start] = lengths;
    let route = if ring { "ring" } else { "linear" };
    let layout = Layout::turn(index);
    let label = format!("{x} to {cache}, T {tokens} at {start} of {capacity}, {layout}");
    cases.add(OP, route, label, move |p| {
        let op = build(p, types, ring, lengths, index)?;
        p.push(Op::KvAppend(op));
        Ok(())
    });
}

fn build(
    p: &mut Program,
    [x, cache]: [DType; 2],
    ring: bool,
    [tokens, capacity, start]: [u32; 3],
    index: usize,
) -> Result<KvAppend<Slot>, crate::program::Broken> {
    p.layout(Layout::turn(index));
    let [tokens, capacity] = [tokens as usize, capacity as usize];
    let heads = turn(&[2, 1, 5], index);
    let dim = if cache.is_quantized() { turn(&[64, 96], index) } else { turn(&[64, 40, 7], index) };
    let input = p.float(x, [tokens, heads, dim], Dist::Normal(1.0));
    let start = p.ints([1], &[start]);
    let old = p.rng.values(heads * capacity * dim, Dist::Normal(1.0));
    let old = cache_bytes(cache, &old)?;
    let slot = p.bytes(cache, [heads, capacity, dim], old);
    let agreement = if cache.is_quantized() {
        within(Family::QuantizedCache, DType::F32, 0)
    } else {
        Agreement::Exact
    };
    p.agree(slot, agreement);
    Ok(KvAppend { input, start, cache: slot, ring })
}
