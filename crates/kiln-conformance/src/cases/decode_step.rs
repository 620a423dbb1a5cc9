//! Decoding steps: heads normalised and rotated, appended to caches and attended to, in one recording.

use super::head_norm_rope::rope;
use super::{Cases, attention_options, turn, within};
use crate::bounds::{Bound, Family};
use crate::host::encode;
use crate::program::{Agreement, Check, Layout, Program, Slot, ints};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "cached_attention";

#[derive(Clone, Copy)]
struct Spec {
    cache: DType,
    tokens: usize,
    heads: [usize; 2],
    dim: usize,
    half: usize,
    pairing: RopePairing,
    norm: bool,
    capacity: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    layout: Layout,
}

const BASE: Spec = Spec {
    cache: DType::F16,
    tokens: 1,
    heads: [8, 2],
    dim: 128,
    half: 64,
    pairing: RopePairing::Interleaved,
    norm: false,
    capacity: 130,
    window: None,
    softcap: None,
    sinks: false,
    layout: Layout::Guarded,
};

/// Heads, dimension, rotated pairs and pairing.
const SHAPES: [([usize; 2], usize, usize, RopePairing); 8] = [
    ([8, 2], 128, 64, RopePairing::Interleaved),
    ([4, 4], 64, 32, RopePairing::Leading),
    ([16, 2], 128, 32, RopePairing::Leading),
    ([6, 2], 80, 20, RopePairing::Spanning),
    ([5, 1], 256, 128, RopePairing::Spanning),
    ([4, 1], 96, 24, RopePairing::Interleaved),
    ([2, 2], 256, 128, RopePairing::Leading),
    ([3, 1], 64, 0, RopePairing::Interleaved),
];

pub(super) fn add(cases: &mut Cases) {
    let mut index = 0;
    for (heads, dim, half, pairing) in SHAPES {
        for cache in DType::FLOATS {
            let spec = Spec {
                cache,
                heads,
                dim,
                half,
                pairing,
                norm: index % 2 == 1,
                window: turn(&[None, None, Some(5), Some(70)], index),
                softcap: turn(&[None, Some(20.0), None], index / 3),
                sinks: index % 5 == 4,
                ..BASE
            };
            replay(cases, spec, &[0, 1, 2, 37, 62, 63, 64, 65, 127, 128, 129]);
            let at = turn(&[0, 37, 63, 64, 129], index);
            fused(cases, spec, at as u32, at as u32 + 1);
            index += 1;
        }
    }
    // Parts that grow, rows that start anywhere, and more than one token.
    for (i, layout) in (0..4).map(|i| (i, Layout::turn(i))) {
        let spec = Spec {
            cache: turn(&DType::FLOATS, i),
            norm: i % 2 == 0,
            capacity: 2304,
            layout,
            ..BASE
        };
        fused(cases, spec, 2100 + i as u32, 2101 + i as u32);
        fused(cases, Spec { tokens: 3, capacity: 40, ..spec }, 30, 33);
    }
    replay(cases, Spec { capacity: 2304, ..BASE }, &[2047, 2048, 2049, 2303]);
    // Slots that the token does not see, or that the cache does not have, and lengths that cannot be.
    let odd = [
        (5, 100),
        (90, 40),
        (0, 0),
        (129, 131),
        (130, 130),
        (3_000_000_000, 130),
        (7, 3_000_000_000),
    ];
    for (i, (start, kv_len)) in odd.into_iter().enumerate() {
        for window in [None, Some(20)] {
            fused(cases, Spec { cache: turn(&DType::FLOATS, i), window, ..BASE }, start, kv_len);
        }
    }
}

/// The operands of a step that change from token to token.
struct Step {
    q: Slot,
    k: Slot,
    v: Slot,
    start: Slot,
    kv_len: Slot,
}

