//! Products with many columns: strips of 16 rows are unpacked once, interleaved by fours of values,
//! and multiplied with tiles of columns. Lane `l` of every vector belongs to row `l` of the strip.
//!
//! A panel has [`PANEL_DEPTH`] values of its strips, which stay in the nearest cache while all tiles
//! of columns pass. Registers hold the integer sums of a group and, where there are enough, the f32 sums of
//! a piece of a tile; in memory lie those of all columns.

use super::Weights;
use super::activations::{Layout, SCALE_GROUP};
use super::column_tiles::{Band, Tile};
use super::float::ReadChunk;
use super::format::{CHUNK, with_format};
use super::interleave::{Blocks, Groups, Interleave, has_minima};
use crate::isa::{Isa, LANES, LINE, Planes, Simd, Tiles, with_simd};
use kiln_core::DType;
use std::ops::Range;

/// Rows of a strip.
pub(crate) const STRIP: usize = LANES;

/// Columns are padded to a multiple of this, and second bytes packed by so many columns.
pub(crate) const COLUMN_STEP: usize = 4;

/// Values of a panel: a multiple of every block.
pub(crate) const PANEL_DEPTH: usize = 512;

/// Most bands of columns whose sums are kept at once.
pub(crate) const MAX_BANDS: usize = 12;

/// Most panels of a task.
pub(crate) const MAX_PANELS: usize = 4;

/// Values of a strip of f32 weights that are worked on at once: they stay in the nearest cache.
const FLOAT_DEPTH: usize = 512;

/// Unpacks values `range` of so many strips from row `first` on; past the last row, that row again.
type UnpackPanel = unsafe fn(weights: &Weights, first: usize, range: Range<usize>, out: Groups);

/// Asks for the packed weights of the next panel, some before each tile of columns: rows of a panel
/// are short, and start where no stream of reads has come from.
pub(crate) struct Ahead<'a> {
    weights: &'a Weights,
    rows: Range<usize>,
    /// Bytes of each row, from line to line.
    bytes: Range<usize>,
    at: usize,
    lines: usize,
}

impl<'a> Ahead<'a> {
    /// Of rows and values of a panel, over so many calls of [`Ahead::ask`].
    pub(crate) fn new(
        weights: &'a Weights,
        rows: Range<usize>,
        values: Range<usize>,
        calls: usize,
    ) -> Self {
        let bytes = |value: usize| {
            value.min(weights.k) / weights.dtype.block_len() * weights.dtype.block_bytes()
        };
        let bytes = bytes(values.start)..bytes(values.end);
        let rows = rows.start..weights.n.min(rows.end);
        let lines = rows.len() * bytes.len().div_ceil(LINE);
        Self { weights, at: bytes.start, rows, bytes, lines: lines.div_ceil(calls) }
    }

    /// Asks for the next lines, each by a call.
    #[inline(always)]
    pub(crate) fn ask(&mut self, ask: impl Fn(*const u8)) {
        for _ in 0..self.lines {
            if self.rows.is_empty() || self.bytes.is_empty() {
                return;
            }
            ask(self.weights.row(self.rows.start).wrapping_add(self.at));
            self.at += LINE;
            if self.at >= self.bytes.end {
                self.at = self.bytes.start;
                self.rows.start += 1;
            }
        }
    }
}

/// What the kernels of a block type have in common.
#[derive(Clone, Copy)]
pub(crate) struct Family {
    /// Values per scale.
    pub(crate) group: usize,
    /// Bits of a value where the instruction set has a kernel for them, else 8.
    pub(crate) bits: u32,
    /// Whether groups have minima.
    pub(crate) minima: bool,
    /// How the columns are packed.
    pub(crate) planes: Planes,
    unpack: UnpackPanel,
}

impl Family {
    /// That of a block type; `None` for plain types.
    pub(crate) fn new(isa: Isa, dtype: DType) -> Option<Self> {
        fn of<S: Tiles, F: Interleave>(_: S) -> Option<Family> {
            let bits = match F::BITS {
                ..=4 if S::NARROW_BYTES => 4,
                bits if S::NARROW_BYTES => bits,
                _ => 8,
            };
            let (planes, minima) = (S::tile_planes(bits), has_minima::<S, F>());
            Some(Family { group: F::GROUP, bits, minima, planes, unpack: unpack::<S, F> })
        }
        with_simd!(isa, s => with_format!(dtype, F => of::<_, F>(s), else => None))
    }
}

