//! From logits to tokens.

use super::norms::Sum;
use super::values::{Kernel, TASK_VALUES, fold, map, read_row, row_tasks, target, write};
use crate::exec::{Lowering, Tasks};
use crate::isa::{LANES, Simd, with_simd};
use crate::threads::Scratch;
use crate::view::View;
use kiln_core::ops::{Argmax, Sample, Softmax};
use std::f64::consts::{LN_2, LOG2_E};

/// Values of a cache-sized piece of a row.
const PIECE: usize = 1024;

/// Values looked at together.
const WIDE: usize = 4 * LANES;

/// The largest of `sign * value`, minus infinity where there is no number.
#[inline(always)]
pub(super) fn maximum(values: &[f32], sign: f32) -> f32 {
    let larger = |x: f32, max: f32| if x > max { x } else { max };
    let mut lanes = [f32::NEG_INFINITY; WIDE];
    let chunks = values.chunks_exact(WIDE);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(max, x)| *max = larger(sign * x, *max));
    }
    lanes.iter_mut().zip(rest).for_each(|(max, x)| *max = larger(sign * x, *max));
    lanes.into_iter().fold(f32::NEG_INFINITY, |max, x| larger(x, max))
}

/// `exp((x - max) * scale)`
#[derive(Clone, Copy)]
struct Exponential {
    max: f32,
    scale: f32,
}

impl Kernel<1> for Exponential {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1]) -> S::F {
        s.exp(s.mul(s.sub(x, s.splat(self.max)), s.splat(self.scale)))
    }
}

/// `x * factor`
#[derive(Clone, Copy)]
struct Share {
    factor: f32,
}

impl Kernel<1> for Share {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F; 1]) -> S::F {
        s.mul(x, s.splat(self.factor))
    }
}

/// `output = softmax(scale * input)`
pub(super) fn softmax(op: &Softmax<View>, lowering: &mut Lowering) {
    let Softmax { input, output, scale } = *op;
    let (isa, n) = (lowering.isa, input.last());
    row_tasks(lowering, [input.extent(0), 4 * n], move |rows, scratch| {
        let [a, b] = scratch.floats([n; 2]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                let to = output.row_ptr([row]);
                // SAFETY: rows of `n` values, this task's alone, each read before it is written.
                unsafe {
                    let x = read_row(&input, [row], a);
                    let y = target(output.dtype(), to, b);
                    softmax_row(s, [x, y.cast_const()], n, scale);
                    write(output.dtype(), to, b);
                }
            }
        }));
    });
}

/// # Safety
/// `n` values at both pointers; the second is to write.
#[inline(always)]
unsafe fn softmax_row<S: Simd>(s: S, [x, y]: [*const f32; 2], n: usize, scale: f32) {
    let y = y.cast_mut();
    // SAFETY: the caller's values.
    let values = unsafe { std::slice::from_raw_parts(x, n) };
    let nan = values.iter().fold(false, |nan, x| nan | x.is_nan());
    let sign = if scale < 0.0 { -1.0 } else { 1.0 };
    let max = sign * maximum(values, sign);
    // SAFETY: as above.
    unsafe {
        map(s, Exponential { max, scale }, [x], y, n);
        let mut sum = 0.0;
        for at in (0..n).step_by(PIECE) {
            sum += f64::from(fold(s, Sum, y.add(at), PIECE.min(n - at)));
        }
        let factor = if nan { f32::NAN } else { (1.0 / sum) as f32 };
        map(s, Share { factor }, [y.cast_const()], y, n);
    }
}

/// Orders candidates: larger logits first, then lower indices, NaN last.
#[inline(always)]
pub(super) fn key(logit: f32, index: usize) -> u64 {
    // Adding 0 makes the zeros equal.
    let bits = (logit + 0.0).to_bits();
    let falling = if bits >> 31 == 1 { bits } else { !(bits | 1 << 31) };
    let order = if logit.is_nan() { u32::MAX } else { falling };
    u64::from(order) << 32 | index as u64
}

/// The index in a [`key`].
#[inline(always)]
pub(super) fn index_of(key: u64) -> u32 {
    key as u32
}

