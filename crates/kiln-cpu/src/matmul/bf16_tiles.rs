//! Products of many columns by a unit that multiplies tiles of bf16 ([`MatrixUnit`]): how activations
//! are packed, and how weights are unpacked.
//!
//! A buffer of activations has a part for every so many values of the depth, in which blocks of 32 columns
//! follow each other; a block is `[depth / 32][columns][32]`. A panel is 32 rows of weights in one part.
//! Both are zero behind the last value.

use super::Weights;
use super::activations::Layout;
use super::format::{Format, with_format};
use super::interleave::{Blocks, Interleave, Unpacked};
use crate::isa::{B, LANES, LINE, MatrixUnit, Simd, TILE, TILE_BYTES, TILE_DEPTH};
use kiln_core::DType;
use std::ops::Range;

/// Columns of a block, and rows of a panel: two tiles.
pub(crate) const PAIR: usize = 2 * TILE;

/// Bytes of a value in a tile.
pub(crate) const VALUE_BYTES: usize = TILE_BYTES / TILE_DEPTH;

/// Most values of a part of the depth: a panel of them stays in the nearest cache.
pub(crate) const PART_DEPTH: usize = 512;

/// Bytes of a panel.
pub(crate) const PANEL_BYTES: usize = PAIR * PART_DEPTH * 2;

/// Values of a part of a depth, but for the last: parts as alike as whole steps allow, which are whole
/// blocks of every type that has such rows.
pub(crate) fn part_depth(depth: usize) -> usize {
    const LONG_BLOCK: usize = 256;
    let step = if depth.is_multiple_of(LONG_BLOCK) { LONG_BLOCK } else { TILE_DEPTH };
    depth.div_ceil(depth.div_ceil(PART_DEPTH)).next_multiple_of(step)
}

/// Where the values of a block of columns begin, from a part of the depth on.
pub(crate) fn block_at(layout: &Layout, block: usize, start: usize) -> usize {
    let depth = part_depth(layout.depth).min(layout.depth - start);
    2 * (start * layout.columns + block * PAIR * depth)
}

/// Where values of 16 rows begin in a panel, or of a strip of them.
pub(crate) fn in_panel(value: usize) -> usize {
    value / TILE_DEPTH * 2 * TILE_BYTES + value % TILE_DEPTH * VALUE_BYTES
}

/// Whether weights of a type are multiplied in bf16 where speed is asked for.
pub(crate) fn takes(dtype: DType) -> bool {
    dtype.is_quantized() || matches!(dtype, DType::F16 | DType::BF16)
}

/// Packs 16 columns: part `index` of a buffer. `load` gives values of a column from a place in the
/// depth on, and zeros behind the last.
///
/// # Safety
/// The buffer is as long as the layout says, and nobody else uses the part.
#[inline(always)]
pub(crate) unsafe fn pack<U: MatrixUnit>(
    unit: U,
    layout: Layout,
    (packed, index): (*mut u8, usize),
    x: &mut [f32],
    load: impl Fn(usize, usize, &mut [f32]),
) {
    let s = unit.vectors();
    let first = index * TILE;
    let block = first / PAIR;
    let width = PAIR.min(layout.columns - block * PAIR);
    let part_depth = part_depth(layout.depth);
    // Part by part, so that what is written is a short range of memory.
    for start in (0..layout.depth).step_by(part_depth) {
        let x = &mut x[..part_depth.min(layout.depth - start)];
        let part = packed.wrapping_add(block_at(&layout, block, start));
        for column in first..first + TILE {
            load(column, start, x);
            let line = part.wrapping_add((column - block * PAIR) * LINE);
            for (tile, x) in x.as_chunks::<TILE_DEPTH>().0.iter().enumerate() {
                // SAFETY: 32 values; a line of the part.
                unsafe {
                    let values = [s.load(x.as_ptr()), s.load(x.as_ptr().add(LANES))];
                    s.store_bytes(line.wrapping_add(tile * width * LINE), unit.to_bf16(values));
                }
            }
        }
    }
}

/// Unpacks values `range` of the 16 rows from `first` on to every other tile from `out` on; past the last
/// row, that row again.
///
/// # Safety
/// The unit is there, the weights have the type of the function, the range is one of whole blocks, and
/// the tiles are writable.
pub(crate) type UnpackTiles =
    unsafe fn(weights: &Weights, first: usize, range: Range<usize>, out: *mut u8);

