//! Register-blocked products: weights or queries times rows of 16-lane vectors, and dot products.

use super::element::Element;
use crate::isa::{LANES, LINE, Simd, prefetch};
use std::ops::Range;

/// Whether a vector is one register of 32, which changes what fits.
pub(super) const fn wide<S: Simd>() -> bool {
    S::COLUMNS > 8
}

/// `c = a b` or `c = factors c + a b`, of `R` rows.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// `[R][depth]`
    pub(super) a: *const f32,
    /// Values between rows of `a`.
    pub(super) a_stride: usize,
    /// `[depth][columns]` of some element type.
    pub(super) b: *const u8,
    /// Bytes between rows of `b`.
    pub(super) b_stride: usize,
    pub(super) depth: usize,
    /// `[R][columns]`
    pub(super) c: *mut f32,
    /// Values between rows of `c`.
    pub(super) c_stride: usize,
    /// From a row of `b` to what is asked for when it is read, in bytes; 0 for nothing. Only of few
    /// rows.
    pub(super) ahead: usize,
}

impl Product {
    /// Computes the columns of `vectors`.
    ///
    /// # Safety
    /// The matrices are there, `b` of type `E`, and `c` is the caller's alone.
    #[inline(always)]
    pub(super) unsafe fn vectors<S: Simd, E: Element, const R: usize>(
        &self,
        s: S,
        vectors: Range<usize>,
        factors: Option<&[f32; R]>,
    ) {
        let mut at = vectors.start;
        while at < vectors.end {
            // SAFETY: by the contract.
            at += unsafe {
                if const { wide::<S>() } {
                    match vectors.end - at {
                        1 => self.block::<S, E, R, 1, false>(s, at, factors),
                        2 => self.block::<S, E, R, 2, false>(s, at, factors),
                        3 | 5 => self.block::<S, E, R, 3, false>(s, at, factors),
                        _ => self.block::<S, E, R, 4, false>(s, at, factors),
                    }
                } else {
                    self.block::<S, E, R, 1, false>(s, at, factors)
                }
            };
        }
    }

    /// Most rows of [`Product::few_rows`].
    pub(super) const FEW: usize = 4;

