//! What matrix products need of an instruction set beside [`Simd`]: the shape and the inner loop of a
//! tile, and the interleaving of 16 rows of packed weights.
//!
//! Lane `l` of every vector belongs to row `l` of a strip of 16 rows.

use super::{LANES, Planes, Scalar, Simd};
use crate::view::f16_bits_to_f32;

/// Operations on tiles of one instruction set.
pub(crate) trait Tiles: Simd {
    /// Strips of 16 rows of a matrix-product tile.
    const STRIPS: usize = 1;

    /// Whether [`Tiles::dot_tile`] multiplies weights of at most 6 bits by bytes, though
    /// [`Simd::PLANES`] are words.
    const NARROW_BYTES: bool = false;

    /// Whether tiles take signed weights instead of unsigned ones. Signed codes then need no minima.
    const SIGNED_WEIGHTS: bool = false;

    /// What is added to the bytes of columns, where the instruction wants them unsigned; sums begin
    /// with minus this many times the sum of the weights.
    const COLUMN_BIAS: u8 = 0;

    /// How activations are stored for [`Tiles::dot_tile`] with weights of that many bits.
    #[inline(always)]
    fn tile_planes(bits: u32) -> Planes {
        if Self::NARROW_BYTES && bits <= 6 { Planes::Bytes } else { Self::PLANES }
    }

    /// Adds the dot products of 4 weights and 4 activations of plane `P` to each lane.
    #[inline(always)]
    fn dot_step<const P: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        self.dot_plane::<P>(acc, w, y)
    }

    /// Adds the part that plane `P` of [`Tiles::tile_planes`] has in the products of a tile: `V` strips
    /// of 16 rows, whose values of at most `BITS` bits lie by fours (`[fours][V][16 rows][4]`), with
    /// `N` columns (`[fours][N][4]`).
    ///
    /// # Safety
    /// That many fours are readable in the strips and in the columns.
    #[inline(always)]
    unsafe fn dot_tile<const BITS: u32, const P: usize, const V: usize, const N: usize>(
        self,
        mut acc: [[Self::I; N]; V],
        weights: *const u8,
        columns: *const u8,
        fours: usize,
    ) -> [[Self::I; N]; V] {
        // SAFETY: by the contract.
        unsafe { dot_fours::<Self, P, V, N>(self, &mut acc, weights, columns, fours) };
        acc
    }

    /// 16 bytes of each of 16 rows, by fours: lane `l` of vector `i` is four `i` of row `l`.
    ///
    /// # Safety
    /// 16 readable bytes at each.
    unsafe fn load_rows(self, rows: &[*const u8; LANES]) -> [Self::B; 4];

    /// The same bits.
    fn ints(self, v: Self::B) -> Self::I;
    /// The same bits.
    fn bytes(self, v: Self::I) -> Self::B;
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_int(self, v: Self::I, mask: i32) -> Self::I;
    /// Shifts right, zeros coming in.
    fn shr_int(self, v: Self::I, count: u32) -> Self::I;
    /// Each byte minus the same value, wrapping.
    fn sub_bytes(self, v: Self::B, value: u8) -> Self::B;
    /// Byte `j` of every lane is 16 where bit `first + j` of the lane is set, else 0; `first` is a
    /// multiple of 4.
    fn spread_bits(self, v: Self::I, first: u32) -> Self::B;
    /// The f16 in the low half of each lane.
    fn low_halves(self, v: Self::I) -> Self::F;
    /// 16 f16.
    fn halves(self, bits: [u16; LANES]) -> Self::F;
}

/// [`Tiles::dot_tile`] by [`Tiles::dot_step`].
///
/// # Safety
/// As [`Tiles::dot_tile`].
#[inline(always)]
unsafe fn dot_fours<S: Tiles, const P: usize, const V: usize, const N: usize>(
    s: S,
    acc: &mut [[S::I; N]; V],
    weights: *const u8,
    columns: *const u8,
    fours: usize,
) {
    for four in 0..fours {
        // SAFETY: by the contract.
        unsafe {
            let mut w = [s.load_bytes(weights.add(four * V * 4 * LANES)); V];
            for (v, w) in w.iter_mut().enumerate() {
                *w = s.load_bytes(weights.add((four * V + v) * 4 * LANES));
            }
            for column in 0..N {
                let y = s.splat_bytes4(columns.add(4 * (four * N + column)));
                for (acc, w) in acc.iter_mut().zip(&w) {
                    acc[column] = s.dot_step::<P>(acc[column], *w, y);
                }
            }
        }
    }
}

fn int_lanes(v: [u8; 64]) -> [i32; LANES] {
    let (fours, _) = v.as_chunks::<4>();
    std::array::from_fn(|lane| i32::from_le_bytes(fours[lane]))
}

fn byte_lanes(v: [i32; LANES]) -> [u8; 64] {
    std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4])
}

impl Tiles for Scalar {
    #[inline(never)]
    unsafe fn load_rows(self, rows: &[*const u8; LANES]) -> [Self::B; 4] {
        // SAFETY: 16 readable bytes at each, by the contract.
        let rows = rows.map(|row| unsafe { row.cast::<[u8; 16]>().read_unaligned() });
        std::array::from_fn(|four| std::array::from_fn(|i| rows[i / 4][4 * four + i % 4]))
    }

