//! Attention against a key-value cache, and its agreement with the other forms.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Tensor};

const D: usize = 32;

/// A cache and what has been appended to it.
struct Sequence {
    lab: Lab,
    k: Tensor,
    v: Tensor,
    start: Tensor,
    len: Tensor,
    ring: bool,
}

impl Sequence {
    fn new(dtype: DType, kv_heads: usize, capacity: usize, ring: bool) -> Self {
        let lab = Lab::new();
        let [k, v] = [(); 2].map(|()| lab.zeros(dtype, [kv_heads, capacity, D]));
        let [start, len] = [(); 2].map(|()| lab.u32(&[0]));
        Self { lab, k, v, start, len, ring }
    }

    /// Appends `k` and `v` and attends from `q`, all `[T, heads, D]` in f32.
    fn step(&self, q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>) -> Tensor {
        let tokens = q.extent(0) as u32;
        let before = self.len.to_vec::<u32>().unwrap()[0];
        self.start.write(&[before]).unwrap();
        self.len.write(&[before + tokens]).unwrap();
        let output = self.lab.zeros(q.dtype(), q.shape());
        let (start, ring) = (&self.start, self.ring);
        let mut rec = self.lab.device.record();
        rec.push(KvAppend { input: k, start, cache: &self.k, ring }).unwrap();
        rec.push(KvAppend { input: v, start, cache: &self.v, ring }).unwrap();
        rec.push(CachedAttention { window, ..self.op(q, &output) }).unwrap();
        rec.finish().unwrap().run().unwrap();
        output
    }

    fn op<'a>(&'a self, q: &'a Tensor, output: &'a Tensor) -> CachedAttention<&'a Tensor> {
        CachedAttention {
            q,
            k_cache: &self.k,
            v_cache: &self.v,
            kv_len: &self.len,
            sinks: None,
            output,
            scale: 0.2,
            window: None,
            softcap: None,
            ring: self.ring,
        }
    }
}

/// `softmax(0.2 q k^T) v` of one query over `keys`, after an optional cap, with an optional sink.
fn naive(q: &[f64], keys: &[(&[f64], &[f64])], cap: Option<f64>, sink: Option<f64>) -> Vec<f64> {
    let mut total = sink.map_or(0.0, f64::exp);
    let mut sum = vec![0.0; q.len()];
    for (k, v) in keys {
        let s: f64 = q.iter().zip(*k).map(|(q, k)| q * k).sum::<f64>() * f64::from(0.2f32);
        let weight = cap.map_or(s, |cap| cap * (s / cap).tanh()).exp();
        total += weight;
        sum.iter_mut().zip(*v).for_each(|(sum, v)| *sum += weight * v);
    }
    sum.iter().map(|x| x / total).collect()
}

/// `[T, H, D]` values of one token and head.
fn head(x: &[f64], heads: usize, t: usize, h: usize) -> &[f64] {
    &x[(t * heads + h) * D..][..D]
}

#[test]
fn every_cache_type_matches_the_formula() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
        for window in [None, Some(1), Some(3)] {
            let (s, mut rng) = (Sequence::new(dtype, 2, 8, false), Rng(70));
            let (t, heads) = (6, 4);
            let q = s.lab.f32(&rng.values(t * heads * D), [t, heads, D]);
            let [k, v] = [(); 2].map(|()| s.lab.f32(&rng.values(t * 2 * D), [t, 2, D]));
            let output = s.step(&q, &k, &v, window);
            // Through the cache, so that its rounding is the same.
            let (k, v, q) = (values(&s.k), values(&s.v), values(&q));
            let slot = |x: &[f64], h: usize, p: usize| x[(h * 8 + p) * D..][..D].to_vec();
            let mut expected = Vec::new();
            for i in 0..t {
                for h in 0..heads {
                    let first = window.map_or(0, |w| (i + 1usize).saturating_sub(w));
                    let keys: Vec<_> =
                        (first..=i).map(|p| (slot(&k, h / 2, p), slot(&v, h / 2, p))).collect();
                    let keys: Vec<_> = keys.iter().map(|(k, v)| (&k[..], &v[..])).collect();
                    expected.extend(naive(head(&q, heads, i, h), &keys, None, None));
                }
            }
            assert_close(&output, &expected);
        }
    }
}

#[test]
fn softcap_and_sinks() {
    let (s, mut rng) = (Sequence::new(DType::F32, 1, 4, false), Rng(71));
    let [q, k, v] = [(); 3].map(|()| s.lab.f32(&rng.values(3 * D), [3, 1, D]));
    s.step(&q, &k, &v, None);
    let output = s.lab.zeros(DType::F32, [3, 1, D]);
    let sinks = s.lab.f32(&[0.7], [1]);
    let op = s.op(&q, &output);
    s.lab.run(CachedAttention { softcap: Some(0.5), sinks: Some(&sinks), ..op });
    let (q, k, v) = (values(&q), values(&k), values(&v));
    let keys: Vec<_> = k.chunks(D).zip(v.chunks(D)).collect();
    let sink = Some(f64::from(0.7f32));
    let expected = (0..3).flat_map(|i| naive(head(&q, 1, i, 0), &keys[..=i], Some(0.5), sink));
    assert_close(&output, &expected.collect::<Vec<_>>());
}