/// The logit in a [`key`] that is not of NaN.
#[inline(always)]
fn logit_of(key: u64) -> f32 {
    let falling = (key >> 32) as u32;
    f32::from_bits(if falling >> 31 == 1 { falling } else { !falling & !(1 << 31) })
}

/// The key of no candidate.
const NOBODY: u64 = u64::MAX;

/// The key of the largest of values, the first of which has index `first`.
#[inline(always)]
fn largest(values: &[f32], first: usize) -> u64 {
    let (mut max, mut start) = (f32::NEG_INFINITY, 0);
    for (index, piece) in values.chunks(PIECE).enumerate() {
        let piece_max = maximum(piece, 1.0);
        if piece_max > max {
            (max, start) = (piece_max, index * PIECE);
        }
    }
    let position = values[start..].iter().position(|x| *x == max);
    position.map_or(NOBODY, |position| key(max, first + start + position))
}

/// The index of a row's largest value; 0 where there is no number.
#[inline(always)]
fn winner(key: u64) -> u32 {
    if key == NOBODY { 0 } else { index_of(key) }
}

/// The index of the largest value of each row.
pub(super) fn argmax(op: &Argmax<View>, lowering: &mut Lowering) {
    largest_indices(op.input, op.output, lowering);
}

fn largest_indices(input: View, output: View, lowering: &mut Lowering) {
    /// Values of a task: some microseconds.
    const PART: usize = 4 * TASK_VALUES;
    let (isa, rows) = (lowering.isa, input.extent(0));
    let parts = input.last().div_ceil(PART);
    if parts == 1 {
        return row_tasks(lowering, [rows, input.last()], move |rows, _| {
            with_simd!(isa, s => s.run(#[inline(always)] || {
                for row in rows {
                    // SAFETY: f32 and u32 by the contract; this output is this task's alone.
                    unsafe {
                        let index = winner(largest(input.row([row]), 0));
                        output.start().cast::<u32>().add(row).write(index);
                    }
                }
            }));
        });
    }
    let workspace = lowering.workspace(rows * parts * size_of::<u64>());
    let keys = workspace.clone();
    lowering.tasks(Tasks::new(rows * parts, move |task, _| {
        let (row, first) = (task / parts, task % parts * PART);
        // SAFETY: f32 by the contract; each task has its own key of the workspace.
        unsafe {
            let values: &[f32] = input.row([row]);
            let part = &values[first..values.len().min(first + PART)];
            let best = with_simd!(isa, s => s.run(#[inline(always)] || largest(part, first)));
            keys.start().cast::<u64>().add(task).write(best);
        }
    }));
    lowering.barrier();
    lowering.tasks(Tasks::new(1, move |_, _| {
        for row in 0..rows {
            // SAFETY: the keys were written before the barrier; one task has the output.
            unsafe {
                let keys = workspace.start().cast::<u64>().add(row * parts);
                let keys = std::slice::from_raw_parts(keys, parts);
                let best = keys.iter().copied().min().unwrap_or(NOBODY);
                output.start().cast::<u32>().add(row).write(winner(best));
            }
        }
    }));
}

/// `e^x` for `x` up to 0, relative error below 1e-13. Without branches, so that a loop over it
/// becomes vectors.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    /// Its sum with a small number has that number, rounded, in its lowest bits.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    /// The first 33 bits of ln 2, whose products with exponents are exact, and the rest.
    const HIGH: f64 = f64::from_bits(LN_2.to_bits() & !0xf_ffff);
    const LOW: f64 = LN_2 - HIGH;
    /// Below, the result is 0.
    const LEAST: f64 = -708.0;
    let clamped = if x > LEAST { x } else { LEAST };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * HIGH) - n * LOW;
    let mut sum = EXP_COEFFICIENTS[0];
    for coefficient in &EXP_COEFFICIENTS[1..] {
        sum = sum * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023);
    let value = sum * f64::from_bits(exponent << 52);
    let value = if x >= LEAST { value } else { 0.0 };
    if x.is_nan() { x } else { value }
}

/// Taylor coefficients of the exponential function, highest power first.
const EXP_COEFFICIENTS: [f64; 14] = {
    let mut coefficients = [1.0; 14];
    let mut power = 1;
    while power < 14 {
        coefficients[13 - power] = coefficients[14 - power] / power as f64;
        power += 1;
    }
    coefficients
};

