//! Matrix products: the choice of a route, its packing and its tasks.

use crate::exec::{Held, Lowering, Tasks, Workspace};
use crate::isa::{Isa, LANES, Planes, Rows, Simd, Tiles, with_simd};
use crate::matmul::Weights;
use crate::matmul::activations::{self, Layout, Packing, depth};
use crate::matmul::column_tiles::BAND;
use crate::matmul::float::ReadChunk;
use crate::matmul::format::with_format;
use crate::matmul::mat_mat::{Ahead, Family, Panel};
use crate::matmul::mat_vec::{Order, RowFormat, RowKernel};
use crate::matmul::{float, mat_mat, mat_vec};
use crate::ops::activation::activate;
use crate::threads::Scratch;
use crate::view::View;
use kiln_core::DType;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, Precision};
use std::ops::Range;

/// Identity of a packed input: equal keys mean equal packed bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PackKey {
    start: usize,
    dtype: DType,
    shape: kiln_core::Shape,
    strides: [usize; 2],
    input_layout: InputLayout,
    layout: Layout,
}

/// A kernel's route, a pure function of the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// One column, quantised.
    MatVec,
    /// Many columns, quantised.
    MatMat,
    /// Few columns, in f32.
    FloatMatVec,
    /// Many columns, in f32.
    FloatMatMat,
}

/// Chooses the route of a product with `m` columns.
pub(crate) fn select(m: usize, weights: &[Weights], precision: Precision) -> Route {
    let blocks = weights.iter().all(|weights| weights.dtype.is_quantized());
    match (blocks && precision == Precision::Fast, m) {
        (true, 1) => Route::MatVec,
        (true, _) => Route::MatMat,
        (false, ..=mat_vec::MAX_COLUMNS) => Route::FloatMatVec,
        (false, _) => Route::FloatMatMat,
    }
}

/// The layout of the packed input of a route.
pub(super) fn packed_layout(isa: Isa, route: Route, weights: &Weights, m: usize) -> Layout {
    fn shape<S: Tiles>(_: S) -> (usize, Planes, u8) {
        (S::COLUMNS, S::PLANES, S::COLUMN_BIAS)
    }
    let (tile, planes, bias) = with_simd!(isa, s => shape(s));
    let few = mat_vec::padded_columns(m);
    let many = m.next_multiple_of(mat_mat::COLUMN_STEP);
    let family = Family::new(isa, weights.dtype);
    let (row_planes, order) = row_layout(isa, weights.dtype);
    let (planes, group) = match (route, family) {
        (Route::MatMat, Some(family)) => {
            // Groups without minima have no use for sums.
            (family.planes, if family.minima { family.group } else { 32 })
        }
        (Route::MatVec, _) => (row_planes, 32),
        _ => (planes, 32),
    };
    let (packing, columns, tile) = match route {
        Route::MatVec => (Packing::Column(order), 1, 1),
        Route::FloatMatVec => (Packing::FloatColumns, few, few),
        Route::MatMat => (Packing::Tiles, many, tile),
        Route::FloatMatMat => (Packing::FloatTiles, many, tile),
    };
    Layout { packing, planes, bias, group, depth: depth(weights.k), columns, tile }
}

/// How the row kernel of a block type wants its column.
fn row_layout(isa: Isa, dtype: DType) -> (Planes, Order) {
    fn of<S: Rows, F: RowFormat>(_: S) -> (Planes, Order) {
        (S::row_planes(F::BITS), F::ORDER)
    }
    let plain = (Planes::Bytes, Order::Natural);
    with_simd!(isa, s => with_format!(dtype, F => of::<_, F>(s), else => plain))
}

/// The rows of an input in either layout.
#[derive(Clone, Copy)]
struct Input {
    view: View,
    layout: InputLayout,
    m: usize,
    k: usize,
}

impl Input {
    fn new(view: View, layout: InputLayout) -> Self {
        let (m, k) = match layout {
            InputLayout::RowMajor => (view.extent(0), view.last()),
            InputLayout::HeadMajor => (view.extent(1), view.extent(0) * view.last()),
        };
        Self { view, layout, m, k }
    }

    /// Row `row` as f32; rows past the last are zero, as is what follows `k`.
    ///
    /// # Safety
    /// Nobody writes the input meanwhile.
    #[inline(always)]
    unsafe fn load(&self, row: usize, out: &mut [f32]) {
        out[self.k..].fill(0.0);
        if row >= self.m {
            return out.fill(0.0);
        }
        // SAFETY: the row exists; the rest is the caller's.
        unsafe {
            match self.layout {
                InputLayout::RowMajor => self.view.load([row], &mut out[..self.k]),
                InputLayout::HeadMajor => {
                    for (head, out) in out[..self.k].chunks_exact_mut(self.view.last()).enumerate()
                    {
                        self.view.load([head, row], out);
                    }
                }
            }
        }
    }

