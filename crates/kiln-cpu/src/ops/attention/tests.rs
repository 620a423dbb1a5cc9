//! Attention against the reference, on every instruction set.

use super::problem::{Keys, Problem, Rows};
use super::{Route, select};
use crate::view::View;
use crate::{Config, instruction_sets};
use half::{bf16, f16};
use kiln_core::ops::{
    AttentionLayout, CachedAttention, FlashAttention, FlashAttentionBlocks, KvAppend, Op,
};
use kiln_core::quant::{dequantize_row, quantize_row};
use kiln_core::{DType, Device, Shape, Tensor};

/// An attention against a cache without memory, for what only looks at shapes.
pub(super) fn cache_problem(tokens: usize, window: Option<usize>) -> Problem {
    let tensor = kiln_reference::device().tensor(DType::F32, [tokens, 1, 8]).unwrap();
    let view = View::new(std::ptr::null_mut(), &tensor);
    let rows = Rows::single(&view, [1, 0]);
    Problem {
        q: rows,
        k: rows,
        v: rows,
        output: rows,
        keys: Keys::Given { len: 0, offset: 0 },
        mask: None,
        sinks: None,
        batch: 1,
        kv_heads: 1,
        group: 1,
        tokens,
        scale: 1.0,
        softcap: None,
        causal: true,
        window,
    }
}

/// A seeded generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values in -2..2.
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 * 4.0 - 2.0).collect()
    }
}

/// The CPU with an instruction set and a number of threads.
fn cpu(isa: &str, threads: usize) -> Device {
    let config = Config { threads: Some(threads), instruction_set: Some(isa.to_owned()) };
    crate::device(config).unwrap()
}

/// A tensor of any type with these values.
fn tensor(device: &Device, dtype: DType, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
    let tensor = device.tensor(dtype, shape).unwrap();
    tensor.write_bytes(&encode(dtype, values)).unwrap();
    tensor
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::U8 => values.iter().map(|&x| x as u8).collect(),
        dtype => {
            let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
            quantize_row(dtype, values, &mut bytes).unwrap();
            bytes
        }
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    tensor.read_bytes(&mut bytes).unwrap();
    bytes
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let mut values = vec![0.0; tensor.values()];
    dequantize_row(tensor.dtype(), &bytes(tensor), &mut values).unwrap();
    values
}

fn run(device: &Device, ops: Vec<Op<Tensor>>) {
    let mut rec = device.record();
    ops.into_iter().for_each(|op| rec.push(op).unwrap());
    rec.finish().unwrap().run().unwrap();
}

