//! Attention against a key-value cache.

use super::{Cases, attention_options, turn};
use crate::bounds::Bound;
use crate::host::encode;
use crate::program::{Agreement, Broken, Layout, Program, Slot};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;
use kiln_core::quant::quantize_row;

const OP: &str = "cached_attention";

pub(super) const CACHES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];
const DIMS: [usize; 11] = [8, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512];
const HEADS: [[usize; 2]; 6] = [[4, 2], [2, 2], [8, 1], [6, 2], [20, 4], [1, 1]];

#[derive(Clone, Copy)]
struct Spec {
    q: DType,
    cache: DType,
    tokens: usize,
    heads: [usize; 2],
    dim: usize,
    capacity: usize,
    kv_len: usize,
    ring: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    layout: Layout,
    spread: f32,
}

const BASE: Spec = Spec {
    q: DType::F32,
    cache: DType::F16,
    tokens: 1,
    heads: [4, 2],
    dim: 64,
    capacity: 64,
    kv_len: 40,
    ring: false,
    window: None,
    softcap: None,
    sinks: false,
    layout: Layout::Guarded,
    spread: 3.0,
};

pub(super) fn add(cases: &mut Cases) {
    tokens(cases);
    lengths(cases);
    long(cases);
    dims(cases);
    options(cases);
    invalid(cases);
}

fn tokens(cases: &mut Cases) {
    let mut index = 0;
    for (c, cache) in CACHES.into_iter().enumerate() {
        for (r, ring) in [false, true].into_iter().enumerate() {
            for (i, tokens) in (1..=17).chain([32, 33, 64]).enumerate() {
                index += 1;
                let capacity = 96;
                // A ring that has wrapped, by turns twice; a linear cache up to its end.
                let kv_len = match (ring, i % 3) {
                    (true, 0) => capacity + 29,
                    (true, 1) => 2 * capacity + 50,
                    (false, 0) => tokens,
                    (false, 1) => capacity,
                    _ => tokens.max(70),
                };
                add_one(
                    cases,
                    Spec {
                        q: turn(&DType::FLOATS, i + c + r),
                        cache,
                        tokens,
                        heads: turn(&HEADS, index),
                        capacity,
                        kv_len,
                        ring,
                        layout: Layout::turn(index),
                        spread: turn(&[3.0, 1.0, 6.0], i),
                        ..BASE
                    },
                );
            }
        }
    }
}

fn lengths(cases: &mut Cases) {
    let longer = [63, 64, 65, 96, 113, 127, 128, 129, 255, 300, 512, 1024];
    for (i, kv_len) in (1..=40usize).chain(longer).enumerate() {
        let ring = i % 3 == 2;
        add_one(
            cases,
            Spec {
                q: turn(&DType::FLOATS, i / 4),
                cache: turn(&CACHES, i),
                capacity: if ring { kv_len.div_ceil(2).max(2) } else { kv_len + i % 5 },
                kv_len,
                ring,
                heads: [4, 1],
                dim: turn(&[64, 128, 96], i / 3),
                ..BASE
            },
        );
    }
}

/// Lengths at which a GPU's parts grow.
fn long(cases: &mut Cases) {
    let specs = [
        (2048, false, None),
        (2049, false, None),
        (3001, true, None),
        (4100, false, Some(2500)),
        (4100, true, Some(2100)),
        (4200, false, None),
    ];
    for (i, (kv_len, ring, window)) in specs.into_iter().enumerate() {
        let spec = Spec {
            q: turn(&DType::FLOATS, i),
            cache: turn(&CACHES, i + 1),
            tokens: turn(&[1, 2], i / 2),
            heads: turn(&[[4, 1], [2, 2]], i),
            capacity: if ring { kv_len * 3 / 4 } else { kv_len + i },
            kv_len,
            ring,
            window,
            layout: Layout::turn(i),
            spread: 6.0,
            ..BASE
        };
        add_one(cases, spec);
    }
}

fn dims(cases: &mut Cases) {
    for (i, dim) in DIMS.into_iter().enumerate() {
        for (j, cache) in CACHES.into_iter().enumerate() {
            if dim % cache.block_len() != 0 {
                continue;
            }
            for tokens in [1, 5] {
                add_one(
                    cases,
                    Spec {
                        q: turn(&DType::FLOATS, i + j),
                        cache,
                        tokens,
                        heads: turn(&HEADS, i + j),
                        dim,
                        layout: Layout::turn(i + j + tokens),
                        ..BASE
                    },
                );
            }
        }
    }
}

