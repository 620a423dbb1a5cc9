//! Products with few columns: each weight row is read once for all of them.

mod blocks;
pub(crate) mod column;

use super::Weights;
use super::activations::{Layout, SCALE_GROUP};
use super::float::ReadChunk;
use super::format::CHUNK;
use crate::isa::{LANES, LINE, Rows, Simd, has_one_hint, prefetch, prefetch_far};
use blocks::{Blocks, SEGMENT};
pub(crate) use blocks::{Order, RowFormat};
use column::Column;

/// Most columns of f32 this route takes.
pub(crate) const MAX_COLUMNS: usize = 8;

/// How far ahead of the weights in use a row asks for more, in bytes: memory answers late, and pages
/// begin without a stream.
#[derive(Clone, Copy)]
struct Ahead {
    /// Into the nearest cache.
    near: usize,
    /// Into the next one, where the nearest has few places for lines on their way.
    far: Option<usize>,
}

impl Ahead {
    #[inline(always)]
    fn new() -> Self {
        if has_one_hint() {
            Self { near: 6144, far: None }
        } else {
            Self { near: 1024, far: Some(8192) }
        }
    }

    /// Asks for what follows `bytes` that are about to be read.
    #[inline(always)]
    fn ask(self, from: *const u8, bytes: usize) {
        for line in 0..bytes.div_ceil(LINE) {
            let at = from.wrapping_add(line * LINE);
            if let Some(far) = self.far {
                prefetch_far(at.wrapping_add(far));
            }
            prefetch(at.wrapping_add(self.near));
        }
    }
}

/// Columns are padded to one of these, so that a kernel's accumulators are registers.
pub(crate) const fn padded_columns(columns: usize) -> usize {
    match columns {
        1 => 1,
        2..=4 => 4,
        _ => MAX_COLUMNS,
    }
}

/// The column that rows of a format are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct RowKernel {
    column: Column,
    ahead: Ahead,
    row_bytes: usize,
    /// Segments that are whole.
    whole: usize,
    /// Blocks of 32 values behind them.
    rest: usize,
    /// Where the blocks of the last segment lie; of those that are not there, the last one's.
    offsets: [usize; 8],
}

impl RowKernel {
    /// For the rows of some weights, and a column of that layout at `packed`.
    #[inline(always)]
    pub(crate) fn new<F: RowFormat>(weights: &Weights, layout: Layout, packed: *const u8) -> Self {
        let (whole, rest) = (weights.k / SEGMENT, weights.k % SEGMENT / SCALE_GROUP);
        let last = rest.saturating_sub(1);
        let offsets = std::array::from_fn(|block: usize| block.min(last) * F::DTYPE.block_bytes());
        let column = Column::new(layout.depth, packed);
        let (ahead, row_bytes) = (Ahead::new(), weights.row_bytes());
        Self { column, ahead, row_bytes, whole, rest, offsets }
    }

    /// The product of the row at `row` with the column, spread over the lanes.
    ///
    /// # Safety
    /// A row of the weights, and the column is packed.
    #[inline(always)]
    pub(crate) unsafe fn multiply<S: Rows, F: RowFormat>(&self, s: S, row: *const u8) -> S::F {
        let mut sums = [s.splat(0.0); 2];
        let mut y = self.column;
        let mut blocks = Blocks { start: row, offsets: [0; 8], whole: true };
        for (i, offset) in blocks.offsets.iter_mut().enumerate() {
            *offset = i * F::DTYPE.block_bytes();
        }
        // SAFETY: segments of the row and the column.
        unsafe {
            for _ in 0..self.whole {
                self.ahead.ask(blocks.start, F::BYTES);
                segment::<S, F>(s, &blocks, y, F::UNITS, &mut sums);
                blocks.start = blocks.start.wrapping_add(F::BYTES);
                y = y.next();
            }
            if self.rest > 0 {
                let (start, offsets) = (blocks.start, self.offsets);
                let blocks = Blocks { start, offsets, whole: false };
                let units = (self.rest * F::UNITS).div_ceil(SEGMENT / SCALE_GROUP);
                segment::<S, F>(s, &blocks, y, units, &mut sums);
            }
        }
        s.add(sums[0], sums[1])
    }
}

/// Adds the products of a segment of a row with one of the column, of its first `units` units.
///
/// # Safety
/// Both exist.
#[inline(always)]
unsafe fn segment<S: Rows, F: RowFormat>(
    s: S,
    blocks: &Blocks,
    y: Column,
    units: usize,
    sums: &mut [S::F; 2],
) {
    // SAFETY: by the contract.
    unsafe {
        let [scales, minima] = F::factors(s, blocks);
        let of_column = y.factors.wrapping_add(if F::GROUP == 16 { 2 * LANES } else { 0 });
        sums[0] = s.fma(minima, s.load(of_column.add(LANES)), sums[0]);
        let factors = s.mul(scales, s.load(of_column));
        if units > 0 {
            unit::<S, F, 0>(s, (blocks, y), factors, &mut sums[1]);
        }
        if units > 1 {
            unit::<S, F, 1>(s, (blocks, y), factors, &mut sums[0]);
        }
        if F::UNITS > 2 && units > 2 {
            unit::<S, F, 2>(s, (blocks, y), factors, &mut sums[1]);
        }
        if F::UNITS > 2 && units > 3 {
            unit::<S, F, 3>(s, (blocks, y), factors, &mut sums[0]);
        }
    }
}

