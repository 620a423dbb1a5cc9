//! Products with few columns: each weight row is read once for all of them.

use super::Weights;
use super::activations::{Layout, Parts};
use super::float::ReadChunk;
use super::format::{CHUNK, Chunk, Format};
use crate::isa::{LANES, Simd, prefetch};

/// Most columns of f32 this route takes.
pub(crate) const MAX_COLUMNS: usize = 8;

/// How far ahead of the weights in use one column asks for more, in bytes.
const AHEAD: usize = 2048;

/// Columns are padded to one of these, so that a kernel's accumulators are registers.
pub(crate) const fn padded_columns(columns: usize) -> usize {
    match columns {
        1 => 1,
        2..=4 => 4,
        _ => MAX_COLUMNS,
    }
}

/// Accumulators of one column.
#[derive(Clone, Copy)]
struct Sum<S: Simd> {
    lanes: S::F,
    minima: [f32; 4],
}

impl<S: Simd> Sum<S> {
    #[inline(always)]
    fn zero(s: S) -> Self {
        Self { lanes: s.splat(0.0), minima: [0.0; 4] }
    }

    #[inline(always)]
    fn total(self, s: S) -> f32 {
        s.sum(self.lanes) + self.minimum()
    }

    #[inline(always)]
    fn minimum(&self) -> f32 {
        let [a, b, c, d] = self.minima;
        (a + c) + (b + d)
    }

    /// Adds the product of a weight chunk with the values at `at` of a packed column.
    ///
    /// # Safety
    /// `at` is inside the packed columns.
    #[inline(always)]
    unsafe fn add(
        &mut self,
        s: S,
        q: S::B,
        [scale, minimum]: [&[f32; 4]; 2],
        (parts, packed): (&Parts, *const u8),
        at: usize,
    ) {
        // SAFETY: by the contract.
        unsafe {
            let dots = dots(s, q, (parts, packed), at);
            let [a, b, c, d] = packed.add(parts.scales + at / 4).cast::<[f32; 4]>().read();
            let scale = s.spread([scale[0] * a, scale[1] * b, scale[2] * c, scale[3] * d]);
            self.lanes = s.fma(dots, scale, self.lanes);
            let sums = packed.add(parts.sums_16 + at / 4).cast::<[f32; 4]>().read();
            for (i, total) in self.minima.iter_mut().enumerate() {
                *total = s.fma1(minimum[i], sums[i], *total);
            }
        }
    }

    /// As [`Sum::add`], of a chunk in registers. The minima of a format with a bias still lack minus
    /// the bias as a factor.
    ///
    /// # Safety
    /// As [`Sum::add`].
    #[inline(always)]
    unsafe fn add_chunk<F: Format>(
        &mut self,
        s: S,
        chunk: &Chunk<S>,
        (parts, packed): (&Parts, *const u8),
        at: usize,
    ) {
        let scale = &chunk.scale;
        let minimum = if F::BIAS == 0.0 { &chunk.minimum } else { scale };
        // SAFETY: by the contract.
        unsafe {
            if F::GROUP != 32 {
                return self.add(s, chunk.q, [scale, minimum], (parts, packed), at);
            }
            let dots = dots(s, chunk.q, (parts, packed), at);
            let [a, _, b, _] = packed.add(parts.scales + at / 4).cast::<[f32; 4]>().read();
            self.lanes = s.fma(dots, s.spread_halves(scale[0] * a, scale[2] * b), self.lanes);
            let [a, b] = packed.add(parts.sums_32 + at / 8).cast::<[f32; 2]>().read();
            self.minima[0] = s.fma1(minimum[0], a, self.minima[0]);
            self.minima[1] = s.fma1(minimum[2], b, self.minima[1]);
        }
    }
}

/// Dot products of 64 weight bytes with the values at `at` of a packed column.
///
/// # Safety
/// `at` is inside the packed columns.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, q: S::B, (parts, packed): (&Parts, *const u8), at: usize) -> S::F {
    let [first, second] = parts.planes;
    // SAFETY: by the contract.
    unsafe {
        let dots = s.dot_plane::<0>(s.splat_int(0), q, s.load_bytes(packed.add(first + at)));
        let dots = s.next_plane(dots);
        s.to_float(s.dot_plane::<1>(dots, q, s.load_bytes(packed.add(second + at))))
    }
}

/// Row `row` of the weights with one quantised column, unpacked in registers.
///
/// # Safety
/// `packed` is a buffer of that layout, and the row exists.
#[inline(always)]
pub(crate) unsafe fn quantized_one<S: Simd, F: Format>(
    s: S,
    weights: &Weights,
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> f32 {
    let parts = layout.parts(1);
    let mut sum = Sum::zero(s);
    let bytes = weights.row(row);
    let whole = weights.k / CHUNK;
    let chunk_bytes = weights.row_bytes() * CHUNK / weights.k;
    let mut ahead = bytes.wrapping_add(AHEAD);
    // SAFETY: chunks inside the row; the packed column is as deep as the padded row.
    unsafe {
        for index in 0..whole {
            prefetch(ahead);
            ahead = ahead.wrapping_add(chunk_bytes);
            let chunk = F::chunk(s, bytes, index, false);
            sum.add_chunk::<F>(s, &chunk, (&parts, packed), index * CHUNK);
        }
        if !weights.k.is_multiple_of(CHUNK) {
            let chunk = F::chunk(s, bytes, whole, true);
            sum.add_chunk::<F>(s, &chunk, (&parts, packed), whole * CHUNK);
        }
    }
    if F::BIAS == 0.0 { sum.total(s) } else { s.fma1(-F::BIAS, sum.minimum(), s.sum(sum.lanes)) }
}

/// Row `row` of the weights, as f32, with `N` columns of f32.
///
/// # Safety
/// `packed` is a buffer of that layout, of `N` columns, and `read` fits the weights.
#[inline(always)]
pub(crate) unsafe fn float<S: Simd, const N: usize>(
    s: S,
    (weights, read): (&Weights, ReadChunk),
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> [f32; N] {
    let mut sums = [[s.splat(0.0); 2]; N];
    let mut chunk = [0f32; CHUNK];
    for index in 0..weights.k.div_ceil(CHUNK) {
        // SAFETY: the chunk is inside the row and every packed column.
        unsafe {
            read(weights.row(row), index, weights.k - index * CHUNK, &mut chunk);
            for quarter in 0..CHUNK / LANES {
                let w = s.load(chunk.as_ptr().add(quarter * LANES));
                for (column, sums) in sums.iter_mut().enumerate() {
                    let at = column * layout.depth + index * CHUNK + quarter * LANES;
                    let x = s.load(packed.cast::<f32>().add(at));
                    sums[quarter % 2] = s.fma(w, x, sums[quarter % 2]);
                }
            }
        }
    }
    sums.map(|[a, b]| s.sum(s.add(a, b)))
}
