//! Scales, minima and codes of small squared error, found by search.
//!
//! Candidates are tried at the precision they are stored in, so the least error found is that of
//! the encoded block. All arithmetic is f64 in a fixed order: the results are the same on every
//! machine, and no finite f32 input overflows. Errors leave out the sum of squares of the input.

use std::ops::RangeInclusive;

use super::{F16Bytes, IQ4_CODEBOOK};

/// Candidate scales on either side of the one that maps the range of the input to the range of
/// the codes, and how far they reach.
const STEPS: i32 = 6;
const SPREAD: f64 = 0.12;
/// Least-squares refits that follow the search.
const REFITS: usize = 2;
/// Neighbours on either side of the nearest integer scale that are tried.
const WINDOW: i32 = 2;
/// Steps of the walk over pairs of an integer scale and an integer minimum.
const WALK: usize = 3;

/// The f16 nearest to `v`. Large values saturate; a nonzero value never becomes zero.
fn store(v: f64) -> F16Bytes {
    const SMALLEST: f32 = 1.0 / (1 << 24) as f32;
    let magnitude = (v.abs().min(65504.0) as f32).max(SMALLEST);
    if v == 0.0 { F16Bytes::default() } else { magnitude.copysign(v as f32).into() }
}

/// `v` after a round trip through f16.
fn stored(v: f64) -> f64 {
    store(v).to_f32().into()
}

/// `1 / v`, or 0 for 0: what is divided by a zero scale gets the code of zero.
fn reciprocal(v: f64) -> f64 {
    if v == 0.0 { 0.0 } else { 1.0 / v }
}

/// The integer within `lo..=hi` nearest to `v`, for bounds within `±2^51`.
fn round(v: f64, lo: f64, hi: f64) -> f64 {
    // The sum has no bits left for a fraction, so adding is rounding.
    const SHIFT: f64 = (3u64 << 51) as f64;
    (v.max(lo).min(hi) + SHIFT) - SHIFT
}

/// Sums the terms of every element, in four interleaved partial sums. The length of `x` must be a
/// multiple of 4.
fn sum<const K: usize>(x: &[f64], terms: impl Fn(f64) -> [f64; K]) -> [f64; K] {
    let mut lanes = [[0.0; 4]; K];
    for chunk in x.as_chunks::<4>().0 {
        for (lane, &x) in chunk.iter().enumerate() {
            for (lanes, term) in lanes.iter_mut().zip(terms(x)) {
                lanes[lane] += term;
            }
        }
    }
    lanes.map(|l| (l[0] + l[1]) + (l[2] + l[3]))
}

/// The best value so far, with its error.
struct Best<T> {
    error: f64,
    value: T,
}

impl<T> Best<T> {
    fn offer(&mut self, error: f64, value: T) {
        if error < self.error {
            *self = Self { error, value };
        }
    }
}

/// Factors around 1 that the search tries.
fn factors() -> impl Iterator<Item = f64> {
    (-STEPS..=STEPS).map(|k| 1.0 + SPREAD * f64::from(k) / f64::from(STEPS))
}

/// A set of multiples of the scale that values are rounded to.
pub(super) trait Grid: Copy {
    /// Least and greatest element.
    fn ends(self) -> [f64; 2];
    /// The element nearest to `v`.
    fn nearest(self, v: f64) -> f64;
    /// The code of an element.
    fn code(self, element: f64) -> u8;
}

/// The integers of a range; codes count from its start.
#[derive(Clone, Copy)]
pub(super) struct Integers {
    lo: f64,
    hi: f64,
}

impl Integers {
    pub(super) fn new(lo: i8, hi: i8) -> Self {
        Self { lo: lo.into(), hi: hi.into() }
    }
}

impl Grid for Integers {
    fn ends(self) -> [f64; 2] {
        [self.lo, self.hi]
    }

    fn nearest(self, v: f64) -> f64 {
        round(v, self.lo, self.hi)
    }

