//! Quantised activations by tiles of columns, for [`super::mat_mat`].
//!
//! A buffer has a part for every [`PANEL_DEPTH`] values of the depth, in which tiles follow each
//! other: a panel of weights passes over one part from its start to its end. Second bytes, which
//! few groups of 32 values have, lie behind all tiles of a part, by bands of tiles: those columns of
//! a band that have them side by side.

use super::activations::{LARGEST, Layout, Quantized, SCALE_GROUP, quantize, square_limit};
use super::mat_mat::{COLUMN_STEP, PANEL_DEPTH};
use crate::isa::{LANES, Planes, Tiles};
use std::ops::Range;

/// Columns of a band, a multiple of every tile.
pub(crate) const BAND: usize = 48;

/// A tile in one part of the depth: addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// `[depth / 4][columns][4]` of first bytes, or `[depth / 2][columns][2]` of words.
    pub(crate) first: usize,
    /// f32 `[depth / 32][columns]`: scales, of bytes those of the first.
    pub(crate) scales: usize,
    /// f32 `[depth / group][columns]`: scale times sum.
    pub(crate) sums: usize,
    /// Columns.
    pub(crate) width: usize,
}

/// The second bytes of a band in one part of the depth: addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Band {
    /// `[depth / 32][columns / 4][8][4][4]`
    pub(crate) second: usize,
    /// f32 `[depth / 32][columns]`: scales.
    pub(crate) scales: usize,
    /// Bytes `[depth / 32]`: how many columns there are, rounded up to a multiple of [`COLUMN_STEP`].
    pub(crate) counts: usize,
    /// Bytes `[depth / 32][columns]`: which of the band.
    pub(crate) lists: usize,
    /// Columns of the band.
    pub(crate) width: usize,
}

/// A tile at address `at`, and its bytes.
fn tile_at(layout: &Layout, at: usize, depth: usize, width: usize) -> (Tile, usize) {
    let value_bytes = if layout.planes == Planes::Words { 2 } else { 1 };
    let scales = at + depth * width * value_bytes;
    let sums = scales + depth / SCALE_GROUP * width * size_of::<f32>();
    let end = sums + depth / layout.group * width * size_of::<f32>();
    (Tile { first: at, scales, sums, width }, (end - at).next_multiple_of(64))
}

/// A band at address `at`, and its bytes.
fn band_at(layout: &Layout, at: usize, depth: usize, width: usize) -> (Band, usize) {
    let scales = at + depth * width;
    let counts = scales + depth / SCALE_GROUP * width * size_of::<f32>();
    let lists = counts + depth / SCALE_GROUP;
    let end = lists + depth / SCALE_GROUP * width;
    let bytes = if layout.planes == Planes::Words { 0 } else { (end - at).next_multiple_of(64) };
    (Band { second: at, scales, counts, lists, width }, bytes)
}

impl Layout {
    /// Bands, the last of which may be narrower.
    pub(crate) fn bands(&self) -> usize {
        self.columns.div_ceil(BAND)
    }

    /// The tiles of a band.
    pub(crate) fn tiles_of(&self, band: usize) -> Range<usize> {
        let tiles = BAND / self.tile;
        band * tiles..self.tiles().min((band + 1) * tiles)
    }

    /// Bytes of the tiles and of the bands of a part of that depth.
    fn part_bytes(&self, depth: usize) -> [usize; 2] {
        let (tiles, bands) = (self.tiles() - 1, self.bands() - 1);
        let tile = |width| tile_at(self, 0, depth, width).1;
        let band = |width| band_at(self, 0, depth, width).1;
        [
            tiles * tile(self.tile) + tile(self.columns - tiles * self.tile),
            bands * band(BAND) + band(self.columns - bands * BAND),
        ]
    }

    /// Bytes of a buffer of tiles.
    pub(super) fn tile_bytes(&self) -> usize {
        let bytes = |depth| self.part_bytes(depth).iter().sum::<usize>();
        let rest = self.depth % PANEL_DEPTH;
        let rest = if rest == 0 { 0 } else { bytes(rest) };
        self.depth / PANEL_DEPTH * bytes(PANEL_DEPTH) + rest
    }