    #[inline(never)]
    fn ints(self, v: Self::B) -> Self::I {
        int_lanes(v)
    }

    #[inline(never)]
    fn bytes(self, v: Self::I) -> Self::B {
        byte_lanes(v)
    }

    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| a[lane].wrapping_sub(b[lane]))
    }

    #[inline(always)]
    fn and_int(self, v: Self::I, mask: i32) -> Self::I {
        v.map(|v| v & mask)
    }

    #[inline(always)]
    fn shr_int(self, v: Self::I, count: u32) -> Self::I {
        v.map(|v| (v as u32 >> count) as i32)
    }

    #[inline(never)]
    fn sub_bytes(self, v: Self::B, value: u8) -> Self::B {
        v.map(|byte| byte.wrapping_sub(value))
    }

    #[inline(never)]
    fn spread_bits(self, v: Self::I, first: u32) -> Self::B {
        std::array::from_fn(|i| ((v[i / 4] as u32 >> (first as usize + i % 4)) as u8 & 1) << 4)
    }

    #[inline(always)]
    fn low_halves(self, v: Self::I) -> Self::F {
        v.map(|v| f16_bits_to_f32(v as u16))
    }

    #[inline(always)]
    fn halves(self, bits: [u16; LANES]) -> Self::F {
        bits.map(f16_bits_to_f32)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Tiles, dot_fours};
    use crate::isa::Simd;
    use crate::isa::avx2::Avx2;
    use crate::isa::avx512::Avx512Vnni;
    use std::arch::x86_64::*;

    /// Wraps intrinsics that only compute.
    macro_rules! compute {
        ($e:expr) => {{
            // SAFETY: the token proves that the instructions are there; no memory is touched.
            unsafe { $e }
        }};
    }

    /// Bit `i` of each lane at byte `i`, for lanes of four equal bytes; from bit 4 on, shifted.
    const fn bit_pattern(first: u32) -> i32 {
        if first.is_multiple_of(8) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 }
    }

    /// Picks byte `first / 8` of every lane four times.
    const fn byte_pattern(first: u32) -> i32 {
        (first / 8 * 0x0101_0101) as i32
    }

    #[inline(always)]
    fn each<T: Copy, U>(v: [T; 2], f: impl Fn(T) -> U) -> [U; 2] {
        [f(v[0]), f(v[1])]
    }

    /// A tile of one strip with weights of at most 6 bits: products are summed in 16 bits.
    ///
    /// # Safety
    /// As [`Tiles::dot_tile`].
    #[inline(always)]
    unsafe fn dot_narrow<const BITS: u32, const N: usize>(
        acc: &mut [[__m256i; 2]; N],
        strip: *const u8,
        columns: *const u8,
        fours: usize,
    ) {
        // Sums of so many pairs of products below `2^BITS * 127` stay within 16 bits.
        let run = fours.min(1 << (7 - BITS));
        for start in (0..fours).step_by(run) {
            let mut sums = [[compute!(_mm256_setzero_si256()); 2]; N];
            for four in start..start + run {
                // SAFETY: that four of the strip and of the columns is readable.
                let (w, y) = unsafe {
                    let w: *const __m256i = strip.add(four * 4 * LANES).cast();
                    let w = [_mm256_loadu_si256(w), _mm256_loadu_si256(w.add(1))];
                    (w, columns.add(4 * four * N).cast::<i32>())
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
    }

    impl<const VNNI: bool> Tiles for Avx2<VNNI> {
        const NARROW_BYTES: bool = !VNNI;
        const SIGNED_WEIGHTS: bool = VNNI;
        const COLUMN_BIAS: u8 = if VNNI { 128 } else { 0 };

        #[inline(always)]
        fn dot_step<const P: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
            if VNNI { self.dot(acc, y, w) } else { self.dot_plane::<P>(acc, w, y) }
        }

        #[inline(always)]
        unsafe fn dot_tile<const BITS: u32, const P: usize, const V: usize, const N: usize>(
            self,
            mut acc: [[Self::I; N]; V],
            weights: *const u8,
            columns: *const u8,
            fours: usize,
        ) -> [[Self::I; N]; V] {
            // SAFETY: by the contract.
            unsafe {
                if const { VNNI || BITS > 6 || V > 1 } {
                    dot_fours::<Self, P, V, N>(self, &mut acc, weights, columns, fours);
                } else {
                    dot_narrow::<BITS, N>(&mut acc[0], weights, columns, fours);
                }
            }
            acc
        }

        #[inline(always)]
        unsafe fn load_rows(self, rows: &[*const u8; LANES]) -> [Self::B; 4] {
            // Rows `r` and `r + 4` of a half make one vector.
            // SAFETY: 16 readable bytes at each row, by the contract.
            let halves = [0, 8].map(|half| unsafe {
                let pair = |row: usize| {
                    let low = _mm256_castsi128_si256(_mm_loadu_si128(rows[half + row].cast()));
                    let high = _mm_loadu_si128(rows[half + row + 4].cast());
                    _mm256_inserti128_si256::<1>(low, high)
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
            });
            let [low, high] = halves;
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
        fn dot_step<const P: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
            self.dot(acc, y, w)
        }

        #[inline(always)]
        unsafe fn load_rows(self, rows: &[*const u8; LANES]) -> [Self::B; 4] {
            // Rows `r`, `r + 4`, `r + 8` and `r + 12` make one vector.
            // SAFETY: 16 readable bytes at each row, by the contract.
            unsafe {
                let quarters = |row: usize| {
                    let v = _mm512_castsi128_si512(_mm_loadu_si128(rows[row].cast()));
                    let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(rows[row + 4].cast()));
                    let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(rows[row + 8].cast()));
                    _mm512_inserti32x4::<3>(v, _mm_loadu_si128(rows[row + 12].cast()))
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
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{LANES, Tiles};
    use crate::isa::Simd;
    use crate::isa::neon::{Neon, Product, transpose_block};
    use std::arch::aarch64::*;

    /// Wraps intrinsics that only compute.
    macro_rules! compute {
        ($e:expr) => {{
            // SAFETY: the token proves that the instructions are there; no memory is touched.
            unsafe { $e }
        }};
    }

    #[inline(always)]
    fn each<T: Copy, U>(v: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
        [f(v[0]), f(v[1]), f(v[2]), f(v[3])]
    }

    impl<P: Product> Tiles for Neon<P> {
        const SIGNED_WEIGHTS: bool = P::SIGNED_WEIGHTS;

        #[inline(always)]
        fn dot_step<const PLANE: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
            let y = each(y, |y| compute!(vreinterpretq_s8_u8(y)));
            compute!([
                P::dot_step(acc[0], w[0], y[0]),
                P::dot_step(acc[1], w[1], y[1]),
                P::dot_step(acc[2], w[2], y[2]),
                P::dot_step(acc[3], w[3], y[3]),
            ])
        }

        #[inline(always)]
        unsafe fn load_rows(self, rows: &[*const u8; LANES]) -> [Self::B; 4] {
            // SAFETY: 16 readable bytes at each row, by the contract.
            let quarters = [0, 4, 8, 12].map(|first| unsafe {
                let row = |row: usize| vreinterpretq_f32_u8(vld1q_u8(rows[first + row]));
                transpose_block([row(0), row(1), row(2), row(3)])
            });
            [0, 1, 2, 3]
                .map(|four| each(quarters, |quarter| compute!(vreinterpretq_u8_f32(quarter[four]))))
        }

        #[inline(always)]
        fn ints(self, v: Self::B) -> Self::I {
            each(v, |v| compute!(vreinterpretq_s32_u8(v)))
        }

        #[inline(always)]
        fn bytes(self, v: Self::I) -> Self::B {
            each(v, |v| compute!(vreinterpretq_u8_s32(v)))
        }

        #[inline(always)]
        fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
            [0, 1, 2, 3].map(|i| compute!(vsubq_s32(a[i], b[i])))
        }

        #[inline(always)]
        fn and_int(self, v: Self::I, mask: i32) -> Self::I {
            each(v, |v| compute!(vandq_s32(v, vdupq_n_s32(mask))))
        }

        #[inline(always)]
        fn shr_int(self, v: Self::I, count: u32) -> Self::I {
            each(v, |v| {
                compute!({
                    let wide = vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-(count as i32)));
                    vreinterpretq_s32_u32(wide)
                })
            })
        }

        #[inline(always)]
        fn sub_bytes(self, v: Self::B, value: u8) -> Self::B {
            each(v, |v| compute!(vsubq_u8(v, vdupq_n_u8(value))))
        }

        #[inline(always)]
        fn spread_bits(self, v: Self::I, first: u32) -> Self::B {
            each(v, |v| {
                compute!({
                    // The byte of the lane that holds the bits, four times.
                    let byte = vandq_u32(
                        vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-(first as i32))),
                        vdupq_n_u32(15),
                    );
                    let bytes = vreinterpretq_u8_u32(vmulq_n_u32(byte, 0x0101_0101));
                    let bits = vreinterpretq_u8_u32(vdupq_n_u32(0x0804_0201));
                    vandq_u8(vtstq_u8(bytes, bits), vdupq_n_u8(16))
                })
            })
        }

        #[inline(always)]
        fn low_halves(self, v: Self::I) -> Self::F {
            let halves = each(v, |v| compute!(vmovn_u32(vreinterpretq_u32_s32(v))));
            let mut bits = [0; LANES];
            for (halves, bits) in halves.iter().zip(bits.chunks_exact_mut(4)) {
                // SAFETY: the chunk has four values.
                unsafe { vst1_u16(bits.as_mut_ptr(), *halves) };
            }
            self.halves(bits)
        }

        #[inline(always)]
        fn halves(self, bits: [u16; LANES]) -> Self::F {
            // SAFETY: the array has 16 values.
            unsafe { self.load_f16(bits.as_ptr()) }
        }
    }
}
