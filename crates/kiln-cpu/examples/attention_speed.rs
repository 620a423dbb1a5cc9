//! Times attention: `cargo run --release -p kiln-cpu --example attention_speed [threads [set]]`.

use kiln_core::ops::{AttentionLayout, CachedAttention, FlashAttention};
use kiln_core::{DType, Device, Executable, Recording, Tensor};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Query heads, key-value heads, head dimension.
const SHAPES: [[usize; 3]; 4] = [[9, 3, 64], [32, 8, 64], [32, 8, 128], [8, 4, 256]];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.first().map_or(Ok(1), |argument| argument.parse())?;
    let instruction_set = arguments.get(1).cloned();
    let config = kiln_cpu::Config { threads: Some(threads), instruction_set };
    let device = kiln_cpu::device(config)?;
    println!("{}", device.description());
    for shape in SHAPES {
        for (tokens, kv_len) in [(512, 512), (512, 4096), (16, 512)] {
            prefill(&device, shape, tokens, kv_len, DType::F16)?;
        }
        flash(&device, shape, 512)?;
    }
    for cache in [DType::F16, DType::F32, DType::BF16, DType::Q8_0] {
        prefill(&device, SHAPES[0], 512, 512, cache)?;
    }
    for shape in SHAPES {
        for kv_len in [64, 256, 1024, 4096, 16384] {
            decode(&device, shape, kv_len, DType::F16)?;
        }
    }
    for cache in [DType::F32, DType::BF16, DType::Q8_0] {
        decode(&device, SHAPES[0], 1024, cache)?;
        decode(&device, SHAPES[2], 4096, cache)?;
    }
    Ok(())
}

/// Values that are not all alike.
fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + salt) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Caches for each of `layers` layers, full of values.
fn caches(device: &Device, dtype: DType, shape: [usize; 3], layers: usize) -> Result<Vec<Tensor>> {
    let row = shape[2];
    let row_bytes = dtype.row_bytes(row).ok_or("a head that is not whole blocks")?;
    let mut bytes = vec![0; row_bytes * shape[0] * shape[1]];
    for (index, out) in bytes.chunks_mut(row_bytes).enumerate() {
        kiln_core::quant::quantize_row(dtype, &values(row, index), out)?;
    }
    (0..2 * layers).map(|_| Ok(device.upload_bytes(dtype, shape, &bytes)?)).collect()
}

/// Appends an attention of `tokens` tokens for every pair of caches.
fn record(
    device: &Device,
    [heads, dim]: [usize; 2],
    tokens: usize,
    caches: &[Tensor],
) -> Result<Recording> {
    let q = device.upload(&values(tokens * heads * dim, 5), [tokens, heads, dim])?;
    let output = device.tensor(DType::F32, [tokens, heads, dim])?;
    let kv_len = device.upload(&[caches[0].extent(1) as u32], [1])?;
    let mut rec = device.record();
    for pair in caches.chunks(2) {
        rec.push(CachedAttention {
            q: &q,
            k_cache: &pair[0],
            v_cache: &pair[1],
            kv_len: &kv_len,
            sinks: None,
            output: &output,
            scale: 1.0 / (dim as f32).sqrt(),
            window: None,
            softcap: None,
            ring: false,
        })?;
    }
    Ok(rec)
}

/// The shortest time of a run: others may use the machine.
fn time(step: &Executable) -> Result<f64> {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        step.run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Multiply-adds, counted as two, of causal attention of the last `tokens` of `kv_len` positions.
fn flops([heads, _, dim]: [usize; 3], tokens: usize, kv_len: usize) -> f64 {
    let scores: usize = (kv_len - tokens..kv_len).map(|position| position + 1).sum();
    4.0 * (heads * dim * scores) as f64
}

fn prefill(
    device: &Device,
    shape: [usize; 3],
    tokens: usize,
    kv_len: usize,
    cache: DType,
) -> Result<()> {
    let [heads, kv_heads, dim] = shape;
    let caches = caches(device, cache, [kv_heads, kv_len, dim], 1)?;
    let time = time(&record(device, [heads, dim], tokens, &caches)?.finish()?)?;
    let speed = flops(shape, tokens, kv_len) / time / 1e9;
    let us = time * 1e6;
    println!(
        "prefill {shape:?} {cache:>4} T {tokens} kv {kv_len}: {us:9.1} us {speed:7.1} GFLOP/s"
    );
    Ok(())
}

fn flash(device: &Device, [heads, kv_heads, dim]: [usize; 3], len: usize) -> Result<()> {
    let tensor = |heads: usize| device.tensor(DType::F16, [1, len, heads, dim]);
    let (q, k, v, output) = (tensor(heads)?, tensor(kv_heads)?, tensor(kv_heads)?, tensor(heads)?);
    let mut rec = device.record();
    rec.push(FlashAttention {
        q: &q,
        k: &k,
        v: &v,
        mask: None,
        blocks: None,
        sinks: None,
        output: &output,
        layout: AttentionLayout::SeqMajor,
        scale: 0.1,
        causal: false,
        window: None,
        softcap: None,
        q_offset: None,
        tile: [1, 1],
    })?;
    let time = time(&rec.finish()?)?;
    let speed = 4.0 * (heads * dim * len * len) as f64 / time / 1e9;
    let us = time * 1e6;
    let shape = [heads, kv_heads, dim];
    println!("encoder {shape:?}  f16 T {len}: {us:9.1} us {speed:7.1} GFLOP/s");
    Ok(())
}

/// A token against enough layers of caches that they come from memory, as they do in a model; and
/// against one that stays in the processor's caches.
fn decode(device: &Device, shape: [usize; 3], kv_len: usize, cache: DType) -> Result<()> {
    const MEMORY: usize = 128 << 20;
    let [heads, kv_heads, dim] = shape;
    let row_bytes = cache.row_bytes(dim).ok_or("a head that is not whole blocks")?;
    let bytes = 2 * kv_heads * kv_len * row_bytes;
    for layers in [1, MEMORY.div_ceil(bytes).min(64)] {
        let caches = caches(device, cache, [kv_heads, kv_len, dim], layers)?;
        let step = record(device, [heads, dim], 1, &caches)?.finish()?;
        let time = time(&step)? / layers as f64;
        let speed = bytes as f64 / time / 1e9;
        let (us, mib) = (time * 1e6, (layers * bytes) >> 20);
        println!(
            "decode {shape:?} {cache:>4} kv {kv_len:5} {layers:3} x, {mib:3} MiB: \
             {us:8.1} us {speed:6.1} GB/s"
        );
    }
    Ok(())
}