impl Family {
    /// Fours of bytes of a group.
    fn fours(self) -> usize {
        self.group / if self.planes == Planes::Words { 2 } else { 4 }
    }
}

unsafe fn unpack<S: Tiles, F: Interleave>(
    weights: &Weights,
    first: usize,
    range: Range<usize>,
    out: Groups,
) {
    // SAFETY: an unpacker is only given out for an instruction set that is there.
    let s = unsafe { S::assume() };
    let block = weights.dtype.block_len();
    let block_bytes = weights.dtype.block_bytes();
    s.run(
        #[inline(always)]
        || {
            for strip in 0..out.strips {
                let mut out = out.strip(strip);
                let mut rows = [weights.row(0); STRIP];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = weights.row((first + strip * STRIP + r).min(weights.n - 1));
                }
                for start in range.clone().step_by(block) {
                    // SAFETY: blocks inside the rows, groups inside the panel, by the contract.
                    unsafe {
                        if start < weights.k {
                            let offset = start / block * block_bytes;
                            F::interleave(s, Blocks { rows: &rows, offset }, out);
                        } else {
                            (0..block / F::GROUP).for_each(|group| out.put_zeros::<S, F>(s, group));
                        }
                    }
                    out = out.skip(block / F::GROUP, F::group_bytes::<S>());
                }
            }
        },
    );
}

/// A panel in a thread's scratch memory.
pub(crate) struct Panel {
    family: Family,
    groups: Groups,
    /// Which values of the depth it has.
    range: Range<usize>,
    /// Fours of a group, not a constant: the loop over them, not unrolled, keeps the integer sums of
    /// a tile in registers until it ends.
    fours: usize,
}

impl Panel {
    /// Scratch bytes of a panel of so many strips.
    pub(crate) fn bytes(family: Family, strips: usize) -> [usize; 4] {
        let lanes = strips * PANEL_DEPTH / family.group * STRIP * size_of::<f32>();
        let value_bytes = if family.planes == Planes::Words { 2 } else { 1 };
        [strips * PANEL_DEPTH * STRIP * value_bytes, lanes, lanes, lanes]
    }

    /// Unpacks values `range` of strips from row `first` on into scratch memory of [`Panel::bytes`].
    pub(crate) fn unpack(
        family: Family,
        weights: &Weights,
        (first, strips): (usize, usize),
        range: Range<usize>,
        parts: &mut [&mut [u8]; 4],
    ) -> Self {
        let [bytes, scales, minima, starts] = parts.each_mut().map(|part| part.as_mut_ptr());
        let [scales, minima, starts] = [scales, minima, starts].map(|part| part.cast());
        let groups = Groups { bytes, scales, minima, starts, strips };
        debug_assert!(range.len() <= PANEL_DEPTH);
        // SAFETY: the family is that of the weights; the range is at most a panel's depth.
        unsafe { (family.unpack)(weights, first, range.clone(), groups) };
        Self { family, groups, range, fours: family.fours() }
    }

