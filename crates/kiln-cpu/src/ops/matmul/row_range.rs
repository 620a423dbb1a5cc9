//! Matrix products of a range of rows: the kernels of a route, called with constants.

use super::{Product, Route};
use crate::isa::{Isa, LANES, Rows, Simd, Tiles, prefetch, with_simd, with_unit};
use crate::matmul::activations::{Layout, SCALE_GROUP};
use crate::matmul::column_tiles::BAND;
use crate::matmul::float::{self, ReadChunk};
use crate::matmul::format::with_format;
use crate::matmul::mat_mat::{self, Ahead, Family, Panel};
use crate::matmul::mat_vec::{self, RowFormat, RowKernel};
use crate::threads::Scratch;
use std::ops::Range;

/// Evaluates an expression with a constant `$N` for one of a list of values.
macro_rules! with_constant {
    ($value:expr, [$($choice:literal),*], $N:ident => $work:expr) => {
        match $value {
            $($choice => {
                const $N: usize = $choice;
                $work
            })*
            other => unreachable!("{other} is not one of the values planned for"),
        }
    };
}

/// As [`with_constant`], for the widths of tiles that an instruction set uses.
macro_rules! with_tile_width {
    ($width:expr, $S:ident, $N:ident => $work:expr) => {
        if const { $S::COLUMNS > mat_mat::COLUMN_STEP } {
            with_constant!($width, [4, 8, 12], $N => $work)
        } else {
            with_constant!($width, [4], $N => $work)
        }
    };
}

/// As [`with_tile_width`], for the columns of a tile whose sums registers hold: in integers and in f32, and
/// with groups of 16 values those of two groups.
macro_rules! with_piece {
    ($width:expr, $S:ident, $GROUP:ident, $N:ident => $work:expr) => {
        if const { $S::COLUMNS > mat_mat::COLUMN_STEP && $GROUP == SCALE_GROUP } {
            with_constant!(if $width == 12 { 6 } else { 4 }, [4, 6], $N => $work)
        } else {
            const $N: usize = mat_mat::COLUMN_STEP;
            $work
        }
    };
}

/// As [`with_constant`], for the kernels of a block type: values per scale, bits, and minima.
macro_rules! with_family {
    ($family:expr, $S:ident, $GROUP:ident, $BITS:ident, $MINIMA:ident => $work:expr) => {
        if const { $S::NARROW_BYTES } {
            with_family!(@ $family, $GROUP, $BITS, $MINIMA => $work,
                [32, 4, true], [32, 5, true], [32, 8, false], [16, 4, true], [16, 6, true])
        } else if const { $S::SIGNED_WEIGHTS } {
            with_family!(@ $family, $GROUP, $BITS, $MINIMA => $work,
                [32, 8, true], [32, 8, false], [16, 8, true], [16, 8, false])
        } else {
            with_family!(@ $family, $GROUP, $BITS, $MINIMA => $work, [32, 8, true], [16, 8, true])
        }
    };
    (@ $family:expr, $GROUP:ident, $BITS:ident, $MINIMA:ident => $work:expr,
        $([$group:literal, $bits:literal, $minima:literal]),*) => {
        match ($family.group, $family.bits, $family.minima) {
            $(($group, $bits, $minima) => {
                const $GROUP: usize = $group;
                const $BITS: u32 = $bits;
                const $MINIMA: bool = $minima;
                $work
            })*
            other => unreachable!("no kernel was planned for {other:?}"),
        }
    };
}

/// Rows of a product, with the packed input.
#[derive(Clone)]
pub(crate) struct RowRange<'a> {
    pub(crate) product: &'a Product,
    /// Products of the same rows and the same input, for the same output.
    pub(crate) then: &'a [Product],
    pub(crate) rows: Range<usize>,
    pub(crate) layout: Layout,
    pub(crate) packed: *const u8,
}

