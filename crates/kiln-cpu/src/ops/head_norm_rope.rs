//! Per-head RMS normalisation and rotary position embedding.
//!
//! A task has all heads of its tokens, so that the angles of a token are computed once.

use super::norms::{inverse_rms, read_vector, scale_row};
use super::values::{read_row, row_tasks};
use crate::exec::Lowering;
use crate::isa::{LANES, Simd, with_simd};
use crate::view::View;
use kiln_core::ops::{HeadLayout, HeadNormRope, RopePairing};
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

pub(super) fn head_norm_rope(op: &HeadNormRope<View>, lowering: &mut Lowering) {
    let op = op.clone();
    let [tokens, heads, dim] = [op.input.extent(0), op.input.extent(1), op.input.last()];
    let frequencies = frequencies(&op, dim);
    let isa = lowering.isa;
    row_tasks(lowering, [tokens, heads * dim], move |tokens, scratch| {
        let parts = [dim, dim, op.half, op.half].map(|len| len * size_of::<f32>());
        let [weight, head, cos, sin] = parts;
        let [weight, head, cos, sin, scaled] =
            scratch.parts([weight, head, cos, sin, op.half * size_of::<f64>()]);
        let [weight, head, cos, sin] =
            [weight, head, cos, sin].map(bytemuck::cast_slice_mut::<u8, f32>);
        let scaled: &mut [f64] = bytemuck::cast_slice_mut(scaled);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // SAFETY: the contract's shapes; the outputs of a token are this task's alone.
            unsafe {
                scale_frequencies(&op, &frequencies, scaled);
                let weight = op.weight.as_ref().map(|view| read_vector(view, weight));
                for token in tokens {
                    rotations(&op, token, scaled, [&mut *cos, &mut *sin]);
                    for index in 0..heads {
                        let x = read_row(&op.input, [token, index], head);
                        if op.normalize {
                            let factor = inverse_rms(s, x, dim, op.eps);
                            scale_row(s, (x, head.as_mut_ptr()), factor, weight, dim);
                        } else if !std::ptr::eq(x, head.as_ptr()) {
                            std::ptr::copy_nonoverlapping(x, head.as_mut_ptr(), dim);
                        }
                        rotate(op.pairing, head, cos, sin);
                        store(&op, [token, index], head);
                    }
                }
            }
        }));
    });
}

/// `theta^exponent` of each pair.
fn frequencies(op: &HeadNormRope<View>, dim: usize) -> Vec<f64> {
    let turned = match op.pairing {
        RopePairing::Interleaved | RopePairing::Leading => 2 * op.half,
        RopePairing::Spanning => dim,
    };
    let frequency = |i: usize| f64::from(op.theta).powf(-2.0 * i as f64 / turned as f64);
    (0..op.half).map(frequency).collect()
}

/// Divides the frequencies by the factors.
///
/// # Safety
/// Nobody writes the factors meanwhile.
#[inline(always)]
unsafe fn scale_frequencies(op: &HeadNormRope<View>, frequencies: &[f64], scaled: &mut [f64]) {
    scaled.copy_from_slice(frequencies);
    if let Some(factors) = &op.freq_factors {
        // SAFETY: f32 by the contract; the caller's otherwise.
        let factors = unsafe { factors.row::<f32, 0>([]) };
        scaled.iter_mut().zip(factors).for_each(|(scaled, factor)| *scaled /= f64::from(*factor));
    }
}

/// Cosine and sine of every pair of a token.
///
/// # Safety
/// Nobody writes positions or tables meanwhile.
#[inline(always)]
unsafe fn rotations(
    op: &HeadNormRope<View>,
    token: usize,
    frequencies: &[f64],
    [cos, sin]: [&mut [f32]; 2],
) {
    if op.half == 0 {
        return;
    }
    // SAFETY: types and shapes by the contract; the caller's otherwise.
    unsafe {
        if let (Some(cos_table), Some(sin_table)) = (&op.cos, &op.sin) {
            let row = |table: &View| [if table.extent(0) == 1 { 0 } else { token }];
            cos.copy_from_slice(cos_table.row::<f32, 1>(row(cos_table)));
            sin.copy_from_slice(sin_table.row::<f32, 1>(row(sin_table)));
        } else if let Some(positions) = &op.positions {
            let position = f64::from(positions.row::<u32, 0>([])[token]);
            cos_sin(position, frequencies, cos, sin);
        }
    }
}

/// Largest angle of [`turn`].
const LARGEST: f64 = 1e6;

