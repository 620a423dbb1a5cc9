//! Activations made ready for a matrix product: quantised, or in f32, packed by tiles of columns.
//!
//! A column is one row of the input. Quantised activations have one scale per group of 32 values, and
//! 8 bits, or 15 where the group is large beside the rest of its column. They lie in two planes of
//! one byte per value ([`Planes`]); tiles note which groups need the second. The product with a weight
//! byte is exact in i32 over a group, so that a result depends neither on the instruction set nor on
//! the tile.

use super::format::CHUNK;
use super::mat_mat::COLUMN_STEP;
use crate::isa::{LANES, Planes, Tiles};
use std::ops::Range;

/// Values that share a scale.
pub(crate) const SCALE_GROUP: usize = 32;

/// Largest magnitude of a quantised activation: both bytes stay in their ranges.
const LARGEST: f32 = 127.0 * 128.0;

/// A group has 15 bits where its largest square exceeds this many times the mean square of the
/// column: the others add at most `LIMIT / 12 / 127^2` of that mean square as an error.
const LIMIT: f32 = 12.0;

/// What a packed buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// For [`super::mat_vec`]: column after column.
    Columns,
    /// For [`super::mat_mat`]: by tiles of columns.
    Tiles,
    /// f32 column after column.
    FloatColumns,
    /// f32 by tiles of columns.
    FloatTiles,
}

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) packing: Packing,
    /// How quantised values lie.
    pub(crate) planes: Planes,
    /// What is added to their bytes in tiles: 0 or 128.
    pub(crate) bias: u8,
    /// Values of a column, a multiple of [`CHUNK`]; past the input's `k` they are zero.
    pub(crate) depth: usize,
    /// Columns, those of padding included.
    pub(crate) columns: usize,
    /// Columns in a full tile.
    pub(crate) tile: usize,
}

/// Byte offsets of the parts of a tile (or of one column).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) planes: [usize; 2],
    /// f32: scales by 32 values (tiles) or by 16 (columns). In tiles of bytes, those of the first
    /// plane.
    pub(crate) scales: usize,
    /// f32: scale times sum by 16 values.
    pub(crate) sums_16: usize,
    /// f32: scale times sum by 32 values.
    pub(crate) sums_32: usize,
    /// Bytes, in tiles of bytes: how many columns need the second plane, by 32 values.
    pub(crate) counts: usize,
    /// Bytes: those columns, room for all by 32 values.
    pub(crate) lists: usize,
    /// Bytes in all.
    pub(crate) bytes: usize,
}

impl Parts {
    /// Scale times sum for a format with that many values per scale.
    #[inline(always)]
    pub(crate) fn sums(&self, group: usize) -> usize {
        if group == 16 { self.sums_16 } else { self.sums_32 }
    }
}

impl Layout {
    /// The parts of a tile of `columns`.
    #[inline(always)]
    pub(crate) fn parts(&self, columns: usize) -> Parts {
        let values = self.depth * columns;
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end += bytes;
            start
        };
        let (mut scales, mut sums, mut counts, mut lists) = (0, [0; 2], 0, 0);
        match self.packing {
            Packing::FloatColumns | Packing::FloatTiles => _ = part(4 * values),
            Packing::Columns | Packing::Tiles => {
                let tiles = self.packing == Packing::Tiles;
                part(2 * values);
                scales = part(values / if tiles { 8 } else { 4 });
                sums = [part(values / 4), part(values / 8)];
                if tiles {
                    counts = part(self.depth / SCALE_GROUP);
                    lists = part(values / SCALE_GROUP);
                }
            }
        }
        let [sums_16, sums_32] = sums;
        let bytes = end.next_multiple_of(64);
        Parts { planes: [0, values], scales, sums_16, sums_32, counts, lists, bytes }
    }

    /// Tiles, the last of which may be narrower.
    pub(crate) fn tiles(&self) -> usize {
        self.columns.div_ceil(self.tile)
    }

    /// Columns of a tile, and the byte its data starts at.
    #[inline(always)]
    pub(crate) fn tile_at(&self, index: usize) -> (Range<usize>, usize) {
        let start = index * self.tile;
        (start..self.columns.min(start + self.tile), index * self.parts(self.tile).bytes)
    }

    /// Bytes of the whole buffer.
    pub(crate) fn bytes(&self) -> usize {
        let last = self.columns - (self.tiles() - 1) * self.tile;
        (self.tiles() - 1) * self.parts(self.tile).bytes + self.parts(last).bytes
    }
}

