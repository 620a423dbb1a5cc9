//! Scales, minima and codes of small squared error, found by search.
//!
//! Candidates are tried at the precision they are stored in, so the least error found is that of
//! the encoded block. All arithmetic is f64 in a fixed order: the results are the same on every
//! machine, and no finite f32 input overflows. Errors leave out the sum of squares of the input.

use std::ops::RangeInclusive;

use super::{F16Bytes, IQ4_CODEBOOK};

/// Candidate scales on either side of the one that maps the range of the input to the range of
/// the codes, and how far they reach.
const STEPS: i32 = 2;
const SPREAD: f64 = 0.08;
/// Least-squares refits that follow the search.
const REFITS: usize = 1;
/// Rounds of choosing integer scales for the scale of a block and refitting that.
const ROUNDS: usize = 2;
/// Neighbours on either side of the nearest integer scale that are tried.
const WINDOW: i32 = 1;
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

/// `v` within `lo..=hi`; `lo` for NaN. One instruction for each bound, unlike `clamp`.
#[inline(always)]
fn clamped(v: f64, lo: f64, hi: f64) -> f64 {
    let v = if v > lo { v } else { lo };
    if v < hi { v } else { hi }
}

/// The integer within `lo..=hi` nearest to `v`, for bounds within `±2^51`.
#[inline(always)]
fn round(v: f64, lo: f64, hi: f64) -> f64 {
    // The sum has no bits left for a fraction, so adding is rounding.
    const SHIFT: f64 = (3u64 << 51) as f64;
    (clamped(v, lo, hi) + SHIFT) - SHIFT
}

/// Partial sums of every fourth element. The compiler keeps one in vector registers only where it is
/// an array of its own and added to in a loop of its own.
type Lanes = [f64; 4];

#[inline(always)]
fn lanes(f: impl FnMut(usize) -> f64) -> Lanes {
    std::array::from_fn(f)
}

