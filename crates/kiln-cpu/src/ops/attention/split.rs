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
use crate::exec::{Lowering, Tasks, Workspace};
use crate::isa::{Isa, LANES, LINE, Simd, prefetch, with_float_simd};
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

/// Most keys of one call of the kernels, and most bytes of them: they stay in the nearest cache.
const PIECE: usize = 64;
const PIECE_BYTES: usize = 8 * 1024;

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
    let split = Split::new(&problem, capacity, ring);
    let heads = problem.kv_heads;
    let record = HEADER + problem.padded();
    let bytes = heads * split.most * problem.rows() * record * size_of::<f32>();
    let workspace = (split.most > 1).then(|| lowering.workspace(bytes));
    let done = (0..heads).map(|_| AtomicUsize::new(0)).collect();
    let pass = Pass { isa: lowering.isa, problem, split, workspace, done };
    let count = (heads * split.most).min(TASKS_PER_THREAD * lowering.threads);
    lowering.tasks(Tasks::new(count, move |task, scratch| {
        // SAFETY: the planner's hazards keep writers of the operands out of this step.
        match unsafe { pass.problem.span() } {
            Some(span) => {
                let items = heads * pass.ranges(span).len();
                for item in task * items / count..(task + 1) * items / count {
                    pass.item(span, item, scratch);
                }
            }
            None => {
                let [buffer] = scratch.floats([pass.problem.q.dim]);
                for head in task * heads / count..(task + 1) * heads / count {
                    // SAFETY: the rows of this head are this task's alone.
                    unsafe { pass.problem.fill_nan([0, head], 0..pass.problem.rows(), buffer) };
                }
            }
        }
    }));
}

/// What the tasks of an attention share.
struct Pass {
    isa: Isa,
    problem: Problem,
    split: Split,
    /// `[heads][ranges][rows][record]`, where there can be several ranges.
    workspace: Option<Workspace>,
    /// Ranges done of each head in this run.
    done: Vec<AtomicUsize>,
}

impl Pass {
    /// Numbers of the ranges that are in use.
    fn ranges(&self, span: Span) -> Range<usize> {
        let keys = self.problem.visible_to(span, 0..self.problem.tokens);
        keys.start / self.split.range..keys.end.div_ceil(self.split.range)
    }

    /// Computes an item: a range of a head, with the ranges of a head one after the other.
    fn item(&self, span: Span, item: usize, scratch: &mut Scratch) {
        let (problem, ranges) = (&self.problem, self.ranges(span));
        let (head, index) = (item / ranges.len(), item % ranges.len());
        let base = (ranges.start + index) * self.split.range;
        let all = problem.visible_to(span, 0..problem.tokens);
        let keys = all.start.max(base)..all.end.min(base + self.split.range);
        let mut part = Part::new(problem, span, [head, base], keys, scratch);
        let step = problem.rows() * (HEADER + problem.padded());
        let shared = self.workspace.as_ref().filter(|_| ranges.len() > 1).map(|workspace| {
            let start = workspace.start().cast::<f32>();
            start.wrapping_add(head * self.split.most * step)
        });
        let own = match shared {
            Some(records) => records.wrapping_add(index * step),
            None => part.records.as_mut_ptr(),
        };
        // SAFETY: there is a record for each range and row, those of this range are the task's
        // alone, and who comes last sees the others through the counter.
        unsafe {
            with_float_simd!(self.isa, s => s.run(#[inline(always)] || part.compute(s, own)));
            if self.done[head].fetch_add(1, Ordering::AcqRel) + 1 == ranges.len() {
                self.done[head].store(0, Ordering::Relaxed);
                let start = shared.unwrap_or(own);
                let records = Records { start, count: ranges.len(), step };
                with_float_simd!(self.isa, s => s.run(#[inline(always)] || {
                    part.merge(s, records);
                }));
            }
        }
    }
}

/// The records of a head: `[count]` times `[rows][record]`.
#[derive(Clone, Copy)]
struct Records {
    start: *const f32,
    count: usize,
    /// Floats between ranges.
    step: usize,
}

/// Keys, or their values, that are neighbours in memory.
struct Piece {
    keys: Range<usize>,
    /// The first row.
    from: *const u8,
    /// From a row to the place to ask for while it is read, in bytes: in the piece that follows.
    ahead: usize,
}

/// The rows of one key-value head against one range of keys.
struct Part<'a> {
    problem: &'a Problem,
    span: Span,
    head: usize,
    /// Position of the first score.
    base: usize,
    /// Keys that some row sees.
    keys: Range<usize>,
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
        [head, base]: [usize; 2],
        keys: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Self {
        let (rows, padded) = (problem.rows(), problem.padded());
        let plain = matches!(problem.k.dtype, DType::F16 | DType::F32);
        // A vector more than the keys: dot products come in vectors.
        let stride = (keys.end - base).next_multiple_of(LANES) + LANES;
        let records = rows * (HEADER + padded);
        let lens = [rows * padded, rows * stride, PIECE * padded, records, padded];
        let [q, scores, converted, records, row] = scratch.floats(lens);
        Self {
            problem,
            span,
            head,
            base,
            keys,
            direct: plain && problem.q.dim == padded,
            q,
            scores,
            stride,
            converted,
            records,
            row,
        }
    }

