//! [`Rows`] on x86.

use super::avx2::{Avx2, both, each};
use super::avx512::Avx512Vnni;
use super::rows::Rows;
use super::{Planes, Simd};
use std::arch::x86_64::*;

/// The two bytes at each address.
///
/// # Safety
/// They are readable, and AVX2 is there.
#[inline(always)]
unsafe fn eight_words(from: [*const u8; 8]) -> __m128i {
    // SAFETY: by the contract.
    unsafe {
        let read = |i: usize| i32::from(from[i].cast::<u16>().read_unaligned());
        let v = _mm_cvtsi32_si128(read(0));
        let v = _mm_insert_epi16::<1>(v, read(1));
        let v = _mm_insert_epi16::<2>(v, read(2));
        let v = _mm_insert_epi16::<3>(v, read(3));
        let v = _mm_insert_epi16::<4>(v, read(4));
        let v = _mm_insert_epi16::<5>(v, read(5));
        let v = _mm_insert_epi16::<6>(v, read(6));
        _mm_insert_epi16::<7>(v, read(7))
    }
}

/// The first words at eight addresses, and the second ones.
///
/// # Safety
/// 4 readable bytes at each, and AVX2 is there.
#[inline(always)]
unsafe fn eight_pairs_of_words(from: [*const u8; 8]) -> [__m128i; 2] {
    // SAFETY: by the contract.
    unsafe {
        let read = |i: usize| from[i].cast::<i32>().read_unaligned();
        let four = |at: usize| {
            let v = _mm_cvtsi32_si128(read(at));
            let v = _mm_insert_epi32::<1>(v, read(at + 1));
            let v = _mm_insert_epi32::<2>(v, read(at + 2));
            _mm_insert_epi32::<3>(v, read(at + 3))
        };
        split_pairs(four(0), four(4))
    }
}

/// The first two bytes of eight parts of `STEP` bytes. Loads begin so that each finds its word in place.
///
/// # Safety
/// The parts are readable and larger than 16 bytes, and AVX2 is there.
#[inline(always)]
unsafe fn eight_words_apart<const STEP: usize>(start: *const u8) -> __m128i {
    // SAFETY: by the contract; a load ends before its part does.
    unsafe {
        let load = |i: usize| _mm_loadu_si128(start.add(i * (STEP - 2)).cast());
        let v = _mm_blend_epi16::<0b10>(load(0), load(1));
        let v = _mm_blend_epi16::<0b100>(v, load(2));
        let v = _mm_blend_epi16::<0b1000>(v, load(3));
        let v = _mm_blend_epi16::<0b1_0000>(v, load(4));
        let v = _mm_blend_epi16::<0b10_0000>(v, load(5));
        let v = _mm_blend_epi16::<0b100_0000>(v, load(6));
        _mm_blend_epi16::<0b1000_0000>(v, load(7))
    }
}

/// As [`eight_words_apart`], of the words after them, too.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn eight_pairs_of_words_apart<const STEP: usize>(start: *const u8) -> [__m128i; 2] {
    // SAFETY: by the contract; a load ends before its part does.
    unsafe {
        let four = |start: *const u8| {
            let load = |i: usize| _mm_loadu_si128(start.add(i * (STEP - 4)).cast());
            let v = _mm_blend_epi32::<0b10>(load(0), load(1));
            let v = _mm_blend_epi32::<0b100>(v, load(2));
            _mm_blend_epi32::<0b1000>(v, load(3))
        };
        split_pairs(four(start), four(start.add(4 * STEP)))
    }
}

/// The even words of both vectors, and the odd ones.
///
/// # Safety
/// AVX2 is there.
#[inline(always)]
unsafe fn split_pairs(a: __m128i, b: __m128i) -> [__m128i; 2] {
    // SAFETY: by the contract.
    unsafe {
        let split = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        let (a, b) = (_mm_shuffle_epi8(a, split), _mm_shuffle_epi8(b, split));
        [_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b)]
    }
}

/// Where bytes of each quarter find the byte with their bit.
const BYTE_OF_BIT: [[i8; 16]; 2] = [
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3],
];

/// The bits of eight bytes.
const BITS_OF_BYTES: i64 = 0x8040_2010_0804_0201_u64 as i64;

