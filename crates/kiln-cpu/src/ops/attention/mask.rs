//! Masks and the maps of their tiles.

use super::softmax::MASKED;
use crate::exec::Lowering;
use crate::isa::{Simd, with_float_simd};
use crate::ops::values;
use crate::view::{Half, View};
use half::{bf16, f16};
use kiln_core::ops::FlashAttentionBlocks;
use kiln_core::{DType, Element};
use std::ops::Range;

/// What a map says of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Masked,
    Mixed,
    Open,
}

impl Class {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Class::Masked,
            2 => Class::Open,
            _ => Class::Mixed,
        }
    }
}

/// A mask, with its map where there is one.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    /// `[qL, kL]` or `[B, H, qL, kL]`
    pub(super) values: View,
    /// `[B or 1, H or 1, row tiles, column tiles]` with rows and columns of a tile.
    pub(super) blocks: Option<(View, [usize; 2])>,
}

/// The row of a mask for a query `[batch, head, token]`.
fn mask_row(values: &View, [batch, head, token]: [usize; 3]) -> *const u8 {
    match values.rank() {
        2 => values.row_ptr([token]),
        _ => values.row_ptr([batch, head, token]),
    }
}

impl Mask {
    /// What is known of keys of a query from the map alone.
    ///
    /// # Safety
    /// The indices are inside the mask, `keys` is not empty, and nobody writes the map meanwhile.
    #[inline(always)]
    pub(super) unsafe fn class(&self, query: [usize; 3], keys: Range<usize>) -> Class {
        let Some((blocks, [rows, columns])) = &self.blocks else { return Class::Mixed };
        let [batch, head, token] = query;
        let row = [batch.min(blocks.extent(0) - 1), head.min(blocks.extent(1) - 1), token / rows];
        // SAFETY: the map has a byte for every tile; the rest is the caller's.
        let row = unsafe { blocks.row::<u8, 3>(row) };
        let tiles = &row[keys.start / columns..keys.end.div_ceil(*columns)];
        let class = Class::from_byte(tiles[0]);
        let same = tiles.iter().all(|tile| Class::from_byte(*tile) == class);
        if same { class } else { Class::Mixed }
    }

    /// Adds the mask of a query to the scores of keys from `first` on.
    ///
    /// # Safety
    /// The indices are inside the mask, and nobody writes it meanwhile.
    #[inline(always)]
    pub(super) unsafe fn apply(&self, query: [usize; 3], first: usize, scores: &mut [f32]) {
        let from = mask_row(&self.values, query);
        // SAFETY: the type is matched, the values are there.
        unsafe {
            match self.values.dtype() {
                DType::U8 => {
                    let attend = std::slice::from_raw_parts(from.add(first), scores.len());
                    for (score, attend) in scores.iter_mut().zip(attend) {
                        *score = if *attend == 0 { MASKED } else { *score };
                    }
                }
                DType::F16 => add::<f16>(from.cast::<f16>().add(first), scores),
                _ => add::<bf16>(from.cast::<bf16>().add(first), scores),
            }
        }
    }
}

#[inline(always)]
unsafe fn add<T: Half>(biases: *const T, scores: &mut [f32]) {
    // SAFETY: as many biases as scores, by the contract of `apply`.
    let biases = unsafe { std::slice::from_raw_parts(biases, scores.len()) };
    for (score, bias) in scores.iter_mut().zip(biases) {
        let bias = bias.widen();
        // A masked key's score may be NaN.
        *score = if bias == MASKED { MASKED } else { *score + bias };
    }
}

/// A type of masks, whose values are told apart by their bits.
trait MaskElement: Element + Copy {
    fn open(self) -> bool;
    fn masked(self) -> bool;
}

impl MaskElement for u8 {
    #[inline(always)]
    fn open(self) -> bool {
        self != 0
    }
    #[inline(always)]
    fn masked(self) -> bool {
        self == 0
    }
}

macro_rules! additive {
    ($T:ty) => {
        impl MaskElement for $T {
            #[inline(always)]
            fn open(self) -> bool {
                self.to_bits() & 0x7fff == 0
            }
            #[inline(always)]
            fn masked(self) -> bool {
                self.to_bits() == <$T>::NEG_INFINITY.to_bits()
            }
        }
    };
}

additive!(f16);
additive!(bf16);

/// Marks of a tile while its rows are looked at.
const SOME_NOT_MASKED: u8 = 1;
const SOME_NOT_OPEN: u8 = 2;

/// Adds the marks of one row of the mask.
///
/// # Safety
/// `len` values at `row`.
#[inline(always)]
unsafe fn mark<T: MaskElement>(row: *const u8, len: usize, columns: usize, marks: &mut [u8]) {
    // SAFETY: by the contract.
    let row = unsafe { std::slice::from_raw_parts(row.cast::<T>(), len) };
    for (tile, marks) in row.chunks(columns).zip(marks) {
        let (mut not_masked, mut not_open) = (0u8, 0u8);
        for value in tile {
            not_masked |= u8::from(!value.masked());
            not_open |= u8::from(!value.open());
        }
        *marks |= (not_masked * SOME_NOT_MASKED) | (not_open * SOME_NOT_OPEN);
    }
}

/// Classifies the tiles of a mask.
pub(super) fn blocks(op: &FlashAttentionBlocks<View>, lowering: &mut Lowering) {
    let FlashAttentionBlocks { mask, blocks, tile: [rows, columns] } = op.clone();
    let outer = mask.rank() - 2;
    let (q_len, kv_len) = (mask.extent(outer), mask.last());
    let [batch, heads, tile_rows] = [0, 1, 2].map(|axis| blocks.extent(axis));
    let isa = lowering.isa;
    let work = [batch * heads * tile_rows, rows.min(q_len) * kv_len];
    values::row_tasks(lowering, work, move |tiles, _| {
        with_float_simd!(isa, s => s.run(#[inline(always)] || {
            for index in tiles {
                let tile = index % tile_rows;
                let at = [index / tile_rows / heads, index / tile_rows % heads, tile];
                // SAFETY: the row of tiles is this task's alone.
                let marks = unsafe { blocks.row_mut::<u8, 3>(at) };
                marks.fill(0);
                let start = tile * rows;
                for token in start..q_len.min(start.saturating_add(rows)) {
                    let row = mask_row(&mask, [at[0], at[1], token]);
                    // SAFETY: a whole row; the type is matched.
                    unsafe {
                        match mask.dtype() {
                            DType::U8 => mark::<u8>(row, kv_len, columns, marks),
                            DType::F16 => mark::<f16>(row, kv_len, columns, marks),
                            _ => mark::<bf16>(row, kv_len, columns, marks),
                        }
                    }
                }
                for marks in marks {
                    *marks = match (*marks & SOME_NOT_MASKED, *marks & SOME_NOT_OPEN) {
                        (0, _) => 0,
                        (_, 0) => 2,
                        _ => 1,
                    };
                }
            }
        }));
    });
}