    /// Writes the records of all rows.
    ///
    /// # Safety
    /// Nobody writes the operands meanwhile, and the records are the caller's alone.
    #[inline(always)]
    unsafe fn compute<S: Simd>(&mut self, s: S, records: *mut f32) {
        let problem = self.problem;
        for (row, q) in self.q.chunks_exact_mut(problem.padded()).enumerate() {
            let [token, head] = problem.token_and_head(self.head, row);
            // SAFETY: rows of the problem and of the scratch.
            unsafe { problem.load_query(s, [0, head, token], q.as_mut_ptr()) };
        }
        let record = HEADER + problem.padded();
        // SAFETY: by the contract.
        unsafe {
            for piece in self.pieces(problem.k, self.address(problem.v, self.keys.start)) {
                self.score(s, piece);
            }
            for row in 0..problem.rows() {
                self.weigh(s, row, records.add(row * record));
            }
            // Where the next range of this head starts, the task goes on.
            for piece in self.pieces(problem.v, self.address(problem.k, self.keys.end)) {
                self.sum(s, piece, records.add(HEADER));
            }
            for row in 0..problem.rows() {
                self.repair(s, row, records.add(row * record + HEADER));
            }
        }
    }

    /// Address of the key or value at a position.
    #[inline(always)]
    fn address(&self, rows: Rows, position: usize) -> *const u8 {
        rows.row([0, self.head, self.span.slot(position)])
    }

    /// The pieces of keys or values. While the last is read, `next` is asked for.
    #[inline(always)]
    fn pieces(&self, rows: Rows, next: *const u8) -> impl Iterator<Item = Piece> + use<> {
        let (span, head, end) = (self.span, self.head, self.keys.end);
        let address = move |position| rows.row([0, head, span.slot(position)]).cast_const();
        let most = (PIECE_BYTES / rows.stride()).clamp(LANES, PIECE);
        let mut at = self.keys.start;
        std::iter::from_fn(move || {
            let start = at;
            if start == end {
                return None;
            }
            at = end.min(start + most.min(span.slots - span.slot(start)));
            let from = address(start);
            let then = if at < end { address(at) } else { next };
            Some(Piece { keys: start..at, from, ahead: then.addr().wrapping_sub(from.addr()) })
        })
    }

    /// How far ahead the kernels ask: once for each row, and not for what is already converted.
    #[inline(always)]
    fn ahead(&self, piece: &Piece, first: usize) -> usize {
        if self.direct && first == 0 { piece.ahead } else { 0 }
    }

    /// Whether the kernels read f16.
    #[inline(always)]
    fn halves(&self) -> bool {
        self.direct && self.problem.k.dtype == DType::F16
    }

    /// Address and stride in bytes of the rows of a piece, converted where they must be.
    #[inline(always)]
    unsafe fn source<S: Simd>(&mut self, s: S, rows: Rows, piece: &Piece) -> (*const u8, usize) {
        if self.direct {
            return (piece.from, rows.stride());
        }
        let padded = self.problem.padded();
        with_element!(rows.dtype, E => {
            let converted = self.converted.chunks_exact_mut(padded);
            for (index, to) in converted.enumerate().take(piece.keys.len()) {
                let from = piece.from.wrapping_add(index * rows.stride());
                for line in (0..rows.stride()).step_by(LINE) {
                    prefetch(from.wrapping_add(piece.ahead).wrapping_add(line));
                }
                // SAFETY: a row that exists; the slice is as long as its vectors.
                unsafe { E::convert(s, from, rows.dim, to.as_mut_ptr()) };
            }
        });
        (self.converted.as_ptr().cast(), padded * size_of::<f32>())
    }

    /// Dot products of all rows with the keys of a piece.
    #[inline(always)]
    unsafe fn score<S: Simd>(&mut self, s: S, piece: Piece) {
        let (problem, padded) = (self.problem, self.problem.padded());
        // SAFETY: keys that exist, and scratch with a vector of room behind the scores.
        unsafe {
            let (k, k_stride) = self.source(s, problem.k, &piece);
            let start = piece.keys.start - self.base;
            for first in (0..problem.rows()).step_by(Scores::ROWS) {
                let scores = &mut self.scores[first * self.stride + start..];
                let scores = Scores {
                    q: self.q[first * padded..].as_ptr(),
                    q_stride: padded,
                    k,
                    k_stride,
                    count: piece.keys.len(),
                    vectors: padded / LANES,
                    scores: scores.as_mut_ptr(),
                    stride: self.stride,
                    ahead: self.ahead(&piece, first),
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
    unsafe fn weigh<S: Simd>(&mut self, s: S, row: usize, record: *mut f32) {
        let problem = self.problem;
        let [token, _] = problem.token_and_head(self.head, row);
        let seen = problem.visible(self.span, token);
        let (from, to) = (self.keys.start - self.base, self.keys.end - self.base);
        let vectors = from / LANES..to.div_ceil(LANES);
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
    unsafe fn sum<S: Simd>(&mut self, s: S, piece: Piece, sums: *mut f32) {
        let (rows, padded) = (self.problem.rows(), self.problem.padded());
        let (record, vectors) = (HEADER + padded, padded / LANES);
        // SAFETY: weights of the scratch, values that exist, records of the caller.
        unsafe {
            let (b, b_stride) = self.source(s, self.problem.v, &piece);
            let start = piece.keys.start - self.base;
            for first in (0..rows).step_by(Product::FEW) {
                let product = Product {
                    a: self.scores[first * self.stride + start..].as_ptr(),
                    a_stride: self.stride,
                    b,
                    b_stride,
                    depth: piece.keys.len(),
                    c: sums.add(first * record),
                    c_stride: record,
                    ahead: self.ahead(&piece, first),
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
    unsafe fn repair<S: Simd>(&mut self, s: S, row: usize, sums: *mut f32) {
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
            for key in self.keys.clone() {
                let weight = self.scores[row * self.stride + key - self.base];
                let from = self.address(problem.v, key);
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