/// A step that appends at `start`, its keys straight to the cache where `direct`, else through a temporary.
fn step(p: &mut Program, s: Spec, [start, kv_len]: [u32; 2], direct: bool) -> Step {
    let Spec { cache, tokens, heads: [heads, kv_heads], dim, half, capacity, .. } = s;
    p.layout(s.layout);
    let row = |p: &mut Program, heads| p.float(DType::F32, [tokens, heads, dim], Dist::Normal(1.0));
    let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| row(p, heads));
    let positions: Vec<u32> = (0..tokens as u32).map(|token| start.wrapping_add(token)).collect();
    let positions = p.ints([tokens], &positions);
    let start = if tokens == 1 { positions } else { p.ints([1], &[start]) };
    let kv_len = p.ints([1], &[kv_len]);
    let sinks = s.sinks.then(|| p.float(DType::F32, [heads], Dist::Normal(1.0)));
    let caches = [Family::Rope, Family::Arithmetic].map(|family| {
        let slot = p.float(cache, [kv_heads, capacity, dim], Dist::Normal(1.0));
        p.agree(slot, within(family, cache, kv_heads * capacity * dim))
    });
    let turned = |p: &mut Program, input| {
        let op = rope(p, input, positions, [dim, half]);
        let weight = op.weight.filter(|_| s.norm);
        HeadNormRope { pairing: s.pairing, normalize: s.norm, weight, ..op }
    };
    let rotated = p.temp(DType::F32, [tokens, heads, dim]);
    let query = HeadNormRope { output: Some(rotated), ..turned(p, q) };
    let key = turned(p, k);
    let append = |input, cache| Op::KvAppend(KvAppend { input, start, cache, ring: false });
    p.push(Op::HeadNormRope(query));
    if direct {
        let key = HeadNormRope { cache: Some(caches[0]), cache_start: Some(start), ..key };
        p.push(Op::HeadNormRope(key));
    } else {
        let between = p.temp(DType::F32, [tokens, kv_heads, dim]);
        p.push(Op::HeadNormRope(HeadNormRope { output: Some(between), ..key }));
        p.push(append(between, caches[0]));
    }
    p.push(append(v, caches[1]));
    let bound = Bound::attention(DType::F32, cache, tokens * heads * dim);
    let output = p.output(DType::F32, [tokens, heads, dim], Agreement::Within(bound));
    p.push(Op::CachedAttention(CachedAttention {
        q: rotated,
        k_cache: caches[0],
        v_cache: caches[1],
        kv_len,
        sinks,
        output,
        scale: 1.0 / (dim as f32).sqrt(),
        window: s.window,
        softcap: s.softcap,
        ring: false,
    }));
    Step { q, k, v, start, kv_len }
}

fn label(s: Spec) -> String {
    let Spec { cache, tokens, heads: [heads, kv_heads], dim, half, pairing, capacity, .. } = s;
    let mut label = format!(
        "T {tokens} H {heads}/{kv_heads} D {dim}, {half} {pairing:?} pairs, {cache}, capacity {capacity}, {}",
        s.layout
    );
    if s.norm {
        label.push_str(", norm");
    }
    label.push_str(&attention_options(s.window, s.softcap, s.sinks));
    label
}

/// The recording of a step, replayed with new data at one position after the other.
fn replay(cases: &mut Cases, s: Spec, positions: &'static [u32]) {
    cases.add(OP, "rope, append and attend, replay", label(s), move |p| {
        let step = step(p, s, [positions[0], positions[0] + 1], true);
        let [heads, kv_heads] = s.heads;
        let rounds = positions[1..]
            .iter()
            .map(|&position| {
                let mut values = |slot, heads: usize| {
                    (slot, encode(DType::F32, &p.rng.values(heads * s.dim, Dist::Normal(1.0))))
                };
                vec![
                    values(step.q, heads),
                    values(step.k, kv_heads),
                    values(step.v, kv_heads),
                    (step.start, ints(&[position])),
                    (step.kv_len, ints(&[position + 1])),
                ]
            })
            .collect();
        p.check = Check::Replay(rounds);
        Ok(())
    });
}

/// A step whose bits a plan without fusion must have too.
fn fused(cases: &mut Cases, s: Spec, start: u32, kv_len: u32) {
    let label = format!("{}, slot {start}, length {kv_len}", label(s));
    cases.add(OP, "rope, append and attend, fused", label, move |p| {
        step(p, s, [start, kv_len], false);
        p.check = Check::Fusion(HeadNormRope::<Slot>::NAME);
        Ok(())
    });
}
