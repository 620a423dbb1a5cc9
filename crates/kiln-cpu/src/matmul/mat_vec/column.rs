//! A column as the row kernel wants it: two planes of quantised values in the order of the format, then
//! scales and sums by segments of 256 values.

use super::blocks::{Order, SEGMENT};
use crate::isa::LANES;
use crate::matmul::activations::{Layout, SCALE_GROUP, quantize, square_limit};

/// The f32 of a segment, in vectors of 16. For 8 groups: scales, then [`FLAGS`]; zeros, then scale times
/// sum. For 16 groups: scales; scale times sum.
pub(super) const FACTORS: usize = 4 * LANES;

/// Place among the factors of the groups that need the second plane: low bits of a number near 1, which is
/// multiplied like its neighbours.
const FLAGS: usize = 8;

/// Values of the padded column.
const fn padded(depth: usize) -> usize {
    depth.next_multiple_of(SEGMENT)
}

/// Bytes of a column.
pub(crate) const fn bytes(depth: usize) -> usize {
    padded(depth) * 2 + padded(depth) / SEGMENT * FACTORS * size_of::<f32>()
}

/// A packed column, from some segment on.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub(super) planes: [*const u8; 2],
    pub(super) factors: *const f32,
}

impl Column {
    /// The column packed at `start`, which is only looked at through unsafe methods.
    #[inline(always)]
    pub(super) fn new(depth: usize, start: *const u8) -> Self {
        let plane = padded(depth);
        let planes = [start, start.wrapping_add(plane)];
        Self { planes, factors: start.wrapping_add(2 * plane).cast() }
    }

    /// Whether unit `unit` of the first segment needs the second plane.
    ///
    /// # Safety
    /// The segment exists.
    #[inline(always)]
    pub(super) unsafe fn both_planes(self, order: Order, unit: usize) -> bool {
        let groups = match order {
            Order::Natural => 0b11 << (2 * unit),
            Order::Halves => 0b1111 << (4 * unit),
        };
        // SAFETY: the segment has its factors.
        unsafe { self.factors.cast::<u32>().add(FLAGS).read() & groups != 0 }
    }

    /// The same from the next segment on.
    #[inline(always)]
    pub(super) fn next(self) -> Self {
        let [first, second] = self.planes;
        Self {
            planes: [first.wrapping_add(SEGMENT), second.wrapping_add(SEGMENT)],
            factors: self.factors.wrapping_add(FACTORS),
        }
    }
}

/// Place of half `half` of group `group` in its plane.
#[inline(always)]
fn place(order: Order, group: usize, half: usize) -> usize {
    match order {
        Order::Natural => SCALE_GROUP * group + 16 * half,
        Order::Halves => group / 4 * 128 + 64 * half + group % 4 * 16,
    }
}

/// Quantises `x`, as deep as the layout, into the [`bytes`] of a column.
#[inline(always)]
pub(crate) fn pack(layout: Layout, order: Order, x: &[f32], out: &mut [u8]) {
    let plane = padded(layout.depth);
    let (planes, factors) = out[..bytes(layout.depth)].split_at_mut(2 * plane);
    let (first, second) = planes.split_at_mut(plane);
    let factors: &mut [f32] = bytemuck::cast_slice_mut(factors);
    // Places past the depth are multiplied with what the row kernel finds there.
    let rest = layout.depth / SEGMENT * SEGMENT;
    first[rest..].fill(0);
    second[rest..].fill(0);
    factors.fill(0.0);
    factors.chunks_exact_mut(FACTORS).for_each(|factors| factors[FLAGS] = 1.0);
    let limit = square_limit(x);
    for (group, x) in x.as_chunks::<SCALE_GROUP>().0.iter().enumerate() {
        let q = quantize(layout.planes, x, limit);
        for half in 0..2 {
            let at = place(order, group, half);
            first[at..at + 16].copy_from_slice(&q.planes[0][16 * half..16 * half + 16]);
            second[at..at + 16].copy_from_slice(&q.planes[1][16 * half..16 * half + 16]);
        }
        let sums: [i32; 2] = std::array::from_fn(|half| q.values[16 * half..][..16].iter().sum());
        let factors = &mut factors[group / 8 * FACTORS..][..FACTORS];
        let group = group % 8;
        factors[group] = q.scale;
        let flag = u32::from(q.both_planes) << group;
        factors[FLAGS] = f32::from_bits(factors[FLAGS].to_bits() | flag);
        factors[LANES + 8 + group] = q.scale * (sums[0] + sums[1]) as f32;
        for (half, sum) in sums.iter().enumerate() {
            factors[2 * LANES + 2 * group + half] = q.scale;
            factors[3 * LANES + 2 * group + half] = q.scale * *sum as f32;
        }
    }
}
