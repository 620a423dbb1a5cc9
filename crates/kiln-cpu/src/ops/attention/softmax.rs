//! Scores to weights: the exponential, the softcap, the running maximum and sum.

use crate::isa::{LANES, Simd};
use std::ops::Range;

/// Where a running maximum starts: finite, so that a masked score minus it is minus infinity.
pub(super) const LOWEST: f32 = -f32::MAX / 2.0;

/// What a masked key scores.
pub(super) const MASKED: f32 = f32::NEG_INFINITY;

/// `2^f` for `|f| <= 1/2`, highest power first: minimax, relative error below 2e-8.
const POWER: [f32; 7] = [
    1.546_973_2e-4,
    1.341_000_1e-3,
    9.618_031e-3,
    5.550_297_3e-2,
    2.402_265e-1,
    6.931_472_4e-1,
    1.0,
];

/// `e^v` of values not above 0: exactly 1 at 0, exactly 0 below -88, NaN of NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, v: S::F) -> S::F {
    // The maximum's second argument is what it gives where either is NaN.
    let t = s.max(s.splat(-127.0), s.mul(v, s.splat(std::f32::consts::LOG2_E)));
    let n = s.round(t);
    let f = s.sub(t, n);
    let mut p = s.splat(POWER[0]);
    for coefficient in &POWER[1..] {
        p = s.fma(p, f, s.splat(*coefficient));
    }
    s.mul(p, s.exp2_int(n))
}

/// [`exp`] of one value.
#[inline(always)]
pub(super) fn exp1<S: Simd>(s: S, v: f32) -> f32 {
    s.to_array(exp(s, s.splat(v)))[0]
}

/// `cap * tanh(score)` of 16-lane vectors `vectors` at `scores`.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn soft_cap<S: Simd>(s: S, cap: f32, scores: *mut f32, vectors: Range<usize>) {
    for vector in vectors {
        // SAFETY: by the contract.
        unsafe {
            let at = scores.add(vector * LANES);
            s.store(at, s.mul(s.splat(cap), s.tanh(s.load(at))));
        }
    }
}

/// The largest score of the vectors, or `lowest`.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd>(
    s: S,
    lowest: f32,
    scores: *const f32,
    vectors: Range<usize>,
) -> f32 {
    let mut max = s.splat(lowest);
    for vector in vectors {
        // SAFETY: by the contract.
        max = unsafe { s.max(max, s.load(scores.add(vector * LANES))) };
    }
    s.maximum(max)
}

/// Replaces scores by `e^(score - max)` and adds these to `sum`.
///
/// # Safety
/// The vectors are there.
#[inline(always)]
pub(super) unsafe fn weights<S: Simd>(
    s: S,
    max: f32,
    mut sum: S::F,
    scores: *mut f32,
    vectors: Range<usize>,
) -> S::F {
    let max = s.splat(max);
    for vector in vectors {
        // SAFETY: by the contract.
        unsafe {
            let at = scores.add(vector * LANES);
            let weight = exp(s, s.sub(s.load(at), max));
            s.store(at, weight);
            sum = s.add(sum, weight);
        }
    }
    sum
}

/// What the weighted sum of the values is multiplied by, given the maximum and the sum of the
/// weights: 0 where every key is masked.
#[inline(always)]
pub(super) fn normalizer<S: Simd>(s: S, max: f32, sum: f32, sink: Option<f32>) -> f32 {
    let (factor, total) = match sink {
        None => (1.0, sum),
        Some(sink) => {
            let top = max.max(sink);
            let factor = exp1(s, max - top);
            (factor, s.fma1(sum, factor, exp1(s, sink - top)))
        }
    };
    if total == 0.0 { 0.0 } else { factor / total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, with_float_simd};

    fn each(f: impl Fn(Isa)) {
        Isa::available().into_iter().for_each(f);
    }

    #[test]
    fn exponentials_are_accurate() {
        each(|isa| {
            with_float_simd!(isa, s => s.run(#[inline(always)] || {
                for i in 0..40_000 {
                    let v = -(i as f32) * 0.002;
                    let (got, expected) = (f64::from(exp1(s, v)), f64::from(v).exp());
                    // The argument times log2(e) is rounded once.
                    let bound = 3e-7 + 1e-7 * f64::from(-v);
                    assert!((got - expected).abs() <= bound * expected, "{v}: {got} {expected}");
                }
                assert_eq!(exp1(s, 0.0), 1.0);
                assert_eq!(exp1(s, -0.0), 1.0);
                assert_eq!(exp1(s, -89.0), 0.0);
                assert_eq!(exp1(s, MASKED), 0.0);
                assert_eq!(exp1(s, MASKED - LOWEST), 0.0);
                assert!(exp1(s, f32::NAN).is_nan());
            }));
        });
    }

    #[test]
    fn soft_caps_are_accurate() {
        each(|isa| {
            with_float_simd!(isa, s => s.run(#[inline(always)] || {
                for i in -4000..4000 {
                    let v = i as f32 * 0.005;
                    let mut values = [v; LANES];
                    // SAFETY: one vector.
                    unsafe { soft_cap(s, 1.0, values.as_mut_ptr(), 0..1) };
                    let (got, expected) = (f64::from(values[7]), f64::from(v).tanh());
                    assert!((got - expected).abs() <= 4e-7 * expected.abs(), "{v}: {got}");
                }
                let specials = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30];
                let mut values: [f32; LANES] = std::array::from_fn(|i| specials[i % 5]);
                // SAFETY: one vector.
                unsafe { soft_cap(s, 2.0, values.as_mut_ptr(), 0..1) };
                assert!(values[0].is_nan());
                assert_eq!(values[1..5], [2.0, -2.0, 2.0, -2.0]);
            }));
        });
    }

    #[test]
    fn normalizers_never_divide_by_zero() {
        each(|isa| {
            with_float_simd!(isa, s => s.run(#[inline(always)] || {
                assert_eq!(normalizer(s, LOWEST, 0.0, None), 0.0);
                assert_eq!(normalizer(s, LOWEST, 0.0, Some(MASKED)), 0.0);
                assert_eq!(normalizer(s, LOWEST, 0.0, Some(3.0)), 0.0);
                assert_eq!(normalizer(s, 1.0, 2.0, None), 0.5);
                assert_eq!(normalizer(s, 1.0, 2.0, Some(MASKED)), 0.5);
                assert_eq!(normalizer(s, 1.0, 3.0, Some(1.0)), 0.25);
                assert!(normalizer(s, f32::NAN, f32::NAN, None).is_nan());
            }));
        });
    }
}
