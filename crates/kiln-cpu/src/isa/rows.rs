//! What products with one column need of an instruction set beside [`Simd`]: scales of several blocks
//! at once, and dot products of weights with activations in two planes.

use super::{LANES, Planes, Scalar, Simd};
use crate::view::f16_bits_to_f32;

/// Operations on rows of blocks of one instruction set.
pub(crate) trait Rows: Simd {
    /// How activations are stored for [`Rows::dot_row`] with weights of that many bits.
    #[inline(always)]
    fn row_planes(_bits: u32) -> Planes {
        Self::PLANES
    }

    /// Each lane is the dot product of 4 weights of at most `BITS` bits with 4 activations, whose planes
    /// begin at `y`. Unless `both`, the bytes of the second plane are zero.
    ///
    /// # Safety
    /// 64 readable bytes at each.
    #[inline(always)]
    unsafe fn dot_row<const BITS: u32>(
        self,
        w: Self::B,
        y: [*const u8; 2],
        _both: bool,
    ) -> Self::I {
        // SAFETY: by the contract.
        unsafe {
            let dots = self.dot_plane::<0>(self.splat_int(0), w, self.load_bytes(y[0]));
            self.dot_plane::<1>(self.next_plane(dots), w, self.load_bytes(y[1]))
        }
    }

    /// The sum of two [`Rows::dot_row`]; the activations of the second follow those of the first.
    ///
    /// # Safety
    /// 128 readable bytes at each.
    #[inline(always)]
    unsafe fn dot_two_rows<const BITS: u32>(
        self,
        w: [Self::B; 2],
        y: [*const u8; 2],
        _both: bool,
    ) -> Self::I {
        // SAFETY: by the contract.
        unsafe {
            let [a, b] = y.map(|y| [self.load_bytes(y), self.load_bytes(y.add(64))]);
            let dots = self.dot_plane::<0>(self.splat_int(0), w[0], a[0]);
            let dots = self.next_plane(self.dot_plane::<0>(dots, w[1], a[1]));
            self.dot_plane::<1>(self.dot_plane::<1>(dots, w[0], b[0]), w[1], b[1])
        }
    }

    /// The 16 bytes at each address.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn join_bytes16(self, from: [*const u8; 4]) -> Self::B;

    /// Lanes `i` and `8 + i` are the f16 at `from[i]`.
    ///
    /// # Safety
    /// 2 readable bytes at each.
    unsafe fn eight_halves(self, from: [*const u8; 8]) -> Self::F;

    /// [`Rows::eight_halves`] of addresses from `start` on that are `STEP` bytes apart.
    ///
    /// # Safety
    /// Eight parts of that size are readable.
    #[inline(always)]
    unsafe fn eight_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe { self.eight_halves(apart::<STEP>(start)) }
    }

    /// Lane `i` is the f16 at `from[i]`, lane `8 + i` the one that follows it.
    ///
    /// # Safety
    /// 4 readable bytes at each.
    unsafe fn eight_pairs_of_halves(self, from: [*const u8; 8]) -> Self::F;

    /// [`Rows::eight_pairs_of_halves`] of addresses from `start` on that are `STEP` bytes apart.
    ///
    /// # Safety
    /// Eight parts of that size are readable.
    #[inline(always)]
    unsafe fn eight_pairs_of_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe { self.eight_pairs_of_halves(apart::<STEP>(start)) }
    }

    /// The lower 8 lanes are the f16 at `from`, the upper the one that follows it.
    ///
    /// # Safety
    /// 4 readable bytes.
    #[inline(always)]
    unsafe fn two_halves(self, from: *const u8) -> Self::F {
        // SAFETY: by the contract.
        let [low, high] = unsafe { from.cast::<[u16; 2]>().read_unaligned() };
        self.spread_halves(self.half_to_float(low), self.half_to_float(high))
    }

    /// The unsigned bytes of the words.
    fn widen_words(self, words: [u32; 4]) -> Self::F;

    /// Lane `l` is lane `4 * J + l / 4` of `v`.
    fn spread_quad<const J: usize>(self, v: Self::F) -> Self::F;

    /// Lane `l` is lane `2 * J + l / 8` of `v`.
    fn spread_pair<const J: usize>(self, v: Self::F) -> Self::F;

    /// Sets bit 4 of byte `i` of each quarter of `q` where bit `i`, or `16 + i` if `HIGH`, of that quarter
    /// of `bits` is set. The bit is not set before.
    fn or_bits<const HIGH: bool>(self, q: Self::B, bits: Self::B) -> Self::B;
}

#[inline(always)]
fn apart<const STEP: usize>(start: *const u8) -> [*const u8; 8] {
    [0, 1, 2, 3, 4, 5, 6, 7].map(|i| start.wrapping_add(i * STEP))
}

impl Rows for Scalar {
    #[inline(never)]
    unsafe fn join_bytes16(self, from: [*const u8; 4]) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        let parts = from.map(|from| unsafe { from.cast::<[u8; 16]>().read_unaligned() });
        std::array::from_fn(|i| parts[i / 16][i % 16])
    }

    #[inline(always)]
    unsafe fn eight_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: 2 readable bytes at each, by the contract.
        let read = |from: *const u8| unsafe { from.cast::<u16>().read_unaligned() };
        std::array::from_fn(|i| f16_bits_to_f32(read(from[i % 8])))
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: 4 readable bytes at each, by the contract.
        let read = |from: *const u8| unsafe { from.cast::<[u16; 2]>().read_unaligned() };
        std::array::from_fn(|i| f16_bits_to_f32(read(from[i % 8])[i / 8]))
    }

    #[inline(always)]
    fn widen_words(self, words: [u32; 4]) -> Self::F {
        std::array::from_fn(|i| f32::from((words[i / 4] >> (8 * (i % 4))) as u8))
    }

    #[inline(always)]
    fn spread_quad<const J: usize>(self, v: Self::F) -> Self::F {
        std::array::from_fn(|lane| v[4 * J + lane / 4])
    }

    #[inline(always)]
    fn spread_pair<const J: usize>(self, v: Self::F) -> Self::F {
        std::array::from_fn(|lane| v[2 * J + lane / (LANES / 2)])
    }

    #[inline(never)]
    fn or_bits<const HIGH: bool>(self, q: Self::B, bits: Self::B) -> Self::B {
        std::array::from_fn(|i| {
            let place = i % 16 + if HIGH { 16 } else { 0 };
            q[i] | (bits[i / 16 * 16 + place / 8] >> (place % 8) & 1) << 4
        })
    }
}
