//! Caches filled and read in turns: prompts in chunks, and recordings replayed token by token.

use super::cached_attention::CACHES;
use super::{Cases, turn, within};
use crate::bounds::{Bound, Family};
use crate::host::encode;
use crate::program::{Agreement, Check, Equality, Program, Slot, ints};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "cached_attention";
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A prompt, and the caches it goes into.
#[derive(Clone, Copy)]
struct Prompt {
    q: Slot,
    k: Slot,
    v: Slot,
    k_cache: Slot,
    v_cache: Slot,
    output: Slot,
    window: Option<usize>,
    scale: f32,
}

#[derive(Clone, Copy)]
struct Spec {
    q: DType,
    cache: DType,
    tokens: usize,
    capacity: usize,
    dim: usize,
    window: Option<usize>,
}

pub(super) fn add(cases: &mut Cases) {
    chunks(cases);
    ring_chunks(cases);
    replay(cases);
}

fn cache_agreement(dtype: DType) -> Agreement {
    if dtype.is_quantized() {
        within(Family::QuantizedCache, DType::F32, 0)
    } else {
        Agreement::Exact
    }
}

fn prompt(p: &mut Program, s: Spec) -> Prompt {
    let Spec { q: dtype, cache, tokens, capacity, dim, window } = s;
    let cache_shape = [KV_HEADS, capacity, dim];
    let q = p.float(dtype, [tokens, HEADS, dim], Dist::Normal(1.0));
    let k = p.float(dtype, [tokens, KV_HEADS, dim], Dist::Normal(1.0));
    let v = p.float(dtype, [tokens, KV_HEADS, dim], Dist::Uniform);
    let k_cache = p.output(cache, cache_shape, cache_agreement(cache));
    let v_cache = p.output(cache, cache_shape, cache_agreement(cache));
    let bound = Bound::attention(dtype, cache, tokens * HEADS * dim);
    let output = p.output(dtype, [tokens, HEADS, dim], Agreement::Within(bound));
    let scale = 4.0 / (dim as f32).sqrt();
    Prompt { q, k, v, k_cache, v_cache, output, window, scale }
}

impl Prompt {
    /// Appends tokens `start..end` and attends from them.
    fn chunk(&self, p: &mut Program, start: usize, end: usize, ring: bool) -> [Op<Slot>; 3] {
        let [q, k, v, output] =
            [self.q, self.k, self.v, self.output].map(|slot| p.slice(slot, 0, start..end));
        let at = p.ints([1], &[start as u32]);
        let kv_len = p.ints([1], &[end as u32]);
        let append = |input, cache| Op::KvAppend(KvAppend { input, start: at, cache, ring });
        let attention = CachedAttention {
            q,
            k_cache: self.k_cache,
            v_cache: self.v_cache,
            kv_len,
            sinks: None,
            output,
            scale: self.scale,
            window: self.window,
            softcap: None,
            ring,
        };
        [append(k, self.k_cache), append(v, self.v_cache), Op::CachedAttention(attention)]
    }

    fn in_chunks(&self, p: &mut Program, chunks: &[usize], ring: bool) -> Vec<Op<Slot>> {
        let mut ops = Vec::new();
        let mut start = 0;
        for len in chunks {
            ops.extend(self.chunk(p, start, start + len, ring));
            start += len;
        }
        ops
    }
}

/// Fewest rows of a chunk that must take the route of a whole prompt.
const PROMPT_ROWS: usize = 32;

fn chunks(cases: &mut Cases) {
    let lists: [&[usize]; 8] = [
        &[32, 32, 32],
        &[64, 32],
        &[33, 63],
        &[40, 56],
        &[47, 49],
        &[1, 95],
        &[88, 8],
        &[90, 1, 1, 1, 1, 1, 1],
    ];
    for (i, chunks) in lists.into_iter().enumerate() {
        for (j, cache) in CACHES.into_iter().enumerate() {
            let spec = Spec {
                q: turn(&[DType::F32, DType::BF16, DType::F16], i + j),
                cache,
                tokens: 96,
                capacity: turn(&[96, 128], i),
                dim: turn(&[64, 128], j + i / 2),
                window: turn(&[None, Some(20)], i / 2),
            };
            let equality = if chunks.iter().all(|&len| len >= PROMPT_ROWS) {
                Equality::Bits
            } else {
                Equality::Bounds
            };
            let label = format!(
                "{} x {cache}, chunks {chunks:?}, D {}, window {:?}, {equality:?}",
                spec.q, spec.dim, spec.window
            );
            cases.add(OP, "chunks against whole", label, move |p| {
                let prompt = prompt(p, spec);
                prompt.chunk(p, 0, 96, false).into_iter().for_each(|op| p.push(op));
                let ops = prompt.in_chunks(p, chunks, false);
                p.check = Check::Variant(ops, equality);
                Ok(())
            });
        }
    }
}

/// A ring that holds a window and a chunk gives what a cache of everything gives.
fn ring_chunks(cases: &mut Cases) {
    for (i, cache) in CACHES.into_iter().enumerate() {
        for chunk in [1, 8, 16] {
            let q = turn(&[DType::F32, DType::BF16], i);
            let label = format!("{q} x {cache}, window 16, ring of 32, chunks of {chunk}");
            cases.add(OP, "ring in chunks", label, move |p| {
                let window = Some(16);
                let spec = Spec { q, cache, tokens: 80, capacity: 32, dim: 64, window };
                let prompt = prompt(p, spec);
                let chunks = vec![chunk; 80 / chunk];
                let ops = prompt.in_chunks(p, &chunks, true);
                ops.into_iter().for_each(|op| p.push(op));
                Ok(())
            });
        }
    }
}

/// The recording of one decoding step, made once and replayed with new data.
fn replay(cases: &mut Cases) {
    for (i, cache) in CACHES.into_iter().enumerate() {
        for ring in [false, true] {
            let capacity = if ring { 8 } else { 24 };
            let kind = if ring { "ring" } else { "linear" };
            let label = format!("{kind} {cache}: 20 tokens, one recording");
            cases.add(OP, "replay", label, move |p| {
                let window = turn(&[None, Some(5)], i);
                let spec = Spec { q: DType::F32, cache, tokens: 1, capacity, dim: 64, window };
                let prompt = prompt(p, spec);
                let start = p.ints([1], &[0]);
                let kv_len = p.ints([1], &[1]);
                for op in prompt.chunk(p, 0, 1, ring) {
                    p.push(match op {
                        Op::KvAppend(op) => Op::KvAppend(KvAppend { start, ..op }),
                        Op::CachedAttention(op) => {
                            Op::CachedAttention(CachedAttention { kv_len, ..op })
                        }
                        op => op,
                    });
                }
                let rounds = (1..20u32)
                    .map(|token| {
                        let mut row = |slot, count| {
                            let values = p.rng.values(count, Dist::Normal(1.0));
                            (slot, encode(DType::F32, &values))
                        };
                        vec![
                            row(prompt.q, HEADS * 64),
                            row(prompt.k, KV_HEADS * 64),
                            row(prompt.v, KV_HEADS * 64),
                            (start, ints(&[token])),
                            (kv_len, ints(&[token + 1])),
                        ]
                    })
                    .collect();
                p.check = Check::Replay(rounds);
                Ok(())
            });
        }
    }
}