/// Compares with the reference: `tolerance` is for f32; rounding to a 16-bit type can end on either
/// side of a tie.
#[track_caller]
fn assert_close(got: &Tensor, expected: &[f64], tolerance: f64, what: &str) {
    let unit = got.dtype().unit_roundoff().unwrap();
    let largest = expected.iter().filter(|x| !x.is_nan()).fold(0.0f64, |max, x| max.max(x.abs()));
    for (index, (got, expected)) in values(got).iter().zip(expected).enumerate() {
        let close = (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= tolerance * largest + 2.02 * unit * expected.abs();
        assert!(close, "{what}: value {index}: {got}, expected {expected}");
        assert!(*expected != 0.0 || *got == 0.0, "{what}: value {index}: {got}, expected 0");
    }
}

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
                let slot_of = |p| if self.ring { p % capacity } else { p };
                let position = (first..self.len).find(|&p| slot_of(p) == index % capacity);
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

fn every_set(threads: usize) -> Vec<Device> {
    instruction_sets().into_iter().map(|isa| cpu(isa, threads)).collect()
}

#[test]
fn routes() {
    for tokens in [1, 2, 8] {
        assert_eq!(select(tokens), Route::Split);
    }
    for tokens in [9, 16, 512] {
        assert_eq!(select(tokens), Route::Tiles);
    }
}

#[test]
fn every_length() {
    let devices = every_set(2);
    for len in 1..=300 {
        for tokens in [1, 4, 9 + len % 32] {
            if tokens <= len {
                Cached { tokens, len, capacity: 300, ..CACHED }.check(&devices);
            }
        }
    }
}

#[test]
fn every_number_of_tokens_and_heads() {
    let devices = every_set(2);
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
    let devices = every_set(2);
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
    let devices = every_set(2);
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
    let devices = every_set(2);
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
    let caches = [(); 2].map(|()| {
        device.tensor(cached.cache, [kv_heads, capacity, dim]).unwrap()
    });
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
        let [start, kv_len] =
            [at, at + tokens].map(|p| device.upload(&[p as u32], [1]).unwrap());
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
    for device in every_set(2) {
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

/// Attention over given keys.
#[derive(Clone, Copy, Debug)]
struct Flash {
    dims: [usize; 6],
    dtype: DType,
    layout: AttentionLayout,
    causal: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    q_offset: Option<usize>,
    sinks: bool,
    /// Type and rank of the mask.
    mask: Option<(DType, usize)>,
    blocks: Option<[usize; 2]>,
}

const FLASH: Flash = Flash {
    dims: [2, 4, 2, 30, 100, 24],
    dtype: DType::F16,
    layout: AttentionLayout::HeadMajor,
    causal: false,
    window: None,
    softcap: None,
    q_offset: None,
    sinks: false,
    mask: None,
    blocks: None,
};

impl Flash {
    fn run(self, device: &Device) -> Tensor {
        let [batch, heads, kv_heads, q_len, kv_len, dim] = self.dims;
        let mut rng = Rng(5);
        let mut random = |heads: usize, len: usize| {
            let values = rng.values(batch * heads * len * dim);
            tensor(device, self.dtype, self.layout.split([batch, heads, len, dim]), &values)
        };
        let (q, k, v) = (random(heads, q_len), random(kv_heads, kv_len), random(kv_heads, kv_len));
        let sinks = tensor(device, DType::F32, [heads], &rng.values(heads));
        let output = device.tensor(self.dtype, q.shape()).unwrap();
        let mask = self.mask.map(|(dtype, rank)| {
            let shape = [batch, heads, q_len, kv_len];
            let shape = Shape::from_slice(&shape[4 - rank..]).unwrap();
            let values = mask_values(&mut rng, dtype, shape);
            tensor(device, dtype, shape, &values)
        });
        let mut ops: Vec<Op<Tensor>> = Vec::new();
        let blocks = self.blocks.map(|tile| {
            let mask = mask.as_ref().unwrap();
            let leading = if mask.rank() == 4 { [batch, heads] } else { [1, 1] };
            let shape =
                [leading[0], leading[1], q_len.div_ceil(tile[0]), kv_len.div_ceil(tile[1])];
            let blocks = device.tensor(DType::U8, shape).unwrap();
            ops.push(FlashAttentionBlocks { mask, blocks: &blocks, tile }.into());
            blocks
        });
        ops.push(
            FlashAttention {
                q: &q,
                k: &k,
                v: &v,
                mask: mask.as_ref(),
                blocks: blocks.as_ref(),
                sinks: self.sinks.then_some(&sinks),
                output: &output,
                layout: self.layout,
                scale: 2.0 / (dim as f32).sqrt(),
                causal: self.causal,
                window: self.window,
                softcap: self.softcap,
                q_offset: self.q_offset,
                tile: self.blocks.unwrap_or([1, 1]),
            }
            .into(),
        );
        run(device, ops);
        output
    }

    #[track_caller]
    fn check(self, devices: &[Device]) {
        let expected = values(&self.run(&kiln_reference::device()));
        for device in devices {
            let what = format!("{} {self:?}", device.description());
            assert_close(&self.run(device), &expected, 4e-6, &what);
        }
    }
}

/// Stretches of rows and columns that are masked, open or mixed.
fn mask_values(rng: &mut Rng, dtype: DType, shape: Shape) -> Vec<f32> {
    let masked = if dtype == DType::U8 { 0.0 } else { f32::NEG_INFINITY };
    let open = if dtype == DType::U8 { 1.0 } else { 0.0 };
    let rank = shape.len();
    let [q_len, kv_len] = [shape[rank - 2], shape[rank - 1]];
    (0..shape.values().unwrap())
        .map(|index| {
            let (i, j) = (index / kv_len % q_len, index % kv_len);
            let mixed = rng.below(3);
            match (i / 8 * 5 + j / 24 * 3) % 4 {
                _ if i == 3 => masked,
                0 => masked,
                1 => open,
                _ if mixed == 0 => masked,
                _ if dtype == DType::U8 || mixed == 1 => open,
                _ => rng.below(64) as f32 / 16.0 - 2.0,
            }
        })
        .collect()
}

#[test]
fn flash_lengths_and_layouts() {
    let devices = every_set(2);
    for q_len in [1, 5, 6, 7, 63, 64, 100] {
        for kv_len in [1, 3, 16, 64, 65, 130] {
            for layout in [AttentionLayout::HeadMajor, AttentionLayout::SeqMajor] {
                for causal in [false, true] {
                    let q_offset = (q_len > kv_len).then_some(0);
                    let dims = [2, 3, 1, q_len, kv_len, 16];
                    Flash { dims, layout, causal, q_offset, ..FLASH }.check(&devices);
                }
            }
        }
    }
}

#[test]
fn flash_dimensions_and_types() {
    let devices = every_set(2);
    for dim in [8, 40, 64, 80, 96, 128, 256, 512] {
        for dtype in [DType::F16, DType::BF16] {
            let dims = [1, 2, 1, 20, 70, dim];
            Flash { dims, dtype, causal: true, ..FLASH }.check(&devices);
        }
    }
}

#[test]
fn flash_options() {
    let devices = every_set(2);
    for window in [None, Some(1), Some(40)] {
        for q_offset in [None, Some(0), Some(33), Some(120)] {
            for causal in [false, true] {
                for (softcap, sinks) in [(None, false), (Some(0.8), true), (None, true)] {
                    let case = Flash { window, q_offset, causal, softcap, sinks, ..FLASH };
                    case.check(&devices);
                }
            }
        }
    }
}

#[test]
fn flash_masks_with_and_without_their_maps() {
    let devices = every_set(2);
    for dtype in [DType::F16, DType::BF16] {
        for mask_type in [DType::U8, dtype] {
            for rank in [2, 4] {
                for causal in [false, true] {
                    let mask = Some((mask_type, rank));
                    let case = Flash { dtype, mask, causal, ..FLASH };
                    case.check(&devices);
                    for tile in [[1, 1], [8, 24], [16, 64], [7, 100], [usize::MAX, usize::MAX]] {
                        for device in &devices {
                            let with = Flash { blocks: Some(tile), ..case }.run(device);
                            let same = bytes(&with) == bytes(&case.run(device));
                            assert!(same, "{} {case:?} {tile:?}", device.description());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn maps_of_masks() {
    let reference = kiln_reference::device();
    for device in every_set(2) {
        for dtype in [DType::U8, DType::F16, DType::BF16] {
            for tile in [[1, 1], [3, 5], [8, 24], [64, 1000]] {
                for shape in [Shape::from([40, 90]), Shape::from([2, 3, 17, 50])] {
                    let mut values = mask_values(&mut Rng(9), dtype, shape);
                    values[0] = if dtype == DType::U8 { 200.0 } else { -0.0 };
                    let rank = shape.len();
                    let leading = if rank == 4 { [shape[0], shape[1]] } else { [1, 1] };
                    let [rows, columns] = [shape[rank - 2], shape[rank - 1]];
                    let map = |device: &Device| {
                        let mask = tensor(device, dtype, shape, &values);
                        let [rows, columns] = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
                        let shape = [leading[0], leading[1], rows, columns];
                        let blocks = device.tensor(DType::U8, shape).unwrap();
                        let op = FlashAttentionBlocks { mask: &mask, blocks: &blocks, tile };
                        run(device, vec![op.into()]);
                        bytes(&blocks)
                    };
                    assert_eq!(map(&device), map(&reference));
                }
            }
        }
    }
}

#[test]
fn causal_flash_attention_in_chunks_gives_the_bits_of_one_piece() {
    for device in every_set(3) {
        let [heads, kv_heads, len, dim] = [6, 2, 150, 32];
        let mut rng = Rng(3);
        let mut random = |heads: usize| {
            tensor(&device, DType::F16, [1, len, heads, dim], &rng.values(len * heads * dim))
        };
        let (q, k, v) = (random(heads), random(kv_heads), random(kv_heads));
        let attend = |start: usize, end: usize| {
            let output = device.tensor(DType::F16, [1, end - start, heads, dim]).unwrap();
            let part = |x: &Tensor, start: usize| x.slice(1, start..end).unwrap();
            let op = FlashAttention {
                q: &part(&q, start),
                k: &part(&k, 0),
                v: &part(&v, 0),
                mask: None,
                blocks: None,
                sinks: None,
                output: &output,
                layout: AttentionLayout::SeqMajor,
                scale: 0.2,
                causal: true,
                window: Some(90),
                softcap: None,
                q_offset: None,
                tile: [1, 1],
            };
            run(&device, vec![op.into()]);
            bytes(&output)
        };
        let whole = attend(0, len);
        for chunks in [&[0, 1, 2, 50, 150][..], &[0, 64, 128, 150], &[0, 77, 150]] {
            let parts: Vec<u8> =
                chunks.windows(2).flat_map(|ends| attend(ends[0], ends[1])).collect();
            assert!(parts == whole, "{} {chunks:?}", device.description());
        }
    }
}