/// Cosine and sine of `position * frequency`.
#[inline(always)]
fn cos_sin(position: f64, frequencies: &[f64], cos: &mut [f32], sin: &mut [f32]) {
    let chunks = cos.chunks_mut(LANES).zip(sin.chunks_mut(LANES));
    for ((cos, sin), frequencies) in chunks.zip(frequencies.chunks(LANES)) {
        let mut angles = [0f64; LANES];
        for (angle, frequency) in angles.iter_mut().zip(frequencies) {
            *angle = position * frequency;
        }
        let in_range = angles.iter().fold(true, |all, angle| all & (angle.abs() <= LARGEST));
        let (mut cosines, mut sines) = ([0f32; LANES], [0f32; LANES]);
        let values = cosines.iter_mut().zip(&mut sines).zip(&angles);
        if in_range {
            for ((cos, sin), angle) in values {
                (*cos, *sin) = turn(*angle);
            }
        } else {
            for ((cos, sin), angle) in values {
                (*cos, *sin) = (angle.cos() as f32, angle.sin() as f32);
            }
        }
        cos.copy_from_slice(&cosines[..cos.len()]);
        sin.copy_from_slice(&sines[..sin.len()]);
    }
}

/// Cosine and sine of an angle of at most [`LARGEST`], right to 1e-10. Without branches, so that a
/// loop over it becomes vectors.
#[inline(always)]
fn turn(angle: f64) -> (f32, f32) {
    /// Its sum with a small number has that number, rounded, in its lowest bits.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    /// The first 33 bits of a quarter turn, whose products with quarters are exact, and the rest.
    const HIGH: f64 = f64::from_bits(FRAC_PI_2.to_bits() & !0xf_ffff);
    const LOW: f64 = FRAC_PI_2 - HIGH;
    let shifted = angle * FRAC_2_PI + ROUND;
    let quarter = shifted.to_bits();
    let quarters = shifted - ROUND;
    let r = (angle - quarters * HIGH) - quarters * LOW;

    let z = r * r;
    let sin = r + r * z * series(z, SIN_COEFFICIENTS);
    let cos = 1.0 + z * series(z, COS_COEFFICIENTS);
    let (cos, sin) = (cos as f32, sin as f32);
    let (x, y) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let x = if (quarter + 1) & 2 == 0 { x } else { -x };
    let y = if quarter & 2 == 0 { y } else { -y };
    (x, y)
}

/// `(sin(r) / r - 1) / z` in `z = r^2`, for at most an eighth of a turn.
const SIN_COEFFICIENTS: [f64; 5] =
    [-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5_040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0];

/// `(cos(r) - 1) / z`, the same.
const COS_COEFFICIENTS: [f64; 5] =
    [-0.5, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0];

/// `c[0] + c[1] z + c[2] z^2 + ..`
#[inline(always)]
fn series(z: f64, c: [f64; 5]) -> f64 {
    c[0] + z * (c[1] + z * (c[2] + z * (c[3] + z * c[4])))
}

/// Rotates the pairs of a head.
#[inline(always)]
fn rotate(pairing: RopePairing, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let distance = match pairing {
        RopePairing::Interleaved => {
            let pairs = head.chunks_exact_mut(2).zip(cos).zip(sin);
            for ((pair, cos), sin) in pairs {
                let [a, b] = [pair[0], pair[1]];
                pair[0] = a * cos - b * sin;
                pair[1] = b * cos + a * sin;
            }
            return;
        }
        RopePairing::Leading => half,
        RopePairing::Spanning => head.len() / 2,
    };
    let (first, second) = head.split_at_mut(distance);
    for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b) = (*first, *second);
        *first = a * cos - b * sin;
        *second = b * cos + a * sin;
    }
}

/// Writes a head to every output.
///
/// # Safety
/// The outputs of the token are the caller's alone.
#[inline(always)]
unsafe fn store(op: &HeadNormRope<View>, [token, head]: [usize; 2], values: &[f32]) {
    // SAFETY: types and shapes by the contract; the caller's otherwise.
    unsafe {
        if let Some(output) = &op.output {
            output.store([token, head], values);
        }
        if let Some(output) = &op.output_bf16 {
            let row = match op.copy_layout {
                HeadLayout::TokenMajor => [token, head],
                HeadLayout::HeadMajor => [head, token],
            };
            output.store(row, values);
        }
        if let Some(output) = &op.output_f32 {
            output.store([head, token], values);
        }
        if let (Some(cache), Some(start)) = (&op.cache, &op.cache_start) {
            let slot = start.row::<u32, 0>([])[0] as usize + token;
            if slot < cache.extent(1) {
                cache.store([head, slot], values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_right_to_the_last_place_of_f32() {
        let mut worst = 0f64;
        let mut check = |angle: f64| {
            let (mut cos, mut sin) = ([0f32], [0f32]);
            cos_sin(1.0, &[angle], &mut cos, &mut sin);
            for (got, expected) in [(cos[0], angle.cos()), (sin[0], angle.sin())] {
                worst = worst.max((f64::from(got) - expected).abs());
            }
        };
        for i in 0..400_000 {
            let step = f64::from(i);
            check(step * 0.327_681);
            check(step * step * 1e-7);
            check(step * FRAC_PI_2);
            check(step * 12_345.678);
        }
        check(f64::from(u32::MAX));
        assert!(worst < 3.1e-8, "{worst:e}");
    }

    #[test]
    fn no_turn_changes_nothing() {
        assert_eq!(turn(0.0), (1.0, 0.0));
    }
}
