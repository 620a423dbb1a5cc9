//! What the routes compute: operands, positions and which keys a query sees.

use super::element::{load_part, with_element};
use super::mask::Mask;
use crate::isa::{LANES, Simd};
use crate::ops::values;
use crate::view::View;
use kiln_core::DType;
use std::ops::Range;

/// Rows of a tensor by batch entry, head and position.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    start: *mut u8,
    pub(super) dtype: DType,
    /// Values of a row.
    pub(super) dim: usize,
    /// Bytes between batch entries, heads and positions.
    strides: [usize; 3],
}

// SAFETY: as for `View`: an address with a shape, all access to which is unsafe.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// Rows of `[B, H, L, D]` or another order of the axes; `axes` are those of batch, head and
    /// position.
    pub(super) fn batched(view: &View, axes: [usize; 3]) -> Self {
        let strides = axes.map(|axis| view.stride(axis));
        Self { start: view.start(), dtype: view.dtype(), dim: view.last(), strides }
    }

    /// Rows of a tensor without batch entries; `axes` are those of head and position.
    pub(super) fn single(view: &View, [head, position]: [usize; 2]) -> Self {
        Self::batched(view, [head, head, position])
    }

    /// Address of a row.
    #[inline(always)]
    pub(super) fn row(&self, [batch, head, position]: [usize; 3]) -> *mut u8 {
        let [b, h, p] = self.strides;
        self.start.wrapping_add(batch * b + head * h + position * p)
    }

    /// Bytes between positions.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.strides[2]
    }

    /// Writes values, of which there may be more than a row has, rounded to nearest.
    ///
    /// # Safety
    /// The row exists and is the caller's alone.
    #[inline(always)]
    pub(super) unsafe fn store(&self, row: [usize; 3], values: &[f32]) {
        let (to, values) = (self.row(row), &values[..self.dim]);
        // SAFETY: by the contract; rows of float types are aligned.
        unsafe {
            match self.dtype {
                DType::F32 => std::ptr::copy_nonoverlapping(values.as_ptr(), to.cast(), self.dim),
                dtype => values::write(dtype, to, values),
            }
        }
    }
}

/// Where keys are and what is known of their number.
#[derive(Clone, Copy)]
pub(super) enum Keys {
    /// All of `0..len`, with the first query at `offset`.
    Given {
        /// Keys.
        len: usize,
        /// Position of the first query.
        offset: usize,
    },
    /// Those of a cache.
    Cache {
        /// `[1]` u32, positions appended so far.
        len: View,
        /// Slots.
        capacity: usize,
        /// Whether positions wrap around.
        ring: bool,
    },
}

/// An attention, whatever its operation.
#[derive(Clone, Copy)]
pub(super) struct Problem {
    pub(super) q: Rows,
    pub(super) k: Rows,
    pub(super) v: Rows,
    pub(super) output: Rows,
    pub(super) keys: Keys,
    pub(super) mask: Option<Mask>,
    /// `[H]` f32
    pub(super) sinks: Option<View>,
    pub(super) batch: usize,
    pub(super) kv_heads: usize,
    /// Query heads of a key-value head.
    pub(super) group: usize,
    /// Query rows of a head.
    pub(super) tokens: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
}

/// Positions of one run.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// First key that there is.
    pub(super) first: usize,
    /// Behind the last key.
    pub(super) end: usize,
    /// Position of the first query.
    pub(super) query: usize,
    /// Position `p` is in slot `p % slots`.
    pub(super) slots: usize,
}

impl Span {
    /// The slot of a position.
    #[inline(always)]
    pub(super) fn slot(&self, position: usize) -> usize {
        if position < self.slots { position } else { position % self.slots }
    }
}

