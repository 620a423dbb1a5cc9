//! Products with many columns: a strip of 16 rows is unpacked once, interleaved by fours of values,
//! and multiplied with tiles of columns. Lane `l` of every vector belongs to row `l` of the strip.

use super::Weights;
use super::activations::{Layout, SCALE_GROUP};
use super::float::FloatSource;
use super::format::{CHUNK, Format};
use super::mat_vec::shift;
use crate::isa::{LANES, Simd};

/// Rows of a strip.
pub(crate) const STRIP: usize = LANES;

/// Columns are padded to a multiple of this.
pub(crate) const COLUMN_STEP: usize = 4;

/// Values of a strip of f32 weights that are worked on at once: they stay in the nearest cache.
const FLOAT_DEPTH: usize = 512;

/// An unpacked strip in a thread's scratch memory.
pub(crate) struct Strip<'a> {
    /// `[depth / 4][16 rows][4]`
    bytes: &'a mut [u8],
    /// `[depth / GROUP][16 rows]`
    scales: &'a mut [f32],
    /// As `scales`; empty for formats without minima.
    minima: &'a mut [f32],
}

/// Scratch bytes of a strip: quants, scales and minima.
pub(crate) fn strip_bytes<F: Format>(depth: usize) -> [usize; 3] {
    let groups = depth / F::GROUP * STRIP * size_of::<f32>();
    [depth * STRIP, groups, if F::MINIMUM { groups } else { 0 }]
}