impl<const VNNI: bool> Rows for Avx2<VNNI> {
    #[inline(always)]
    fn row_planes(bits: u32) -> Planes {
        if bits <= 6 { Planes::Bytes } else { Self::PLANES }
    }

    #[inline(always)]
    unsafe fn dot_row<const BITS: u32>(
        self,
        w: Self::B,
        y: [*const u8; 2],
        second: bool,
    ) -> Self::I {
        // SAFETY: by the contract.
        let load = |plane: usize| unsafe { self.load_bytes(y[plane]) };
        if VNNI || BITS > 6 {
            let dots = self.dot_plane::<0>(self.splat_int(0), w, load(0));
            return self.dot_plane::<1>(self.next_plane(dots), w, load(1));
        }
        join_planes(second, |plane| {
            both(w, load(plane), |w, y| compute!(_mm256_maddubs_epi16(w, y)))
        })
    }

    #[inline(always)]
    unsafe fn dot_two_rows<const BITS: u32>(
        self,
        w: [Self::B; 2],
        y: [*const u8; 2],
        second: bool,
    ) -> Self::I {
        let load = |plane: usize| {
            // SAFETY: by the contract.
            unsafe { [self.load_bytes(y[plane]), self.load_bytes(y[plane].add(64))] }
        };
        if VNNI || BITS > 5 {
            let [a, b] = load(0);
            let dots = self.dot_plane::<0>(self.splat_int(0), w[0], a);
            let dots = self.next_plane(self.dot_plane::<0>(dots, w[1], b));
            let [a, b] = load(1);
            return self.dot_plane::<1>(self.dot_plane::<1>(dots, w[0], a), w[1], b);
        }
        // Sums of four products of weights of 5 bits stay within 16 bits.
        join_planes(second, |plane| {
            let [a, b] = load(plane);
            let a = both(w[0], a, |w, y| compute!(_mm256_maddubs_epi16(w, y)));
            let b = both(w[1], b, |w, y| compute!(_mm256_maddubs_epi16(w, y)));
            both(a, b, |a, b| compute!(_mm256_add_epi16(a, b)))
        })
    }

    #[inline(always)]
    unsafe fn join_bytes16(self, from: [*const u8; 4]) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(from[i].cast());
            [_mm256_set_m128i(load(1), load(0)), _mm256_set_m128i(load(3), load(2))]
        }
    }

    #[inline(always)]
    unsafe fn eight_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        unsafe { [_mm256_cvtph_ps(eight_words(from)); 2] }
    }

    #[inline(always)]
    unsafe fn eight_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe { [_mm256_cvtph_ps(eight_words_apart::<STEP>(start)); 2] }
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        unsafe { each(eight_pairs_of_words(from), |v| _mm256_cvtph_ps(v)) }
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe { each(eight_pairs_of_words_apart::<STEP>(start), |v| _mm256_cvtph_ps(v)) }
    }

    #[inline(always)]
    unsafe fn two_halves(self, from: *const u8) -> Self::F {
        // SAFETY: 4 readable bytes, by the contract.
        let words = unsafe { from.cast::<i32>().read_unaligned() };
        compute!({
            let halves = _mm_cvtph_ps(_mm_cvtsi32_si128(words));
            let second = _mm_movehdup_ps(halves);
            [_mm256_broadcastss_ps(halves), _mm256_broadcastss_ps(second)]
        })
    }

    #[inline(always)]
    fn widen_words(self, [a, b, c, d]: [u32; 4]) -> Self::F {
        each([[a, b], [c, d]], |[low, high]| {
            let bytes = (u64::from(low) | u64::from(high) << 32) as i64;
            compute!(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes))))
        })
    }

    #[inline(always)]
    fn spread_quad<const J: usize>(self, v: Self::F) -> Self::F {
        let (v, at) = (v[J / 2], 4 * (J as i32 % 2));
        each([at, at + 2], |at| {
            let index = compute!({
                let pair = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
                _mm256_add_epi32(pair, _mm256_set1_epi32(at))
            });
            compute!(_mm256_permutevar8x32_ps(v, index))
        })
    }

    #[inline(always)]
    fn spread_pair<const J: usize>(self, v: Self::F) -> Self::F {
        let (v, at) = (v[J / 4], 2 * (J as i32 % 4));
        each([at, at + 1], |at| compute!(_mm256_permutevar8x32_ps(v, _mm256_set1_epi32(at))))
    }

    #[inline(always)]
    fn or_bits<const HIGH: bool>(self, q: Self::B, bits: Self::B) -> Self::B {
        both(q, bits, |q, bits| {
            // SAFETY: the index has 16 bytes.
            let index = unsafe { _mm_loadu_si128(BYTE_OF_BIT[usize::from(HIGH)].as_ptr().cast()) };
            compute!({
                let bytes = _mm256_shuffle_epi8(bits, _mm256_broadcastsi128_si256(index));
                let bit = _mm256_set1_epi64x(BITS_OF_BYTES);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
                _mm256_or_si256(q, _mm256_and_si256(set, _mm256_set1_epi8(16)))
            })
        })
    }
}