    /// Adds the products with columns `start..start + N` of a tile to `sums`, `[N][V][16 rows]`.
    ///
    /// # Safety
    /// The panel's type has `GROUP`, `BITS` and minima as `MINIMA` says, there are `V` strips,
    /// `tile` has these columns and the values of the panel, and the sums are writable.
    #[inline(always)]
    pub(crate) unsafe fn multiply<
        S: Tiles,
        const GROUP: usize,
        const BITS: u32,
        const MINIMA: bool,
        const V: usize,
        const N: usize,
    >(
        &self,
        s: S,
        (tile, start): (Tile, usize),
        sums: *mut f32,
    ) {
        let words = S::tile_planes(BITS) == Planes::Words;
        debug_assert_eq!((self.family.group, self.family.minima), (GROUP, MINIMA));
        debug_assert!(start + N <= tile.width);
        // A constant where tiles are one piece.
        let width = if const { S::COLUMNS == COLUMN_STEP } { N } else { tile.width };
        // Bytes of a column's value.
        let value = if words { 2 } else { 1 };
        let first = (tile.first as *const u8).wrapping_add(4 * start);
        let [factors, column_sums] =
            [tile.scales, tile.sums].map(|part| (part as *const f32).wrapping_add(start));
        let at = |v: usize, column: usize| sums.wrapping_add((column * V + v) * LANES);
        // Whether registers hold the f32 sums, and those of two groups that share the scales of the columns.
        let held = const { S::STRIPS > 1 };
        let mut totals = [[s.splat(0.0); N]; V];
        if held {
            for (v, totals) in totals.iter_mut().enumerate() {
                for (column, total) in totals.iter_mut().enumerate() {
                    // SAFETY: by the contract.
                    *total = unsafe { s.load(at(v, column)) };
                }
            }
        }
        for block in 0..self.range.len() / SCALE_GROUP {
            let mut parts = [[s.splat(0.0); N]; V];
            let of_block = block * (SCALE_GROUP / GROUP)..(block + 1) * (SCALE_GROUP / GROUP);
            let factors = factors.wrapping_add(block * width);
            // SAFETY: all offsets are inside the panel and the tile, by their layouts.
            let factor = |column: usize| s.splat(unsafe { *factors.add(column) });
            let minima = |index: usize, v: usize| {
                // SAFETY: as above.
                unsafe { s.load(self.groups.minima.add((index * V + v) * LANES)) }
            };
            let column_sum = |index: usize, column: usize| {
                // SAFETY: as above.
                s.splat(unsafe { *column_sums.add(index * width + column) })
            };
            for index in of_block.clone() {
                let group = self.groups.skip(index, GROUP * value);
                let columns = first.wrapping_add(index * GROUP * value * width);
                // SAFETY: as above.
                unsafe {
                    let mut dots = group.start::<S, V, N>(s);
                    let bytes = group.bytes.cast_const();
                    let fours = self.fours::<S, GROUP, BITS>();
                    dots = s.dot_tile::<BITS, V, N>(dots, bytes, (columns, width), fours);
                    for (v, dots) in dots.iter().enumerate() {
                        let scale = s.load(group.scales.add(v * LANES));
                        let minimum = if MINIMA && !held { minima(index, v) } else { scale };
                        for (column, dots) in dots.iter().enumerate() {
                            let dot = s.to_float(*dots);
                            if held {
                                let part = &mut parts[v][column];
                                let first = index == of_block.start;
                                *part = if first {
                                    s.mul(dot, scale)
                                } else {
                                    s.fma(dot, scale, *part)
                                };
                                continue;
                            }
                            let mut total = s.load(at(v, column));
                            total = s.fma(dot, s.mul(scale, factor(column)), total);
                            if MINIMA {
                                total = s.fma(minimum, column_sum(index, column), total);
                            }
                            s.store(at(v, column), total);
                        }
                    }
                }
            }
            if held {
                for (v, (parts, totals)) in parts.iter().zip(&mut totals).enumerate() {
                    for (column, (part, total)) in parts.iter().zip(totals).enumerate() {
                        *total = s.fma(*part, factor(column), *total);
                        if MINIMA {
                            for index in of_block.clone() {
                                *total = s.fma(minima(index, v), column_sum(index, column), *total);
                            }
                        }
                    }
                }
            }
        }
        if held {
            for (v, totals) in totals.into_iter().enumerate() {
                for (column, total) in totals.into_iter().enumerate() {
                    // SAFETY: by the contract.
                    unsafe { s.store(at(v, column), total) };
                }
            }
        }
    }