#[test]
fn slots_past_the_length_are_not_read() {
    let (s, mut rng) = (Sequence::new(DType::F32, 1, 6, false), Rng(72));
    let [q, k, v] = [(); 3].map(|()| s.lab.f32(&rng.values(2 * D), [2, 1, D]));
    let expected = bits(&s.step(&q, &k, &v, None));
    for cache in [&s.k, &s.v] {
        set(&cache.slice(1, 2..6).unwrap(), &[f64::NAN; 4 * D]);
    }
    let output = s.lab.zeros(DType::F32, [2, 1, D]);
    s.lab.run(s.op(&q, &output));
    assert_eq!(bits(&output), expected);
}

#[test]
fn a_ring_attends_to_the_last_positions() {
    let (capacity, total) = (5, 13);
    let mut rng = Rng(73);
    let ring = Sequence::new(DType::F16, 1, capacity, true);
    let linear = Sequence::new(DType::F16, 1, total, false);
    for p in 0..total {
        let data = [(); 3].map(|()| rng.values(2 * D));
        let step = |s: &Sequence, window| {
            let q = s.lab.f32(&data[0], [1, 2, D]);
            let [k, v] = [1, 2].map(|i: usize| s.lab.f32(&data[i][..D], [1, 1, D]));
            bits(&s.step(&q, &k, &v, window))
        };
        // The ring itself is a window of its capacity.
        assert_eq!(step(&ring, None), step(&linear, Some(capacity)), "position {p}");
    }
}

#[test]
fn a_chunk_longer_than_the_ring_leaves_early_queries_without_keys() {
    let (s, mut rng) = (Sequence::new(DType::F32, 1, 3, true), Rng(74));
    let [q, k, v] = [(); 3].map(|()| s.lab.f32(&rng.values(5 * D), [5, 1, D]));
    let got = values(&s.step(&q, &k, &v, None));
    // Positions 2, 3 and 4 are kept.
    assert!(got[..2 * D].iter().all(|x| x.to_bits() == 0));
    assert_eq!(got[2 * D..3 * D], values(&v)[2 * D..3 * D]);
}

#[test]
fn an_invalid_length_gives_nan() {
    for (ring, len, valid) in [
        (false, 1, false),
        (false, 2, true),
        (false, 4, true),
        (false, 5, false),
        (true, 1, false),
        (true, 5, true),
        (false, u32::MAX, false),
    ] {
        let s = Sequence::new(DType::F16, 1, 4, ring);
        s.len.write(&[len]).unwrap();
        let q = s.lab.f32(&[1.0; 2 * D], [2, 1, D]);
        let output = s.lab.zeros(DType::F32, [2, 1, D]);
        s.lab.run(s.op(&q, &output));
        let got = values(&output);
        assert!(got.iter().all(|x| if valid { *x == 0.0 } else { x.is_nan() }), "{ring} {len}");
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_bits_of_one_piece() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0] {
        for window in [None, Some(4)] {
            let mut rng = Rng(75);
            let (t, heads) = (11, 4);
            let data = [(); 3].map(|()| rng.full_values(t * heads * D));
            let run = |chunks: &[usize]| {
                let s = Sequence::new(dtype, 2, 16, false);
                let mut at = 0;
                let mut outputs = Vec::new();
                for &n in chunks {
                    let part = |i: usize, heads: usize| {
                        let row = heads * D;
                        s.lab.f32(&data[i][at * row..(at + n) * row], [n, heads, D])
                    };
                    let (q, k, v) = (part(0, heads), part(1, 2), part(2, 2));
                    outputs.extend(bits(&s.step(&q, &k, &v, window)));
                    at += n;
                }
                (outputs, bits(&s.k), bits(&s.v))
            };
            let whole = run(&[11]);
            assert_eq!(run(&[4, 4, 3]), whole);
            assert_eq!(run(&[1; 11]), whole);
            assert_eq!(run(&[10, 1]), whole);
        }
    }
}

#[test]
fn causal_flash_attention_agrees_with_the_cache() {
    for dtype in [DType::F16, DType::BF16] {
        for window in [None, Some(3)] {
            let (s, mut rng) = (Sequence::new(dtype, 2, 16, false), Rng(76));
            let (t, heads) = (9, 4);
            let random = |rng: &mut Rng, heads: usize| {
                s.lab.of(dtype, &rng.values(t * heads * D), [t, heads, D])
            };
            let q = random(&mut rng, heads);
            let [k, v] = [(); 2].map(|()| random(&mut rng, 2));
            let cached = s.step(&q, &k, &v, window);
            let batched = |x: &Tensor| x.reshape([1, t, x.extent(1), D]).unwrap();
            let output = s.lab.zeros(dtype, [1, t, heads, D]);
            s.lab.run(FlashAttention {
                q: &batched(&q),
                k: &batched(&k),
                v: &batched(&v),
                mask: None,
                blocks: None,
                sinks: None,
                output: &output,
                layout: AttentionLayout::SeqMajor,
                scale: 0.2,
                causal: true,
                window,
                softcap: None,
                q_offset: None,
                tile: [1, 1],
            });
            assert_close(&cached, &values(&output));
        }
    }
}
