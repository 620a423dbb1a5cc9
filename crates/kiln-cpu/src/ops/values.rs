//! Values of float rows as vectors of f32: the memory itself where it is f32, else a converted
//! copy.

use crate::exec::{Lowering, Tasks};
use crate::isa::{LANES, Simd};
use crate::threads::Scratch;
use crate::view::{Half, View};
use half::{bf16, f16};
use kiln_core::DType;
use std::ops::Range;

/// Values that outweigh the taking of a task.
pub(super) const TASK_VALUES: usize = 16 * 1024;

/// Appends tasks of whole rows, `rows` of them with `len` values to compute in each.
pub(super) fn row_tasks(
    lowering: &mut Lowering,
    [rows, len]: [usize; 2],
    work: impl Fn(Range<usize>, &mut Scratch) + Send + Sync + 'static,
) {
    let per_task = (TASK_VALUES / len.max(1)).clamp(1, rows.max(1));
    lowering.tasks(Tasks::new(rows.div_ceil(per_task), move |task, scratch| {
        work(task * per_task..rows.min((task + 1) * per_task), scratch);
    }));
}

/// Rows and columns of a task.
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// Appends tasks of blocks of a matrix: groups of short rows, parts of long ones.
pub(super) fn block_tasks(
    lowering: &mut Lowering,
    [rows, len]: [usize; 2],
    work: impl Fn(Block, &mut Scratch) + Send + Sync + 'static,
) {
    let parts = len.div_ceil(TASK_VALUES);
    if parts <= 1 {
        return row_tasks(lowering, [rows, len], move |rows, scratch| {
            work(Block { rows, columns: 0..len }, scratch);
        });
    }
    lowering.tasks(Tasks::new(rows * parts, move |task, scratch| {
        let (row, start) = (task / parts, task % parts * TASK_VALUES);
        let columns = start..len.min(start + TASK_VALUES);
        work(Block { rows: row..row + 1, columns }, scratch);
    }));
}

/// Values of a float type at `from` as f32: `from` itself, or `buffer`, which gets as many as it
/// holds.
///
/// # Safety
/// That many values are there, and nobody writes them meanwhile.
#[inline(always)]
pub(super) unsafe fn read(dtype: DType, from: *const u8, buffer: &mut [f32]) -> *const f32 {
    // SAFETY: the values exist and are aligned, by the contract.
    unsafe {
        match dtype {
            DType::F32 => return from.cast(),
            DType::F16 => widen::<f16>(from.cast(), buffer),
            _ => widen::<bf16>(from.cast(), buffer),
        }
    }
    buffer.as_ptr()
}

/// [`read`] of a row.
///
/// # Safety
/// As [`read`]; the row exists, and `buffer` is as long.
#[inline(always)]
pub(super) unsafe fn read_row<const N: usize>(
    view: &View,
    row: [usize; N],
    buffer: &mut [f32],
) -> *const f32 {
    // SAFETY: the caller's.
    unsafe { read(view.dtype(), view.row_ptr(row), buffer) }
}

/// Where to put f32 values for [`write`]: `to` itself, or `buffer`.
#[inline(always)]
pub(super) fn target(dtype: DType, to: *mut u8, buffer: &mut [f32]) -> *mut f32 {
    if dtype == DType::F32 { to.cast() } else { buffer.as_mut_ptr() }
}

/// Moves what was put into the [`target`] to where it belongs, rounded to nearest.
///
/// # Safety
/// There is room for the values of `buffer` at `to`, which the caller has alone.
#[inline(always)]
pub(super) unsafe fn write(dtype: DType, to: *mut u8, buffer: &[f32]) {
    if dtype != DType::F32 {
        // SAFETY: the caller's.
        unsafe { store(dtype, to, buffer) };
    }
}

