//! Products with few columns: each weight row is read once for all of them.

use super::Weights;
use super::activations::{Layout, Parts};
use super::float::ReadChunk;
use super::format::{CHUNK, Format, StoredChunk};
use super::mat_mat::UnpackChunk;
use crate::isa::{LANES, Simd};

/// Most columns this route takes.
pub(crate) const MAX_COLUMNS: usize = 8;

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
        let [a, b, c, d] = self.minima;
        s.sum(self.lanes) + ((a + c) + (b + d))
    }

    /// Adds the product of a weight chunk with the values at `at` of the packed columns.
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
            let high = s.load_bytes(packed.add(parts.high + at));
            let low = s.load_bytes(packed.add(parts.low + at));
            let dots = s.shl_int::<7>(s.dot(s.splat_int(0), q, high));
            let dots = s.to_float(s.dot(dots, q, low));
            let factors = packed.add(parts.scales + at / 4).cast::<[f32; 4]>().read();
            let scale = std::array::from_fn(|i| scale[i] * factors[i]);
            self.lanes = s.fma(dots, s.spread(scale), self.lanes);
            let sums = packed.add(parts.sums_16 + at / 4).cast::<[f32; 4]>().read();
            for (i, total) in self.minima.iter_mut().enumerate() {
                *total = s.fma1(minimum[i], sums[i], *total);
            }
        }
    }
}

/// Row `row` of the weights with one quantised column, unpacked in registers.
///
/// # Safety
/// `packed` is a buffer of that layout.
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
    // SAFETY: chunks inside the row; the packed column is as deep as the padded row.
    unsafe {
        for index in 0..whole {
            let chunk = F::chunk(s, bytes, index, false);
            let factors = [&chunk.scale, &chunk.minimum];
            sum.add(s, chunk.q, factors, (&parts, packed), index * CHUNK);
        }
        if !weights.k.is_multiple_of(CHUNK) {
            let chunk = F::chunk(s, bytes, whole, true);
            let factors = [&chunk.scale, &chunk.minimum];
            sum.add(s, chunk.q, factors, (&parts, packed), whole * CHUNK);
        }
    }
    sum.total(s)
}

/// Row `row` of the weights with `N` quantised columns.
///
/// # Safety
/// `packed` is a buffer of that layout, of `N` columns, and `unpack` fits the weights.
#[inline(always)]
pub(crate) unsafe fn quantized<S: Simd, const N: usize>(
    s: S,
    (weights, unpack): (&Weights, UnpackChunk),
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> [f32; N] {
    let parts = layout.parts(N);
    let mut sums = [Sum::zero(s); N];
    let mut chunk = StoredChunk::ZERO;
    for index in 0..weights.k.div_ceil(CHUNK) {
        // SAFETY: the chunk is inside the row and every packed column.
        unsafe {
            unpack(weights.row(row), index, weights.k - index * CHUNK < CHUNK, &mut chunk);
            let q = s.load_bytes(chunk.q.as_ptr());
            for (column, sum) in sums.iter_mut().enumerate() {
                let at = column * layout.depth + index * CHUNK;
                sum.add(s, q, [&chunk.scale, &chunk.minimum], (&parts, packed), at);
            }
        }
    }
    sums.map(|sum| sum.total(s))
}

/// Row `row` of the weights, as f32, with `N` columns of f32.
///
/// # Safety
/// As [`quantized`].
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