#[inline(always)]
fn total(l: Lanes) -> f64 {
    (l[0] + l[1]) + (l[2] + l[3])
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

    #[inline(always)]
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

const CODEBOOK_HALVES: usize = (2 * (CODEBOOK_HI - CODEBOOK_LO) + 1) as usize;

/// The element nearest to all of `CODEBOOK_LO + i / 2 .. CODEBOOK_LO + (i + 1) / 2`: the midpoints
/// between elements are whole or half numbers.
const NEAREST: [i8; CODEBOOK_HALVES] = {
    let mut nearest = [0; CODEBOOK_HALVES];
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
        NEAREST[(2.0 * (clamped(v, lo, hi) - lo)) as usize].into()
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
    /// The sums over a whole number of [`Lanes`].
    fn new(x: &[f64], d: f64, grid: impl Grid) -> Self {
        let inverse = reciprocal(d);
        let (mut xq, mut qq) = (Lanes::default(), Lanes::default());
        for x in x.as_chunks::<4>().0 {
            let q = lanes(|l| grid.nearest(x[l] * inverse));
            xq = lanes(|l| xq[l] + x[l] * q[l]);
            qq = lanes(|l| qq[l] + q[l] * q[l]);
        }
        Self { xq: total(xq), qq: total(qq) }
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
    let attempt = |best: &mut Best<f64>, d: f64| {
        let sums = Scaled::new(x, d, grid);
        best.offer(sums.error(d), d);
        let refit = keep(sums.best_scale());
        best.offer(sums.error(refit), refit);
    };
    let [lo, hi] = grid.ends();
    // A symmetric grid needs no negative scale.
    for end in [lo, hi].into_iter().filter(|end| lo != -hi || end * extreme > 0.0) {
        for factor in factors() {
            attempt(&mut best, keep(extreme / (end * factor)));
        }
    }
    for _ in 0..REFITS {
        let d = best.value;
        attempt(&mut best, d);
    }
    best.value
}

/// Scale and codes of a block `d * q`.
pub(super) fn scaled(values: &[f32; 32], grid: impl Grid) -> (F16Bytes, [u8; 32]) {
    let x = values.map(f64::from);
    let d = best_scale(&x, grid, stored);
    (store(d), codes(&x, grid, |_| d))
}

/// A block `(d * s) * q` with an integer scale `s` per sub-block.
pub(super) struct ScaledBlocks<const SUBS: usize> {
    pub(super) d: F16Bytes,
    pub(super) scales: [i32; SUBS],
    pub(super) codes: [u8; 256],
}

/// Scales and codes of a block of `SUBS` sub-blocks, with integer scales within `range`.
pub(super) fn scaled_blocks<const SUBS: usize>(
    values: &[f32; 256],
    grid: impl Grid,
    range: RangeInclusive<i32>,
) -> ScaledBlocks<SUBS> {
    let len = 256 / SUBS;
    let x = values.map(f64::from);
    let (lo, hi) = (*range.start(), *range.end());
    let ideal: [f64; SUBS] = std::array::from_fn(|j| best_scale(&x[j * len..][..len], grid, |d| d));
    let mut best = Best { error: 0.0, value: (0.0, [0; SUBS]) };
    let mut d = stored(extreme(&ideal) / f64::from(lo));
    for _ in 0..ROUNDS {
        let mut scales = [0; SUBS];
        let mut total = Scaled::default();
        for (j, scale) in scales.iter_mut().enumerate() {
            let nearest = round(ideal[j] * reciprocal(d), lo.into(), hi.into()) as i32;
            let mut pick = Best { error: 0.0, value: (0, Scaled::default()) };
            for s in (nearest - WINDOW).max(lo)..=(nearest + WINDOW).min(hi) {
                let product = d * f64::from(s);
                let sums = Scaled::new(&x[j * len..][..len], product, grid);
                pick.offer(sums.error(product), (s, sums));
            }
            let (s, sums) = pick.value;
            *scale = s;
            total.xq += f64::from(s) * sums.xq;
            total.qq += f64::from(s * s) * sums.qq;
        }
        best.offer(total.error(d), (d, scales));
        d = stored(total.best_scale());
        best.offer(total.error(d), (d, scales));
    }
    let (d, scales) = best.value;
    let codes = codes(&x, grid, |i| d * f64::from(scales[i / len]));
    ScaledBlocks { d: store(d), scales, codes }
}

/// Sums over values `x` and codes `q`, for `x` near `d * q + m`.
#[derive(Clone, Copy, Default)]
struct Affine {
    n: f64,
    x: f64,
    q: f64,
    xq: f64,
    qq: f64,
}

impl Affine {
    /// The sums over a whole number of [`Lanes`].
    fn new(x: &[f64], (d, m): (f64, f64), top: f64) -> Self {
        let inverse = reciprocal(d);
        let [mut sum, mut codes, mut xq, mut qq] = [Lanes::default(); 4];
        for x in x.as_chunks::<4>().0 {
            let q = lanes(|l| round((x[l] - m) * inverse, 0.0, top));
            sum = lanes(|l| sum[l] + x[l]);
            codes = lanes(|l| codes[l] + q[l]);
            xq = lanes(|l| xq[l] + x[l] * q[l]);
            qq = lanes(|l| qq[l] + q[l] * q[l]);
        }
        let n = x.len() as f64;
        Self { n, x: total(sum), q: total(codes), xq: total(xq), qq: total(qq) }
    }

    fn error(self, (d, m): (f64, f64)) -> f64 {
        d * (d * self.qq + 2.0 * (m * self.q - self.xq)) + m * (m * self.n - 2.0 * self.x)
    }

    fn best_min(self) -> f64 {
        let determinant = self.n * self.qq - self.q * self.q;
        if determinant == 0.0 {
            return self.x * reciprocal(self.n);
        }
        (self.qq * self.x - self.q * self.xq) / determinant
    }

    fn best_scale(self, m: f64) -> f64 {
        (self.xq - m * self.q) * reciprocal(self.qq)
    }
}

/// Scale and minimum, each stored by its `keep`, that round `x` to codes `0..=top` with the least
/// error found.
fn best_affine(
    x: &[f64],
    top: f64,
    keep_scale: impl Fn(f64) -> f64,
    keep_min: impl Fn(f64) -> f64,
) -> (f64, f64) {
    let least = x.iter().copied().fold(f64::MAX, f64::min);
    let greatest = x.iter().copied().fold(f64::MIN, f64::max);
    let mut best = Best { error: f64::MAX, value: (0.0, 0.0) };
    let attempt = |best: &mut Best<(f64, f64)>, start: (f64, f64)| {
        let sums = Affine::new(x, start, top);
        best.offer(sums.error(start), start);
        let m = keep_min(sums.best_min());
        let refit = (keep_scale(sums.best_scale(m)), m);
        best.offer(sums.error(refit), refit);
    };
    let m = keep_min(least);
    for factor in factors() {
        attempt(&mut best, (keep_scale((greatest - m) / (top * factor)), m));
    }
    // Where f16 is coarser than the range of the input, a minimum that was rounded up is useless.
    let below = keep_min(least - least.abs() / 1024.0);
    attempt(&mut best, (keep_scale((greatest - below) / top), below));
    for _ in 0..ROUNDS {
        let start = best.value;
        attempt(&mut best, start);
    }
    best.value
}

/// Scale, minimum and codes of a block `d * q + m` with codes `0..=top`.
pub(super) fn affine(values: &[f32; 32], top: u8) -> (F16Bytes, F16Bytes, [u8; 32]) {
    let x = values.map(f64::from);
    let top = f64::from(top);
    let (d, m) = best_affine(&x, top, |d| stored(d.max(0.0)), stored);
    let codes = x.map(|x| round((x - m) * reciprocal(d), 0.0, top) as u8);
    (store(d), store(m), codes)
}

/// A block `(d * s) * q - dmin * t` with an integer scale `s` and minimum `t` per sub-block.
pub(super) struct AffineBlocks<const SUBS: usize> {
    pub(super) d: F16Bytes,
    pub(super) dmin: F16Bytes,
    pub(super) scales: [u8; SUBS],
    pub(super) mins: [u8; SUBS],
    pub(super) codes: [u8; 256],
}

/// Normal equations of `d` and `dmin` over sub-blocks with given `s`, `t` and codes.
#[derive(Default)]
struct Joint {
    scale_scale: f64,
    scale_min: f64,
    min_min: f64,
    scale_x: f64,
    min_x: f64,
}

impl Joint {
    fn add(&mut self, (s, t): (f64, f64), sums: Affine) {
        self.scale_scale += s * s * sums.qq;
        self.scale_min += s * t * sums.q;
        self.min_min += t * t * sums.n;
        self.scale_x += s * sums.xq;
        self.min_x += t * sums.x;
    }

    fn error(&self, (d, dmin): (f64, f64)) -> f64 {
        d * (d * self.scale_scale - 2.0 * (dmin * self.scale_min + self.scale_x))
            + dmin * (dmin * self.min_min + 2.0 * self.min_x)
    }

    fn best(&self) -> (f64, f64) {
        let determinant = self.scale_scale * self.min_min - self.scale_min * self.scale_min;
        if determinant == 0.0 {
            let d = self.scale_x * reciprocal(self.scale_scale);
            return (d, -self.min_x * reciprocal(self.min_min));
        }
        let d = self.scale_x * self.min_min - self.min_x * self.scale_min;
        let dmin = self.scale_x * self.scale_min - self.min_x * self.scale_scale;
        (d / determinant, dmin / determinant)
    }
}

/// Ranges of the integers in a block `(d * s) * q - dmin * t`.
#[derive(Clone, Copy)]
struct Tops {
    code: f64,
    scale: f64,
}

/// Walks from an integer scale and minimum to a neighbouring pair of less error, a few times.
fn walk(x: &[f64], start: (f64, f64), (d, dmin): (f64, f64), tops: Tops) -> ((f64, f64), Affine) {
    const NEIGHBOURS: [(f64, f64); 8] = [
        (-1.0, -1.0),
        (-1.0, 0.0),
        (-1.0, 1.0),
        (0.0, -1.0),
        (0.0, 1.0),
        (1.0, -1.0),
        (1.0, 0.0),
        (1.0, 1.0),
    ];
    let mut best = Best { error: f64::MAX, value: (start, Affine::default()) };
    let attempt = |best: &mut Best<_>, (s, t): (f64, f64)| {
        let product = (d * s, -dmin * t);
        let sums = Affine::new(x, product, tops.code);
        best.offer(sums.error(product), ((s, t), sums));
    };
    attempt(&mut best, start);
    let valid = 0.0..=tops.scale;
    for _ in 0..WALK {
        let (s, t) = best.value.0;
        for (ds, dt) in NEIGHBOURS {
            if valid.contains(&(s + ds)) && valid.contains(&(t + dt)) {
                attempt(&mut best, (s + ds, t + dt));
            }
        }
        if best.value.0 == (s, t) {
            break;
        }
    }
    best.value
}

/// Scales, minima and codes of a block of `SUBS` sub-blocks, with codes `0..=top` and integer
/// scales and minima `0..=top_scale`.
pub(super) fn affine_blocks<const SUBS: usize>(
    values: &[f32; 256],
    top: u8,
    top_scale: u8,
) -> AffineBlocks<SUBS> {
    let len = 256 / SUBS;
    let x = values.map(f64::from);
    let sub = |j: usize| &x[j * len..][..len];
    let tops = Tops { code: top.into(), scale: top_scale.into() };
    let ideal: [(f64, f64); SUBS] =
        std::array::from_fn(|j| best_affine(sub(j), tops.code, |d| d.max(0.0), |m| m.min(0.0)));
    let largest = ideal.iter().fold((0.0, 0.0), |(d, m): (f64, f64), i| (d.max(i.0), m.max(-i.1)));
    let (mut d, mut dmin) = (stored(largest.0 / tops.scale), stored(largest.1 / tops.scale));
    let mut pairs = ideal.map(|(scale, min)| {
        let s = round(scale * reciprocal(d), 0.0, tops.scale);
        (s, round(-min * reciprocal(dmin), 0.0, tops.scale))
    });
    let mut best = Best { error: f64::MAX, value: (d, dmin, pairs) };
    for _ in 0..ROUNDS {
        let mut joint = Joint::default();
        for (j, pair) in pairs.iter_mut().enumerate() {
            let (moved, sums) = walk(sub(j), *pair, (d, dmin), tops);
            *pair = moved;
            joint.add(moved, sums);
        }
        best.offer(joint.error((d, dmin)), (d, dmin, pairs));
        let refit = joint.best();
        (d, dmin) = (stored(refit.0.max(0.0)), stored(refit.1.max(0.0)));
        best.offer(joint.error((d, dmin)), (d, dmin, pairs));
    }
    let (d, dmin, pairs) = best.value;
    let codes = std::array::from_fn(|i| {
        let (s, t) = pairs[i / len];
        round((x[i] + dmin * t) * reciprocal(d * s), 0.0, tops.code) as u8
    });
    AffineBlocks {
        d: store(d),
        dmin: store(dmin),
        scales: pairs.map(|(s, _)| s as u8),
        mins: pairs.map(|(_, t)| t as u8),
        codes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_element_of_the_codebook() {
        for quarter in -4 * 140..4 * 130 {
            let v = f64::from(quarter) / 4.0;
            let distance = |element: i8| (f64::from(element) - v).abs();
            let least = IQ4_CODEBOOK.into_iter().map(distance).fold(f64::MAX, f64::min);
            let element = Codebook.nearest(v);
            assert_eq!((element - v).abs(), least, "{v}");
            assert_eq!(f64::from(IQ4_CODEBOOK[usize::from(Codebook.code(element))]), element);
        }
    }

    #[test]
    fn stored_scales_are_finite_and_keep_their_sign() {
        assert_eq!(stored(1.0e300), 65504.0);
        assert_eq!(stored(-1.0e300), -65504.0);
        assert_eq!(stored(1.0e-300), f64::exp2(-24.0));
        assert_eq!(stored(-1.0e-300), -f64::exp2(-24.0));
        assert_eq!(stored(-0.0).to_bits(), 0.0f64.to_bits());
        assert_eq!(stored(0.75), 0.75);
    }

    #[test]
    fn rounding() {
        assert_eq!(round(2.4, -4.0, 3.0), 2.0);
        assert_eq!(round(-2.6, -4.0, 3.0), -3.0);
        assert_eq!(round(1.0e300, -4.0, 3.0), 3.0);
        assert_eq!(round(-1.0e300, -4.0, 3.0), -4.0);
    }
}