/// Draws a token from each row of logits.
pub(super) fn sample(op: &Sample<View>, lowering: &mut Lowering) {
    let Sample { logits, random, output, temperature, top_k, top_p } = *op;
    if temperature == 0.0 {
        return largest_indices(logits, output, lowering);
    }
    let isa = lowering.isa;
    let top_p = f64::from(top_p);
    lowering.tasks(Tasks::new(logits.extent(0), move |row, scratch| {
        // SAFETY: f32 and u32 by the contract; this output is this task's alone.
        unsafe {
            let logits: &[f32] = logits.row([row]);
            let random = f64::from(random.row::<f32, 0>([])[row]);
            let index = with_simd!(isa, s => s.run(#[inline(always)] || {
                let weights = Weights::new(logits, temperature);
                if (1..logits.len()).contains(&top_k) {
                    few(weights, top_k, top_p, random, scratch)
                } else {
                    all(weights, top_p, random, scratch)
                }
            }));
            output.start().cast::<u32>().add(row).write(index);
        }
    }));
}

/// Weights of candidates: `exp((logit - max) / temperature)`.
#[derive(Clone, Copy)]
struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    inverse_temperature: f64,
}

impl<'a> Weights<'a> {
    #[inline(always)]
    fn new(logits: &'a [f32], temperature: f32) -> Self {
        let max = maximum(logits, 1.0);
        Self { logits, max, inverse_temperature: 1.0 / f64::from(temperature) }
    }

    /// Minus the exponent of a weight. The largest logit has 0, even where it is infinite.
    #[inline(always)]
    fn depth(&self, logit: f32) -> f64 {
        let below = f64::from(self.max) - f64::from(logit);
        if logit == self.max { 0.0 } else { below * self.inverse_temperature }
    }

    #[inline(always)]
    fn of(&self, key: u64) -> f64 {
        exp(-self.depth(logit_of(key)))
    }

    /// The first of the candidates, in order, at which the running sum of weights satisfies `stop`,
    /// or the last; and the sum there.
    #[inline(always)]
    fn walk(&self, keys: &[u64], start: f64, stop: impl Fn(f64) -> bool) -> (u64, f64) {
        let (mut last, mut sum) = (NOBODY, start);
        for key in keys {
            last = *key;
            sum += self.of(last);
            if stop(sum) {
                break;
            }
        }
        (last, sum)
    }
}

/// Draws from the `top_k` best.
#[inline(always)]
fn few(weights: Weights<'_>, top_k: usize, top_p: f64, random: f64, scratch: &mut Scratch) -> u32 {
    let room = (2 * top_k).max(PIECE) + WIDE;
    let [keys] = scratch.parts([room.min(weights.logits.len() + WIDE) * size_of::<u64>()]);
    let keys = best(weights.logits, top_k, bytemuck::cast_slice_mut(keys));
    let (_, total) = weights.walk(keys, 0.0, |_| false);
    let (_, nucleus) = weights.walk(keys, 0.0, |sum| sum >= top_p * total);
    winner(weights.walk(keys, 0.0, |sum| sum > random * nucleus).0)
}

/// The best `count` candidates in order, fewer where fewer are numbers. `keys` has room for at least
/// `count` and [`WIDE`] more.
#[inline(always)]
fn best<'a>(logits: &[f32], count: usize, keys: &'a mut [u64]) -> &'a [u64] {
    let mut len = 0;
    let (mut least, mut last) = (f32::NEG_INFINITY, NOBODY);
    for (index, chunk) in logits.chunks(WIDE).enumerate() {
        if !chunk.iter().fold(false, |any, x| any | (*x >= least)) {
            continue;
        }
        for (offset, logit) in chunk.iter().enumerate() {
            let key = key(*logit, index * WIDE + offset);
            if *logit >= least && key < last {
                keys[len] = key;
                len += 1;
            }
        }
        if len + WIDE > keys.len() {
            last = *keys[..len].select_nth_unstable(count - 1).1;
            least = logit_of(last);
            len = count;
        }
    }
    keys[..len].sort_unstable();
    &keys[..len.min(count)]
}

/// Depth of the candidates that can be drawn: those below have less than 1e-8 of the probability,
/// less than a step of a random number in f32, for any number of candidates below 2^32.
const DEEPEST: f64 = 40.0;