impl Problem {
    /// Values of a row up to whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.q.dim.next_multiple_of(LANES)
    }

    /// Query rows of a key-value head. Row `r` is token `r / group` of head `r % group`.
    pub(super) fn rows(&self) -> usize {
        self.tokens * self.group
    }

    /// Token and head of a row.
    #[inline(always)]
    pub(super) fn token_and_head(&self, kv_head: usize, row: usize) -> [usize; 2] {
        [row / self.group, kv_head * self.group + row % self.group]
    }

    /// The positions of this run, `None` where the length is not valid.
    ///
    /// # Safety
    /// Nobody writes the length meanwhile.
    pub(super) unsafe fn span(&self) -> Option<Span> {
        match self.keys {
            Keys::Given { len, offset } => {
                Some(Span { first: 0, end: len, query: offset, slots: usize::MAX })
            }
            Keys::Cache { len, capacity, ring } => {
                // SAFETY: one value; the rest is the caller's.
                let len = unsafe { len.row::<u32, 0>([])[0] } as usize;
                let query = len.checked_sub(self.tokens)?;
                let first = len.saturating_sub(capacity);
                let valid = ring || first == 0;
                valid.then_some(Span { first, end: len, query, slots: capacity })
            }
        }
    }

    /// First key that a token sees, unless it is behind the last.
    #[inline(always)]
    fn start(&self, span: Span, token: usize) -> usize {
        let next = span.query.saturating_add(token + 1);
        span.first.max(self.window.map_or(0, |window| next.saturating_sub(window)))
    }

    /// Behind the last key that a token sees.
    #[inline(always)]
    fn end(&self, span: Span, token: usize) -> usize {
        if self.causal { span.end.min(span.query.saturating_add(token + 1)) } else { span.end }
    }

    /// The keys that a token sees.
    #[inline(always)]
    pub(super) fn visible(&self, span: Span, token: usize) -> Range<usize> {
        let start = self.start(span, token);
        start..self.end(span, token).max(start)
    }

    /// The keys that some of these tokens see, and those between.
    #[inline(always)]
    pub(super) fn visible_to(&self, span: Span, tokens: Range<usize>) -> Range<usize> {
        let start = self.start(span, tokens.start);
        start..self.end(span, tokens.end - 1).max(start)
    }

    /// Loads a query, scaled, with zeros up to whole vectors.
    ///
    /// # Safety
    /// The row exists, nobody writes it meanwhile, and there is room for it.
    #[inline(always)]
    pub(super) unsafe fn load_query<S: Simd>(&self, s: S, row: [usize; 3], to: *mut f32) {
        // The softcap takes the score as a multiple of the cap.
        let scale = s.splat(self.scale / self.softcap.unwrap_or(1.0));
        let (from, dim) = (self.q.row(row).cast_const(), self.q.dim);
        with_element!(self.q.dtype, E => {
            for vector in 0..dim.div_ceil(LANES) {
                // SAFETY: vectors of the row; the type is matched.
                unsafe {
                    let q = load_part::<S, E>(s, from, dim, vector);
                    s.store(to.add(vector * LANES), s.mul(q, scale));
                }
            }
        });
    }

    /// The sink of a head.
    ///
    /// # Safety
    /// Nobody writes the sinks meanwhile.
    #[inline(always)]
    pub(super) unsafe fn sink(&self, head: usize) -> Option<f32> {
        // SAFETY: the type is checked; the rest is the caller's.
        self.sinks.map(|sinks| unsafe { sinks.row::<f32, 0>([])[head] })
    }

    /// Writes NaN to rows of a head.
    ///
    /// # Safety
    /// The rows are the caller's alone; `buffer` is as long as one.
    pub(super) unsafe fn fill_nan(&self, head: [usize; 2], rows: Range<usize>, buffer: &mut [f32]) {
        buffer.fill(f32::NAN);
        let [batch, kv_head] = head;
        for row in rows {
            let [token, head] = self.token_and_head(kv_head, row);
            // SAFETY: by the contract.
            unsafe { self.output.store([batch, head, token], buffer) };
        }
    }
}