    /// Adds the product of the first `rows` rows, up to [`Product::FEW`], to `c`, of `vectors`
    /// vectors.
    ///
    /// # Safety
    /// As [`Product::vectors`].
    #[inline(always)]
    pub(super) unsafe fn few_rows<S: Simd, E: Element>(&self, s: S, rows: usize, vectors: usize) {
        let mut at = 0;
        while at < vectors {
            // SAFETY: by the contract.
            at += unsafe {
                if const { wide::<S>() } && vectors - at >= 4 {
                    self.few_rows_block::<S, E, 4>(s, rows, at)
                } else {
                    self.few_rows_block::<S, E, 1>(s, rows, at)
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn few_rows_block<S: Simd, E: Element, const C: usize>(
        &self,
        s: S,
        rows: usize,
        first: usize,
    ) -> usize {
        // SAFETY: by the contract of `few_rows`.
        unsafe {
            match rows {
                1 => self.block::<S, E, 1, C, true>(s, first, Some(&[1.0; 1])),
                2 => self.block::<S, E, 2, C, true>(s, first, Some(&[1.0; 2])),
                3 => self.block::<S, E, 3, C, true>(s, first, Some(&[1.0; 3])),
                _ => self.block::<S, E, 4, C, true>(s, first, Some(&[1.0; 4])),
            }
        }
    }

    /// Computes `C` vectors of columns from `first`; returns `C`.
    #[inline(always)]
    unsafe fn block<S: Simd, E: Element, const R: usize, const C: usize, const ASK: bool>(
        &self,
        s: S,
        first: usize,
        factors: Option<&[f32; R]>,
    ) -> usize {
        let mut sums = [[s.splat(0.0); C]; R];
        // SAFETY: every row and vector is inside its matrix, by the contract.
        unsafe {
            let c = self.c.add(first * LANES);
            if let Some(factors) = factors {
                for (r, (sums, factor)) in sums.iter_mut().zip(factors).enumerate() {
                    let (c, factor) = (c.add(r * self.c_stride), s.splat(*factor));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = s.mul(s.load(c.add(j * LANES)), factor);
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                if ASK && self.ahead != 0 {
                    let from = b.wrapping_add(self.ahead).wrapping_add(first * E::VECTOR_BYTES);
                    for offset in (0..C * E::VECTOR_BYTES).step_by(LINE) {
                        prefetch(from.wrapping_add(offset));
                    }
                }
                let mut row = [s.splat(0.0); C];
                for (j, v) in row.iter_mut().enumerate() {
                    *v = E::load(s, b, first + j);
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let coefficient = s.splat(*a.add(r * self.a_stride));
                    for (sum, v) in sums.iter_mut().zip(row) {
                        *sum = s.fma(coefficient, v, *sum);
                    }
                }
                a = a.wrapping_add(1);
                b = b.wrapping_add(self.b_stride);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    s.store(c.add(r * self.c_stride + j * LANES), *sum);
                }
            }
        }
        C
    }
}

/// `sums = sums + weight row`, of whole vectors of f32.
///
/// # Safety
/// They are there; the sums are the caller's alone.
#[inline(always)]
pub(super) unsafe fn add_row<S: Simd>(
    s: S,
    weight: f32,
    row: *const f32,
    sums: *mut f32,
    vectors: usize,
) {
    for vector in 0..vectors {
        // SAFETY: by the contract.
        unsafe {
            let to = sums.add(vector * LANES);
            let v = s.load(row.add(vector * LANES));
            s.store(to, s.fma(s.splat(weight), v, s.load(to)));
        }
    }
}

/// Queries and a run of keys, neighbours in memory.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    /// `[R][vectors]`
    pub(super) q: *const f32,
    /// Values between queries.
    pub(super) q_stride: usize,
    /// `[count][vectors]` of some element type.
    pub(super) k: *const u8,
    /// Bytes between keys.
    pub(super) k_stride: usize,
    pub(super) count: usize,
    /// Vectors of a query and a key.
    pub(super) vectors: usize,
    /// `[R][count]`, with room for 16 more in each row.
    pub(super) scores: *mut f32,
    /// Values between rows of `scores`.
    pub(super) stride: usize,
    /// From a key to what is asked for when it is read, in bytes; 0 for nothing.
    pub(super) ahead: usize,
}

impl Scores {
    /// Most queries of one call.
    pub(super) const ROWS: usize = 4;

    /// Writes the dot products of the first `rows` queries, up to [`Scores::ROWS`], with every key.
    ///
    /// # Safety
    /// Everything is there, the keys of type `E`, and `scores` is the caller's alone.
    #[inline(always)]
    pub(super) unsafe fn compute<S: Simd, E: Element>(&self, s: S, rows: usize) {
        // SAFETY: by the contract.
        unsafe {
            if const { wide::<S>() } {
                match rows {
                    1 => self.by::<S, E, 1, 16, 16>(s),
                    2 => self.by::<S, E, 2, 8, 8>(s),
                    3 => self.by::<S, E, 3, 4, 4>(s),
                    _ => self.by::<S, E, 4, 4, 4>(s),
                }
            } else {
                match rows {
                    1 => self.by::<S, E, 1, 4, 16>(s),
                    2 => self.by::<S, E, 2, 2, 8>(s),
                    3 => self.by::<S, E, 3, 1, 4>(s),
                    _ => self.by::<S, E, 4, 1, 4>(s),
                }
            }
        }
    }

    /// `K` keys are reduced together, `J` of them held in registers at once.
    #[inline(always)]
    unsafe fn by<S: Simd, E: Element, const R: usize, const J: usize, const K: usize>(&self, s: S) {
        for first in (0..self.count).step_by(K) {
            let mut products = [s.splat(0.0); LANES];
            if self.ahead != 0 {
                let from = self.k.wrapping_add(self.ahead).wrapping_add(first * self.k_stride);
                for offset in (0..K * self.k_stride).step_by(LINE) {
                    prefetch(from.wrapping_add(offset));
                }
            }
            for group in (0..K).step_by(J) {
                let mut keys = [self.k; J];
                for (j, key) in keys.iter_mut().enumerate() {
                    let index = (first + group + j).min(self.count - 1);
                    *key = self.k.wrapping_add(index * self.k_stride);
                }
                // SAFETY: by the contract.
                let sums = unsafe { self.dots::<S, E, R, J>(s, keys) };
                for (r, sums) in sums.into_iter().enumerate() {
                    products[r * K + group..][..J].copy_from_slice(&sums);
                }
            }
            let sums = s.to_array(s.sums(products));
            for r in 0..R {
                // SAFETY: at most 15 values more than the row has keys.
                unsafe {
                    let to = self.scores.add(r * self.stride + first);
                    std::ptr::copy_nonoverlapping(sums.as_ptr().add(r * K), to, K);
                }
            }
        }
    }

    /// Products of every query with `J` keys, not yet summed over the lanes.
    #[inline(always)]
    unsafe fn dots<S: Simd, E: Element, const R: usize, const J: usize>(
        &self,
        s: S,
        keys: [*const u8; J],
    ) -> [[S::F; J]; R] {
        let mut sums = [[s.splat(0.0); J]; R];
        // SAFETY: vectors of whole rows, by the contract.
        unsafe {
            for vector in 0..self.vectors {
                let mut q = [s.splat(0.0); R];
                for (r, q) in q.iter_mut().enumerate() {
                    *q = s.load(self.q.add(r * self.q_stride + vector * LANES));
                }
                for (j, key) in keys.iter().enumerate() {
                    let k = E::load(s, *key, vector);
                    for (sums, q) in sums.iter_mut().zip(q) {
                        sums[j] = s.fma(k, q, sums[j]);
                    }
                }
            }
        }
        sums
    }
}