/// Buckets of candidates by depth.
const BUCKETS: usize = 2048;

/// Draws from all candidates. They are summed by depth, so that only the buckets in which a running
/// sum ends have to be put in order.
#[inline(always)]
fn all(weights: Weights<'_>, top_p: f64, random: f64, scratch: &mut Scratch) -> u32 {
    let [masses, keys] =
        scratch.parts([BUCKETS + 2, weights.logits.len()].map(|len| len * size_of::<u64>()));
    let masses: &mut [f64] = bytemuck::cast_slice_mut(masses);
    let keys: &mut [u64] = bytemuck::cast_slice_mut(keys);
    masses.fill(0.0);
    for chunk in weights.logits.chunks(WIDE) {
        let (mut at, mut mass) = ([0u64; WIDE], [0f64; WIDE]);
        for ((at, mass), logit) in at.iter_mut().zip(&mut mass).zip(chunk) {
            let depth = weights.depth(*logit);
            *at = bucket(depth);
            *mass = exp(-depth);
        }
        for (at, mass) in at.iter().zip(&mass).take(chunk.len()) {
            masses[*at as usize] += mass;
        }
    }
    let masses = &masses[..=BUCKETS];
    let total = masses.iter().fold(0.0, |sum, mass| sum + mass);
    let (limit, nucleus) = if top_p < 1.0 {
        end(weights, masses, keys, |sum| sum >= top_p * total)
    } else {
        (NOBODY, total)
    };
    let (drawn, _) = end(weights, masses, keys, |sum| sum > random * nucleus);
    winner(drawn.min(limit))
}

/// The bucket of a depth; the one after the last where it is beyond the deepest, or NaN.
#[inline(always)]
fn bucket(depth: f64) -> u64 {
    /// Its sum with a small number has that number, rounded, in its lowest bits.
    const ROUND: f64 = (1u64 << 52) as f64;
    let rounded = (depth * (BUCKETS as f64 / DEEPEST) + ROUND).to_bits() & 0xffff_ffff;
    if depth <= DEEPEST { rounded } else { BUCKETS as u64 + 1 }
}

/// As [`Weights::walk`], over all candidates.
#[inline(always)]
fn end(
    weights: Weights<'_>,
    masses: &[f64],
    keys: &mut [u64],
    stop: impl Fn(f64) -> bool,
) -> (u64, f64) {
    let (mut sum, mut chosen) = (0.0, (0, 0.0));
    for (index, mass) in masses.iter().enumerate() {
        if *mass > 0.0 {
            chosen = (index as u64, sum);
            sum += mass;
            if stop(sum) {
                break;
            }
        }
    }
    let mut len = 0;
    for (index, chunk) in weights.logits.chunks(WIDE).enumerate() {
        let mut inside = [false; WIDE];
        for (inside, logit) in inside.iter_mut().zip(chunk) {
            *inside = bucket(weights.depth(*logit)) == chosen.0;
        }
        if inside.iter().fold(false, |any, inside| any | inside) {
            for (offset, logit) in chunk.iter().enumerate().filter(|(at, _)| inside[*at]) {
                keys[len] = key(*logit, index * WIDE + offset);
                len += 1;
            }
        }
    }
    keys[..len].sort_unstable();
    weights.walk(&keys[..len], chosen.1, stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right() {
        for i in 0..100_000 {
            let x = f64::from(i) * -0.007;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-13, "{x}");
            let x = f64::from(i) * -3e-5;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15, "{x}");
        }
        assert_eq!([exp(0.0), exp(-800.0), exp(f64::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn keys_order_logits_and_keep_them() {
        let logits = [f32::INFINITY, 3e38, 1.0, 1e-40, 0.0, -1e-40, -2.0, f32::NEG_INFINITY];
        let keys = logits.map(|logit| key(logit, 7));
        assert!(keys.is_sorted());
        assert_eq!(keys.map(logit_of), logits);
        assert_eq!(index_of(keys[3]), 7);
        assert!(keys[7] < key(f32::NAN, 0));
        assert_eq!(key(-0.0, 3), key(0.0, 3));
        assert!(key(1.0, 3) < key(1.0, 4));
    }
}