    /// The part of a buffer that begins at `start` of the depth.
    #[inline(always)]
    pub(crate) fn part(&self, packed: *const u8, start: usize) -> Part {
        let full = self.part_bytes(PANEL_DEPTH).iter().sum::<usize>();
        let (at, depth) = (packed as usize + start / PANEL_DEPTH * full, self.depth - start);
        let depth = PANEL_DEPTH.min(depth);
        Part {
            layout: *self,
            tiles: at,
            bands: at + self.part_bytes(depth)[0],
            depth,
            strides: [tile_at(self, 0, depth, self.tile).1, band_at(self, 0, depth, BAND).1],
        }
    }
}

/// All columns in one part of the depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    layout: Layout,
    /// Addresses of the first tile and of the first band.
    tiles: usize,
    bands: usize,
    depth: usize,
    /// Bytes of a full tile and of a full band.
    strides: [usize; 2],
}

impl Part {
    /// Tile `index`.
    #[inline(always)]
    pub(crate) fn tile(&self, index: usize) -> Tile {
        let width = self.layout.tile.min(self.layout.columns - index * self.layout.tile);
        tile_at(&self.layout, self.tiles + index * self.strides[0], self.depth, width).0
    }

    /// Band `index`.
    #[inline(always)]
    pub(crate) fn band(&self, index: usize) -> Band {
        let width = BAND.min(self.layout.columns - index * BAND);
        band_at(&self.layout, self.bands + index * self.strides[1], self.depth, width).0
    }
}

/// Packs column `column` of a band; those of a band come in order.
///
/// # Safety
/// The buffer is as long as the layout says, and nobody else uses the band.
#[inline(always)]
pub(super) unsafe fn pack<S: Tiles>(
    s: S,
    layout: Layout,
    x: &[f32],
    packed: *mut u8,
    [index, column]: [usize; 2],
) {
    let limit = square_limit(x);
    // Squares have a finite sum where all values are finite, and none is huge.
    let finite = limit.is_finite();
    for (part, x) in x.chunks(PANEL_DEPTH).enumerate() {
        let start = part * PANEL_DEPTH;
        let columns = layout.part(packed, start);
        let tile = columns.tile(index * (BAND / layout.tile) + column / layout.tile);
        let band = columns.band(index);
        for (first, blocks) in x.as_chunks::<SCALE_GROUP>().0.chunks(LANES).enumerate() {
            let ranges = Ranges::new(s, blocks);
            for (i, x) in blocks.iter().enumerate() {
                let q = if finite {
                    ranges.quantize(s, layout.planes, (i, x), limit)
                } else {
                    quantize(layout.planes, x, limit).summed(layout.planes)
                };
                let block = first * LANES + i;
                // SAFETY: the tile and the band have the block and the column.
                unsafe {
                    tile.put(layout, [block, column % layout.tile], &q);
                    if layout.planes == Planes::Bytes {
                        band.put(layout, [block, column], &q);
                    }
                }
            }
        }
        if layout.planes == Planes::Bytes && column + 1 == band.width {
            // SAFETY: the band has so many blocks, and all its columns are there.
            unsafe { (0..x.len() / SCALE_GROUP).for_each(|block| band.fill(block)) };
        }
    }
}

impl Tile {
    /// Writes 32 values of a column.
    ///
    /// # Safety
    /// The tile is one of a buffer of the layout, and has the block and the column.
    #[inline(always)]
    unsafe fn put(&self, layout: Layout, [block, column]: [usize; 2], q: &Summed) {
        let width = self.width;
        debug_assert!(column < width);
        let scale = if layout.planes == Planes::Bytes { 128.0 * q.scale } else { q.scale };
        let [low, high] = q.sums;
        let bias = u32::from_ne_bytes([layout.bias; 4]);
        // SAFETY: by the contract.
        unsafe {
            let float = |part: usize, index: usize| (part as *mut f32).add(index * width + column);
            float(self.scales, block).write(scale);
            if layout.group == 16 {
                float(self.sums, 2 * block).write(q.scale * low as f32);
                float(self.sums, 2 * block + 1).write(q.scale * high as f32);
            } else {
                float(self.sums, block).write(q.scale * (low + high) as f32);
            }
            let first = |half: usize| {
                (self.first as *mut u32).add(half * (SCALE_GROUP / 4) * width + column)
            };
            if layout.planes == Planes::Words {
                put_fours(first(2 * block), width, &q.parts[0], bias);
                put_fours(first(2 * block + 1), width, &q.parts[1], bias);
            } else {
                put_fours(first(block), width, &q.parts[0], bias);
            }
        }
    }
}

