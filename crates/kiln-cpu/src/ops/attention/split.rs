//! Few query rows: one pass over a cache, split by keys.
//!
//! Ranges of keys start at multiples of their length, which the capacity alone decides. A range
//! gives every row a record; whoever finishes the last range of a head merges the records in the
//! order of the ranges, so that neither threads nor the other rows of the call show in the bits.

use super::element::{Element, with_element};
use super::kernel::{Product, Scores, add_row};
use super::problem::{Keys, Problem, Span};
use super::softmax::{LOWEST, MASKED, exp1, largest, normalizer, soft_cap, weights};
use crate::exec::{Lowering, Tasks};
use crate::isa::{LANES, Simd, with_simd};
use crate::threads::Scratch;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewest keys of a range, and most ranges of a cache: records take memory.
const MIN_RANGE: usize = 256;
const MAX_RANGES: usize = 256;

/// Tasks that even out differences between threads.
const TASKS_PER_THREAD: usize = 4;

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
        let range = capacity.div_ceil(MAX_RANGES).next_power_of_two().max(MIN_RANGE);
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
            let records = workspace.as_ref().filter(|_| ranges.len() > 1).map(|workspace| {
                workspace.start().cast::<f32>().wrapping_add(head * head_records)
            });
            let own = match records {
                Some(records) => records.wrapping_add(index * step),
                None => part.records.as_mut_ptr(),
            };
            // SAFETY: a record for each row and range, this one's the task's alone; who comes last
            // sees those of the others through the counter.
            unsafe {
                with_simd!(isa, s => s.run(#[inline(always)] || {
                    with_element!(problem.k.dtype, E => part.compute::<_, E>(s, keys.clone(), own));
                }));
                if done[head].fetch_add(1, Ordering::AcqRel) + 1 == ranges.len() {
                    done[head].store(0, Ordering::Relaxed);
                    let records = Records {
                        start: records.unwrap_or(own),
                        count: ranges.len(),
                        step,
                    };
                    with_simd!(isa, s => s.run(#[inline(always)] || part.merge(s, records)));
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
    /// `[rows][padded]`, scaled.
    q: &'a mut [f32],
    /// `[rows][stride]`, scores and then weights.
    scores: &'a mut [f32],
    /// Floats between rows of `scores`.
    stride: usize,
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
        // A vector more than the keys: dot products come in vectors.
        let stride = positions.len().next_multiple_of(LANES) + LANES;
        let lens = [rows * padded, rows * stride, rows * (HEADER + padded), padded];
        let [q, scores, records, row] = scratch.floats(lens);
        Self { problem, span, head, base: positions.start, q, scores, stride, records, row }
    }

    /// Writes the records of all rows over `keys`.
    ///
    /// # Safety
    /// The keys exist and are of type `E`, nobody writes the operands meanwhile, and the records are
    /// the caller's alone.
    #[inline(always)]
    unsafe fn compute<S: Simd, E: Element>(&mut self, s: S, keys: Range<usize>, records: *mut f32) {
        let (problem, padded) = (self.problem, self.problem.padded());
        for (row, q) in self.q.chunks_exact_mut(padded).enumerate() {
            let [token, head] = problem.token_and_head(self.head, row);
            // SAFETY: rows of the problem and of the scratch.
            unsafe { problem.load_query(s, [0, head, token], q.as_mut_ptr()) };
        }
        // SAFETY: by the contract.
        unsafe {
            self.score::<S, E>(s, keys.clone());
            for row in 0..problem.rows() {
                self.weigh(s, row, keys.clone(), records.add(row * (HEADER + padded)));
            }
            self.sum::<S, E>(s, keys, records);
        }
    }

    /// Dot products of all rows with the keys.
    #[inline(always)]
    unsafe fn score<S: Simd, E: Element>(&mut self, s: S, keys: Range<usize>) {
        let (problem, padded, stride) = (self.problem, self.problem.padded(), self.stride);
        let rows = problem.rows();
        for first in (0..rows).step_by(Scores::ROWS) {
            let q = self.q[first * padded..].as_ptr();
            let scores = self.scores[first * stride..].as_mut_ptr();
            self.span.runs(keys.clone(), |run, slot| {
                let scores = Scores {
                    q,
                    q_stride: padded,
                    k: problem.k.row([0, self.head, slot]),
                    k_stride: problem.k.stride(),
                    count: run.len(),
                    dim: problem.q.dim,
                    scores: scores.wrapping_add(run.start - self.base),
                    stride,
                };
                // SAFETY: keys that exist, and scratch with a vector of room behind them.
                unsafe { scores.compute::<S, E>(s, (rows - first).min(Scores::ROWS)) };
            });
        }
    }

    /// Scores of a row to weights, with their maximum and sum in its record.
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
        }
    }

    /// Weighted sums of the values of all rows.
    #[inline(always)]
    unsafe fn sum<S: Simd, E: Element>(&self, s: S, keys: Range<usize>, records: *mut f32) {
        let rows = self.problem.rows();
        let record = HEADER + self.problem.padded();
        let mut first = 0;
        while first < rows {
            // SAFETY: by the caller.
            first += unsafe {
                let sums = records.add(first * record + HEADER);
                match rows - first {
                    1 => self.sum_rows::<S, E, 1>(s, first, keys.clone(), sums),
                    2 => self.sum_rows::<S, E, 2>(s, first, keys.clone(), sums),
                    3 => self.sum_rows::<S, E, 3>(s, first, keys.clone(), sums),
                    _ => self.sum_rows::<S, E, 4>(s, first, keys.clone(), sums),
                }
            };
        }
    }

    /// Weighted sums of `R` rows from `first`; returns `R`.
    #[inline(always)]
    unsafe fn sum_rows<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        first: usize,
        keys: Range<usize>,
        sums: *mut f32,
    ) -> usize {
        let padded = self.problem.padded();
        let record = HEADER + padded;
        let start = keys.start;
        self.span.runs(keys.clone(), |run, slot| {
            let factors = [1.0; R];
            let product = Product {
                a: self.scores[first * self.stride + run.start - self.base..].as_ptr(),
                a_stride: self.stride,
                b: self.problem.v.row([0, self.head, slot]),
                b_stride: self.problem.v.stride(),
                depth: run.len(),
                c: sums,
                c_stride: record,
            };
            // SAFETY: weights of the scratch, values that exist, records of the caller.
            unsafe {
                let factors = (run.start != start).then_some(&factors);
                product.columns::<S, E, R>(s, self.problem.q.dim, factors);
            }
        });
        for r in 0..R {
            // SAFETY: the vectors of the record.
            unsafe {
                let sums = sums.add(r * record);
                let mut nan = s.splat(0.0);
                for vector in 0..padded / LANES {
                    let v = s.load(sums.add(vector * LANES));
                    nan = s.add(nan, s.sub(v, v));
                }
                if s.sum(nan) != 0.0 {
                    self.sum_visible::<S, E>(s, first + r, keys.clone(), sums);
                }
            }
        }
        R
    }

    /// The weighted sum of a row where some value is not finite: a value that the row does not see
    /// must not reach it.
    #[inline(always)]
    unsafe fn sum_visible<S: Simd, E: Element>(
        &self,
        s: S,
        row: usize,
        keys: Range<usize>,
        sums: *mut f32,
    ) {
        let problem = self.problem;
        let weights = &self.scores[row * self.stride..][..self.stride];
        // SAFETY: the vectors of a record, and values that exist.
        unsafe {
            for vector in 0..problem.padded() / LANES {
                s.store(sums.add(vector * LANES), s.splat(0.0));
            }
            for key in keys {
                let weight = weights[key - self.base];
                let from = problem.v.row([0, self.head, self.span.slot(key)]);
                if weight != 0.0 {
                    add_row::<S, E>(s, weight, from, problem.v.dim, sums);
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
                    add_scaled(s, self.row, of(range).add(HEADER), factor);
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

/// `row = row + factor x`
///
/// # Safety
/// As many values at `x`; whole vectors.
#[inline(always)]
unsafe fn add_scaled<S: Simd>(s: S, row: &mut [f32], x: *const f32, factor: f32) {
    for (vector, row) in row.chunks_exact_mut(LANES).enumerate() {
        // SAFETY: by the contract.
        unsafe {
            let x = s.load(x.add(vector * LANES));
            s.store(row.as_mut_ptr(), s.fma(x, s.splat(factor), s.load(row.as_ptr())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::tests::cache_problem;

    #[test]
    fn a_split_covers_what_can_be_seen() {
        for capacity in [1, 100, 256, 257, 1000, 4096, 100_000, 200_000] {
            for window in [None, Some(1), Some(255), Some(700), Some(5000)] {
                for (tokens, ring) in [(1, false), (8, false), (1, true), (8, true)] {
                    let problem = cache_problem(tokens, window);
                    let split = Split::new(&problem, capacity, ring);
                    assert!(split.range >= MIN_RANGE && split.most <= MAX_RANGES + 1);
                    let last = if ring { 3 * capacity + 1000 } else { capacity };
                    for len in (tokens..=last).step_by((last / 500).max(1)) {
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
