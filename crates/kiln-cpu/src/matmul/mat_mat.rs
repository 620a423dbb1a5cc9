//! Products with many columns: strips of 16 rows are unpacked once, interleaved by fours of values,
//! and multiplied with tiles of columns. Lane `l` of every vector belongs to row `l` of the strip.

use super::Weights;
use super::activations::{Layout, SCALE_GROUP};
use super::float::ReadChunk;
use super::format::{CHUNK, Format, StoredChunk, with_format};
use crate::isa::{Isa, LANES, Planes, Simd, with_simd};
use kiln_core::DType;

/// Rows of a strip.
pub(crate) const STRIP: usize = LANES;

/// Columns are padded to a multiple of this.
pub(crate) const COLUMN_STEP: usize = 4;

/// Values of a strip of f32 weights that are worked on at once: they stay in the nearest cache.
const FLOAT_DEPTH: usize = 512;

/// Unpacks rows `first..first + 16`; rows past the last are zero.
type UnpackStrip = fn(weights: &Weights, first: usize, strip: &mut Strip<'_>);

/// What the kernels of a block type have in common.
#[derive(Clone, Copy)]
pub(crate) struct Family {
    /// Values per scale.
    pub(crate) group: usize,
    /// Bits of a value where the instruction set has a kernel for them, else 8.
    pub(crate) bits: u32,
    /// How the columns are packed.
    pub(crate) planes: Planes,
    unpack: UnpackStrip,
}

impl Family {
    /// That of a block type; `None` for plain types.
    pub(crate) fn new(isa: Isa, dtype: DType) -> Option<Self> {
        fn of<S: Simd, F: Format>(_: S) -> Option<Family> {
            let bits = match F::BITS {
                ..=4 if S::NARROW_BYTES => 4,
                bits if S::NARROW_BYTES => bits,
                _ => 8,
            };
            let planes = S::tile_planes(bits);
            Some(Family { group: F::GROUP, bits, planes, unpack: unpack_strip::<S, F> })
        }
        with_simd!(isa, s => with_format!(dtype, F => of::<_, F>(s), else => None))
    }
}

fn unpack_strip<S: Simd, F: Format>(weights: &Weights, first: usize, strip: &mut Strip<'_>) {
    // SAFETY: an unpacker is only given out for an instruction set that is there.
    let s = unsafe { S::assume() };
    s.run(
        #[inline(always)]
        || strip.unpack::<S, F>(s, weights, first),
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

/// Scratch bytes of so many strips: quants, scales and minima.
pub(crate) fn strip_bytes(depth: usize, group: usize, strips: usize) -> [usize; 3] {
    let groups = strips * depth / group * STRIP * size_of::<f32>();
    [strips * depth * STRIP, groups, groups]
}

impl Strip<'_> {
    #[inline(always)]
    fn unpack<S: Simd, F: Format>(&mut self, s: S, weights: &Weights, first: usize) {
        let per_chunk = CHUNK / F::GROUP;
        let count = weights.n.saturating_sub(first).min(STRIP);
        let mut rows = [StoredChunk::ZERO; STRIP];
        for index in 0..weights.k.div_ceil(CHUNK) {
            let half = weights.k - index * CHUNK < CHUNK;
            for (r, row) in rows.iter_mut().enumerate().take(count) {
                // SAFETY: the row and the chunk are inside the weights.
                unsafe { row.unpack::<S, F>(s, weights.row(first + r), index, half) };
            }
            for group in 0..per_chunk {
                let quarter = group * F::GROUP / LANES;
                let at = (index * per_chunk + group) * STRIP;
                for (out, row) in self.scales[at..at + STRIP].iter_mut().zip(&rows) {
                    *out = row.scale[quarter];
                }
                for (out, row) in self.minima[at..at + STRIP].iter_mut().zip(&rows) {
                    *out = row.minimum[quarter];
                }
            }
            let out = &mut self.bytes[index * CHUNK * STRIP..(index + 1) * CHUNK * STRIP];
            // Fours of bytes move like f32.
            let mut fours = [s.splat(0.0); STRIP];
            for (four, row) in fours.iter_mut().zip(&rows) {
                // SAFETY: a row of a chunk is 64 bytes.
                *four = unsafe { s.load(row.q.as_ptr().cast()) };
            }
            for (four, out) in s.transpose(fours).into_iter().zip(out.chunks_exact_mut(CHUNK)) {
                // SAFETY: 64 bytes.
                unsafe { s.store(out.as_mut_ptr().cast(), four) };
            }
        }
    }
}

/// Strips that tiles of columns are multiplied with.
pub(crate) struct Panel<'a> {
    depth: usize,
    parts: [&'a mut [u8]; 3],
}

impl<'a> Panel<'a> {
    /// Unpacks `V` strips from row `first` on into scratch memory of [`strip_bytes`].
    pub(crate) fn unpack<const V: usize>(
        family: Family,
        weights: &Weights,
        first: usize,
        (depth, mut parts): (usize, [&'a mut [u8]; 3]),
    ) -> Self {
        for v in 0..V {
            let [bytes, scales, minima] = parts.each_mut().map(|part| {
                let len = part.len() / V;
                &mut part[v * len..(v + 1) * len]
            });
            let (scales, minima) =
                (bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(minima));
            let mut strip = Strip { bytes, scales, minima };
            (family.unpack)(weights, first + v * STRIP, &mut strip);
        }
        Self { depth, parts }
    }

    /// The products with a tile of `N` columns.
    ///
    /// # Safety
    /// The panel's type has `GROUP` and `BITS`, there are `V` strips of the depth
    /// of the layout, and `tile` is a tile of `N` columns of that layout.
    #[inline(always)]
    pub(crate) unsafe fn tile<
        S: Simd,
        const GROUP: usize,
        const BITS: u32,
        const V: usize,
        const N: usize,
    >(
        &self,
        s: S,
        layout: Layout,
        tile: *const u8,
    ) -> [[S::F; N]; V] {
        let words = S::tile_planes(BITS) == Planes::Words;
        let parts = layout.parts(N);
        let [bytes, scales, minima] = self.parts.each_ref().map(|part| part.as_ptr());
        let (scales, minima) = (scales.cast::<f32>(), minima.cast::<f32>());
        let groups = self.depth / GROUP;
        let fours = GROUP / 4;
        let mut out = [[s.splat(0.0); N]; V];
        for group in 0..groups {
            let block = group * GROUP / SCALE_GROUP;
            // SAFETY: all offsets are inside the strips and the tile, by their layouts.
            unsafe {
                let mut strips = [bytes.add(group * GROUP * STRIP); V];
                for (v, strip) in strips.iter_mut().enumerate() {
                    *strip = strip.add(v * self.depth * STRIP);
                }
                let planes = parts.planes.map(|plane| tile.add(plane + group * GROUP * N));
                let both = words || *tile.add(parts.both_planes + block) != 0;
                let mut dots = [[s.splat_int(0); N]; V];
                dots = s.dot_tile::<BITS, 0, V, N>(dots, strips, planes[0], fours);
                if both {
                    if !words {
                        for dots in &mut dots {
                            for dots in dots {
                                *dots = s.shl_int::<7>(*dots);
                            }
                        }
                    }
                    dots = s.dot_tile::<BITS, 1, V, N>(dots, strips, planes[1], fours);
                }
                let factors = tile.add(parts.scales).cast::<f32>().add(block * N);
                let sums = tile.add(parts.sums(GROUP)).cast::<f32>().add(group * N);
                for (v, out) in out.iter_mut().enumerate() {
                    let at = (v * groups + group) * STRIP;
                    let mut scale = s.load(scales.add(at));
                    if both && !words {
                        // The factors of bytes are those of the first plane.
                        scale = s.mul(scale, s.splat(1.0 / 128.0));
                    }
                    for (column, out) in out.iter_mut().enumerate() {
                        let scaled = s.mul(scale, s.splat(*factors.add(column)));
                        *out = s.fma(s.to_float(dots[v][column]), scaled, *out);
                    }
                    let minimum = s.load(minima.add(at));
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