impl Band {
    /// Writes the second bytes of 32 values of a column, if it has any, in the next place.
    ///
    /// # Safety
    /// The band is one of a buffer of the layout, and has the block and the column.
    #[inline(always)]
    unsafe fn put(&self, layout: Layout, [block, column]: [usize; 2], q: &Summed) {
        // SAFETY: by the contract.
        unsafe {
            let count = (self.counts as *mut u8).add(block);
            let place = if column == 0 { 0 } else { usize::from(*count) };
            *count = place as u8 + u8::from(q.both_planes);
            if q.both_planes {
                let at = block * self.width + place;
                *(self.lists as *mut u8).add(at) = column as u8;
                (self.scales as *mut f32).add(at).write(q.scale);
                let four = (at - place % COLUMN_STEP) * (SCALE_GROUP / 4);
                let to = (self.second as *mut u32).add(four + place % COLUMN_STEP);
                put_fours(to, COLUMN_STEP, &q.parts[1], u32::from_ne_bytes([layout.bias; 4]));
            }
        }
    }
}

impl Band {
    /// Rounds the list of a block up to whole steps, with columns of scale zero.
    ///
    /// # Safety
    /// The band is one of a buffer of the layout, and has the block.
    #[inline(always)]
    unsafe fn fill(&self, block: usize) {
        // SAFETY: by the contract; the width is a multiple of the step.
        unsafe {
            let count = (self.counts as *mut u8).add(block);
            let places = usize::from(*count)..usize::from(*count).next_multiple_of(COLUMN_STEP);
            *count = places.end as u8;
            for at in places.map(|place| block * self.width + place) {
                *(self.lists as *mut u8).add(at) = 0;
                (self.scales as *mut f32).add(at).write(0.0);
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

/// What up to 16 blocks of 32 values are quantised by.
struct Ranges {
    largest: [f32; LANES],
    inverse: [f32; LANES],
    scale: [f32; LANES],
}

impl Ranges {
    #[inline(always)]
    fn new<S: Tiles>(s: S, blocks: &[[f32; SCALE_GROUP]]) -> Self {
        let zero = s.splat(0.0);
        let mut lanes = [zero; LANES];
        for (lanes, x) in lanes.iter_mut().zip(blocks) {
            // SAFETY: 32 values.
            let (a, b) = unsafe { (s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES))) };
            *lanes = s.max(s.max(a, b), s.max(s.sub(zero, a), s.sub(zero, b)));
        }
        let mut largest = zero;
        for lanes in s.transpose(lanes) {
            largest = s.max(largest, lanes);
        }
        // A subnormal maximum would give an infinite inverse; such values are zero.
        let inverse = s.zero_below(largest, 1e-30, s.div(s.splat(LARGEST), largest));
        let scale = s.div(largest, s.splat(LARGEST));
        let [largest, inverse, scale] =
            [s.to_array(largest), s.to_array(inverse), s.to_array(scale)];
        Self { largest, inverse, scale }
    }

    /// [`quantize`] of block `i`, whose values are finite, for tiles.
    #[inline(always)]
    fn quantize<S: Tiles>(
        &self,
        s: S,
        planes: Planes,
        (i, x): (usize, &[f32; SCALE_GROUP]),
        limit: f32,
    ) -> Summed {
        let (largest, inverse) = (self.largest[i], s.splat(self.inverse[i]));
        // SAFETY: 32 values.
        let x = unsafe { [s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES))] };
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
        Summed { parts, sums, scale: self.scale[i], both_planes }
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
        unsafe { to.add(i * step).write(u32::from_ne_bytes(*four) ^ bias) };
    }
}