/// 32 quantised values.
struct Quantized {
    planes: [[u8; SCALE_GROUP]; 2],
    /// `128 * high + low` of the bytes.
    values: [i32; SCALE_GROUP],
    scale: f32,
    /// Whether any low byte is not zero.
    both_planes: bool,
}

/// Quantises 32 values; those with no square above `limit` to 8 bits.
#[inline(always)]
fn quantize(planes: Planes, x: &[f32; SCALE_GROUP], limit: f32) -> Quantized {
    let mut largest = [0f32; 16];
    let mut finite = true;
    for half in x.chunks_exact(16) {
        for (largest, value) in largest.iter_mut().zip(half) {
            *largest = if value.abs() > *largest { value.abs() } else { *largest };
            finite &= value.is_finite();
        }
    }
    let largest = largest.into_iter().fold(0f32, |a, b| if b > a { b } else { a });
    // A subnormal maximum would give an infinite inverse; such values are zero here.
    let inverse = if largest > 1e-30 { LARGEST / largest } else { 0.0 };
    let both_planes = largest * largest > limit;
    let mut out = Quantized {
        planes: [[0; SCALE_GROUP]; 2],
        values: [0; SCALE_GROUP],
        scale: if finite { largest / LARGEST } else { f32::NAN },
        both_planes,
    };
    let keep = if both_planes { -1 } else { !127 };
    let round = if both_planes { 0 } else { 64 };
    for (i, x) in x.iter().enumerate() {
        // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
        let shifted = x * inverse + 12_582_912.0;
        let value = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000);
        out.values[i] = if finite { (value + round) & keep } else { 0 };
    }
    match planes {
        Planes::Bytes => {
            for (i, value) in out.values.iter().enumerate() {
                let high = (value + 64) >> 7;
                out.planes[0][i] = high as u8;
                out.planes[1][i] = (value - (high << 7)) as u8;
            }
        }
        Planes::Words => {
            for (i, pair) in out.values.as_chunks::<2>().0.iter().enumerate() {
                for (plane, value) in out.planes.iter_mut().zip(pair) {
                    plane.as_chunks_mut::<2>().0[i] = (*value as i16).to_le_bytes();
                }
            }
        }
    }
    out
}

