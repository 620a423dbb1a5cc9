//! Activations made ready for a matrix product: quantised, or in f32, packed by tiles of columns.
//!
//! A column is one row of the input. Quantised activations have one scale per group of 32 values, and
//! 8 bits, or 15 where the group is large beside the rest of its column. They lie in two planes of
//! one byte per value ([`Planes`]); tiles note which groups need the second. The product with a weight
//! byte is exact in i32 over a group, so that a result depends neither on the instruction set nor on
//! the tile.

use super::bf16_tiles::VALUE_BYTES;
use super::column_tiles::{self, BAND};
use super::format::CHUNK;
use super::mat_vec::{Order, column};
use crate::isa::{Planes, Tiles};
use std::ops::Range;

/// Values that share a scale.
pub(crate) const SCALE_GROUP: usize = 32;

/// Largest magnitude of a quantised activation: both bytes stay in their ranges.
pub(super) const LARGEST: f32 = 127.0 * 128.0;

/// A group has 15 bits where its largest square exceeds this many times the mean square of the
/// column: the others add at most `LIMIT / 12 / 127^2` of that mean square as an error.
const LIMIT: f32 = 12.0;

/// What a packed buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// For [`super::mat_vec`]: one column.
    Column(Order),
    /// For [`super::mat_mat`]: by tiles of columns.
    Tiles,
    /// f32 column after column.
    FloatColumns,
    /// f32 by tiles of columns.
    FloatTiles,
    /// For [`super::bf16_tiles`]: tiles of 16 columns and 32 values.
    Bf16Tiles,
}

/// Sizes of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) packing: Packing,
    /// How quantised values lie.
    pub(crate) planes: Planes,
    /// What is added to their bytes in tiles: 0 or 128.
    pub(crate) bias: u8,
    /// Values per sum in tiles: 16 or 32.
    pub(crate) group: usize,
    /// Values of a column, a multiple of [`CHUNK`]; past the input's `k` they are zero.
    pub(crate) depth: usize,
    /// Columns, those of padding included.
    pub(crate) columns: usize,
    /// Columns in a full tile.
    pub(crate) tile: usize,
}

impl Layout {
    /// Bytes of a tile of `columns`, other than [`Packing::Tiles`].
    fn tile_of(&self, columns: usize) -> usize {
        let bytes = match self.packing {
            Packing::Column(_) => column::bytes(self.depth),
            Packing::Bf16Tiles => self.depth * VALUE_BYTES,
            _ => self.depth * columns * size_of::<f32>(),
        };
        bytes.next_multiple_of(64)
    }

    /// Parts that are packed one by one: bands, or tiles.
    pub(crate) fn pieces(&self) -> usize {
        if self.packing == Packing::Tiles { self.bands() } else { self.tiles() }
    }

    /// Tiles, the last of which may be narrower.
    pub(crate) fn tiles(&self) -> usize {
        self.columns.div_ceil(self.tile)
    }

    /// Columns of a tile, and the byte its data starts at.
    #[inline(always)]
    pub(crate) fn tile_at(&self, index: usize) -> (Range<usize>, usize) {
        let start = index * self.tile;
        (start..self.columns.min(start + self.tile), index * self.tile_of(self.tile))
    }

    /// Bytes of the whole buffer.
    pub(crate) fn bytes(&self) -> usize {
        if self.packing == Packing::Tiles {
            return self.tile_bytes();
        }
        let last = self.columns - (self.tiles() - 1) * self.tile;
        (self.tiles() - 1) * self.tile_of(self.tile) + self.tile_of(last)
    }
}

/// 32 quantised values.
pub(super) struct Quantized {
    pub(super) planes: [[u8; SCALE_GROUP]; 2],
    /// `128 * high + low` of the bytes.
    pub(super) values: [i32; SCALE_GROUP],
    pub(super) scale: f32,
    /// Whether any low byte is not zero.
    pub(super) both_planes: bool,
}

/// Quantises 32 values; those with no square above `limit` to 8 bits.
#[inline(always)]
pub(super) fn quantize(planes: Planes, x: &[f32; SCALE_GROUP], limit: f32) -> Quantized {
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
    let inverse = if largest >= 1e-30 { LARGEST / largest } else { 0.0 };
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
pub(super) fn square_limit(x: &[f32]) -> f32 {
    let mut sums = [0f32; 2 * SCALE_GROUP];
    for chunk in x.as_chunks::<{ 2 * SCALE_GROUP }>().0 {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    LIMIT * (sums.iter().sum::<f32>() / x.len() as f32)
}

/// Packs part `index` of [`Layout::pieces`] of a buffer of [`Layout::bytes`]. `load` gives a column by
/// its number: a row of the input, with zeros up to the depth.
///
/// # Safety
/// The buffer is as long as the layout says, and nobody else uses the part.
#[inline(always)]
pub(crate) unsafe fn pack<S: Tiles>(
    s: S,
    layout: Layout,
    (packed, index): (*mut u8, usize),
    x: &mut [f32],
    mut load: impl FnMut(usize, &mut [f32]),
) {
    if layout.packing == Packing::Tiles {
        let first = index * BAND;
        for column in first..layout.columns.min(first + BAND) {
            load(column, x);
            // SAFETY: the band is a part of the buffer.
            unsafe { column_tiles::pack(s, layout, x, packed, [index, column - first]) };
        }
        return;
    }
    let (columns, start) = layout.tile_at(index);
    let width = columns.len();
    let bytes = layout.tile_of(width);
    // SAFETY: the tile is a part of the buffer.
    let bytes = unsafe { std::slice::from_raw_parts_mut(packed.add(start), bytes) };
    for (at, column) in columns.enumerate() {
        load(column, x);
        match layout.packing {
            Packing::Column(order) => column::pack(layout, order, x, bytes),
            Packing::FloatColumns => {
                floats(bytes, at * layout.depth, layout.depth).copy_from_slice(x)
            }
            Packing::FloatTiles => {
                let out = floats(bytes, 0, layout.depth * width);
                for (out, value) in out.chunks_exact_mut(width).zip(&*x) {
                    out[at] = *value;
                }
            }
            other @ (Packing::Tiles | Packing::Bf16Tiles) => {
                unreachable!("{other:?} is not packed column by column")
            }
        }
    }
}

/// `len` f32 of a tile, from `start` on.
#[inline(always)]
fn floats(tile: &mut [u8], start: usize, len: usize) -> &mut [f32] {
    bytemuck::cast_slice_mut(&mut tile[4 * start..4 * (start + len)])
}

/// `k` rounded up to whole chunks.
pub(crate) fn depth(k: usize) -> usize {
    k.next_multiple_of(CHUNK)
}
