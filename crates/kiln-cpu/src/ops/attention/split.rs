//! Few query rows: one pass over a cache, split by keys.
//!
//! Ranges of keys start at multiples of their length, which the shape of the cache and the heads
//! decide. A range gives every row a record; whoever finishes the last range of a head merges the
//! records in the order of the ranges. So neither threads nor the other rows of the call show in the
//! bits.

use super::element::{Element, F16, F32, with_element};
use super::kernel::{Product, Scores, add_row};
use super::problem::{Keys, Problem, Rows, Span};
use super::softmax::{LOWEST, MASKED, exp1, largest, normalizer, soft_cap, weights};
use crate::exec::{Lowering, Tasks};
use crate::isa::{LANES, Simd, with_float_simd};
use crate::threads::Scratch;
use kiln_core::DType;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewest keys of a range.
const MIN_RANGE: usize = 256;

/// Most bytes of the records of all ranges, whatever the number of tokens.
const MAX_RECORDS: usize = 32 << 20;

/// Tasks that even out differences between threads.
const TASKS_PER_THREAD: usize = 4;

/// Keys that are converted at once: they stay in the nearest cache.
const PIECE: usize = 64;

/// Floats of a record before its values: the maximum, the sum, and what keeps the values aligned.
const HEADER: usize = LANES;

/// How a cache is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    /// Keys of a range.
    range: usize,
    /// Most ranges in use at once.
    most: usize,
}

impl Split {
    fn new(problem: &Problem, capacity: usize, ring: bool) -> Self {
        let rows = problem.kv_heads * problem.group * super::MAX_SPLIT_TOKENS;
        let records = rows * (HEADER + problem.padded()) * size_of::<f32>();
        let ranges = (MAX_RECORDS / records).max(1);
        let range = capacity.div_ceil(ranges).next_power_of_two().max(MIN_RANGE);
        let window = problem.window.map_or(usize::MAX, |w| w.saturating_add(problem.tokens - 1));
        // Wherever the keys start.
        let most = (capacity.min(window) - 1).div_ceil(range) + 1;
        let most = if ring { most } else { most.min(capacity.div_ceil(range)) };
        Self { range, most }
    }
}

/// Appends the tasks of an attention against a cache.
pub(super) fn lower(problem: Problem, lowering: &mut Lowering) {
    let Keys::Cache { capacity, ring, .. } = problem.keys else { return };
    let (isa, heads) = (lowering.isa, problem.kv_heads);
    let split = Split::new(&problem, capacity, ring);
    let record = HEADER + problem.padded();
    let head_records = split.most * problem.rows() * record;
    let workspace =
        (split.most > 1).then(|| lowering.workspace(heads * head_records * size_of::<f32>()));
    // Ranges done of each head in this run.
    let done: Vec<AtomicUsize> = (0..heads).map(|_| AtomicUsize::new(0)).collect();
    let count = (heads * split.most).min(TASKS_PER_THREAD * lowering.threads);
    lowering.tasks(Tasks::new(count, move |task, scratch| {
        // SAFETY: the planner's hazards keep writers of the operands out of this step.
        let Some(span) = (unsafe { problem.span() }) else {
            let [buffer] = scratch.floats([problem.q.dim]);
            for head in (task..heads).step_by(count) {
                // SAFETY: the rows of this head are this task's alone.
                unsafe { problem.fill_nan([0, head], 0..problem.rows(), buffer) };
            }
            return;
        };
        let keys = problem.visible_to(span, 0..problem.tokens);
        let ranges = keys.start / split.range..keys.end.div_ceil(split.range);
        for item in (task..heads * ranges.len()).step_by(count) {
            let (head, index) = (item / ranges.len(), item % ranges.len());
            let base = (ranges.start + index) * split.range;
            let keys = keys.start.max(base)..keys.end.min(base + split.range);
            let mut part = Part::new(&problem, span, head, base..keys.end, scratch);
            let step = problem.rows() * record;
            let records = workspace
                .as_ref()
                .filter(|_| ranges.len() > 1)
                .map(|workspace| workspace.start().cast::<f32>().wrapping_add(head * head_records));
            let own = match records {
                Some(records) => records.wrapping_add(index * step),
                None => part.records.as_mut_ptr(),
            };
            // SAFETY: a record for each row and range, this one's the task's alone; who comes last
            // sees those of the others through the counter.
            unsafe {
                with_float_simd!(isa, s => s.run(#[inline(always)] || {
                    part.compute(s, keys.clone(), own);
                }));
                if done[head].fetch_add(1, Ordering::AcqRel) + 1 == ranges.len() {
                    done[head].store(0, Ordering::Relaxed);
                    let records =
                        Records { start: records.unwrap_or(own), count: ranges.len(), step };
                    with_float_simd!(isa, s => s.run(#[inline(always)] || part.merge(s, records)));
                }
            }
        }
    }));
}

/// The records of a head: `[count]` times `[rows][record]`.
#[derive(Clone, Copy)]
struct Records {
    start: *const f32,
    count: usize,
    /// Floats between ranges.
    step: usize,
}

/// The rows of one key-value head against one range of keys.
struct Part<'a> {
    problem: &'a Problem,
    span: Span,
    head: usize,
    /// Position of the first score.
    base: usize,
    /// Whether the kernels read the cache itself: whole vectors of f16 or f32.
    direct: bool,
    /// `[rows][padded]`, scaled.
    q: &'a mut [f32],
    /// `[rows][stride]`, scores and then weights.
    scores: &'a mut [f32],
    /// Floats between rows of `scores`.
    stride: usize,
    /// `[PIECE][padded]`, keys or values.
    converted: &'a mut [f32],
    /// `[rows][record]`, where no workspace is needed.
    records: &'a mut [f32],
    /// `[padded]`
    row: &'a mut [f32],
}