impl RowRange<'_> {
    pub(crate) fn run(&self, isa: Isa, route: Route, scratch: &mut Scratch) {
        if route == Route::Bf16Tiles {
            let Some(unit) = isa.unit else { unreachable!("tiles are only planned for a unit") };
            return with_unit!(unit, unit => self.bf16_tiles(unit, scratch));
        }
        let dtype = self.product.weights.dtype;
        let one_kernel = self.then.iter().all(|then| then.weights.dtype == dtype);
        if let Some((product, then)) = self.then.split_first()
            && !(one_kernel && route == Route::MatMat)
        {
            RowRange { then: &[], ..self.clone() }.run(isa, route, scratch);
            return RowRange { product, then, ..self.clone() }.run(isa, route, scratch);
        }
        match (route, Family::new(isa, dtype)) {
            (Route::MatVec, Some(_)) => {
                with_format!(dtype, F => with_simd!(isa, s => self.one_column::<_, F>(s)), else => ());
            }
            (Route::MatMat, Some(family)) => {
                with_simd!(isa, s => self.mat_mat(s, family, scratch));
            }
            (Route::FloatMatMat, ..) => {
                let read = float::reader(isa, dtype);
                with_simd!(isa, s => self.float_mat_mat(s, read, scratch));
            }
            (Route::FloatMatVec | Route::MatVec | Route::MatMat | Route::Bf16Tiles, ..) => {
                let read = float::reader(isa, dtype);
                with_simd!(isa, s => self.few_floats(s, read));
            }
        }
    }

    fn one_column<S: Rows, F: RowFormat>(&self, s: S) {
        let weights = &self.product.weights;
        s.run(
            #[inline(always)]
            || {
                let kernel = RowKernel::new::<F>(weights, self.layout, self.packed);
                for first in self.rows.clone().step_by(LANES) {
                    let rows = (self.rows.end - first).min(LANES);
                    // SAFETY: the input was packed with this layout; the rows are this task's alone.
                    unsafe {
                        let sums = mat_vec::quantized::<S, F>(s, &kernel, weights.row(first), rows);
                        self.product.write(s, [0, first], sums);
                    }
                }
            },
        );
    }

    fn few_floats<S: Simd>(&self, s: S, read: ReadChunk) {
        let weights = (&self.product.weights, read);
        let Self { layout, packed, .. } = *self;
        with_constant!(layout.columns, [1, 4, 8], N => s.run(
            #[inline(always)]
            || {
                self.few_columns(
                    s,
                    #[inline(always)]
                    |row| {
                        // SAFETY: the input was packed with this layout, of `N` columns.
                        unsafe { mat_vec::float::<S, N>(s, weights, row, layout, packed) }
                    },
                )
            },
        ));
    }

    /// Computes the sums of each row with `N` columns, and writes them.
    #[inline(always)]
    fn few_columns<S: Simd, const N: usize>(&self, s: S, dot: impl Fn(usize) -> [f32; N]) {
        for first in self.rows.clone().step_by(LANES) {
            let mut sums = [[0f32; LANES]; N];
            for row in first..self.rows.end.min(first + LANES) {
                sums.iter_mut().zip(dot(row)).for_each(|(sums, sum)| sums[row - first] = sum);
            }
            for (column, sums) in sums.iter().enumerate().take(self.product.m) {
                // SAFETY: the array has 16 values; the rows are this task's alone.
                unsafe { self.product.write(s, [column, first], s.load(sums.as_ptr())) };
            }
        }
    }

    fn mat_mat<S: Tiles>(&self, s: S, family: Family, scratch: &mut Scratch) {
        if const { S::STRIPS > 1 } {
            self.panels::<S, 2>(s, family, scratch);
        } else {
            self.panels::<S, 1>(s, family, scratch);
        }
    }

    fn panels<S: Tiles, const V: usize>(&self, s: S, family: Family, scratch: &mut Scratch) {
        let layout = self.layout;
        // Panels that pass over a part of the columns one after the other, while it is in a cache:
        // those of the first product, then those of the next.
        let of_product = self.rows.len().div_ceil(V * LANES);
        let panels = of_product * (1 + self.then.len());
        let panel = |index: usize| {
            let (product, first) = (index / of_product, index % of_product * V * LANES);
            let product = if product == 0 { self.product } else { &self.then[product - 1] };
            (&product.weights, self.rows.start + first)
        };
        // Columns whose sums are kept at once.
        let at_once = mat_mat::MAX_BANDS.min(layout.bands());
        let stride = at_once * BAND * V * LANES;
        let [bytes, scales, minima, starts] = Panel::bytes(family, V);
        let [bytes, scales, minima, starts, sums] =
            scratch.parts([bytes, scales, minima, starts, panels * stride * size_of::<f32>()]);
        let (mut parts, sums) = ([bytes, scales, minima, starts], sums);
        for first in (0..layout.bands()).step_by(at_once) {
            let bands = first..layout.bands().min(first + at_once);
            sums.fill(0);
            let sums = sums.as_mut_ptr().cast::<f32>();
            let sums_of = |panel: usize, column: usize| {
                sums.wrapping_add(panel * stride + (column - first * BAND) * V * LANES)
            };
            for start in (0..layout.depth).step_by(mat_mat::PANEL_DEPTH) {
                let columns = layout.part(self.packed, start);
                for index in 0..panels {
                    let (weights, row) = panel(index);
                    let range = start..layout.depth.min(start + mat_mat::PANEL_DEPTH);
                    let (next, from) =
                        if index + 1 < panels { (index + 1, start) } else { (0, range.end) };
                    let (of_next, first_of_next) = panel(next);
                    let mut ahead = Ahead::new(
                        of_next,
                        first_of_next..first_of_next + V * LANES,
                        from..from + mat_mat::PANEL_DEPTH,
                        bands.len() * (BAND / layout.tile),
                    );
                    let panel = Panel::unpack(family, weights, (row, V), range, &mut parts);
                    with_family!(family, S, GROUP, BITS, MINIMA => for band in bands.clone() {
                        for tile in layout.tiles_of(band) {
                            ahead.ask(prefetch);
                            let sums = sums_of(index, tile * layout.tile);
                            let tile = columns.tile(tile);
                            with_piece!(tile.width, S, GROUP, N => s.run(#[inline(always)] || {
                                for start in (0..tile.width).step_by(N) {
                                    let sums = sums.wrapping_add(start * V * LANES);
                                    // SAFETY: the panel is one of this family; the tile has the columns.
                                    unsafe {
                                        panel.multiply::<S, GROUP, BITS, MINIMA, V, N>(
                                            s, (tile, start), sums,
                                        );
                                    }
                                }
                            }));
                        }
                        let second = columns.band(band);
                        let sums = sums_of(index, band * BAND);
                        // SAFETY: as above; the band has these columns.
                        s.run(#[inline(always)] || unsafe {
                            panel.multiply_second::<S, GROUP, BITS, V>(s, second, sums);
                        });
                    });
                }
            }
            s.run(
                #[inline(always)]
                || {
                    for column in bands.start * BAND..self.product.m.min(bands.end * BAND) {
                        for (strip, row) in self.rows.clone().step_by(LANES).enumerate() {
                            let at = sums_of(strip / V, column).wrapping_add(strip % V * LANES);
                            // SAFETY: sums of a column; the rows are this task's alone.
                            unsafe {
                                let mut sum = s.load(at);
                                for (index, product) in self.then.iter().enumerate() {
                                    let next = s.load(at.add((index + 1) * of_product * stride));
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
                },
            );
        }
    }

    fn float_mat_mat<S: Tiles>(&self, s: S, read: ReadChunk, scratch: &mut Scratch) {
        let [strip] = scratch.floats([mat_mat::float_strip_len(self.layout.depth)]);
        let first = self.rows.start;
        // SAFETY: the reader is that of the weights' type; the strip is long enough.
        unsafe { mat_mat::unpack_floats((&self.product.weights, read), first, strip) };
        for (width, tile, start) in self.tiles() {
            with_tile_width!(width, S, N => s.run(#[inline(always)] || {
                // SAFETY: the strip is as deep as the layout; the tile has `N` columns.
                let sums = unsafe { mat_mat::float_tile::<S, N>(s, strip, self.layout, tile) };
                self.write_tile(s, [start, first], sums);
            }));
        }
    }

    /// Width, data and first column of each tile.
    fn tiles(&self) -> impl Iterator<Item = (usize, *const u8, usize)> {
        let (layout, packed) = (self.layout, self.packed);
        (0..layout.tiles()).map(move |index| {
            let (columns, at) = layout.tile_at(index);
            (columns.len(), packed.wrapping_add(at), columns.start)
        })
    }

    #[inline(always)]
    fn write_tile<S: Simd, const N: usize>(&self, s: S, [start, row]: [usize; 2], sums: [S::F; N]) {
        if row < self.rows.end {
            for (column, sums) in sums.into_iter().enumerate().take(self.product.m - start) {
                // SAFETY: the rows are this task's alone.
                unsafe { self.product.write(s, [start + column, row], sums) };
            }
        }
    }
}