/// Writes values to a place of a float type, rounded to nearest.
///
/// # Safety
/// There is room for the values at `to`, which the caller has alone.
#[inline(always)]
pub(super) unsafe fn store(dtype: DType, to: *mut u8, values: &[f32]) {
    // SAFETY: by the contract; places are aligned.
    unsafe {
        match dtype {
            DType::F32 => {
                std::ptr::copy_nonoverlapping(values.as_ptr(), to.cast(), values.len());
            }
            DType::F16 => narrow::<f16>(values, to.cast()),
            _ => narrow::<bf16>(values, to.cast()),
        }
    }
}

#[inline(always)]
unsafe fn widen<T: Half>(from: *const T, buffer: &mut [f32]) {
    // SAFETY: the caller's values.
    let values = unsafe { std::slice::from_raw_parts(from, buffer.len()) };
    buffer.iter_mut().zip(values).for_each(|(out, value)| *out = value.widen());
}

#[inline(always)]
unsafe fn narrow<T: Half>(buffer: &[f32], to: *mut T) {
    // SAFETY: the caller's place.
    let values = unsafe { std::slice::from_raw_parts_mut(to, buffer.len()) };
    values.iter_mut().zip(buffer).for_each(|(out, value)| *out = T::narrow(*value));
}

/// A function of `N` values.
pub(super) trait Kernel<const N: usize>: Copy {
    /// Its value, lane by lane.
    fn apply<S: Simd>(self, s: S, inputs: [S::F; N]) -> S::F;
}

/// Up to 16 values, zeros behind them.
///
/// # Safety
/// `lanes` readable values.
#[inline(always)]
pub(super) unsafe fn load_part<S: Simd>(s: S, from: *const f32, lanes: usize) -> S::F {
    let mut part = [0f32; LANES];
    // SAFETY: `lanes` values there and here.
    unsafe {
        std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), lanes.min(LANES));
        s.load(part.as_ptr())
    }
}

/// `output[i] = kernel(inputs[0][i], inputs[1][i], ..)`; the output may be one of the inputs.
///
/// # Safety
/// `len` values at each pointer, those of the output the caller's alone.
#[inline(always)]
pub(super) unsafe fn map<S: Simd, K: Kernel<N>, const N: usize>(
    s: S,
    kernel: K,
    inputs: [*const f32; N],
    output: *mut f32,
    len: usize,
) {
    let whole = len / LANES * LANES;
    let lanes = len - whole;
    // SAFETY: `whole` and the part after it are within `len`.
    unsafe {
        // Loops, because `array::map` is not always inlined.
        let mut values = [s.splat(0.0); N];
        for at in (0..whole).step_by(LANES) {
            for (value, input) in values.iter_mut().zip(&inputs) {
                *value = s.load(input.add(at));
            }
            s.store(output.add(at), kernel.apply(s, values));
        }
        if lanes > 0 {
            for (value, input) in values.iter_mut().zip(&inputs) {
                *value = load_part(s, input.add(whole), lanes);
            }
            let part = s.to_array(kernel.apply(s, values));
            std::ptr::copy_nonoverlapping(part.as_ptr(), output.add(whole), lanes);
        }
    }
}

/// Vectors of partial sums, enough to hide the latency of an addition.
const SUMS: usize = 4;

/// Folds values into 16-lane sums by `sum = kernel([x, sum])`, then adds the lanes; in an order that
/// only `len` decides. A value of 0 must leave a sum as it is.
///
/// # Safety
/// `len` values at `x`.
#[inline(always)]
pub(super) unsafe fn fold<S: Simd, K: Kernel<2>>(
    s: S,
    kernel: K,
    x: *const f32,
    len: usize,
) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let whole = len / (SUMS * LANES) * (SUMS * LANES);
    // SAFETY: every load is within `len`.
    unsafe {
        for at in (0..whole).step_by(SUMS * LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = kernel.apply(s, [s.load(x.add(at + i * LANES)), *sum]);
            }
        }
        for at in (whole..len).step_by(LANES) {
            let lanes = len - at;
            let value =
                if lanes < LANES { load_part(s, x.add(at), lanes) } else { s.load(x.add(at)) };
            sums[0] = kernel.apply(s, [value, sums[0]]);
        }
    }
    let [a, b, c, d] = sums;
    s.sum(s.add(s.add(a, b), s.add(c, d)))
}