/// 128 times the sums in 16 bits of plane 0, plus those of plane 1 where it has any.
#[inline(always)]
fn join_planes(second: bool, plane: impl Fn(usize) -> [__m256i; 2]) -> [__m256i; 2] {
    let high = each(plane(0), |sum| compute!(_mm256_madd_epi16(sum, _mm256_set1_epi16(128))));
    if !second {
        return high;
    }
    both(high, plane(1), |high, sum| {
        compute!(_mm256_add_epi32(high, _mm256_madd_epi16(sum, _mm256_set1_epi16(1))))
    })
}

impl Rows for Avx512Vnni {
    #[inline(always)]
    unsafe fn join_bytes16(self, from: [*const u8; 4]) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        unsafe {
            let load = |i: usize| _mm_loadu_si128(from[i].cast());
            let v = _mm512_castsi128_si512(load(0));
            let v = _mm512_inserti32x4::<1>(v, load(1));
            let v = _mm512_inserti32x4::<2>(v, load(2));
            _mm512_inserti32x4::<3>(v, load(3))
        }
    }

    #[inline(always)]
    unsafe fn eight_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtph_ps(_mm256_broadcastsi128_si256(eight_words(from))) }
    }

    #[inline(always)]
    unsafe fn eight_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtph_ps(_mm256_broadcastsi128_si256(eight_words_apart::<STEP>(start))) }
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        unsafe {
            let [first, second] = eight_pairs_of_words(from);
            _mm512_cvtph_ps(_mm256_set_m128i(second, first))
        }
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves_apart<const STEP: usize>(self, start: *const u8) -> Self::F {
        // SAFETY: by the contract.
        unsafe {
            let [first, second] = eight_pairs_of_words_apart::<STEP>(start);
            _mm512_cvtph_ps(_mm256_set_m128i(second, first))
        }
    }

    #[inline(always)]
    unsafe fn two_halves(self, from: *const u8) -> Self::F {
        // SAFETY: 4 readable bytes, by the contract.
        let words = unsafe { from.cast::<i32>().read_unaligned() };
        compute!({
            let halves = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(words)));
            let index = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            _mm512_permutexvar_ps(index, halves)
        })
    }

    #[inline(always)]
    fn widen_words(self, words: [u32; 4]) -> Self::F {
        let [a, b, c, d] = words.map(|word| word as i32);
        compute!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_setr_epi32(a, b, c, d))))
    }

    #[inline(always)]
    fn spread_quad<const J: usize>(self, v: Self::F) -> Self::F {
        compute!({
            let quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            let index = _mm512_add_epi32(quarters, _mm512_set1_epi32(4 * J as i32));
            _mm512_permutexvar_ps(index, v)
        })
    }

    #[inline(always)]
    fn spread_pair<const J: usize>(self, v: Self::F) -> Self::F {
        compute!({
            let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            let index = _mm512_add_epi32(halves, _mm512_set1_epi32(2 * J as i32));
            _mm512_permutexvar_ps(index, v)
        })
    }

    #[inline(always)]
    fn or_bits<const HIGH: bool>(self, q: Self::B, bits: Self::B) -> Self::B {
        // SAFETY: the index has 16 bytes.
        let index = unsafe { _mm_loadu_si128(BYTE_OF_BIT[usize::from(HIGH)].as_ptr().cast()) };
        compute!({
            let bytes = _mm512_shuffle_epi8(bits, _mm512_broadcast_i32x4(index));
            let set = _mm512_test_epi8_mask(bytes, _mm512_set1_epi64(BITS_OF_BYTES));
            _mm512_mask_add_epi8(q, set, q, _mm512_set1_epi8(16))
        })
    }
}
