//! Attention against a cache.

use crate::{Rng, assert_close, bytes, cpu, every_set, run, tensor, values};
use kiln_core::ops::{CachedAttention, KvAppend, Op};
use kiln_core::{DType, Device, Tensor};
use kiln_cpu::instruction_sets;

/// An attention against a cache that holds `len` positions.
#[derive(Clone, Copy, Debug)]
struct Cached {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    len: usize,
    capacity: usize,
    ring: bool,
    dtype: DType,
    cache: DType,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
}

const CACHED: Cached = Cached {
    tokens: 1,
    heads: 4,
    kv_heads: 2,
    dim: 16,
    len: 20,
    capacity: 40,
    ring: false,
    dtype: DType::F32,
    cache: DType::F16,
    window: None,
    softcap: None,
    sinks: false,
};

impl Cached {
    /// Runs on a device; everything that is no key of the sequence is NaN where the type has one.
    fn run(self, device: &Device) -> Tensor {
        let Self { tokens, heads, kv_heads, dim, capacity, .. } = self;
        let mut rng = Rng((self.len * 64 + tokens) as u64);
        let q = rng.values(tokens * heads * dim);
        let q = tensor(device, self.dtype, [tokens, heads, dim], &q);
        let mut caches = [(); 2].map(|()| {
            let mut values = vec![0.0; kv_heads * capacity * dim];
            for (index, slot) in values.chunks_mut(dim).enumerate() {
                let first = self.len.saturating_sub(capacity);
                let turns = (index % capacity + capacity - first % capacity) % capacity;
                let position = if self.ring { first + turns } else { index % capacity };
                let position = Some(position).filter(|&p| p < self.len);
                match position {
                    Some(p) => {
                        let seed = p * kv_heads + index / capacity;
                        slot.copy_from_slice(&Rng(rng.0 ^ (seed as u64) << 32).values(dim));
                    }
                    None if self.cache != DType::Q8_0 => slot.fill(f32::NAN),
                    None => (),
                }
            }
            rng.next();
            tensor(device, self.cache, [kv_heads, capacity, dim], &values)
        });
        let sinks = tensor(device, DType::F32, [heads], &rng.values(heads));
        let output = device.tensor(self.dtype, [tokens, heads, dim]).unwrap();
        let kv_len = device.upload(&[self.len as u32], [1]).unwrap();
        let [k_cache, v_cache] = &mut caches;
        run(
            device,
            vec![
                CachedAttention {
                    q: &q,
                    k_cache: &*k_cache,
                    v_cache: &*v_cache,
                    kv_len: &kv_len,
                    sinks: self.sinks.then_some(&sinks),
                    output: &output,
                    scale: 2.8 / (dim as f32).sqrt(),
                    window: self.window,
                    softcap: self.softcap,
                    ring: self.ring,
                }
                .into(),
            ],
        );
        output
    }

    /// Checks every instruction set against the reference.
    #[track_caller]
    fn check(self, devices: &[Device]) {
        let expected = values(&self.run(&kiln_reference::device()));
        for device in devices {
            let what = format!("{} {self:?}", device.description());
            assert_close(&self.run(device), &expected, 4e-6, &what);
        }
    }
}

#[test]
fn every_length() {
    let devices = every_set(1);
    for len in 1..=300 {
        for tokens in [1, 4, 9 + len % 32] {
            if tokens <= len {
                Cached { tokens, len, capacity: 300, ..CACHED }.check(&devices);
            }
        }
    }
}

#[test]
fn long_caches() {
    let devices = every_set(2);
    for tokens in [1, 6, 20] {
        for (len, ring) in [(2500, false), (3000, false), (10_000, true)] {
            for window in [None, Some(1000)] {
                let case = Cached { tokens, len, ring, window, sinks: true, ..CACHED };
                Cached { capacity: 3000, ..case }.check(&devices);
            }
        }
    }
}

#[test]
fn every_number_of_tokens_and_heads() {
    let devices = every_set(1);
    for tokens in 1..=40 {
        for (heads, kv_heads) in [(1, 1), (3, 1), (6, 2), (8, 1), (5, 5)] {
            let len = 40 + tokens;
            Cached { tokens, heads, kv_heads, len, capacity: 100, ..CACHED }.check(&devices);
        }
    }
}

#[test]
fn every_type_and_dimension() {
    let devices = every_set(2);
    for dim in [8usize, 24, 32, 64, 72, 80, 96, 128, 256, 512] {
        for cache in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
            if cache == DType::Q8_0 && !dim.is_multiple_of(32) {
                continue;
            }
            for (tokens, dtype) in [(1, DType::F32), (3, DType::BF16), (13, DType::F16)] {
                let (len, capacity) = (90, 96);
                Cached { tokens, dim, dtype, cache, len, capacity, ..CACHED }.check(&devices);
            }
        }
    }
}

#[test]
fn windows_softcaps_and_sinks() {
    let devices = every_set(1);
    for tokens in [1, 7, 33] {
        for window in [None, Some(1), Some(5), Some(64), Some(400)] {
            for softcap in [None, Some(1.5)] {
                for sinks in [false, true] {
                    let case = Cached { tokens, window, softcap, sinks, ..CACHED };
                    Cached { len: 340, capacity: 350, ..case }.check(&devices);
                }
            }
        }
    }
}

#[test]
fn rings() {
    let devices = every_set(1);
    for capacity in [20, 67, 300, 1000] {
        for len in [19, 20, 21, 66, 68, 150, 301, 777, 1000, 2500] {
            for tokens in [1, 3, 12, 19] {
                for window in [None, Some(9)] {
                    let case = Cached { tokens, len, capacity, window, ..CACHED };
                    Cached { ring: true, heads: 2, kv_heads: 1, ..case }.check(&devices);
                }
            }
        }
    }
}

