//! What the machine can do: memory bandwidth and products on tiles, measured.

use crate::isa::{Isa, LANES, MatrixUnit, TILE_DEPTH, Tiles, prefetch, with_simd, with_unit};
use crate::matmul::bf16_tiles::PAIR;
use crate::threads::Pool;
use crate::{Config, choose, fail};
use kiln_core::Result;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Upper limits of a machine, as measured by [`limits`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second that the threads read from memory together, in 10^9.
    pub read_gb_per_s: f64,
    /// Operations per second of products on tiles that stay in the nearest cache, over all threads, in
    /// 10^9; a multiply-add counts as two. The products are those of 4-bit weights with 8-bit activations,
    /// or of bf16 where the instruction set multiplies tiles of it.
    pub dot_gop_per_s: f64,
}

/// Bytes that every thread reads: more than its share of the caches.
const READ_BYTES: usize = 128 << 20;

/// Fours of values of a tile.
const FOURS: usize = 64;

/// Tiles of the depth, where a unit multiplies them.
const TILES: usize = 8;

/// Measures the limits of this machine with the threads and the instruction set of a
/// configuration: the best of several rounds, in about a second.
///
/// # Errors
/// As [`crate::device`]; [`kiln_core::Error::OutOfMemory`] where there are not 128 MiB per thread.
pub fn limits(config: &Config) -> Result<Limits> {
    let (isa, pool) = choose(config)?;
    let mut memory = Vec::new();
    let words = READ_BYTES / size_of::<u64>() * pool.count();
    memory.try_reserve_exact(words).map_err(|_| kiln_core::Error::OutOfMemory {
        device: "cpu".to_owned(),
        requested: READ_BYTES * pool.count(),
    })?;
    memory.resize(words, 1u64);
    let parts: Vec<&[u64]> = memory.chunks(READ_BYTES / size_of::<u64>()).collect();
    let read = best(&pool, |index| sum(parts[index]))?;
    let operations = operations(isa) as f64;
    let dots = best(&pool, |_| match isa.unit {
        Some(unit) => with_unit!(unit, unit => multiply_in_unit(unit)),
        None => with_simd!(isa, s => multiply(s)),
    })?;
    let threads = pool.count() as f64;
    Ok(Limits {
        read_gb_per_s: READ_BYTES as f64 * threads / read / 1e9,
        dot_gop_per_s: operations * threads / dots / 1e9,
    })
}

/// Seconds of the fastest of several rounds, in each of which every thread calls `work` once.
fn best(pool: &Pool, work: impl Fn(usize) -> u64 + Sync) -> Result<f64> {
    const ENOUGH: Duration = Duration::from_millis(400);
    let (begun, mut shortest) = (Instant::now(), f64::INFINITY);
    while begun.elapsed() < ENOUGH {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let started = Instant::now();
        pool.run(&|worker, _| {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            black_box(work(index));
            worker.barrier();
        })
        .map_err(fail)?;
        shortest = shortest.min(started.elapsed().as_secs_f64());
    }
    Ok(shortest)
}

/// Reads as the fastest kernels do: what follows is asked for.
fn sum(words: &[u64]) -> u64 {
    const LINE: usize = 64 / size_of::<u64>();
    const AHEAD: usize = 4096 / size_of::<u64>();
    let mut sums = [0u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for line in (0..32).step_by(LINE) {
            prefetch(chunk.as_ptr().wrapping_add(AHEAD + line).cast());
        }
        sums.iter_mut().zip(chunk).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

const ROUNDS: usize = 4000;

/// Operations of one call.
fn operations(isa: Isa) -> usize {
    fn of_tile<S: Tiles>(_: S) -> usize {
        FOURS * 4 * LANES * S::STRIPS * S::COLUMNS
    }
    let of_round = match isa.unit {
        Some(_) => TILES * TILE_DEPTH * PAIR * PAIR,
        None => with_simd!(isa, s => of_tile(s)),
    };
    2 * ROUNDS * of_round
}

/// A cache line of bf16.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u16; TILE_DEPTH]);

/// Products of a panel with a block of columns.
fn multiply_in_unit<U: MatrixUnit>(unit: U) -> u64 {
    let value = |i: usize| half::bf16::from_f32((i * 37 % 101) as f32 - 50.0).to_bits();
    let line = |i: usize| Line(std::array::from_fn(|value_of| value(i * TILE_DEPTH + value_of)));
    let of_panel = TILES * PAIR;
    let tiles: Vec<Line> = (0..2 * of_panel).map(line).collect();
    let (columns, rows) = tiles.split_at(of_panel);
    let mut sums = vec![line(0); PAIR * PAIR * size_of::<f32>() / size_of::<Line>()];
    unit.with_tiles(
        #[inline(always)]
        || {
            for _ in 0..ROUNDS {
                let (columns, rows) = (black_box(columns.as_ptr()), black_box(rows.as_ptr()));
                let sums = sums.as_mut_ptr();
                // SAFETY: tiles are ready, and both parts and the sums have so many lines.
                unsafe {
                    unit.multiply::<2>(columns.cast(), rows.cast(), TILES, sums.cast(), true)
                };
            }
        },
    );
    u64::from(black_box(&sums)[0].0[0])
}

fn multiply<S: Tiles>(s: S) -> u64 {
    match (S::STRIPS, S::COLUMNS) {
        (2, 12) => multiply_tile::<S, 2, 12>(s),
        _ => multiply_tile::<S, 1, 4>(s),
    }
}

fn multiply_tile<S: Tiles, const V: usize, const N: usize>(s: S) -> u64 {
    let weights = vec![3u8; V * FOURS * 4 * LANES];
    let columns = vec![5u8; FOURS * 4 * N];
    s.run(
        #[inline(always)]
        || {
            let mut total = s.splat(0.0);
            for _ in 0..ROUNDS {
                let (weights, columns) = (black_box(weights.as_ptr()), black_box(columns.as_ptr()));
                let zero = [[s.splat_int(0); N]; V];
                // SAFETY: so many fours of the strips and of the columns are inside their memory.
                let dots = unsafe { s.dot_tile::<4, V, N>(zero, weights, (columns, N), FOURS) };
                for dots in &dots {
                    for dots in dots {
                        total = s.add(total, s.to_float(*dots));
                    }
                }
            }
            u64::from(s.sum(total).to_bits())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn every_instruction_set_has_limits() {
        for isa in Isa::available() {
            let instruction_set = Some(isa.name().to_owned());
            let limits = limits(&Config { threads: Some(1), instruction_set }).unwrap();
            assert!(limits.read_gb_per_s > 0.0 && limits.dot_gop_per_s > 0.0, "{limits:?}");
        }
        assert!(limits(&Config { threads: Some(0), instruction_set: None }).is_err());
    }
}