impl<'a> Strip<'a> {
    /// Wraps scratch memory of [`strip_bytes`].
    pub(crate) fn new([bytes, scales, minima]: [&'a mut [u8]; 3]) -> Self {
        let (scales, minima) = (bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(minima));
        Self { bytes, scales, minima }
    }

    /// Unpacks rows `first..first + 16`; rows past the last are zero.
    ///
    /// # Safety
    /// The weights are of format `F`.
    #[inline(always)]
    pub(crate) unsafe fn unpack<S: Simd, F: Format>(&mut self, s: S, weights: &Weights, first: usize) {
        let per_chunk = CHUNK / F::GROUP;
        let mut rows = [[0u32; LANES]; STRIP];
        for index in 0..weights.k.div_ceil(CHUNK) {
            let half = weights.k - index * CHUNK < CHUNK;
            let scales = &mut self.scales[index * per_chunk * STRIP..][..per_chunk * STRIP];
            for (r, row) in rows.iter_mut().enumerate() {
                if first + r >= weights.n {
                    *row = [0; LANES];
                    scales.iter_mut().skip(r).step_by(STRIP).for_each(|scale| *scale = 0.0);
                    if F::MINIMUM {
                        let minima = &mut self.minima[index * per_chunk * STRIP..];
                        let minima = minima[..per_chunk * STRIP].iter_mut().skip(r).step_by(STRIP);
                        minima.for_each(|minimum| *minimum = 0.0);
                    }
                    continue;
                }
                // SAFETY: the row and the chunk are inside the weights.
                let chunk = unsafe { F::chunk(s, weights.row(first + r), index, half) };
                // SAFETY: a vector of bytes and the array are both 64 bytes of plain data.
                *row = unsafe { std::mem::transmute_copy::<S::B, [u32; LANES]>(&chunk.q) };
                for group in 0..per_chunk {
                    let quarter = group * F::GROUP / 16;
                    scales[group * STRIP + r] = chunk.scale[quarter];
                    if F::MINIMUM {
                        let at = (index * per_chunk + group) * STRIP + r;
                        self.minima[at] = chunk.minimum[quarter];
                    }
                }
            }
            let out: &mut [u32] = bytemuck::cast_slice_mut(
                &mut self.bytes[index * CHUNK * STRIP..(index + 1) * CHUNK * STRIP],
            );
            for (four, out) in out.chunks_exact_mut(STRIP).enumerate() {
                for (out, row) in out.iter_mut().zip(&rows) {
                    *out = row[four];
                }
            }
        }
    }

    /// The product of the strip with a tile of `N` columns.
    ///
    /// # Safety
    /// The strip was unpacked with `F` for the depth of the layout, and `tile` is a tile of `N`
    /// columns of that layout.
    #[inline(always)]
    pub(crate) unsafe fn tile<S: Simd, F: Format, const N: usize>(
        &self,
        s: S,
        layout: Layout,
        tile: *const u8,
    ) -> [S::F; N] {
        let parts = layout.parts(N);
        let (weights, scales, minima) =
            (self.bytes.as_ptr(), self.scales.as_ptr(), self.minima.as_ptr());
        let mut out = [s.splat(0.0); N];
        // SAFETY: all offsets are inside the strip and the tile, by their layouts.
        unsafe {
            for group in 0..layout.depth / F::GROUP {
                let first = group * F::GROUP / 4;
                let mut dots = [s.splat_int(0); N];
                for four in first..first + F::GROUP / 4 {
                    let w = s.load_bytes(weights.add(four * 4 * STRIP));
                    let y = tile.add(parts.high + four * 4 * N);
                    for (column, dots) in dots.iter_mut().enumerate() {
                        *dots = s.dot(*dots, w, s.splat_bytes4(y.add(4 * column)));
                    }
                }
                let sums = tile.add(parts.sums(F::GROUP).negated).cast::<i32>().add(group * N);
                for (column, dots) in dots.iter_mut().enumerate() {
                    *dots = s.shl_int::<7>(*dots);
                    if let Some(log2) = F::BIAS_LOG2 {
                        let negated = s.splat_int(*sums.add(column));
                        *dots = s.add_int(*dots, shift(s, negated, log2));
                    }
                }
                for four in first..first + F::GROUP / 4 {
                    let w = s.load_bytes(weights.add(four * 4 * STRIP));
                    let y = tile.add(parts.low + four * 4 * N);
                    for (column, dots) in dots.iter_mut().enumerate() {
                        *dots = s.dot(*dots, w, s.splat_bytes4(y.add(4 * column)));
                    }
                }
                let scale = s.load(scales.add(group * STRIP));
                let block = group * F::GROUP / SCALE_GROUP;
                let factors = tile.add(parts.scales).cast::<f32>().add(block * N);
                for (column, out) in out.iter_mut().enumerate() {
                    let scaled = s.mul(s.to_float(dots[column]), s.splat(*factors.add(column)));
                    *out = s.fma(scaled, scale, *out);
                }
                if F::MINIMUM {
                    let minimum = s.load(minima.add(group * STRIP));
                    let sums = tile.add(parts.sums(F::GROUP).scaled).cast::<f32>().add(group * N);
                    for (column, out) in out.iter_mut().enumerate() {
                        *out = s.fma(minimum, s.splat(*sums.add(column)), *out);
                    }
                }
            }
        }
        out
    }
}

/// Scratch floats of a strip of f32 weights.
pub(crate) fn float_strip_len(depth: usize) -> usize {
    depth * STRIP
}

/// Unpacks rows `first..first + 16` as f32, `[depth][16 rows]`; what does not exist is zero.
///
/// # Safety
/// The weights are of type `W`, and `strip` is [`float_strip_len`] long.
#[inline(always)]
pub(crate) unsafe fn unpack_floats<S: Simd, W: FloatSource>(
    s: S,
    weights: &Weights,
    first: usize,
    strip: &mut [f32],
) {
    let mut rows = [[0f32; CHUNK]; STRIP];
    for index in 0..weights.k.div_ceil(CHUNK) {
        let valid = (weights.k - index * CHUNK).min(CHUNK);
        for (r, row) in rows.iter_mut().enumerate().take(weights.n - first) {
            // SAFETY: the row and the chunk are inside the weights.
            let w = unsafe { W::floats(s, weights.row(first + r), index, valid) };
            for (quarter, w) in w.into_iter().enumerate() {
                row[quarter * LANES..(quarter + 1) * LANES].copy_from_slice(&s.to_array(w));
            }
            row[valid..].fill(0.0);
        }
        let out = &mut strip[index * CHUNK * STRIP..(index + 1) * CHUNK * STRIP];
        for (value, out) in out.chunks_exact_mut(STRIP).enumerate() {
            for (out, row) in out.iter_mut().zip(&rows) {
                *out = row[value];
            }
        }
    }
}

/// The product of a strip of f32 weights with a tile of `N` columns of f32.
///
/// # Safety
/// `strip` is as deep as the layout, and `tile` is a tile of `N` columns of it.
#[inline(always)]
pub(crate) unsafe fn float_tile<S: Simd, const N: usize>(
    s: S,
    strip: &[f32],
    layout: Layout,
    tile: *const u8,
) -> [S::F; N] {
    let (weights, tile) = (strip.as_ptr(), tile.cast::<f32>());
    let mut total = [s.splat(0.0); N];
    for start in (0..layout.depth).step_by(FLOAT_DEPTH) {
        let mut part = [s.splat(0.0); N];
        for value in start..layout.depth.min(start + FLOAT_DEPTH) {
            // SAFETY: inside the strip and the tile.
            unsafe {
                let w = s.load(weights.add(value * STRIP));
                for (column, part) in part.iter_mut().enumerate() {
                    *part = s.fma(w, s.splat(*tile.add(value * N + column)), *part);
                }
            }
        }
        for (total, part) in total.iter_mut().zip(part) {
            *total = s.add(*total, part);
        }
    }
    total
}