/// The largest square that 8 bits are enough for in a column.
#[inline(always)]
fn square_limit(x: &[f32]) -> f32 {
    let mut sums = [0f32; 2 * SCALE_GROUP];
    for chunk in x.as_chunks::<{ 2 * SCALE_GROUP }>().0 {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    LIMIT * (sums.iter().sum::<f32>() / x.len() as f32)
}

/// Packs one column (a row of the input, padded with zeros to the depth) into its tile.
///
/// `column` counts from the start of the tile of `width` columns, whose bytes are `tile`.
#[inline(always)]
pub(crate) fn pack_column<S: Tiles>(
    s: S,
    layout: Layout,
    x: &[f32],
    tile: &mut TileBytes<'_>,
    column: usize,
) {
    let width = tile.width;
    let parts = layout.parts(width);
    let planes = layout.planes;
    match layout.packing {
        Packing::FloatColumns => {
            tile.floats(column * layout.depth, layout.depth).copy_from_slice(x)
        }
        Packing::FloatTiles => {
            let out = tile.floats(0, layout.depth * width);
            for (out, value) in out.chunks_exact_mut(width).zip(x) {
                out[column] = *value;
            }
        }
        Packing::Columns => {
            let (depth, limit) = (layout.depth, square_limit(x));
            for (block, x) in x.as_chunks::<SCALE_GROUP>().0.iter().enumerate() {
                let q = quantize(planes, x, limit);
                let at = column * depth + block * SCALE_GROUP;
                for (start, plane) in parts.planes.into_iter().zip(&q.planes) {
                    tile.bytes_at(start + at).copy_from_slice(plane);
                }
                tile.set(parts.scales, at / 32, [q.scale; 2]);
                for (group, sums) in [(16, parts.sums_16), (32, parts.sums_32)] {
                    for (i, values) in q.values.chunks_exact(group).enumerate() {
                        let sum = values.iter().sum::<i32>() as f32;
                        tile.set(sums + 4 * (at / group), i, q.scale * sum);
                    }
                }
            }
        }
        Packing::Tiles => {
            let limit = square_limit(x);
            for (block, x) in x.as_chunks::<SCALE_GROUP>().0.iter().enumerate() {
                // Squares have a finite sum where all values are finite, and none is huge.
                let q = if limit.is_finite() {
                    quantize_finite(s, planes, x, limit)
                } else {
                    quantize(planes, x, limit).summed(planes)
                };
                // SAFETY: the tile has the parts of the layout.
                unsafe { tile.put(layout, parts, [block, column], &q) };
            }
        }
    }
}

/// 32 quantised values for a tile, and the sums of both halves.
struct Summed {
    /// High and low bytes, or the words of both halves.
    parts: [[u8; SCALE_GROUP]; 2],
    sums: [i32; 2],
    scale: f32,
    both_planes: bool,
}

impl Quantized {
    #[inline(never)]
    fn summed(self, planes: Planes) -> Summed {
        let Self { planes: mut parts, values, scale, both_planes } = self;
        if planes == Planes::Words {
            for (part, values) in parts.iter_mut().zip(values.chunks_exact(SCALE_GROUP / 2)) {
                for (word, value) in part.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *word = (*value as i16).to_le_bytes();
                }
            }
        }
        let sums = [0, 16].map(|at| values[at..at + 16].iter().sum());
        Summed { parts, sums, scale, both_planes }
    }
}

/// [`quantize`] of values that are finite, for tiles.
#[inline(always)]
fn quantize_finite<S: Tiles>(s: S, planes: Planes, x: &[f32; SCALE_GROUP], limit: f32) -> Summed {
    // SAFETY: 32 values.
    let x = unsafe { [s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES))] };
    let zero = s.splat(0.0);
    let above = s.max(x[0], x[1]);
    let below = s.max(s.sub(zero, x[0]), s.sub(zero, x[1]));
    let largest = s.maximum(s.max(above, below));
    // A subnormal maximum would give an infinite inverse; such values are zero here.
    let inverse = s.splat(if largest > 1e-30 { LARGEST / largest } else { 0.0 });
    let both_planes = largest * largest > limit;
    let values = [s.to_int(s.mul(x[0], inverse)), s.to_int(s.mul(x[1], inverse))];
    let half = s.splat_int(-64);
    let high = [s.sar7_int(s.sub_int(values[0], half)), s.sar7_int(s.sub_int(values[1], half))];
    let rounded = [s.shl_int::<7>(high[0]), s.shl_int::<7>(high[1])];
    let mut parts = [s.narrow(high), [0; SCALE_GROUP]];
    let mut sums = s.sums_16(&parts[0]);
    sums = [128 * sums[0], 128 * sums[1]];
    if both_planes {
        let low = [s.sub_int(values[0], rounded[0]), s.sub_int(values[1], rounded[1])];
        parts[1] = s.narrow(low);
        let low = s.sums_16(&parts[1]);
        sums = [sums[0] + low[0], sums[1] + low[1]];
    }
    if planes == Planes::Words {
        parts = s.narrow_words(if both_planes { values } else { rounded });
    }
    Summed { parts, sums, scale: largest / LARGEST, both_planes }
}