/// What unpacks a type of [`takes`] with a unit.
pub(crate) fn unpacker<U: MatrixUnit>(_: U, dtype: DType) -> UnpackTiles {
    with_format!(dtype, F => blocks::<U, F>, else => match dtype {
        DType::F16 => plain::<U, true>,
        _ => plain::<U, false>,
    })
}

/// Rows `first..first + 16`; past the last, that one again.
fn rows_of(weights: &Weights, first: usize) -> [*const u8; TILE] {
    std::array::from_fn(|row| weights.row((first + row).min(weights.n - 1)))
}

unsafe fn blocks<U: MatrixUnit, F: Interleave>(
    weights: &Weights,
    first: usize,
    range: Range<usize>,
    out: *mut u8,
) {
    // SAFETY: the unit is there, by the contract.
    let unit = unsafe { U::assume() };
    let (block, bytes) = (weights.dtype.block_len(), weights.dtype.block_bytes());
    let rows = rows_of(weights, first);
    unit.run(
        #[inline(always)]
        || {
            for (index, start) in range.step_by(block).enumerate() {
                let out = out.wrapping_add(in_panel(index * block));
                // SAFETY: blocks inside the rows, tiles inside the range, by the contract. Blocks
                // of 256 values fill the depth; those of 32 may leave one tile of padding.
                unsafe {
                    if start < weights.k {
                        let blocks = Blocks { rows: &rows, offset: start / block * bytes };
                        F::interleave(unit.vectors(), blocks, Strip { unit, out });
                    } else {
                        out.write_bytes(0, TILE_BYTES);
                    }
                }
            }
        },
    );
}

/// A strip from a block on.
#[derive(Clone, Copy)]
struct Strip<U> {
    unit: U,
    out: *mut u8,
}

impl<U: MatrixUnit> Unpacked<U::Vectors> for Strip<U> {
    #[inline(always)]
    unsafe fn put<F: Format>(
        self,
        s: U::Vectors,
        group: usize,
        q: &[B<U>],
        [scale, minimum]: [<U::Vectors as Simd>::F; 2],
    ) {
        let biased = s.mul(scale, s.splat(-F::BIAS));
        let minimum = if F::BIAS == 0.0 { minimum } else { biased };
        let scales = self.unit.pair_scales(F::BITS, scale, minimum);
        let out = self.out.wrapping_add(in_panel(group * F::GROUP));
        for (four, q) in q.iter().enumerate() {
            for (pair, line) in self.unit.pairs(F::BITS, *q, &scales).into_iter().enumerate() {
                // SAFETY: lines of the group.
                unsafe { s.store_bytes(out.wrapping_add((2 * four + pair) * LINE), line) };
            }
        }
    }
}

/// A line of 32 values of a row.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE]);

/// f16, or bf16: pairs of values of 16 rows change places.
unsafe fn plain<U: MatrixUnit, const F16: bool>(
    weights: &Weights,
    first: usize,
    range: Range<usize>,
    out: *mut u8,
) {
    // SAFETY: the unit is there, by the contract.
    let unit = unsafe { U::assume() };
    let s = unit.vectors();
    let rows = rows_of(weights, first);
    unit.run(
        #[inline(always)]
        || {
            for (tile, start) in range.step_by(TILE_DEPTH).enumerate() {
                let valid = weights.k.saturating_sub(start).min(TILE_DEPTH);
                let mut lines = [Line([0; LINE]); TILE];
                let mut pairs = [s.splat(0.0); TILE];
                for ((row, line), pairs) in rows.iter().zip(&mut lines).zip(&mut pairs) {
                    let mut from = row.wrapping_add(2 * start);
                    let to = line.0.as_mut_ptr();
                    // SAFETY: the valid values of the row; 32 values in a line.
                    unsafe {
                        if valid < TILE_DEPTH {
                            std::ptr::copy_nonoverlapping(from, to, 2 * valid);
                            from = to;
                        }
                        if F16 {
                            let halves: *const u16 = from.cast();
                            let values = [s.load_f16(halves), s.load_f16(halves.add(LANES))];
                            s.store_bytes(to, unit.to_bf16(values));
                            from = to;
                        }
                        *pairs = s.load(from.cast());
                    }
                }
                let out = out.wrapping_add(in_panel(tile * TILE_DEPTH));
                for (index, pairs) in s.transpose(pairs).into_iter().enumerate() {
                    // SAFETY: a tile of the range.
                    unsafe { s.store(out.wrapping_add(index * LINE).cast(), pairs) };
                }
            }
        },
    );
}