fn options(cases: &mut Cases) {
    let mut index = 0;
    for window in [None, Some(1), Some(17), Some(1000)] {
        for softcap in [None, Some(30.0), Some(50.0)] {
            for sinks in [false, true] {
                for tokens in [1, 4, 20] {
                    index += 1;
                    let ring = index % 4 == 0;
                    add_one(
                        cases,
                        Spec {
                            q: turn(&DType::FLOATS, index / 2),
                            cache: turn(&CACHES, index / 3),
                            tokens,
                            heads: turn(&HEADS, index),
                            dim: turn(&[64, 128], index / 2),
                            kv_len: if ring { 100 } else { 55 },
                            ring,
                            window,
                            softcap,
                            sinks,
                            spread: if softcap.is_some() { 12.0 } else { 4.0 },
                            ..BASE
                        },
                    );
                }
            }
        }
    }
}

/// Lengths that give NaN, and the longest.
fn invalid(cases: &mut Cases) {
    for (i, cache) in CACHES.into_iter().enumerate() {
        for (tokens, kv_len, ring) in [(4, 3, false), (1, 0, false), (4, 3, true), (2, 65, false)] {
            let q = turn(&DType::FLOATS, i + tokens);
            add_one(cases, Spec { q, cache, tokens, kv_len, ring, ..BASE });
        }
        // Lengths that a signed 32-bit number does not hold: too long for a cache, not for a ring.
        for (tokens, window) in [(1, None), (3, Some(20))] {
            for (kv_len, ring) in [(u32::MAX as usize, false), (3_000_000_000, true)] {
                add_one(cases, Spec { cache, tokens, kv_len, ring, window, ..BASE });
            }
        }
    }
}

fn add_one(cases: &mut Cases, s: Spec) {
    let Spec { q, cache, tokens, heads: [heads, kv_heads], dim, capacity, kv_len, .. } = s;
    let kind = if s.ring { "ring" } else { "linear" };
    let route = format!("{kind} {}", if tokens == 1 { "decode" } else { "chunk" });
    let mut label = format!(
        "{q} x {cache}, T {tokens} H {heads}/{kv_heads} D {dim}, length {kv_len} of {capacity}, \
         spread {}, {}",
        s.spread, s.layout
    );
    label.push_str(&attention_options(s.window, s.softcap, s.sinks));
    cases.add(OP, route, label, move |p| {
        let op = build(p, &s)?;
        p.push(Op::CachedAttention(op));
        Ok(())
    });
}

fn build(p: &mut Program, s: &Spec) -> Result<CachedAttention<Slot>, Broken> {
    p.layout(s.layout);
    let Spec { q: dtype, tokens, heads: [heads, kv_heads], dim, .. } = *s;
    let q = p.float(dtype, [tokens, heads, dim], Dist::Normal(1.0));
    let k_cache = cache(p, s, Dist::Normal(1.0))?;
    let v_cache = cache(p, s, Dist::Uniform)?;
    let kv_len = p.ints([1], &[s.kv_len as u32]);
    let sinks = s.sinks.then(|| p.float(DType::F32, [heads], Dist::Normal(s.spread)));
    let bound = Bound::attention(dtype, s.cache, tokens * heads * dim);
    debug_assert!(heads % kv_heads == 0);
    Ok(CachedAttention {
        q,
        k_cache,
        v_cache,
        kv_len,
        sinks,
        output: p.output(dtype, [tokens, heads, dim], Agreement::Within(bound)),
        scale: s.spread / (dim as f32).sqrt(),
        window: s.window,
        softcap: s.softcap,
        ring: s.ring,
    })
}

/// A cache whose slots beyond the length are NaN: nothing may come of them.
fn cache(p: &mut Program, s: &Spec, dist: Dist) -> Result<Slot, Broken> {
    let [_, heads] = s.heads;
    let values = p.rng.values(heads * s.capacity * s.dim, dist);
    let mut bytes = cache_bytes(s.cache, &values)?;
    let row = bytes.len() / (heads * s.capacity);
    for head in bytes.chunks_exact_mut(row * s.capacity) {
        head[row * s.kv_len.min(s.capacity)..].fill(0xff);
    }
    Ok(p.bytes(s.cache, [heads, s.capacity, s.dim], bytes))
}

/// Values as a cache of a type keeps them.
pub(super) fn cache_bytes(dtype: DType, values: &[f32]) -> Result<Vec<u8>, Broken> {
    if dtype.is_float() {
        return Ok(encode(dtype, values));
    }
    let mut bytes = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
    quantize_row(dtype, values, &mut bytes)?;
    Ok(bytes)
}
