//! Products with few columns: each weight row is unpacked once, in registers, for all of them.

use super::activations::{Layout, Parts};
use super::float::FloatSource;
use super::format::{CHUNK, Chunk, Format};
use super::Weights;
use crate::isa::{LANES, Simd};

/// Most columns this route takes.
pub(crate) const MAX_COLUMNS: usize = 8;

/// Columns are padded to one of these, so that a kernel's accumulators are registers.
pub(crate) const fn padded_columns(columns: usize) -> usize {
    columns.next_power_of_two()
}

/// Accumulators of one column.
#[derive(Clone, Copy)]
struct Sum<S: Simd> {
    lanes: S::F,
    minima: [f32; 4],
}

/// Row `row` of the weights with `M` quantised columns.
///
/// # Safety
/// `packed` is a buffer of that layout with at least `M` columns.
#[inline(always)]
pub(crate) unsafe fn quantized<S: Simd, F: Format, const M: usize>(
    s: S,
    weights: &Weights,
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> [f32; M] {
    let parts = layout.parts(layout.columns);
    let mut sums = [Sum::<S> { lanes: s.splat(0.0), minima: [0.0; 4] }; M];
    let bytes = weights.row(row);
    let whole = weights.k / CHUNK;
    // SAFETY: chunks inside the row; the packed columns are as deep as the padded row.
    unsafe {
        for index in 0..whole {
            let chunk = F::chunk(s, bytes, index, false);
            accumulate::<S, F, M>(s, &chunk, index, (layout, parts, packed), &mut sums);
        }
        if weights.k % CHUNK != 0 {
            let chunk = F::chunk(s, bytes, whole, true);
            accumulate::<S, F, M>(s, &chunk, whole, (layout, parts, packed), &mut sums);
        }
    }
    sums.map(|sum| s.sum(sum.lanes) + sum.minima.iter().sum::<f32>())
}

#[inline(always)]
unsafe fn accumulate<S: Simd, F: Format, const M: usize>(
    s: S,
    chunk: &Chunk<S>,
    index: usize,
    (layout, parts, packed): (Layout, Parts, *const u8),
    sums: &mut [Sum<S>; M],
) {
    for (column, sum) in sums.iter_mut().enumerate() {
        let at = column * layout.depth + index * CHUNK;
        // SAFETY: chunk `index` of that column is inside the packed buffer.
        unsafe {
            let high = s.load_bytes(packed.add(parts.high + at));
            let low = s.load_bytes(packed.add(parts.low + at));
            let mut dots = s.shl_int::<7>(s.dot(s.splat_int(0), chunk.q, high));
            if let Some(log2) = F::BIAS_LOG2 {
                let negated = s.load_int(packed.add(parts.by_16.negated + at).cast());
                dots = s.add_int(dots, shift(s, negated, log2));
            }
            let dots = s.to_float(s.dot(dots, chunk.q, low));
            let scales = packed.add(parts.scales + at / 4).cast::<[f32; 4]>().read();
            let scale = std::array::from_fn(|i| chunk.scale[i] * scales[i]);
            sum.lanes = s.fma(dots, s.spread(scale), sum.lanes);
            if F::MINIMUM {
                let sums = packed.add(parts.by_16.scaled + at / 4).cast::<[f32; 4]>().read();
                for (i, total) in sum.minima.iter_mut().enumerate() {
                    *total = s.fma1(chunk.minimum[i], sums[i], *total);
                }
            }
        }
    }
}

/// `v << log2`, where the compiler knows `log2`.
#[inline(always)]
pub(super) fn shift<S: Simd>(s: S, v: S::I, log2: u32) -> S::I {
    match log2 {
        2 => s.shl_int::<2>(v),
        3 => s.shl_int::<3>(v),
        4 => s.shl_int::<4>(v),
        5 => s.shl_int::<5>(v),
        _ => s.shl_int::<7>(v),
    }
}

/// Row `row` of the weights, as f32, with `M` columns of f32.
///
/// # Safety
/// As [`quantized`].
#[inline(always)]
pub(crate) unsafe fn float<S: Simd, W: FloatSource, const M: usize>(
    s: S,
    weights: &Weights,
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> [f32; M] {
    let mut sums = [[s.splat(0.0); 2]; M];
    let bytes = weights.row(row);
    for index in 0..weights.k.div_ceil(CHUNK) {
        // SAFETY: the chunk is inside the row and every packed column.
        unsafe {
            let w = W::floats(s, bytes, index, weights.k - index * CHUNK);
            for (column, sums) in sums.iter_mut().enumerate() {
                let x = packed.cast::<f32>().add(column * layout.depth + index * CHUNK);
                for (quarter, w) in w.iter().enumerate() {
                    let x = s.load(x.add(quarter * LANES));
                    sums[quarter % 2] = s.fma(*w, x, sums[quarter % 2]);
                }
            }
        }
    }
    sums.map(|[a, b]| s.sum(s.add(a, b)))
}