impl<'a> Part<'a> {
    fn new(
        problem: &'a Problem,
        span: Span,
        head: usize,
        positions: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Self {
        let (rows, padded) = (problem.rows(), problem.padded());
        let plain = matches!(problem.k.dtype, DType::F16 | DType::F32);
        // A vector more than the keys: dot products come in vectors.
        let stride = positions.len().next_multiple_of(LANES) + LANES;
        let records = rows * (HEADER + padded);
        let lens = [rows * padded, rows * stride, PIECE * padded, records, padded];
        let [q, scores, converted, records, row] = scratch.floats(lens);
        Self {
            problem,
            span,
            head,
            base: positions.start,
            direct: plain && problem.q.dim == padded,
            q,
            scores,
            stride,
            converted,
            records,
            row,
        }
    }

    /// Writes the records of all rows over `keys`.
    ///
    /// # Safety
    /// The keys exist, nobody writes the operands meanwhile, and the records are the caller's alone.
    #[inline(always)]
    unsafe fn compute<S: Simd>(&mut self, s: S, keys: Range<usize>, records: *mut f32) {
        let problem = self.problem;
        for (row, q) in self.q.chunks_exact_mut(problem.padded()).enumerate() {
            let [token, head] = problem.token_and_head(self.head, row);
            // SAFETY: rows of the problem and of the scratch.
            unsafe { problem.load_query(s, [0, head, token], q.as_mut_ptr()) };
        }
        let record = HEADER + problem.padded();
        // SAFETY: by the contract.
        unsafe {
            for piece in self.pieces(keys.clone()) {
                self.score(s, piece);
            }
            for row in 0..problem.rows() {
                self.weigh(s, row, keys.clone(), records.add(row * record));
            }
            for piece in self.pieces(keys.clone()) {
                self.sum(s, piece, records.add(HEADER));
            }
            for row in 0..problem.rows() {
                self.repair(s, row, keys.clone(), records.add(row * record + HEADER));
            }
        }
    }

    /// Keys of one call of the kernels each.
    #[inline(always)]
    fn pieces(&self, keys: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = if self.direct { usize::MAX } else { PIECE };
        let runs = self.span.runs(keys).into_iter();
        runs.flat_map(move |run| {
            let starts = run.clone().step_by(most);
            starts.map(move |start| start..run.end.min(start.saturating_add(most)))
        })
    }

    /// Whether the kernels read f16.
    #[inline(always)]
    fn halves(&self) -> bool {
        self.direct && self.problem.k.dtype == DType::F16
    }

    /// Address and stride in bytes of keys or values, converted where they must be.
    #[inline(always)]
    unsafe fn source<S: Simd>(
        &mut self,
        s: S,
        rows: Rows,
        piece: Range<usize>,
    ) -> (*const u8, usize) {
        let from = rows.row([0, self.head, self.span.slot(piece.start)]).cast_const();
        if self.direct {
            return (from, rows.stride());
        }
        let padded = self.problem.padded();
        with_element!(rows.dtype, E => {
            for (index, to) in self.converted.chunks_exact_mut(padded).enumerate().take(piece.len()) {
                let from = from.wrapping_add(index * rows.stride());
                // SAFETY: a row that exists; the slice is as long as its vectors.
                unsafe { E::convert(s, from, rows.dim, to.as_mut_ptr()) };
            }
        });
        (self.converted.as_ptr().cast(), padded * size_of::<f32>())
    }

    /// Dot products of all rows with the keys of a piece.
    #[inline(always)]
    unsafe fn score<S: Simd>(&mut self, s: S, piece: Range<usize>) {
        let (problem, padded) = (self.problem, self.problem.padded());
        // SAFETY: keys that exist, and scratch with a vector of room behind the scores.
        unsafe {
            let (k, k_stride) = self.source(s, problem.k, piece.clone());
            for first in (0..problem.rows()).step_by(Scores::ROWS) {
                let scores = &mut self.scores[first * self.stride + piece.start - self.base..];
                let scores = Scores {
                    q: self.q[first * padded..].as_ptr(),
                    q_stride: padded,
                    k,
                    k_stride,
                    count: piece.len(),
                    vectors: padded / LANES,
                    scores: scores.as_mut_ptr(),
                    stride: self.stride,
                };
                let rows = problem.rows() - first;
                if self.halves() {
                    scores.compute::<S, F16>(s, rows);
                } else {
                    scores.compute::<S, F32>(s, rows);
                }
            }
        }
    }

    /// Scores of a row to weights; their maximum, their sum and zeros to its record.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&mut self, s: S, row: usize, keys: Range<usize>, record: *mut f32) {
        let problem = self.problem;
        let [token, _] = problem.token_and_head(self.head, row);
        let seen = problem.visible(self.span, token);
        let vectors = (keys.start - self.base) / LANES..(keys.end - self.base).div_ceil(LANES);
        let (start, end) = (vectors.start * LANES, vectors.end * LANES);
        let scores = &mut self.scores[row * self.stride..][..self.stride];
        // SAFETY: vectors of the row; the record is the caller's.
        unsafe {
            if let Some(cap) = problem.softcap {
                soft_cap(s, cap, scores.as_mut_ptr(), vectors.clone());
            }
            scores[start..seen.start.saturating_sub(self.base).clamp(start, end)].fill(MASKED);
            scores[seen.end.saturating_sub(self.base).clamp(start, end)..end].fill(MASKED);
            let max = largest(s, LOWEST, scores.as_ptr(), vectors.clone());
            let sum = weights(s, max, s.splat(0.0), scores.as_mut_ptr(), vectors);
            *record = max;
            *record.add(1) = s.sum(sum);
            for vector in 0..problem.padded() / LANES {
                s.store(record.add(HEADER + vector * LANES), s.splat(0.0));
            }
        }
    }