    fn key(&self, layout: Layout) -> Held {
        let outer = self.view.rank() - 1;
        let start = self.view.start() as usize;
        let span: usize =
            (0..outer).map(|axis| (self.view.extent(axis) - 1) * self.view.stride(axis)).sum();
        let strides = [self.view.stride(0), self.view.stride(outer - 1)];
        let key = PackKey {
            start,
            dtype: self.view.dtype(),
            shape: self.view.shape(),
            strides,
            input_layout: self.layout,
            layout,
        };
        Held { source: start..start + span + self.view.stride(outer), key }
    }
}

/// Packs part `piece.1` of the input into the buffer at `piece.0`.
///
/// # Safety
/// As [`activations::pack`]; nobody writes the input meanwhile.
unsafe fn pack_piece(
    isa: Isa,
    input: Input,
    layout: Layout,
    piece: (*mut u8, usize),
    x: &mut [f32],
) {
    with_simd!(isa, s => s.run(
        #[inline(always)]
        // SAFETY: the caller's.
        || unsafe {
            activations::pack(s, layout, piece, x, #[inline(always)] |row, x| input.load(row, x));
        }
    ));
}

/// Makes sure the workspace holds the packed input.
fn pack(input: Input, layout: Layout, lowering: &mut Lowering) -> Workspace {
    let held = input.key(layout);
    if let Some(workspace) = lowering.held(&held) {
        return workspace;
    }
    let workspace = lowering.workspace(layout.bytes());
    let isa = lowering.isa;
    let packed = workspace.clone();
    lowering.tasks(Tasks::new(layout.pieces(), move |index, scratch| {
        let [x] = scratch.floats([layout.depth]);
        // SAFETY: pieces are disjoint parts of the workspace, which this phase has alone; the planner's
        // hazards keep writers of the input out of this step.
        unsafe { pack_piece(isa, input, layout, (packed.start(), index), x) };
    }));
    lowering.barrier();
    lowering.hold(held);
    workspace
}

/// Appends the tasks of a phase that takes a packed input. One column is packed by every thread for
/// itself, so that none waits for another.
fn tasks_of_packed(
    input: Input,
    layout: Layout,
    count: usize,
    lowering: &mut Lowering,
    work: impl Fn(usize, *const u8, &mut Scratch) + Send + Sync + 'static,
) {
    if layout.columns > 1 {
        let packed = pack(input, layout, lowering);
        let tasks = Tasks::new(count, move |task, scratch| {
            work(task, packed.start().cast_const(), scratch);
        });
        return lowering.tasks(tasks);
    }
    let (isa, bytes) = (lowering.isa, layout.bytes());
    let preparation = lowering.prepare(input.key(layout), move |scratch| {
        let (out, [x]) = scratch.keep_beside(bytes, [layout.depth]);
        // SAFETY: the buffer is as long as the layout says, and this thread's own; the planner's hazards
        // keep writers of the input out of this step.
        unsafe { pack_piece(isa, input, layout, (out.as_mut_ptr(), 0), x) };
    });
    let tasks = Tasks::new(count, move |task, scratch| {
        let packed = scratch.keep_beside(bytes, []).0.as_ptr();
        work(task, packed, scratch);
    });
    lowering.tasks(tasks.after(preparation));
}

/// Where the columns of a product go.
#[derive(Clone, Copy)]
pub(super) enum OutputRows {
    /// `[m, n]`: column by column.
    Matrix(View),
    /// `[m, top_k, n]`: column `i` to slot `slots[i]`, counted over both outer axes.
    Slots { view: View, slots: *const u32 },
}

// SAFETY: addresses of a view and of the workspace, which the executable keeps alive.
unsafe impl Send for OutputRows {}
// SAFETY: as above.
unsafe impl Sync for OutputRows {}

impl OutputRows {
    /// # Safety
    /// The column exists.
    #[inline(always)]
    unsafe fn row(&self, column: usize) -> *mut f32 {
        match self {
            OutputRows::Matrix(view) => view.row_ptr([column]).cast(),
            OutputRows::Slots { view, slots } => {
                // SAFETY: the list has a slot for every column.
                let slot = unsafe { *slots.add(column) } as usize;
                let top_k = view.extent(1);
                view.row_ptr([slot / top_k, slot % top_k]).cast()
            }
        }
    }
}

/// A weight matrix and where its product goes.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) weights: Weights,
    /// Applied to what the output holds, which the product then multiplies.
    pub(super) gate: Option<Activation>,
    pub(super) output: OutputRows,
    pub(super) m: usize,
}

impl Product {
    /// The sums, multiplied by what the gate makes of the product before.
    #[inline(always)]
    fn gated<S: Simd>(&self, s: S, before: S::F, sums: S::F) -> S::F {
        match self.gate {
            Some(activation) => s.mul(activate(s, activation, before), sums),
            None => sums,
        }
    }