    /// Adds the products with the second bytes of a band's columns to `sums`, `[columns][V][16 rows]`.
    ///
    /// # Safety
    /// As [`Panel::multiply`]; `band` is one that has the values of the panel.
    #[inline(always)]
    pub(crate) unsafe fn multiply_second<
        S: Tiles,
        const GROUP: usize,
        const BITS: u32,
        const V: usize,
    >(
        &self,
        s: S,
        band: Band,
        sums: *mut f32,
    ) {
        if S::tile_planes(BITS) == Planes::Words {
            return;
        }
        let [second, counts, lists] =
            [band.second, band.counts, band.lists].map(|part| part as *const u8);
        let scales = band.scales as *const f32;
        for block in 0..self.range.len() / SCALE_GROUP {
            // SAFETY: the counts and the lists are parts of the band; whole steps of columns are listed.
            unsafe {
                let first = block * band.width;
                for at in (first..first + usize::from(*counts.add(block))).step_by(COLUMN_STEP) {
                    let list = lists.add(at).cast::<[u8; COLUMN_STEP]>().read();
                    let factors = scales.add(at).cast::<[f32; COLUMN_STEP]>();
                    for index in 0..SCALE_GROUP / GROUP {
                        let group = self.groups.skip(block * (SCALE_GROUP / GROUP) + index, GROUP);
                        let columns = second.add(at * SCALE_GROUP + index * GROUP * COLUMN_STEP);
                        let fours = self.fours_of_step::<S, GROUP, BITS>();
                        group.add_second::<S, BITS, V>(s, fours, (list, factors), columns, sums);
                    }
                }
            }
        }
    }
}

impl Panel {
    /// Fours of bytes of a group: unknown to the compiler but where sums of 16 bits take fewer.
    #[inline(always)]
    fn fours<S: Tiles, const GROUP: usize, const BITS: u32>(&self) -> usize {
        let words = S::tile_planes(BITS) == Planes::Words;
        if S::NARROW_BYTES && !words && BITS > 4 { GROUP / 4 } else { self.fours }
    }

    /// As [`Self::fours`], for a few columns: the sums stay in registers.
    #[inline(always)]
    fn fours_of_step<S: Tiles, const GROUP: usize, const BITS: u32>(&self) -> usize {
        if S::NARROW_BYTES { self.fours::<S, GROUP, BITS>() } else { GROUP / 4 }
    }
}

impl Groups {
    /// Those of a strip.
    fn strip(self, strip: usize) -> Self {
        let (bytes, lanes) = (strip * 4 * LANES, strip * LANES);
        Self {
            bytes: self.bytes.wrapping_add(bytes),
            scales: self.scales.wrapping_add(lanes),
            minima: self.minima.wrapping_add(lanes),
            starts: self.starts.wrapping_add(lanes),
            strips: self.strips,
        }
    }

    /// What the sums of the first group begin with.
    ///
    /// # Safety
    /// The group is inside the panel, of `V` strips.
    #[inline(always)]
    unsafe fn start<S: Tiles, const V: usize, const N: usize>(self, s: S) -> [[S::I; N]; V] {
        let mut dots = [[s.splat_int(0); N]; V];
        if S::COLUMN_BIAS != 0 {
            for (v, dots) in dots.iter_mut().enumerate() {
                // SAFETY: by the contract.
                let start = unsafe { s.load_bytes(self.starts.add(v * LANES).cast()) };
                *dots = [s.ints(start); N];
            }
        }
        dots
    }

    /// Adds the products of a group with the second bytes of the columns of a list.
    ///
    /// # Safety
    /// As [`Panel::multiply_second`].
    #[inline(always)]
    unsafe fn add_second<S: Tiles, const BITS: u32, const V: usize>(
        self,
        s: S,
        fours: usize,
        (list, factors): ([u8; COLUMN_STEP], *const [f32; COLUMN_STEP]),
        columns: *const u8,
        sums: *mut f32,
    ) {
        // SAFETY: by the contract.
        unsafe {
            let dots = self.start::<S, V, COLUMN_STEP>(s);
            let bytes = self.bytes.cast_const();
            let dots =
                s.dot_tile::<BITS, V, COLUMN_STEP>(dots, bytes, (columns, COLUMN_STEP), fours);
            for (v, dots) in dots.iter().enumerate() {
                let scale = s.load(self.scales.add(v * LANES));
                for (at, dots) in dots.iter().enumerate() {
                    let sum = sums.add((usize::from(list[at]) * V + v) * LANES);
                    let scaled = s.mul(scale, s.splat((*factors)[at]));
                    s.store(sum, s.fma(s.to_float(*dots), scaled, s.load(sum)));
                }
            }
        }
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