    fn code(self, element: f64) -> u8 {
        (element - self.lo) as u8
    }
}

/// The elements of [`IQ4_CODEBOOK`]; codes are indices.
#[derive(Clone, Copy)]
pub(super) struct Codebook;

const CODEBOOK_LO: i32 = IQ4_CODEBOOK[0] as i32;
const CODEBOOK_HI: i32 = IQ4_CODEBOOK[15] as i32;

/// Elements nearest to `CODEBOOK_LO + i / 2` and to all before the next half: the midpoints
/// between elements are whole or half numbers.
const NEAREST: [i8; (2 * (CODEBOOK_HI - CODEBOOK_LO) + 1) as usize] = {
    let mut nearest = [0; _];
    let (mut i, mut code) = (0, 0);
    while i < nearest.len() {
        let twice = 2 * CODEBOOK_LO + i as i32;
        if code < 15 && twice >= IQ4_CODEBOOK[code] as i32 + IQ4_CODEBOOK[code + 1] as i32 {
            code += 1;
        }
        nearest[i] = IQ4_CODEBOOK[code];
        i += 1;
    }
    nearest
};

impl Grid for Codebook {
    fn ends(self) -> [f64; 2] {
        [CODEBOOK_LO.into(), CODEBOOK_HI.into()]
    }

    fn nearest(self, v: f64) -> f64 {
        let [lo, hi] = self.ends();
        NEAREST[(2.0 * (v.max(lo).min(hi) - lo)) as usize].into()
    }

    fn code(self, element: f64) -> u8 {
        IQ4_CODEBOOK.iter().take_while(|&&other| f64::from(other) < element).count() as u8
    }
}

fn codes<const N: usize>(x: &[f64; N], grid: impl Grid, scale: impl Fn(usize) -> f64) -> [u8; N] {
    std::array::from_fn(|i| grid.code(grid.nearest(x[i] * reciprocal(scale(i)))))
}

/// The value of greatest magnitude.
fn extreme(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |extreme: f64, &x| if x.abs() > extreme.abs() { x } else { extreme })
}

/// Sums over values `x` and the multiples `q` of a scale that they are rounded to.
#[derive(Clone, Copy, Default)]
struct Scaled {
    xq: f64,
    qq: f64,
}

impl Scaled {
    fn new(x: &[f64], d: f64, grid: impl Grid) -> Self {
        let inverse = reciprocal(d);
        let [xq, qq] = sum(x, |x| {
            let q = grid.nearest(x * inverse);
            [x * q, q * q]
        });
        Self { xq, qq }
    }

    fn error(self, d: f64) -> f64 {
        d * (d * self.qq - 2.0 * self.xq)
    }

    fn best_scale(self) -> f64 {
        self.xq * reciprocal(self.qq)
    }
}

/// The scale, stored by `keep`, that rounds `x` to `grid` with the least error found.
fn best_scale(x: &[f64], grid: impl Grid, keep: impl Fn(f64) -> f64) -> f64 {
    let extreme = extreme(x);
    let mut best = Best { error: 0.0, value: 0.0 };
    let mut offer = |d: f64| {
        let sums = Scaled::new(x, d, grid);
        best.offer(sums.error(d), d);
        let refit = keep(sums.best_scale());
        best.offer(sums.error(refit), refit);
        best.value
    };
    let [lo, hi] = grid.ends();
    // A symmetric grid needs no negative scale.
    for end in [lo, hi].into_iter().filter(|end| lo != -hi || end * extreme > 0.0) {
        for factor in factors() {
            offer(keep(extreme / (end * factor)));
        }
    }
    (0..REFITS).fold(best.value, |_, _| 0.0)
}

/// Scale and codes of a block `d * q`.
pub(super) fn scaled(values: &[f32; 32], grid: impl Grid) -> (F16Bytes, [u8; 32]) {
    let x = values.map(f64::from);
    let d = best_scale(&x, grid, stored);
    (store(d), codes(&x, grid, |_| d))
}
