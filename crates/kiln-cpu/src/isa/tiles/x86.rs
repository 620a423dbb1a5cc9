//! [`Tiles`] on x86-64.

use super::{LANES, Tiles, dot_fours};
use crate::isa::Simd;
use crate::isa::avx2::{Avx2, each};
use crate::isa::avx512::Avx512Vnni;
use std::arch::x86_64::*;

/// Bit `i` of each lane at byte `i`, for lanes of four equal bytes; from bit 4 on, shifted.
const fn bit_pattern(first: u32) -> i32 {
    if first.is_multiple_of(8) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 }
}

/// Picks byte `first / 8` of every lane four times.
const fn byte_pattern(first: u32) -> i32 {
    (first / 8 * 0x0101_0101) as i32
}

/// A tile of one strip with weights of at most 6 bits: products are summed in 16 bits.
///
/// # Safety
/// As [`Tiles::dot_tile`].
#[inline(always)]
unsafe fn dot_narrow<const BITS: u32, const N: usize>(
    acc: &mut [[__m256i; 2]; N],
    strip: *const u8,
    (columns, width): (*const u8, usize),
    fours: usize,
) {
    // Sums of so many pairs of products below `2^BITS * 127` stay within 16 bits.
    let most = const { 1 << 7u32.saturating_sub(BITS) };
    // SAFETY: by the contract.
    unsafe {
        if BITS <= 4 && fours <= most {
            return dot_run::<N>(acc, strip, (columns, width), fours);
        }
        for start in (0..fours).step_by(most) {
            let strip = strip.add(start * 4 * LANES);
            let columns = columns.add(4 * start * width);
            dot_run::<N>(acc, strip, (columns, width), most.min(fours - start));
        }
    }
}

/// [`dot_narrow`] of so many fours that sums stay within 16 bits.
///
/// # Safety
/// As [`Tiles::dot_tile`].
#[inline(always)]
unsafe fn dot_run<const N: usize>(
    acc: &mut [[__m256i; 2]; N],
    strip: *const u8,
    (columns, width): (*const u8, usize),
    fours: usize,
) {
    let mut sums = [[compute!(_mm256_setzero_si256()); 2]; N];
    for four in 0..fours {
        // SAFETY: that four of the strip and of the columns is readable.
        let (w, y) = unsafe {
            let w: *const __m256i = strip.add(four * 4 * LANES).cast();
            let w = [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))];
            (w, columns.add(4 * four * width).cast::<i32>())
        };
        for (column, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let y = unsafe { _mm256_set1_epi32(y.add(column).read_unaligned()) };
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = compute!(_mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, y)));
            }
        }
    }
    for (acc, sums) in acc.iter_mut().zip(sums) {
        for (acc, sum) in acc.iter_mut().zip(sums) {
            let pairs = compute!(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
            *acc = compute!(_mm256_add_epi32(*acc, pairs));
        }
    }
}

/// [`Tiles::load_rows`] of rows `first..first + 8`.
///
/// # Safety
/// AVX2 is there, and 16 bytes are readable at each row.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_eight(rows: &[*const u8; LANES], first: usize, offset: usize) -> [__m256i; 4] {
    // SAFETY: by the contract.
    unsafe {
        // Rows `r` and `r + 4` make one vector.
        let pair = |row: usize| {
            let low = _mm_loadu_si128(rows[first + row].add(offset).cast());
            let high = _mm_loadu_si128(rows[first + row + 4].add(offset).cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        };
        let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ef, gh),
            _mm256_unpackhi_epi64(ef, gh),
        ]
    }
}

/// Bytes `FIRST` and `FIRST + 1` of each four as words, minus a bias.
#[inline(always)]
fn words<const FIRST: i32>(v: [__m256i; 2], bias: u8) -> [__m256i; 2] {
    each(v, |v| {
        compute!({
            let in_lanes = _mm_setr_epi32(0, 0x0004_0004, 0x0008_0008, 0x000c_000c);
            let zeros = 0x8000_8000_u32 as i32;
            let picked = _mm_set1_epi32(zeros | FIRST | (FIRST + 1) << 16);
            let order = _mm256_broadcastsi128_si256(_mm_add_epi32(in_lanes, picked));
            let words = _mm256_shuffle_epi8(v, order);
            _mm256_sub_epi16(words, _mm256_set1_epi16(i16::from(bias)))
        })
    })
}