    /// Adds the values of a piece to the sums of all rows.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&mut self, s: S, piece: Range<usize>, sums: *mut f32) {
        let (rows, padded) = (self.problem.rows(), self.problem.padded());
        let (record, vectors) = (HEADER + padded, padded / LANES);
        // SAFETY: weights of the scratch, values that exist, records of the caller.
        unsafe {
            let (b, b_stride) = self.source(s, self.problem.v, piece.clone());
            for first in (0..rows).step_by(Product::FEW) {
                let product = Product {
                    a: self.scores[first * self.stride + piece.start - self.base..].as_ptr(),
                    a_stride: self.stride,
                    b,
                    b_stride,
                    depth: piece.len(),
                    c: sums.add(first * record),
                    c_stride: record,
                };
                if self.halves() {
                    product.few_rows::<S, F16>(s, rows - first, vectors);
                } else {
                    product.few_rows::<S, F32>(s, rows - first, vectors);
                }
            }
        }
    }

    /// Computes the sums of a row again where some are not finite: a value that the row does not see
    /// must not reach it.
    #[inline(always)]
    unsafe fn repair<S: Simd>(&mut self, s: S, row: usize, keys: Range<usize>, sums: *mut f32) {
        let problem = self.problem;
        let vectors = problem.padded() / LANES;
        // SAFETY: the vectors of a record, and values that exist.
        unsafe {
            let mut nan = s.splat(0.0);
            for vector in 0..vectors {
                let v = s.load(sums.add(vector * LANES));
                nan = s.add(nan, s.sub(v, v));
            }
            if s.sum(nan) == 0.0 {
                return;
            }
            for vector in 0..vectors {
                s.store(sums.add(vector * LANES), s.splat(0.0));
            }
            for key in keys {
                let weight = self.scores[row * self.stride + key - self.base];
                let from = problem.v.row([0, self.head, self.span.slot(key)]).cast_const();
                if weight != 0.0 {
                    let to = self.row.as_mut_ptr();
                    with_element!(problem.v.dtype, E => E::convert(s, from, problem.v.dim, to));
                    add_row(s, weight, to, sums, vectors);
                }
            }
        }
    }

    /// Writes the output of all rows of the head.
    ///
    /// # Safety
    /// The records are complete, and the rows are the caller's alone.
    #[inline(always)]
    unsafe fn merge<S: Simd>(&mut self, s: S, records: Records) {
        let (problem, padded) = (self.problem, self.problem.padded());
        for row in 0..problem.rows() {
            let [token, head] = problem.token_and_head(self.head, row);
            // SAFETY: all parts of the row's records; an output row of this head.
            unsafe {
                let first = records.start.add(row * (HEADER + padded));
                let of = |range: usize| first.add(range * records.step);
                let max = (0..records.count).fold(LOWEST, |max, range| max.max(*of(range)));
                let mut sum = 0.0;
                self.row.fill(0.0);
                for range in 0..records.count {
                    let factor = exp1(s, *of(range) - max);
                    sum = s.fma1(*of(range).add(1), factor, sum);
                    let sums = of(range).add(HEADER);
                    add_row(s, factor, sums, self.row.as_mut_ptr(), padded / LANES);
                }
                let factor = normalizer(s, max, sum, problem.sink(head));
                for vector in self.row.chunks_exact_mut(LANES) {
                    let scaled = s.fma(s.load(vector.as_ptr()), s.splat(factor), s.splat(0.0));
                    s.store(vector.as_mut_ptr(), scaled);
                }
                problem.output.store([0, head, token], self.row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;

    /// An attention against a cache without memory, for what only looks at shapes.
    fn cache_problem(tokens: usize, window: Option<usize>) -> Problem {
        let tensor = kiln_reference::device().tensor(DType::F32, [tokens, 1, 8]).unwrap();
        let view = View::new(std::ptr::null_mut(), &tensor);
        let rows = Rows::single(&view, [1, 0]);
        Problem {
            q: rows,
            k: rows,
            v: rows,
            output: rows,
            keys: Keys::Given { len: 0, offset: 0 },
            mask: None,
            sinks: None,
            batch: 1,
            kv_heads: 1,
            group: 1,
            tokens,
            scale: 1.0,
            softcap: None,
            causal: true,
            window,
        }
    }

    #[test]
    fn a_split_covers_what_can_be_seen() {
        for capacity in [1, 100, 256, 257, 1000, 4096, 100_000, 10_000_000] {
            for window in [None, Some(1), Some(255), Some(700), Some(5000)] {
                for (tokens, ring) in [(1, false), (8, false), (1, true), (8, true)] {
                    let problem = cache_problem(tokens, window);
                    let split = Split::new(&problem, capacity, ring);
                    assert!(split.range >= MIN_RANGE && split.range.is_power_of_two());
                    let last = if ring { 3 * capacity + 1000 } else { capacity };
                    for len in (tokens..=last).step_by((last / 5000).max(1)) {
                        let slots = capacity;
                        let first = len.saturating_sub(capacity);
                        let span = Span { first, end: len, query: len - tokens, slots };
                        let keys = problem.visible_to(span, 0..tokens);
                        let used = keys.end.div_ceil(split.range) - keys.start / split.range;
                        assert!((1..=split.most).contains(&used), "{split:?} {keys:?}");
                    }
                }
            }
        }
    }
}
