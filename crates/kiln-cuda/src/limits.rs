//! What a card does at best: copies inside its memory and a matrix product, measured.

use crate::Config;
use crate::runtime::context::Context;
use crate::runtime::graph::Event;
use crate::runtime::memory::{self, Memory, Staging};
use kiln_core::ops::{InputLayout, Matmul, Precision};
use kiln_core::{DType, Result, SharedBytes};
use std::sync::Arc;
use std::time::Instant;

/// Upper limits of a card, as measured by [`limits`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second of a copy inside device memory, read and written, in 10^9.
    pub copy_gb_per_s: f64,
    /// Operations per second of this backend's product of two bf16 matrices of 8192 x 8192, in 10^9; a
    /// multiply-add counts as two.
    pub gemm_gflop_per_s: f64,
}

/// Bytes of a copy: many times what caches hold.
const COPY_BYTES: usize = 512 << 20;
/// Rows and columns of the matrices.
const SIDE: usize = 8192;
/// Copies, or products, that are timed together.
const TOGETHER: usize = 16;
/// The best of so many counts.
const ROUNDS: usize = 5;

/// Measures the limits of a card: the best of several rounds, in a second or two and 1.1 GB of its memory.
///
/// # Errors
/// As [`crate::device`]; [`kiln_core::Error::OutOfMemory`].
pub fn limits(config: Config) -> Result<Limits> {
    Ok(Limits { copy_gb_per_s: copy(config.ordinal)?, gemm_gflop_per_s: product(config)? })
}

/// Bytes that no bus or memory finds simpler than others.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let words = (0..bytes / 4).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    });
    words.collect()
}

fn copy(ordinal: usize) -> Result<f64> {
    const FIRST: usize = 1 << 20;
    let context = Arc::new(Context::open(ordinal)?);
    let memory = [Memory::new(&context, COPY_BYTES)?, Memory::new(&context, COPY_BYTES)?];
    let [from, to] = [&memory[0], &memory[1]].map(Memory::address);
    Staging::new(&context)?.copy(from, &noise(FIRST))?;
    let events = [Event::new(&context)?, Event::new(&context)?];
    let mut shortest = f64::INFINITY;
    {
        let entered = context.enter()?;
        let mut filled = FIRST;
        while filled < COPY_BYTES {
            // SAFETY: the part behind the filled one, as long as it: both are in `from`.
            unsafe { memory::copy(&entered, from + filled as u64, from, filled)? };
            filled *= 2;
        }
    }
    for round in 0..=ROUNDS {
        let entered = context.enter()?;
        events[0].record(&entered)?;
        for _ in 0..TOGETHER {
            // SAFETY: two allocations of that size.
            unsafe { memory::copy(&entered, to, from, COPY_BYTES)? };
        }
        events[1].record(&entered)?;
        entered.wait()?;
        let seconds = events[1].since(&events[0], &entered)?.as_secs_f64();
        // The first round finds memory and clocks at rest.
        if round > 0 {
            shortest = shortest.min(seconds);
        }
    }
    Ok((2 * COPY_BYTES * TOGETHER) as f64 / shortest / 1e9)
}

fn product(config: Config) -> Result<f64> {
    let device = crate::device(config)?;
    // bf16 values of both signs between 1 and 2, the same for all exponents: products do not grow.
    let mut values = noise(SIDE * SIDE * 2);
    values.chunks_exact_mut(2).for_each(|value| {
        value[0] |= 0x80;
        value[1] = value[1] & 0x80 | 0x3f;
    });
    let floats: Vec<u8> = values.chunks_exact(2).flat_map(|v| [0, 0, v[0], v[1]]).collect();
    let shape = [SIDE, SIDE];
    let weight = device.import(DType::BF16, shape, SharedBytes::from_vec(values))?;
    let input = device.upload_bytes(DType::F32, shape, &floats)?;
    let output = device.tensor(DType::F32, shape)?;
    let mut recording = device.record();
    // The input is rounded to bf16 once for all.
    for _ in 0..TOGETHER {
        recording.push(Matmul {
            input: &input,
            weight: &weight,
            output: &output,
            input_layout: InputLayout::RowMajor,
            precision: Precision::Fast,
        })?;
    }
    let executable = recording.finish()?;
    executable.run()?;
    let mut shortest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        executable.run()?;
        shortest = shortest.min(started.elapsed().as_secs_f64());
    }
    let operations = 2.0 * (SIDE as f64).powi(3) * TOGETHER as f64;
    Ok(operations / shortest / 1e9)
}