/// [`Tiles::sums_16`] with AVX2.
#[inline(always)]
fn sums_16(bytes: &[u8; 32]) -> [i32; 2] {
    compute!({
        // Offset by 128, the bytes are unsigned: sums of eight, then of sixteen.
        let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
        let bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
        let eights = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
        let all = _mm256_add_epi64(eights, _mm256_unpackhi_epi64(eights, eights));
        let (low, high) = (_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
        [_mm_cvtsi128_si32(low) - 16 * 128, _mm_cvtsi128_si32(high) - 16 * 128]
    })
}

impl<const VNNI: bool> Tiles for Avx2<VNNI> {
    const NARROW_BYTES: bool = !VNNI;
    const SIGNED_WEIGHTS: bool = VNNI;
    const COLUMN_BIAS: u8 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    fn dot_step(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        if VNNI {
            return self.dot(acc, y, w);
        }
        compute!([
            _mm256_add_epi32(acc[0], _mm256_madd_epi16(w[0], y[0])),
            _mm256_add_epi32(acc[1], _mm256_madd_epi16(w[1], y[1])),
        ])
    }

    #[inline(always)]
    fn words(self, v: Self::B, bias: u8) -> [Self::B; 2] {
        [words::<0>(v, bias), words::<2>(v, bias)]
    }

    #[inline(always)]
    unsafe fn dot_tile<const BITS: u32, const V: usize, const N: usize>(
        self,
        mut acc: [[Self::I; N]; V],
        weights: *const u8,
        (columns, width): (*const u8, usize),
        fours: usize,
    ) -> [[Self::I; N]; V] {
        // SAFETY: by the contract.
        unsafe {
            if const { VNNI || BITS > 6 || V > 1 } {
                dot_fours::<Self, V, N>(self, &mut acc, weights, (columns, width), fours);
            } else {
                dot_narrow::<BITS, N>(&mut acc[0], weights, (columns, width), fours);
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn load_rows(self, rows: &[*const u8; LANES], offset: usize) -> [Self::B; 4] {
        // SAFETY: by the contract.
        let (low, high) = unsafe { (load_eight(rows, 0, offset), load_eight(rows, 8, offset)) };
        [[low[0], high[0]], [low[1], high[1]], [low[2], high[2]], [low[3], high[3]]]
    }

    #[inline(always)]
    fn ints(self, v: Self::B) -> Self::I {
        v
    }

    #[inline(always)]
    fn bytes(self, v: Self::I) -> Self::B {
        v
    }

    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        compute!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }

    #[inline(always)]
    fn and_int(self, v: Self::I, mask: i32) -> Self::I {
        each(v, |v| compute!(_mm256_and_si256(v, _mm256_set1_epi32(mask))))
    }

    #[inline(always)]
    fn shr_int(self, v: Self::I, count: u32) -> Self::I {
        each(v, |v| compute!(_mm256_srl_epi32(v, _mm_cvtsi32_si128(count as i32))))
    }

    #[inline(always)]
    fn sar7_int(self, v: Self::I) -> Self::I {
        each(v, |v| compute!(_mm256_srai_epi32::<7>(v)))
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        each(v, |v| compute!(_mm256_cvtps_epi32(v)))
    }

    #[inline(always)]
    fn narrow(self, [a, b]: [Self::I; 2]) -> [u8; 32] {
        let mut out = [0; 32];
        // SAFETY: the token proves that the instructions are there; the array has 32 bytes.
        unsafe {
            let words = [_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(b[0], b[1])];
            let fours = _mm256_packs_epi16(words[0], words[1]);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(fours, order);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn narrow_words(self, v: [Self::I; 2]) -> [[u8; 32]; 2] {
        let mut out = [[0; 32]; 2];
        for (v, out) in v.into_iter().zip(&mut out) {
            // SAFETY: the token proves that the instructions are there; the array has 32 bytes.
            unsafe {
                let words = _mm256_packs_epi32(v[0], v[1]);
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), words);
            }
        }
        out
    }

    #[inline(always)]
    fn sums_16(self, bytes: &[u8; 32]) -> [i32; 2] {
        sums_16(bytes)
    }

    #[inline(always)]
    fn sub_bytes(self, v: Self::B, value: u8) -> Self::B {
        each(v, |v| compute!(_mm256_sub_epi8(v, _mm256_set1_epi8(value as i8))))
    }

    #[inline(always)]
    fn spread_bits(self, v: Self::I, first: u32) -> Self::B {
        each(v, |v| {
            compute!({
                let in_lanes = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
                let picked = _mm_add_epi32(in_lanes, _mm_set1_epi32(byte_pattern(first)));
                let byte = _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(picked));
                let bit = _mm256_set1_epi32(bit_pattern(first));
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit);
                _mm256_and_si256(set, _mm256_set1_epi8(16))
            })
        })
    }

    #[inline(always)]
    fn low_halves(self, v: Self::I) -> Self::F {
        each(v, |v| {
            compute!({
                let low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
                let high = _mm256_extracti128_si256::<1>(low);
                _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), high))
            })
        })
    }

    #[inline(always)]
    fn halves(self, bits: [u16; LANES]) -> Self::F {
        let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| bits[i] as i16);
        let low = compute!(_mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h)));
        let [a, b, c, d, e, f, g, h] = [8, 9, 10, 11, 12, 13, 14, 15].map(|i| bits[i] as i16);
        [low, compute!(_mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h)))]
    }
}