#[test]
fn a_chunk_longer_than_its_ring_leaves_queries_without_keys() {
    let devices = every_set(1);
    for (tokens, len) in [(7, 7), (7, 100), (30, 30), (30, 100)] {
        Cached { tokens, len, capacity: 5, ring: true, ..CACHED }.check(&devices);
    }
}

#[test]
fn an_invalid_length_gives_nan() {
    for device in every_set(2) {
        for (tokens, ring, len) in [
            (1, false, 0),
            (3, false, 2),
            (3, true, 2),
            (12, true, 11),
            (12, false, 41),
            (1, false, 41),
        ] {
            let output = Cached { tokens, ring, len, ..CACHED }.run(&device);
            assert!(values(&output).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn threads_do_not_show() {
    for isa in instruction_sets() {
        let devices = [1, 2, 3].map(|threads| cpu(isa, threads));
        for (tokens, len) in [(1, 5), (1, 700), (8, 1300), (9, 300), (70, 300)] {
            for _ in 0..3 {
                let case = Cached { tokens, len, capacity: 2000, sinks: true, ..CACHED };
                let [a, b, c] = [0, 1, 2].map(|i| bytes(&case.run(&devices[i])));
                assert!(a == b && a == c, "{isa} {case:?}");
            }
        }
    }
}

/// A sequence fed in chunks: the bytes of all outputs and of the caches.
fn in_chunks(device: &Device, cached: Cached, chunks: &[usize]) -> [Vec<u8>; 3] {
    let Cached { heads, kv_heads, dim, capacity, .. } = cached;
    let caches = [(); 2].map(|()| device.tensor(cached.cache, [kv_heads, capacity, dim]).unwrap());
    let total: usize = chunks.iter().sum();
    let mut rng = Rng(17);
    let [q, k, v] = [heads, kv_heads, kv_heads].map(|n| (n, rng.values(total * n * dim)));
    let (mut at, mut outputs) = (0, Vec::new());
    for &tokens in chunks {
        let part = |(heads, values): &(usize, Vec<f32>)| {
            let row = heads * dim;
            let values = &values[at * row..(at + tokens) * row];
            tensor(device, DType::F32, [tokens, *heads, dim], values)
        };
        let (q, k, v) = (part(&q), part(&k), part(&v));
        let output = device.tensor(DType::F32, [tokens, heads, dim]).unwrap();
        let [start, kv_len] = [at, at + tokens].map(|p| device.upload(&[p as u32], [1]).unwrap());
        let append = |input: &Tensor, cache: &Tensor| -> Op<Tensor> {
            KvAppend { input, start: &start, cache, ring: cached.ring }.into()
        };
        let attention = CachedAttention {
            q: &q,
            k_cache: &caches[0],
            v_cache: &caches[1],
            kv_len: &kv_len,
            sinks: None,
            output: &output,
            scale: 0.3,
            window: cached.window,
            softcap: cached.softcap,
            ring: cached.ring,
        };
        run(device, vec![append(&k, &caches[0]), append(&v, &caches[1]), attention.into()]);
        outputs.extend(bytes(&output));
        at += tokens;
    }
    [outputs, bytes(&caches[0]), bytes(&caches[1])]
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_one_piece() {
    for device in every_set(2) {
        for cache in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
            for window in [None, Some(30), Some(100)] {
                let case = Cached { heads: 6, dim: 32, capacity: 400, cache, window, ..CACHED };
                let whole = in_chunks(&device, case, &[300]);
                for chunks in [&[16, 284][..], &[64, 128, 108], &[9, 10, 11, 77, 193]] {
                    let parts = in_chunks(&device, case, chunks);
                    assert!(parts == whole, "{} {case:?} {chunks:?}", device.description());
                }
            }
        }
    }
}

#[test]
fn a_token_at_a_time_gives_the_bits_of_a_few() {
    for device in every_set(2) {
        for window in [None, Some(40)] {
            let case = Cached { heads: 6, dim: 32, capacity: 600, window, ..CACHED };
            let single: Vec<usize> = [&[500][..], &[1; 40]].concat();
            let whole = in_chunks(&device, case, &single);
            for chunk in [2, 4, 5, 8] {
                let chunks = [&[500][..], &vec![chunk; 40 / chunk]].concat();
                let parts = in_chunks(&device, case, &chunks);
                assert!(parts == whole, "{} {case:?} {chunk}", device.description());
            }
        }
    }
}

#[test]
fn a_masked_value_that_is_not_finite_does_not_spread() {
    for device in every_set(1) {
        for tokens in [4, 20] {
            let (len, dim) = (30, 24);
            let ones = vec![1.0; len * dim];
            let mut v = ones.clone();
            v[(len - 1) * dim..].fill(f32::NAN);
            let q = tensor(&device, DType::F32, [tokens, 1, dim], &ones[..tokens * dim]);
            let k = tensor(&device, DType::F16, [1, len, dim], &v);
            let v = tensor(&device, DType::F16, [1, len, dim], &v);
            let output = device.tensor(DType::F32, [tokens, 1, dim]).unwrap();
            let kv_len = device.upload(&[len as u32], [1]).unwrap();
            let op = CachedAttention {
                q: &q,
                k_cache: &k,
                v_cache: &v,
                kv_len: &kv_len,
                sinks: None,
                output: &output,
                scale: 1.0,
                window: None,
                softcap: None,
                ring: false,
            };
            run(&device, vec![op.into()]);
            let got = values(&output);
            let (finite, last) = got.split_at((tokens - 1) * dim);
            assert!(finite.iter().all(|x| (x - 1.0).abs() < 1e-6), "{}", device.description());
            assert!(last.iter().all(|x| x.is_nan()));
        }
    }
}