/// Adds the products of a unit.
///
/// # Safety
/// As [`segment`].
#[inline(always)]
unsafe fn unit<S: Rows, F: RowFormat, const J: usize>(
    s: S,
    (blocks, y): (&Blocks, Column),
    factors: S::F,
    sum: &mut S::F,
) {
    // SAFETY: by the contract.
    let dots = unsafe { F::dots::<S, J>(s, blocks, y.planes, y.both_planes(F::ORDER, J)) };
    *sum = s.fma(s.to_float(dots), F::spread::<S, J>(s, factors), *sum);
}

/// Products of up to 16 rows from row `first` on.
///
/// # Safety
/// The rows exist, and the kernel's column is packed.
#[inline(always)]
pub(crate) unsafe fn quantized<S: Rows, F: RowFormat>(
    s: S,
    kernel: &RowKernel,
    first: *const u8,
    rows: usize,
) -> S::F {
    let mut sums = [s.splat(0.0); LANES];
    for (row, sum) in sums.iter_mut().enumerate().take(rows) {
        let row = first.wrapping_add(row * kernel.row_bytes);
        // SAFETY: by the contract.
        *sum = unsafe { kernel.multiply::<S, F>(s, row) };
    }
    s.sums(sums)
}
/// Row `row` of the weights, as f32, with `N` columns of f32.
///
/// # Safety
/// `packed` is a buffer of that layout, of `N` columns, and `read` fits the weights.
#[inline(always)]
pub(crate) unsafe fn float<S: Simd, const N: usize>(
    s: S,
    (weights, read): (&Weights, ReadChunk),
    row: usize,
    layout: Layout,
    packed: *const u8,
) -> [f32; N] {
    let mut sums = [[s.splat(0.0); 2]; N];
    let mut chunk = [0f32; CHUNK];
    let (ahead, chunk_bytes) = (Ahead::new(), weights.row_bytes() * CHUNK / weights.k);
    for index in 0..weights.k.div_ceil(CHUNK) {
        ahead.ask(weights.row(row).wrapping_add(index * chunk_bytes), chunk_bytes);
        // SAFETY: the chunk is inside the row and every packed column.
        unsafe {
            read(weights.row(row), index, weights.k - index * CHUNK, &mut chunk);
            for quarter in 0..CHUNK / LANES {
                let w = s.load(chunk.as_ptr().add(quarter * LANES));
                for (column, sums) in sums.iter_mut().enumerate() {
                    let at = column * layout.depth + index * CHUNK + quarter * LANES;
                    let x = s.load(packed.cast::<f32>().add(at));
                    sums[quarter % 2] = s.fma(w, x, sums[quarter % 2]);
                }
            }
        }
    }
    sums.map(|[a, b]| s.sum(s.add(a, b)))
}

#[cfg(test)]
mod tests {
    use crate::{Config, device, instruction_sets};
    use kiln_core::ops::{InputLayout, Matmul, Precision};
    use kiln_core::{DType, SharedBytes, quant};
    use std::sync::Arc;

    /// Values that quantise exactly: integers of 8 bits, and of 15 in every seventh group.
    fn column(k: usize) -> Vec<f32> {
        let value = |i: usize| {
            let (group, at) = (i / 32, i % 32);
            let largest = if group % 7 == 5 { 127 * 128 } else { 127 };
            let value = (i * 7919 + group) as i32 % (2 * largest + 1) - largest;
            (if at == 0 { largest } else { value }) as f32
        };
        (0..k).map(value).collect()
    }

    #[test]
    fn rows_of_any_length_are_exact_to_rounding_on_every_instruction_set() {
        const ROWS: usize = 21;
        for dtype in DType::QUANTIZED {
            let lengths: &[usize] = match dtype.block_len() {
                32 => &[32, 64, 96, 224, 256, 288, 448, 576],
                _ => &[256, 512, 768],
            };
            for &k in lengths {
                let x = column(k);
                let bytes = dtype.row_bytes(k).unwrap();
                let mut weights = vec![0u8; ROWS * bytes];
                let mut expected = Vec::new();
                for (row, weights) in weights.chunks_exact_mut(bytes).enumerate() {
                    let source: Vec<f32> =
                        (0..k).map(|i| ((i + 31 * row) as f32 * 0.7).sin() - 0.2).collect();
                    quant::quantize_row(dtype, &source, weights).unwrap();
                    let mut values = vec![0f32; k];
                    quant::dequantize_row(dtype, weights, &mut values).unwrap();
                    let products =
                        values.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let bound = products.clone().map(f64::abs).sum::<f64>() * 1e-6;
                    expected.push((products.sum::<f64>(), bound));
                }
                for name in instruction_sets() {
                    let instruction_set = Some(name.to_owned());
                    let device = device(Config { threads: Some(2), instruction_set }).unwrap();
                    let bytes = SharedBytes::new(Arc::new(weights.clone()));
                    let weight = device.import(dtype, [ROWS, k], bytes).unwrap();
                    let input = device.upload(&x, [1, k]).unwrap();
                    let output = device.tensor(DType::F32, [1, ROWS]).unwrap();
                    let mut recording = device.record();
                    let matmul = Matmul {
                        input: &input,
                        weight: &weight,
                        output: &output,
                        input_layout: InputLayout::RowMajor,
                        precision: Precision::Fast,
                    };
                    recording.push(matmul).unwrap();
                    recording.finish().unwrap().run().unwrap();
                    for (got, (expected, bound)) in
                        output.to_vec::<f32>().unwrap().iter().zip(&expected)
                    {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(error <= *bound, "{dtype} k={k} {name}: {got} {expected} {bound}");
                    }
                }
            }
        }
    }
}