impl Tiles for Avx512Vnni {
    const STRIPS: usize = 2;
    const SIGNED_WEIGHTS: bool = true;
    const COLUMN_BIAS: u8 = 128;

    #[inline(always)]
    fn dot_step(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        self.dot(acc, y, w)
    }

    #[inline(always)]
    unsafe fn load_rows(self, rows: &[*const u8; LANES], offset: usize) -> [Self::B; 4] {
        // Rows `r`, `r + 4`, `r + 8` and `r + 12` make one vector.
        // SAFETY: 16 readable bytes at each row, by the contract.
        unsafe {
            let load = |row: usize| _mm_loadu_si128(rows[row].add(offset).cast());
            let quarters = |row: usize| {
                let v = _mm512_castsi128_si512(load(row));
                let v = _mm512_inserti32x4::<1>(v, load(row + 4));
                let v = _mm512_inserti32x4::<2>(v, load(row + 8));
                _mm512_inserti32x4::<3>(v, load(row + 12))
            };
            let (a, b, c, d) = (quarters(0), quarters(1), quarters(2), quarters(3));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ef, gh),
                _mm512_unpackhi_epi64(ef, gh),
            ]
        }
    }

    #[inline(always)]
    fn ints(self, v: Self::B) -> Self::I {
        v
    }

    #[inline(always)]
    fn bytes(self, v: Self::I) -> Self::B {
        v
    }

    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        compute!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn and_int(self, v: Self::I, mask: i32) -> Self::I {
        compute!(_mm512_and_si512(v, _mm512_set1_epi32(mask)))
    }

    #[inline(always)]
    fn shr_int(self, v: Self::I, count: u32) -> Self::I {
        compute!(_mm512_srl_epi32(v, _mm_cvtsi32_si128(count as i32)))
    }

    #[inline(always)]
    fn sar7_int(self, v: Self::I) -> Self::I {
        compute!(_mm512_srai_epi32::<7>(v))
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        compute!(_mm512_cvtps_epi32(v))
    }

    #[inline(always)]
    fn narrow(self, [a, b]: [Self::I; 2]) -> [u8; 32] {
        let mut out = [0u8; 32];
        let to = out.as_mut_ptr();
        // SAFETY: the token proves that the instructions are there; the array has 32 bytes.
        unsafe {
            let bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
            _mm256_storeu_si256(to.cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn sums_16(self, bytes: &[u8; 32]) -> [i32; 2] {
        sums_16(bytes)
    }

    #[inline(always)]
    fn sub_bytes(self, v: Self::B, value: u8) -> Self::B {
        compute!(_mm512_sub_epi8(v, _mm512_set1_epi8(value as i8)))
    }

    #[inline(always)]
    fn spread_bits(self, v: Self::I, first: u32) -> Self::B {
        compute!({
            let in_lanes = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let picked = _mm_add_epi32(in_lanes, _mm_set1_epi32(byte_pattern(first)));
            let byte = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(picked));
            let set = _mm512_test_epi8_mask(byte, _mm512_set1_epi32(bit_pattern(first)));
            _mm512_maskz_set1_epi8(set, 16)
        })
    }

    #[inline(always)]
    fn low_halves(self, v: Self::I) -> Self::F {
        compute!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)))
    }

    #[inline(always)]
    fn halves(self, bits: [u16; LANES]) -> Self::F {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bits.map(|bits| bits as i16);
        let all = compute!(_mm256_setr_epi16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p));
        compute!(_mm512_cvtph_ps(all))
    }
}
