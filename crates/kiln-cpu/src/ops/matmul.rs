//! Matrix products: the choice of a route, its packing and its tasks.

mod row_range;
#[cfg(test)]
mod tests;
mod tile_range;

use crate::exec::{Held, Lowering, Tasks, Workspace};
use crate::isa::{Isa, LANES, MatrixUnit, Planes, Rows, Simd, TILE, Tiles, with_simd, with_unit};
use crate::matmul::Weights;
use crate::matmul::activations::{self, Layout, Packing, depth};
use crate::matmul::format::with_format;
use crate::matmul::mat_mat::Family;
use crate::matmul::mat_vec::{Order, RowFormat};
use crate::matmul::{bf16_tiles, mat_mat, mat_vec};
use crate::ops::activation::activate;
use crate::threads::Scratch;
use crate::view::View;
use kiln_core::DType;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, Precision};

pub(super) use row_range::RowRange;

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
    /// Two columns or more, in bf16, where a unit multiplies tiles.
    Bf16Tiles,
}

/// Chooses the route of a product with `m` columns.
pub(crate) fn select(isa: Isa, m: usize, weights: &[Weights], precision: Precision) -> Route {
    let in_bf16 = weights.iter().all(|weights| bf16_tiles::takes(weights.dtype));
    if isa.unit.is_some() && in_bf16 && precision == Precision::Fast && m > 1 {
        return Route::Bf16Tiles;
    }
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
        Route::Bf16Tiles => (Packing::Bf16Tiles, m.next_multiple_of(TILE), TILE),
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

    /// Values of row `row` from `start` on as f32; rows past the last are zero, as is what follows `k`.
    ///
    /// # Safety
    /// Nobody writes the input meanwhile.
    #[inline(always)]
    unsafe fn load(&self, row: usize, start: usize, out: &mut [f32]) {
        let valid = self.k.saturating_sub(start).min(out.len());
        out[valid..].fill(0.0);
        if row >= self.m {
            return out.fill(0.0);
        }
        let out = &mut out[..valid];
        // SAFETY: the row exists; the rest is the caller's.
        unsafe {
            match self.layout {
                InputLayout::RowMajor => self.view.load([row], start, out),
                InputLayout::HeadMajor => {
                    let dim = self.view.last();
                    let mut at = start;
                    while at < start + valid {
                        let len = (dim - at % dim).min(start + valid - at);
                        let out = &mut out[at - start..][..len];
                        self.view.load([at / dim, row], at % dim, out);
                        at += len;
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

/// Packs part `piece.1` of the buffer at `piece.0`; `load` gives values of a column from a place in the
/// depth on, and zeros behind the last.
///
/// # Safety
/// As [`activations::pack`].
pub(super) unsafe fn pack_piece(
    isa: Isa,
    layout: Layout,
    piece: (*mut u8, usize),
    x: &mut [f32],
    load: impl Fn(usize, usize, &mut [f32]),
) {
    if let (Packing::Bf16Tiles, Some(unit)) = (layout.packing, isa.unit) {
        return with_unit!(unit, unit => unit.run(
            #[inline(always)]
            // SAFETY: the caller's.
            || unsafe { bf16_tiles::pack(unit, layout, piece, x, &load) }
        ));
    }
    with_simd!(isa, s => s.run(
        #[inline(always)]
        // SAFETY: the caller's.
        || unsafe {
            activations::pack(s, layout, piece, x, #[inline(always)] |row, x| load(row, 0, x));
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
        unsafe {
            pack_piece(
                isa,
                layout,
                (packed.start(), index),
                x,
                #[inline(always)]
                |row, start, x| input.load(row, start, x),
            );
        }
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
        unsafe {
            pack_piece(
                isa,
                layout,
                (out.as_mut_ptr(), 0),
                x,
                #[inline(always)]
                |row, start, x| input.load(row, start, x),
            );
        }
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
    fn gated<S: Simd>(&self, s: S, before: impl FnOnce() -> S::F, sums: S::F) -> S::F {
        match self.gate {
            Some(activation) => s.mul(activate(s, activation, before()), sums),
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
            // Outputs that are not read are seldom in a cache.
            let values = self.gated(
                s,
                #[inline(always)]
                || s.load(at),
                sums,
            );
            s.store(at, values);
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
    let isa = lowering.isa;
    let route = select(isa, input.m, &weights, precision);
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
        if route == Route::Bf16Tiles {
            let tasks = weights[0].n / (TILED_TASKS_PER_THREAD * lowering.threads * rows);
            rows *= tasks.clamp(1, tile_range::most_panels(input.m) / products.len());
        }
        if route == Route::MatMat {
            // Fewer panels where threads would have few tasks.
            let tasks = weights[0].n / (TASKS_PER_THREAD * lowering.threads * rows);
            rows *= tasks.clamp(1, mat_mat::MAX_PANELS / products.len());
        }
        let count = weights[0].n.div_ceil(rows);
        tasks_of_packed(input, layout, count, lowering, move |task, packed, scratch| {
            let rows = task * rows..products[0].weights.n.min((task + 1) * rows);
            let range =
                RowRange { product: &products[0], then: &products[1..], rows, layout, packed };
            range.run(isa, route, scratch);
        });
    }
}

/// Tasks that each thread should have at least, so that none waits long for another.
const TASKS_PER_THREAD: usize = 16;

/// As [`TASKS_PER_THREAD`], where a unit multiplies tiles: a task reads all columns.
const TILED_TASKS_PER_THREAD: usize = 4;

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
        Route::Bf16Tiles => 2,
    };
    strips.max(1) * LANES
}