    /// Writes the sums of up to 16 rows of one column.
    ///
    /// # Safety
    /// This thread has those values of the output alone.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, [column, first]: [usize; 2], sums: S::F) {
        let rows = (self.weights.n - first).min(LANES);
        // SAFETY: rows `first..first + rows` of the output row of that column, the caller's alone.
        unsafe {
            let to = self.output.row(column).add(first);
            let mut part = [0f32; LANES];
            let at = if rows == LANES {
                to
            } else {
                std::ptr::copy_nonoverlapping(to, part.as_mut_ptr(), rows);
                part.as_mut_ptr()
            };
            s.store(at, self.gated(s, s.load(at), sums));
            if rows != LANES {
                std::ptr::copy_nonoverlapping(at, to, rows);
            }
        }
    }
}

/// `output = input * weight^T`
pub(super) fn matmul(op: &Matmul<View>, lowering: &mut Lowering) {
    let input = Input::new(op.input, op.input_layout);
    let weights = Weights::new(&op.weight, 0);
    let output = OutputRows::Matrix(op.output);
    let products = vec![Product { weights, gate: None, output, m: input.m }];
    lower(input, products, op.precision, lowering);
}

/// `output = activation(input * gate^T) * (input * up^T)`: the gate's product goes to the output,
/// then the other product is multiplied into it, strip by strip.
pub(super) fn gated_matmul(op: &GatedMatmul<View>, lowering: &mut Lowering) {
    let input = Input::new(op.input, InputLayout::RowMajor);
    let (output, m) = (OutputRows::Matrix(op.output), input.m);
    let gate = Product { weights: Weights::new(&op.gate, 0), gate: None, output, m };
    let up = Product { weights: Weights::new(&op.up, 0), gate: Some(op.activation), output, m };
    lower(input, vec![gate, up], op.precision, lowering);
}

fn lower(input: Input, products: Vec<Product>, precision: Precision, lowering: &mut Lowering) {
    let weights: Vec<Weights> = products.iter().map(|product| product.weights).collect();
    let route = select(input.m, &weights, precision);
    let isa = lowering.isa;
    let layouts: Vec<Layout> =
        weights.iter().map(|weights| packed_layout(isa, route, weights, input.m)).collect();
    // Products of one input and one layout share a phase; their outputs are written strip by strip.
    let shared = layouts.iter().all(|layout| *layout == layouts[0]);
    let phases =
        if shared { vec![products] } else { products.into_iter().map(|p| vec![p]).collect() };
    for (index, (products, layout)) in phases.into_iter().zip(layouts).enumerate() {
        if index > 0 {
            // The second product is multiplied into what all tasks of the first have written.
            lowering.barrier();
        }
        let mut rows = rows_per_task(isa, route, &weights[0]);
        if route == Route::MatMat {
            // Fewer panels where threads would have few tasks.
            let tasks = weights[0].n / (TASKS_PER_THREAD * lowering.threads * rows);
            rows *= tasks.clamp(1, mat_mat::MAX_PANELS / products.len());
        }
        let count = weights[0].n.div_ceil(rows);
        tasks_of_packed(input, layout, count, lowering, move |task, packed, scratch| {
            let rows = task * rows..products[0].weights.n.min((task + 1) * rows);
            let range = RowRange { product: &products[0], then: &products[1..], rows, layout, packed };
            range.run(isa, route, scratch);
        });
    }
}

/// Tasks that each thread should have at least, so that none waits long for another.
const TASKS_PER_THREAD: usize = 4;

/// Rows of a task: enough bytes to outweigh taking one, and for products of many columns what is
/// unpacked at once.
pub(super) fn rows_per_task(isa: Isa, route: Route, weights: &Weights) -> usize {
    fn strips<S: Tiles>(_: S) -> usize {
        S::STRIPS
    }
    const TASK_BYTES: usize = 32 * 1024;
    let strips = match route {
        Route::MatVec | Route::FloatMatVec => TASK_BYTES / (weights.row_bytes() * LANES),
        Route::MatMat => with_simd!(isa, s => strips(s)),
        Route::FloatMatMat => 1,
    };
    strips.max(1) * LANES
}

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
pub(super) struct RowRange<'a> {
    pub(super) product: &'a Product,
    /// Products of the same rows and the same input, for the same output.
    pub(super) then: &'a [Product],
    pub(super) rows: Range<usize>,
    pub(super) layout: Layout,
    pub(super) packed: *const u8,
}

impl RowRange<'_> {
    pub(super) fn run(&self, isa: Isa, route: Route, scratch: &mut Scratch) {
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
            (Route::FloatMatVec | Route::MatVec | Route::MatMat, ..) => {
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
                    let mut ahead = Ahead::new::<V>(panel(next), from, layout, bands.len());
                    let panel = Panel::unpack(family, weights, (row, V), range, &mut parts);
                    with_family!(family, S, GROUP, BITS, MINIMA => for band in bands.clone() {
                        for tile in layout.tiles_of(band) {
                            ahead.ask();
                            let sums = sums_of(index, tile * layout.tile);
                            let tile = columns.tile(tile);
                            with_tile_width!(tile.width, S, N => s.run(#[inline(always)] || {
                                // SAFETY: the panel is one of this family; the tile has `N` columns.
                                unsafe {
                                    panel.multiply::<S, GROUP, BITS, MINIMA, V, N>(s, tile, sums)
                                };
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
                                    sum = product.gated(s, sum, next);
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
