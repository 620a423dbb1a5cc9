//! Gathering, copying and pooling of rows.

use super::values::{Block, block_tasks, read, row_tasks, store};
use crate::exec::{Lowering, Tasks};
use crate::isa::{Simd, with_simd};
use crate::matmul::float::reader;
use crate::matmul::format::CHUNK;
use crate::view::View;
use kiln_core::ops::{Copy as CopyOp, Embed, Pool, PoolMode};

/// `output[i] = weight[ids[i]] * scale`
pub(super) fn embed(op: &Embed<View>, lowering: &mut Lowering) {
    let Embed { weight, ids, output, scale } = *op;
    let (isa, dim) = (lowering.isa, output.last());
    let read_chunk = reader(isa, weight.dtype());
    row_tasks(lowering, [output.extent(0), dim], move |rows, scratch| {
        let [buffer] = scratch.floats([dim]);
        let mut chunk = [0f32; CHUNK];
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                // SAFETY: u32 by the contract; the planner's hazards keep writers out.
                let id = unsafe { ids.row::<u32, 0>([])[row] } as usize;
                if id < weight.extent(0) {
                    let from = weight.row_ptr([id]);
                    for (index, out) in buffer.chunks_mut(CHUNK).enumerate() {
                        // SAFETY: a row of `dim` values.
                        unsafe { read_chunk(from, index, out.len(), &mut chunk) };
                        out.iter_mut().zip(&chunk).for_each(|(out, w)| *out = w * scale);
                    }
                } else {
                    buffer.fill(f32::NAN);
                }
                // SAFETY: the row is this task's alone.
                unsafe { output.store([row], buffer) };
            }
        }));
    });
}

/// Copies values, converting between float types.
pub(super) fn copy(op: &CopyOp<View>, lowering: &mut Lowering) {
    let CopyOp { input, output } = *op;
    let isa = lowering.isa;
    let outer = input.rank() - 1;
    let rows: usize = input.shape()[..outer].iter().product();
    let dims = if is_contiguous(&input) && is_contiguous(&output) {
        [1, rows * input.last()]
    } else {
        [rows, input.last()]
    };
    let bytes = [&input, &output].map(|view| view.dtype().block_bytes());
    block_tasks(lowering, dims, move |Block { rows, columns }, scratch| {
        let len = columns.len();
        let [buffer] = scratch.floats([len]);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                let from = row_at(&input, row).wrapping_add(columns.start * bytes[0]);
                let to = row_at(&output, row).wrapping_add(columns.start * bytes[1]);
                // SAFETY: `len` values of each row, those of the output this task's alone; the
                // contract keeps the views apart.
                unsafe {
                    if input.dtype() == output.dtype() {
                        std::ptr::copy_nonoverlapping(from, to, len * bytes[0]);
                        continue;
                    }
                    let x = read(input.dtype(), from, buffer);
                    let values = std::slice::from_raw_parts(x, len);
                    store(output.dtype(), to, values);
                }
            }
        }));
    });
}

/// True where rows follow each other without gaps.
fn is_contiguous(view: &View) -> bool {
    let mut bytes = view.last() * view.dtype().block_bytes();
    (0..view.rank() - 1).rev().all(|axis| {
        let dense = view.extent(axis) == 1 || view.stride(axis) == bytes;
        bytes *= view.extent(axis);
        dense
    })
}

/// First byte of row `row`, counted over all outer axes.
fn row_at(view: &View, row: usize) -> *mut u8 {
    let (mut rest, mut offset) = (row, 0);
    for axis in (0..view.rank() - 1).rev() {
        offset += rest % view.extent(axis) * view.stride(axis);
        rest /= view.extent(axis);
    }
    view.start().wrapping_add(offset)
}

/// Columns of a pooled row in a task.
const POOL_COLUMNS: usize = 256;

/// One row per sequence: mean, first or last token.
pub(super) fn pool(op: &Pool<View>, lowering: &mut Lowering) {
    let Pool { input, lengths, output, mode } = *op;
    let isa = lowering.isa;
    let [batch, tokens, dim] = [input.extent(0), input.extent(1), input.last()];
    let parts = dim.div_ceil(POOL_COLUMNS);
    lowering.tasks(Tasks::new(batch * parts, move |task, _| {
        let (sequence, start) = (task / parts, task % parts * POOL_COLUMNS);
        let offset = start * input.dtype().block_bytes();
        // SAFETY: u32 by the contract; the planner's hazards keep writers out.
        let length = unsafe { lengths.row::<u32, 0>([])[sequence] } as usize;
        let range = match mode {
            _ if length == 0 || length > tokens => 0..0,
            PoolMode::Mean => 0..length,
            PoolMode::Cls => 0..1,
            PoolMode::Last => length - 1..length,
        };
        let (mut sums, mut buffer) = ([0f64; POOL_COLUMNS], [0f32; POOL_COLUMNS]);
        let buffer = &mut buffer[..POOL_COLUMNS.min(dim - start)];
        with_simd!(isa, s => s.run(#[inline(always)] || {
            // The mean of no rows is NaN.
            let count = range.len() as f64;
            for token in range {
                let from = input.row_ptr([sequence, token]).wrapping_add(offset);
                // SAFETY: that many values of the row are there; nobody writes them meanwhile.
                let values = unsafe {
                    let values = read(input.dtype(), from, buffer);
                    std::slice::from_raw_parts(values, buffer.len())
                };
                sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            buffer.iter_mut().zip(&sums).for_each(|(mean, sum)| *mean = (sum / count) as f32);
            let to = output.row_ptr([sequence]).wrapping_add(offset);
            // SAFETY: these values of the row are this task's alone.
            unsafe { store(output.dtype(), to, buffer) };
        }));
    }));
}