/// The bytes of a tile that is being packed.
pub(crate) struct TileBytes<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) width: usize,
}

impl TileBytes<'_> {
    /// Writes 32 values of a column; the columns of a block come in order.
    ///
    /// # Safety
    /// The tile has the parts, the block and the column.
    #[inline(always)]
    unsafe fn put(
        &mut self,
        layout: Layout,
        parts: Parts,
        [block, column]: [usize; 2],
        q: &Summed,
    ) {
        let (width, start) = (self.width, self.bytes.as_mut_ptr());
        debug_assert!(self.bytes.len() >= parts.bytes && column < width);
        let scale = if layout.planes == Planes::Bytes { 128.0 * q.scale } else { q.scale };
        let [low, high] = q.sums;
        // SAFETY: by the contract.
        unsafe {
            let float = |part: usize, index: usize| {
                start.add(part).cast::<f32>().add(index * width + column)
            };
            float(parts.scales, block).write_unaligned(scale);
            float(parts.sums_16, 2 * block).write_unaligned(q.scale * low as f32);
            float(parts.sums_16, 2 * block + 1).write_unaligned(q.scale * high as f32);
            float(parts.sums_32, block).write_unaligned(q.scale * (low + high) as f32);
            let bias = u32::from_ne_bytes([layout.bias; 4]);
            let block_bytes = block * SCALE_GROUP * width;
            let first = |part| start.add(part).cast::<u32>().add(column);
            match layout.planes {
                Planes::Bytes => {
                    put_fours(first(parts.planes[0] + block_bytes), width, &q.parts[0], bias);
                    // Where it has second bytes, the column takes the next place in the list.
                    let count = start.add(parts.counts + block);
                    let place = if column == 0 { 0 } else { *count };
                    *count = place + u8::from(q.both_planes);
                    if q.both_planes {
                        let place = usize::from(place);
                        *start.add(parts.lists + block * width + place) = column as u8;
                        let four = place / COLUMN_STEP * COLUMN_STEP * SCALE_GROUP;
                        let to = start.add(parts.planes[1] + block_bytes + four);
                        let to = to.cast::<u32>().add(place % COLUMN_STEP);
                        put_fours(to, COLUMN_STEP, &q.parts[1], bias);
                    }
                }
                Planes::Words => {
                    let half = |half: usize| (2 * block + half) * SCALE_GROUP * width;
                    put_fours(first(half(0)), width, &q.parts[0], bias);
                    put_fours(first(half(1)), width, &q.parts[1], bias);
                }
            }
        }
    }

    #[inline(always)]
    fn bytes_at(&mut self, offset: usize) -> &mut [u8] {
        &mut self.bytes[offset..offset + SCALE_GROUP]
    }

    #[inline(always)]
    fn set<T: bytemuck::Pod>(&mut self, part: usize, index: usize, value: T) {
        let at = part + index * size_of::<T>();
        self.bytes[at..at + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
    }

    #[inline(always)]
    fn floats(&mut self, start: usize, len: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.bytes[4 * start..4 * (start + len)])
    }
}

/// Writes fours of bytes, each `step` fours after the one before.
///
/// # Safety
/// Those are writable.
#[inline(always)]
unsafe fn put_fours(to: *mut u32, step: usize, bytes: &[u8; SCALE_GROUP], bias: u32) {
    for (i, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: by the contract.
        unsafe { to.add(i * step).write_unaligned(u32::from_ne_bytes(*four) ^ bias) };
    }
}

/// `k` rounded up to whole chunks.
pub(crate) fn depth(k: usize) -> usize {
    k.next_multiple_of(CHUNK)
}
