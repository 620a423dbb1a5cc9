//! Matrix products of a range of rows by a unit that multiplies tiles of bf16.

use super::{Product, RowRange};
use crate::isa::{LANES, MatrixUnit, Simd, TILE, TILE_BYTES, TILE_DEPTH, prefetch_far};
use crate::matmul::bf16_tiles::{PAIR, PANEL_BYTES, block_at, in_panel, part_depth, unpacker};
use crate::matmul::mat_mat::Ahead;
use crate::threads::Scratch;
use std::ops::Range;

/// Most columns whose sums are kept at once.
const MAX_COLUMNS: usize = 512;

/// Most bytes of sums: they stay in the second cache, beside a part of the columns.
const SUMS_BYTES: usize = 256 * 1024;

/// Most panels of a task of so many columns: all pass over one part of the columns, which may come from
/// far, one after the other.
pub(super) fn most_panels(columns: usize) -> usize {
    SUMS_BYTES / (PAIR * columns.clamp(PAIR, MAX_COLUMNS) * size_of::<f32>())
}

/// 32 rows of a product, in one part of the depth.
struct Panel<'a> {
    product: &'a Product,
    row: usize,
    values: Range<usize>,
}

/// Values of a piece of a panel, or a block where that is longer.
const PIECE: usize = 64;

impl Panel<'_> {
    /// Unpacks it to a buffer by pieces of 16 rows, and asks for the packed weights of the next panel
    /// before each: between products, hints would hold the few places where loads wait for a cache.
    ///
    /// # Safety
    /// The buffer has [`PANEL_BYTES`] writable bytes; the values are those of one part, in whole blocks.
    unsafe fn unpack<U: MatrixUnit>(&self, unit: U, buffer: *mut u8, next: &Panel<'_>) {
        let weights = &self.product.weights;
        let piece = PIECE.max(weights.dtype.block_len());
        let pieces = PAIR / TILE * self.values.len().div_ceil(piece);
        let rows = next.row..next.row + PAIR;
        let mut ahead = Ahead::new(&next.product.weights, rows, next.values.clone(), pieces);
        let unpack = unpacker(unit, weights.dtype);
        for start in self.values.clone().step_by(piece) {
            let values = start..self.values.end.min(start + piece);
            let out = buffer.wrapping_add(in_panel(start - self.values.start));
            for strip in 0..PAIR / TILE {
                ahead.ask(prefetch_far);
                let out = out.wrapping_add(strip * TILE_BYTES);
                // SAFETY: the function is that of the type and of a unit that is there; the rest by
                // the contract.
                unsafe { unpack(weights, self.row + strip * TILE, values.clone(), out) };
            }
        }
    }

    /// Adds its products with a block of columns, of which so many are left, to their sums.
    ///
    /// # Safety
    /// Inside [`MatrixUnit::with_tiles`], which is not nested; the part is not empty, the panel is
    /// unpacked to the buffer, the block is one of the same part, and the sums are those of the panel
    /// and the block.
    #[inline(always)]
    unsafe fn multiply<U: MatrixUnit>(
        &self,
        unit: U,
        (columns, left): (*const u8, usize),
        buffer: *const u8,
        sums: *mut f32,
    ) {
        let (len, first) = (self.values.len() / TILE_DEPTH, self.values.start == 0);
        // SAFETY: by the contract.
        unsafe {
            if left > TILE {
                unit.multiply::<2>(columns, buffer, len, sums, first);
            } else {
                unit.multiply::<1>(columns, buffer, len, sums, first);
            }
        }
    }
}

impl RowRange<'_> {
    pub(super) fn bf16_tiles<U: MatrixUnit>(&self, unit: U, scratch: &mut Scratch) {
        let layout = self.layout;
        // Panels of a part of the depth: those of the first product, then those of the next.
        let of_product = self.rows.len().div_ceil(PAIR);
        let of_part = of_product * (1 + self.then.len());
        let part_depth = part_depth(layout.depth);
        let panels = layout.depth.div_ceil(part_depth) * of_part;
        let panel = |index: usize| {
            let (product, first) = (index % of_part / of_product, index % of_product * PAIR);
            let product = if product == 0 { self.product } else { &self.then[product - 1] };
            let start = index / of_part * part_depth;
            let values = start..layout.depth.min(start + part_depth);
            Panel { product, row: self.rows.start + first, values }
        };
        let at_once = layout.columns.min(MAX_COLUMNS);
        let stride = at_once * PAIR;
        let [buffer, sums] = scratch.parts([PANEL_BYTES, of_part * stride * size_of::<f32>()]);
        let (buffer, sums) = (buffer.as_mut_ptr(), sums.as_mut_ptr().cast::<f32>());
        for first in (0..layout.columns).step_by(at_once) {
            let columns = first..layout.columns.min(first + at_once);
            unit.with_tiles(
                #[inline(always)]
                || {
                    for index in 0..panels {
                        let (of, mut next) = (panel(index), panel((index + 1) % panels));
                        if index + 1 == panels && columns.end == layout.columns {
                            // That of the task which probably follows.
                            next.row = self.rows.end;
                        }
                        // SAFETY: the buffer is that of a panel; parts and the depth are whole blocks.
                        unsafe { of.unpack(unit, buffer, &next) };
                        for block in columns.clone().step_by(PAIR) {
                            let at = block_at(&layout, block / PAIR, of.values.start);
                            let of_block = index % of_part * stride + (block - first) * PAIR;
                            let columns = (self.packed.wrapping_add(at), columns.end - block);
                            let sums = sums.wrapping_add(of_block);
                            // SAFETY: tiles are ready; the columns and the panel have those values,
                            // at least a tile, and the sums are those of the block.
                            unsafe { of.multiply(unit, columns, buffer, sums) };
                        }
                    }
                },
            );
            let columns = columns.start..self.product.m.min(columns.end);
            unit.run(
                #[inline(always)]
                // SAFETY: all sums of the columns are there, `of_product` panels for each product.
                || unsafe { self.write_sums(unit, columns, (sums, stride), of_product * stride) },
            );
        }
    }

    /// Writes the sums of columns: `[products][panels][columns][32]`, panels `stride` values apart and products
    /// `of_product`.
    ///
    /// # Safety
    /// Those sums are readable; the rows are this task's alone.
    #[inline(always)]
    unsafe fn write_sums<U: MatrixUnit>(
        &self,
        unit: U,
        columns: Range<usize>,
        (sums, stride): (*const f32, usize),
        of_product: usize,
    ) {
        let s = unit.vectors();
        for (index, column) in columns.enumerate() {
            for (strip, row) in self.rows.clone().step_by(LANES).enumerate() {
                let at = strip / 2 * stride + index * PAIR + strip % 2 * LANES;
                let at = sums.wrapping_add(at);
                // SAFETY: by the contract.
                unsafe {
                    let mut sum = s.load(at);
                    for (index, product) in self.then.iter().enumerate() {
                        let next = s.load(at.wrapping_add((index + 1) * of_product));
                        sum = product.gated(
                            s,
                            #[inline(always)]
                            || sum,
                            next,
                        );
                    }
                    self.product.write(s, [column, row], sum);
                }
            }
        }
    }
}
