//! Many query rows: tiles of rows times tiles of keys, with an online softmax.
//!
//! The rows of all query heads of a key-value head stand together. Tiles of keys start at multiples
//! of their length, and a tile or a part of one that a row does not see leaves the bits of the row
//! as they are: the result of a row does not depend on the other rows of the call.

use super::element::{Element, F32, load_part, with_element};
use super::kernel::{Product, add_row};
use super::mask::Class;
use super::problem::{Problem, Rows, Span};
use super::softmax::{LOWEST, MASKED, exp, largest, normalizer, soft_cap, weights};
use crate::exec::{Lowering, Tasks};
use crate::isa::{LANES, Simd, with_float_simd};
use crate::threads::Scratch;
use std::ops::Range;

/// Keys of a tile.
const KEYS: usize = 64;

/// Rows that are worked on together.
const ROWS: usize = 6;

/// Most rows of a task, and most values of its queries: they stay in the second cache.
const TASK_ROWS: usize = 192;
const TASK_VALUES: usize = 32 * 1024;

/// Fewest rows of a task, where more tasks are wanted: keys and values are converted once per task.
const MIN_TASK_ROWS: usize = 24;

/// Tasks that even out differences between threads.
const TASKS_PER_THREAD: usize = 4;

/// Appends the tasks of an attention.
pub(super) fn lower(problem: Problem, lowering: &mut Lowering) {
    let isa = lowering.isa;
    let heads = problem.batch * problem.kv_heads;
    let rows = problem.rows();
    let wanted = (heads * rows).div_ceil(TASKS_PER_THREAD * lowering.threads);
    let most = TASK_ROWS.min(TASK_VALUES / problem.padded());
    let per_task = wanted.clamp(MIN_TASK_ROWS, most).next_multiple_of(ROWS);
    let tiles = rows.div_ceil(per_task);
    lowering.tasks(Tasks::new(tiles * heads, move |task, scratch| {
        // The last rows see the most keys: they go first.
        let (head, tile) = (task % heads, tiles - 1 - task / heads);
        let head = [head / problem.kv_heads, head % problem.kv_heads];
        let rows = tile * per_task..rows.min((tile + 1) * per_task);
        // SAFETY: the planner's hazards keep writers of the operands out of this step, and the rows
        // of the output are this task's alone.
        unsafe {
            match problem.span() {
                Some(span) => {
                    let mut tile = Tile::new(&problem, span, head, rows, scratch);
                    with_float_simd!(isa, s => s.run(#[inline(always)] || tile.compute(s)));
                }
                None => {
                    let [buffer] = scratch.floats([problem.q.dim]);
                    problem.fill_nan(head, rows, buffer);
                }
            }
        }
    }));
}

/// Rows of one key-value head.
struct Tile<'a> {
    problem: &'a Problem,
    span: Span,
    batch: usize,
    kv_head: usize,
    rows: Range<usize>,
    /// `[rows][padded]`, scaled.
    q: &'a mut [f32],
    /// `[padded][KEYS]`
    k: &'a mut [f32],
    /// `[KEYS][padded]`
    v: &'a mut [f32],
    /// `[ROWS][KEYS]`, scores and then weights.
    scores: &'a mut [f32],
    /// `[rows]`, running maxima.
    max: &'a mut [f32],
    /// `[rows][LANES]`, running sums of the weights.
    sums: &'a mut [f32],
    /// `[rows][padded]`, running sums of the values.
    output: &'a mut [f32],
}

impl<'a> Tile<'a> {
    fn new(
        problem: &'a Problem,
        span: Span,
        [batch, kv_head]: [usize; 2],
        rows: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Self {
        let (padded, count) = (problem.padded(), rows.len().next_multiple_of(ROWS));
        let [q, output] = [count * padded; 2];
        let [k, v] = [KEYS * padded; 2];
        let lens = [q, k, v, ROWS * KEYS, count, count * LANES, output];
        let [q, k, v, scores, max, sums, output] = scratch.floats(lens);
        Self { problem, span, batch, kv_head, rows, q, k, v, scores, max, sums, output }
    }

    /// `[batch, head, token]` of a row of the tile.
    #[inline(always)]
    fn query(&self, row: usize) -> [usize; 3] {
        let [token, head] = self.problem.token_and_head(self.kv_head, self.rows.start + row);
        [self.batch, head, token]
    }

    /// # Safety
    /// Nobody writes the operands meanwhile; the rows of the output are the caller's alone.
    #[inline(always)]
    unsafe fn compute<S: Simd>(&mut self, s: S) {
        let (problem, span, padded) = (self.problem, self.span, self.problem.padded());
        self.max.fill(LOWEST);
        self.sums.fill(0.0);
        self.output.fill(0.0);
        self.q[self.rows.len() * padded..].fill(0.0);
        for row in 0..self.rows.len() {
            let to = self.q[row * padded..].as_mut_ptr();
            // SAFETY: rows of the problem and of the scratch.
            unsafe { problem.load_query(s, self.query(row), to) };
        }
        let tokens = self.query(0)[2]..self.query(self.rows.len() - 1)[2] + 1;
        let all = problem.visible_to(span, tokens);
        let first = if all.is_empty() { all.end } else { all.start / KEYS * KEYS };
        for base in (first..all.end).step_by(KEYS) {
            let keys = all.start.max(base)..all.end.min(base + KEYS);
            // SAFETY: these keys exist.
            unsafe {
                if self.masked(keys.clone()) {
                    continue;
                }
                with_element!(problem.k.dtype, E => self.load_keys::<S, E>(s, base, keys.clone()));
                let finite = with_element!(problem.v.dtype, E =>
                    self.load_values::<S, E>(s, base, keys.clone()));
                for first in (0..self.rows.len()).step_by(ROWS) {
                    self.block(s, first, base, finite);
                }
            }
        }
        for row in 0..self.rows.len() {
            let sum = s.sum(self.load_sum(s, row));
            let [_, head, _] = self.query(row);
            let values = &mut self.output[row * padded..][..padded];
            // SAFETY: vectors of a row of the scratch; an output row of this tile.
            unsafe {
                let factor = normalizer(s, self.max[row], sum, problem.sink(head));
                for vector in values.chunks_exact_mut(LANES) {
                    let scaled = s.fma(s.load(vector.as_ptr()), s.splat(factor), s.splat(0.0));
                    s.store(vector.as_mut_ptr(), scaled);
                }
                problem.output.store(self.query(row), &self.output[row * padded..]);
            }
        }
    }

    #[inline(always)]
    fn load_sum<S: Simd>(&self, s: S, row: usize) -> S::F {
        // SAFETY: the slice has 16 values.
        unsafe { s.load(self.sums[row * LANES..][..LANES].as_ptr()) }
    }

    /// Whether the map of the mask says that no row sees any of these keys.
    #[inline(always)]
    unsafe fn masked(&self, keys: Range<usize>) -> bool {
        let Some(mask) = self.problem.mask.filter(|mask| mask.blocks.is_some()) else {
            return false;
        };
        (0..self.rows.len()).all(|row| {
            // SAFETY: a query of the problem and keys that exist.
            unsafe { mask.class(self.query(row), keys.clone()) == Class::Masked }
        })
    }

    /// Address of the key or value at a position.
    #[inline(always)]
    fn at(&self, rows: &Rows, position: usize) -> *const u8 {
        rows.row([self.batch, self.kv_head, self.span.slot(position)])
    }

    /// Converts and transposes keys; what does not exist is zero.
    #[inline(always)]
    unsafe fn load_keys<S: Simd, E: Element>(&mut self, s: S, base: usize, keys: Range<usize>) {
        let rows = self.problem.k;
        let vectors = (keys.start - base) / LANES..(keys.end - base).div_ceil(LANES);
        for vector in vectors {
            let first = base + vector * LANES;
            let mut from = [None; LANES];
            for (i, from) in from.iter_mut().enumerate() {
                *from = keys.contains(&(first + i)).then(|| self.at(&rows, first + i));
            }
            for part in 0..rows.dim.div_ceil(LANES) {
                let mut block = [s.splat(0.0); LANES];
                for (block, from) in block.iter_mut().zip(from) {
                    let Some(from) = from else { continue };
                    // SAFETY: a part of a row that exists.
                    *block = unsafe { load_part::<S, E>(s, from, rows.dim, part) };
                }
                let to = &mut self.k[part * LANES * KEYS..][..LANES * KEYS];
                for (to, column) in to.chunks_exact_mut(KEYS).zip(s.transpose(block)) {
                    let to = &mut to[vector * LANES..][..LANES];
                    // SAFETY: the slice has 16 values.
                    unsafe { s.store(to.as_mut_ptr(), column) };
                }
            }
        }
    }

    /// Converts values; returns whether all are finite.
    #[inline(always)]
    unsafe fn load_values<S: Simd, E: Element>(
        &mut self,
        s: S,
        base: usize,
        keys: Range<usize>,
    ) -> bool {
        let (rows, padded) = (self.problem.v, self.problem.padded());
        let mut nan = s.splat(0.0);
        for key in keys {
            let from = self.at(&rows, key);
            let to = &mut self.v[(key - base) * padded..][..padded];
            // SAFETY: a row that exists; the slice is as long as its vectors.
            let row = unsafe { E::convert(s, from, rows.dim, to.as_mut_ptr()) };
            nan = s.add(nan, row);
        }
        s.sum(nan) == 0.0
    }

    /// Adds the keys of the tile at `base` to `ROWS` rows from `first`.
    #[inline(always)]
    unsafe fn block<S: Simd>(&mut self, s: S, first: usize, base: usize, finite: bool) {
        let (problem, padded) = (self.problem, self.problem.padded());
        // What each row sees of the tile; rows that do not exist see what the last one does.
        let last = self.rows.len() - 1;
        let inside = |position: usize| position.clamp(base, base + KEYS) - base;
        let seen: [Range<usize>; ROWS] = std::array::from_fn(|r| {
            let [_, _, token] = self.query((first + r).min(last));
            let keys = problem.visible(self.span, token);
            inside(keys.start)..inside(keys.end)
        });
        let some = || seen.iter().filter(|keys| !keys.is_empty());
        let (Some(start), Some(end)) =
            (some().map(|keys| keys.start).min(), some().map(|keys| keys.end).max())
        else {
            return;
        };
        let vectors = start / LANES..end.div_ceil(LANES);
        let product = Product {
            a: self.q[first * padded..].as_ptr(),
            a_stride: padded,
            b: self.k.as_ptr().cast(),
            b_stride: KEYS * size_of::<f32>(),
            depth: problem.q.dim,
            c: self.scores.as_mut_ptr(),
            c_stride: KEYS,
            ahead: 0,
        };
        // SAFETY: all matrices are scratch of this tile.
        unsafe { product.vectors::<S, F32, ROWS>(s, vectors.clone(), None) };
        for (r, keys) in seen.iter().enumerate() {
            let row = &mut self.scores[r * KEYS..][..KEYS];
            if let Some(cap) = problem.softcap {
                // SAFETY: vectors of the row.
                unsafe { soft_cap(s, cap, row.as_mut_ptr(), vectors.clone()) };
            }
            row[vectors.start * LANES..keys.start.max(vectors.start * LANES)].fill(MASKED);
            row[keys.end.min(vectors.end * LANES)..vectors.end * LANES].fill(MASKED);
            if problem.mask.is_some() && !keys.is_empty() && first + r <= last {
                // SAFETY: a query of the problem and keys that exist.
                unsafe { self.apply_mask(first + r, base, r, keys.clone()) };
            }
        }
        // SAFETY: rows and vectors of the scratch.
        unsafe {
            let factors = self.update(s, first, vectors);
            let product = Product {
                a: self.scores[start..].as_ptr(),
                a_stride: KEYS,
                b: self.v[start * padded..].as_ptr().cast(),
                b_stride: padded * size_of::<f32>(),
                depth: end - start,
                c: self.output[first * padded..].as_mut_ptr(),
                c_stride: padded,
                ahead: 0,
            };
            if finite {
                product.vectors::<S, F32, ROWS>(s, 0..padded / LANES, Some(&factors));
            } else {
                self.add_visible(s, product, &factors);
            }
        }
    }

    /// Adds the mask to the scores of row `r` of a block, row `row` of the tile.
    #[inline(always)]
    unsafe fn apply_mask(&mut self, row: usize, base: usize, r: usize, keys: Range<usize>) {
        let Some(mask) = &self.problem.mask else { return };
        let query = self.query(row);
        let scores = &mut self.scores[r * KEYS..][keys.clone()];
        // SAFETY: by the caller.
        unsafe {
            match mask.class(query, base + keys.start..base + keys.end) {
                Class::Masked => scores.fill(MASKED),
                Class::Mixed => mask.apply(query, base + keys.start, scores),
                Class::Open => (),
            }
        }
    }

    /// Turns the scores of a block into weights; returns what the sums so far are multiplied by.
    #[inline(always)]
    unsafe fn update<S: Simd>(&mut self, s: S, first: usize, vectors: Range<usize>) -> [f32; ROWS] {
        let max = &mut self.max[first..first + ROWS];
        let mut differences = [0f32; LANES];
        let mut factors = [0f32; ROWS];
        // SAFETY: rows and vectors of the scratch.
        unsafe {
            for (r, max) in max.iter_mut().enumerate() {
                let scores = self.scores[r * KEYS..][..KEYS].as_ptr();
                let larger = largest(s, *max, scores, vectors.clone());
                differences[r] = *max - larger;
                *max = larger;
            }
            let all = s.to_array(exp(s, s.load(differences.as_ptr())));
            factors.copy_from_slice(&all[..ROWS]);
            for (r, (max, factor)) in max.iter().zip(factors).enumerate() {
                let scores = self.scores[r * KEYS..][..KEYS].as_mut_ptr();
                let sums = self.sums[(first + r) * LANES..][..LANES].as_mut_ptr();
                let sum = s.mul(s.load(sums), s.splat(factor));
                s.store(sums, weights(s, *max, sum, scores, vectors.clone()));
            }
        }
        factors
    }

    /// The product of weights and values where some value is not finite: a value that a row does
    /// not see must not reach it.
    #[inline(always)]
    unsafe fn add_visible<S: Simd>(&self, s: S, all: Product, factors: &[f32; ROWS]) {
        let vectors = self.problem.padded() / LANES;
        for (r, factor) in factors.iter().enumerate() {
            // SAFETY: parts of the matrices of the product.
            unsafe {
                let sums = all.c.add(r * all.c_stride);
                for vector in 0..vectors {
                    let to = sums.add(vector * LANES);
                    s.store(to, s.mul(s.load(to), s.splat(*factor)));
                }
                for key in 0..all.depth {
                    let weight = *all.a.add(r * all.a_stride + key);
                    if weight != 0.0 {
                        let row = all.b.add(key * all.b_stride).cast();
                        add_row(s, weight, row, sums, vectors);
                    }
                }
            }
        }
    }
}
