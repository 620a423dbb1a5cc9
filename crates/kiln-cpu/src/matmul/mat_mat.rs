//! Products with many columns: a strip of 16 rows is unpacked once, interleaved by fours of values,
//! and multiplied with tiles of columns. Lane `l` of every vector belongs to row `l` of the strip.

use super::Weights;
use super::activations::{Layout, SCALE_GROUP};
use super::float::ReadChunk;
use super::format::{CHUNK, Format, StoredChunk, with_format};
use crate::isa::{Isa, LANES, Simd, with_simd};
use kiln_core::DType;

/// Rows of a strip.
pub(crate) const STRIP: usize = LANES;

/// Columns are padded to a multiple of this.
pub(crate) const COLUMN_STEP: usize = 4;

/// Values of a strip of f32 weights that are worked on at once: they stay in the nearest cache.
const FLOAT_DEPTH: usize = 512;

/// Unpacks chunk `index` of a row of blocks, of which only the first half exists where `half` says
/// so.
///
/// # Safety
/// The row has that chunk.
pub(crate) type UnpackChunk =
    unsafe fn(row: *const u8, index: usize, half: bool, out: &mut StoredChunk);

/// The unpacker of a block type and its values per scale; `None` for plain types.
pub(crate) fn unpacker(isa: Isa, dtype: DType) -> Option<(UnpackChunk, usize)> {
    fn of<S: Simd, F: Format>(_: S) -> Option<(UnpackChunk, usize)> {
        Some((unpack_chunk::<S, F>, F::GROUP))
    }
    with_simd!(isa, s => with_format!(dtype, F => of::<_, F>(s), else => None))
}

unsafe fn unpack_chunk<S: Simd, F: Format>(
    row: *const u8,
    index: usize,
    half: bool,
    out: &mut StoredChunk,
) {
    // SAFETY: an unpacker is only given out for an instruction set that is there.
    let s = unsafe { S::assume() };
    s.run(
        #[inline(always)]
        // SAFETY: by the contract.
        || unsafe { out.unpack::<S, F>(s, row, index, half) },
    );
}

/// An unpacked strip in a thread's scratch memory.
pub(crate) struct Strip<'a> {
    /// `[depth / 4][16 rows][4]`
    bytes: &'a mut [u8],
    /// `[depth / group][16 rows]`
    scales: &'a mut [f32],
    /// As `scales`.
    minima: &'a mut [f32],
}

/// Scratch bytes of a strip: quants, scales and minima.
pub(crate) fn strip_bytes(depth: usize, group: usize) -> [usize; 3] {
    let groups = depth / group * STRIP * size_of::<f32>();
    [depth * STRIP, groups, groups]
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
    /// The unpacker fits the weights and has `GROUP` values per scale.
    #[inline(always)]
    pub(crate) unsafe fn unpack<const GROUP: usize>(
        &mut self,
        (weights, unpack): (&Weights, UnpackChunk),
        first: usize,
    ) {
        let per_chunk = CHUNK / GROUP;
        let mut rows = [StoredChunk::ZERO; STRIP];
        for index in 0..weights.k.div_ceil(CHUNK) {
            let half = weights.k - index * CHUNK < CHUNK;
            for (r, row) in rows.iter_mut().enumerate().take(weights.n - first) {
                // SAFETY: the row and the chunk are inside the weights.
                unsafe { unpack(weights.row(first + r), index, half, row) };
            }
            for group in 0..per_chunk {
                let quarter = group * GROUP / LANES;
                let at = (index * per_chunk + group) * STRIP;
                for (r, row) in rows.iter().enumerate() {
                    self.scales[at + r] = row.scale[quarter];
                    self.minima[at + r] = row.minimum[quarter];
                }
            }
            let out = &mut self.bytes[index * CHUNK * STRIP..(index + 1) * CHUNK * STRIP];
            for (four, out) in out.as_chunks_mut::<{ 4 * STRIP }>().0.iter_mut().enumerate() {
                for (out, row) in out.as_chunks_mut::<4>().0.iter_mut().zip(&rows) {
                    *out = row.q.as_chunks::<4>().0[four];
                }
            }
        }
    }

    /// The product of the strip with a tile of `N` columns.
    ///
    /// # Safety
    /// The strip was unpacked with `GROUP` for the depth of the layout, and `tile` is a tile of `N`
    /// columns of that layout.
    #[inline(always)]
    pub(crate) unsafe fn tile<S: Simd, const GROUP: usize, const N: usize>(
        &self,
        s: S,
        layout: Layout,
        tile: *const u8,
    ) -> [S::F; N] {
        let parts = layout.parts(N);
        let (weights, scales, minima) =
            (self.bytes.as_ptr(), self.scales.as_ptr(), self.minima.as_ptr());
        let mut out = [s.splat(0.0); N];
        for group in 0..layout.depth / GROUP {
            let fours = group * GROUP / 4..(group + 1) * GROUP / 4;
            let mut dots = [s.splat_int(0); N];
            // SAFETY: all offsets are inside the strip and the tile, by their layouts.
            unsafe {
                for four in fours.clone() {
                    let w = s.load_bytes(weights.add(four * 4 * STRIP));
                    let y = tile.add(parts.planes[0] + four * 4 * N);
                    for (column, dots) in dots.iter_mut().enumerate() {
                        *dots = s.dot_plane::<0>(*dots, w, s.splat_bytes4(y.add(4 * column)));
                    }
                }
                for dots in &mut dots {
                    *dots = s.next_plane(*dots);
                }
                for four in fours {
                    let w = s.load_bytes(weights.add(four * 4 * STRIP));
                    let y = tile.add(parts.planes[1] + four * 4 * N);
                    for (column, dots) in dots.iter_mut().enumerate() {
                        *dots = s.dot_plane::<1>(*dots, w, s.splat_bytes4(y.add(4 * column)));
                    }
                }
                let scale = s.load(scales.add(group * STRIP));
                let minimum = s.load(minima.add(group * STRIP));
                let block = group * GROUP / SCALE_GROUP;
                let factors = tile.add(parts.scales).cast::<f32>().add(block * N);
                let sums = tile.add(parts.sums(GROUP)).cast::<f32>().add(group * N);
                for (column, out) in out.iter_mut().enumerate() {
                    let scaled = s.mul(scale, s.splat(*factors.add(column)));
                    *out = s.fma(s.to_float(dots[column]), scaled, *out);
                    *out = s.fma(minimum, s.splat(*sums.add(column)), *out);
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
/// The reader fits the weights, and `strip` is [`float_strip_len`] long.
#[inline(always)]
pub(crate) unsafe fn unpack_floats(
    (weights, read): (&Weights, ReadChunk),
    first: usize,
    strip: &mut [f32],
) {
    let mut rows = [[0f32; CHUNK]; STRIP];
    for index in 0..weights.k.div_ceil(CHUNK) {
        let valid = (weights.k - index * CHUNK).min(CHUNK);
        for (r, row) in rows.iter_mut().enumerate().take(weights.n - first) {
            // SAFETY: the row and the chunk are inside the weights.
            unsafe { read(weights.row(first + r), index, valid, row) };
            row[valid..].fill(0.0);
        }
        let out = &mut strip[index * CHUNK * STRIP..(index + 1) * CHUNK * STRIP];
        for (value, out) in out.as_chunks_mut::<STRIP>().0.iter_mut().enumerate() {
            *out = std::array::from_fn(|r| rows[r][value]);
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
