//! AVX-512 with VNNI: one register per vector.

use super::{LANES, Simd};
use std::arch::x86_64::*;

/// Proof that AVX-512 F, BW, DQ, VL and VNNI are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(());

impl Avx512Vnni {
    /// The token, where the machine has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// The even quarters of both vectors, and the odd ones.
#[inline(always)]
fn split_quarters(a: __m512, b: __m512) -> [__m512; 2] {
    compute!([
        _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
    ])
}

/// Sums of the pairs of quarters of both vectors.
#[inline(always)]
fn add_quarters(a: __m512, b: __m512) -> __m512 {
    let [even, odd] = split_quarters(a, b);
    compute!(_mm512_add_ps(even, odd))
}

/// Sums of vectors `at..at + 4`: in each quarter, those of that quarter.
#[inline(always)]
fn sum_four(v: [__m512; LANES], at: usize) -> __m512 {
    compute!({
        let [a, b, c, d] = [v[at], v[at + 1], v[at + 2], v[at + 3]];
        let low = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let high = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (low, high) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
        _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)),
        )
    })
}

impl Simd for Avx512Vnni {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const NAME: &'static str = "avx512-vnni";
    const COLUMNS: usize = 12;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the token proves that the instructions are there.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        compute!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: 16 writable values, by the contract.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F {
        // SAFETY: 16 readable bytes, by the contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    fn spread(self, values: [f32; 4]) -> Self::F {
        compute!({
            let index = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            let quad = _mm_loadu_ps(values.as_ptr());
            _mm512_permutexvar_ps(index, _mm512_castps128_ps512(quad))
        })
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        compute!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        compute!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        compute!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        compute!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        compute!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        compute!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        compute!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }

    #[inline(always)]
    fn exp2_int(self, v: Self::F) -> Self::F {
        compute!({
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn to_array(self, v: Self::F) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), v) };
        lanes
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        compute!({
            let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let quad = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }

    #[inline(always)]
    fn maximum(self, v: Self::F) -> f32 {
        compute!(_mm512_reduce_max_ps(v))
    }

    #[inline(always)]
    fn sums(self, v: [Self::F; LANES]) -> Self::F {
        let (a, b) = (sum_four(v, 0), sum_four(v, 4));
        let (c, d) = (sum_four(v, 8), sum_four(v, 12));
        add_quarters(add_quarters(a, b), add_quarters(c, d))
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut a = rows;
        let mut b = rows;
        for i in (0..LANES).step_by(2) {
            b[i] = compute!(_mm512_unpacklo_ps(a[i], a[i + 1]));
            b[i + 1] = compute!(_mm512_unpackhi_ps(a[i], a[i + 1]));
        }
        // Now a quarter of `a[4 * i + j]` is column `j` of that quarter, of rows `4 * i..4 * i + 4`.
        for i in (0..LANES).step_by(4) {
            for j in 0..2 {
                let low = compute!(_mm512_castps_pd(b[i + j]));
                let high = compute!(_mm512_castps_pd(b[i + j + 2]));
                a[i + 2 * j] = compute!(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)));
                a[i + 2 * j + 1] = compute!(_mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
            }
        }
        for j in 0..4 {
            let [e0, o0] = split_quarters(a[j], a[j + 4]);
            let [e1, o1] = split_quarters(a[j + 8], a[j + 12]);
            [b[j], b[j + 8]] = split_quarters(e0, e1);
            [b[j + 4], b[j + 12]] = split_quarters(o0, o1);
        }
        b
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn half_to_float(self, bits: u16) -> f32 {
        compute!(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))))
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: [u16; 4]) -> [f32; 4] {
        super::halves_to_floats(bits)
    }

    /// Broadcasting first keeps clear of an instruction that waits for its target's old value.
    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::F {
        compute!(_mm512_cvtph_ps(_mm256_set1_epi16(bits as i16)))
    }

    #[inline(always)]
    fn zero_below(self, v: Self::F, limit: f32, value: Self::F) -> Self::F {
        compute!({
            let keep = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(v, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(keep, value)
        })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        compute!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn shl_int<const N: u32>(self, v: Self::I) -> Self::I {
        compute!(_mm512_slli_epi32::<N>(v))
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        compute!(_mm512_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        compute!(_mm512_dpbusd_epi32(acc, w, y))
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes, by the contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, v: Self::B) {
        // SAFETY: 64 writable bytes, by the contract.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn splat_bytes4(self, from: *const u8) -> Self::B {
        // SAFETY: 4 readable bytes, by the contract.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn twice_bytes32(self, from: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes, by the contract.
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn join_bytes32(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes at each, by the contract.
        unsafe {
            let a = _mm512_castsi256_si512(_mm256_loadu_si256(a.cast()));
            _mm512_inserti64x4::<1>(a, _mm256_loadu_si256(b.cast()))
        }
    }

    #[inline(always)]
    unsafe fn twice_bytes16(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        unsafe {
            let a = _mm256_broadcastsi128_si256(_mm_loadu_si128(a.cast()));
            let b = _mm256_broadcastsi128_si256(_mm_loadu_si128(b.cast()));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
        }
    }

    #[inline(always)]
    fn shr_bytes(self, v: Self::B, counts: [u32; 4]) -> Self::B {
        let [a, b, c, d] = counts.map(i64::from);
        compute!(_mm512_srlv_epi64(v, _mm512_setr_epi64(a, a, b, b, c, c, d, d)))
    }

    #[inline(always)]
    fn shl_bytes<const N: u32>(self, v: Self::B) -> Self::B {
        compute!(_mm512_slli_epi16::<N>(v))
    }

    #[inline(always)]
    fn and_bytes(self, v: Self::B, mask: u8) -> Self::B {
        compute!(_mm512_and_si512(v, _mm512_set1_epi8(mask as i8)))
    }

    #[inline(always)]
    fn xor_bytes(self, v: Self::B, mask: u8) -> Self::B {
        compute!(_mm512_xor_si512(v, _mm512_set1_epi8(mask as i8)))
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        compute!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn bytes_of_bits(self, bits: u64) -> Self::B {
        compute!(_mm512_maskz_set1_epi8(bits, 1))
    }

    #[inline(always)]
    fn lookup(self, v: Self::B, table: &[u8; 16]) -> Self::B {
        compute!({
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v)
        })
    }

    #[inline(always)]
    fn widen_bytes(self, v: Self::B) -> [Self::F; 4] {
        compute!([
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<0>(v))),
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<1>(v))),
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<2>(v))),
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32::<3>(v))),
        ])
    }
}
