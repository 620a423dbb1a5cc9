//! AVX2 with FMA and F16C: two registers per vector. With AVX-VNNI the byte products are one
//! instruction; without, weights are widened to 16 bits, which no byte value can overflow, and
//! activations are stored as words.

use super::{LANES, Planes, Simd};
use std::arch::x86_64::*;

/// Proof that AVX2, FMA and F16C (and AVX-VNNI) are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The token, where the machine has the instructions.
    pub(crate) fn new() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        there.then_some(Self(()))
    }
}

impl Avx2<true> {
    /// The same without the byte products.
    pub(crate) fn floats(self) -> Avx2<false> {
        Avx2(())
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn enabled_vnni<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(always)]
pub(super) fn both<T: Copy, U>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> U) -> [U; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Unlike `array::map`, always inlined.
#[inline(always)]
pub(super) fn each<T: Copy, U>(v: [T; 2], f: impl Fn(T) -> U) -> [U; 2] {
    [f(v[0]), f(v[1])]
}

#[inline(always)]
fn dot_bytes<const VNNI: bool>(acc: __m256i, w: __m256i, y: __m256i) -> __m256i {
    if VNNI {
        return compute!(_mm256_dpbusd_avx_epi32(acc, w, y));
    }
    compute!({
        // Products of 16-bit lanes at the even and the odd bytes, summed in pairs.
        let low = _mm256_set1_epi16(0xff);
        let even = _mm256_madd_epi16(
            _mm256_and_si256(w, low),
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(y)),
        );
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(y));
        _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
    })
}

/// Sums of vectors `at..at + 4`, in two parts.
#[inline(always)]
fn sum_four(v: [[__m256; 2]; LANES], at: usize) -> __m256 {
    compute!({
        let a = _mm256_add_ps(v[at][0], v[at][1]);
        let b = _mm256_add_ps(v[at + 1][0], v[at + 1][1]);
        let c = _mm256_add_ps(v[at + 2][0], v[at + 2][1]);
        let d = _mm256_add_ps(v[at + 3][0], v[at + 3][1]);
        let low = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let high = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
        _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(low, high)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)),
        )
    })
}

/// Sums of vectors `at..at + 8`.
#[inline(always)]
fn sum_eight(v: [[__m256; 2]; LANES], at: usize) -> __m256 {
    let (a, b) = (sum_four(v, at), sum_four(v, at + 4));
    compute!({
        let low = _mm256_permute2f128_ps::<0x20>(a, b);
        _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b))
    })
}

/// Transposes 8 rows of 8.
#[inline(always)]
fn transpose_block(rows: [__m256; 8]) -> [__m256; 8] {
    let mut a = rows;
    let mut b = rows;
    for i in (0..8).step_by(2) {
        b[i] = compute!(_mm256_unpacklo_ps(a[i], a[i + 1]));
        b[i + 1] = compute!(_mm256_unpackhi_ps(a[i], a[i + 1]));
    }
    for i in (0..8).step_by(4) {
        for j in 0..2 {
            let low = compute!(_mm256_castps_pd(b[i + j]));
            let high = compute!(_mm256_castps_pd(b[i + j + 2]));
            a[i + 2 * j] = compute!(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)));
            a[i + 2 * j + 1] = compute!(_mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
        }
    }
    for i in 0..4 {
        b[i] = compute!(_mm256_permute2f128_ps::<0x20>(a[i], a[i + 4]));
        b[i + 4] = compute!(_mm256_permute2f128_ps::<0x31>(a[i], a[i + 4]));
    }
    b
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const NAME: &'static str = if VNNI { "avx-vnni" } else { "avx2" };
    const COLUMNS: usize = 4;
    const PLANES: Planes = if VNNI { Planes::Bytes } else { Planes::Words };

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the token proves that the instructions are there.
        unsafe { if VNNI { enabled_vnni(work) } else { enabled(work) } }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        compute!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: 16 writable values, by the contract.
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        let halves = unsafe { [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast())] };
        each(halves, |half| {
            compute!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F {
        // SAFETY: 16 readable bytes, by the contract.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))),
            ]
        }
    }

    #[inline(always)]
    fn spread(self, values: [f32; 4]) -> Self::F {
        let [a, b, c, d] = values;
        compute!([_mm256_setr_ps(a, a, a, a, b, b, b, b), _mm256_setr_ps(c, c, c, c, d, d, d, d),])
    }

    #[inline(always)]
    fn spread_halves(self, low: f32, high: f32) -> Self::F {
        compute!([_mm256_set1_ps(low), _mm256_set1_ps(high)])
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(_mm256_add_ps(a, b)))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(_mm256_sub_ps(a, b)))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(_mm256_mul_ps(a, b)))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(_mm256_div_ps(a, b)))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        compute!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(_mm256_max_ps(a, b)))
    }

    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        each(v, |v| compute!(_mm256_round_ps::<NEAREST>(v)))
    }

    #[inline(always)]
    fn exp2_int(self, v: Self::F) -> Self::F {
        each(v, |v| {
            compute!({
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            })
        })
    }

    #[inline(always)]
    fn to_array(self, v: Self::F) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        compute!({
            let half = _mm256_add_ps(v[0], v[1]);
            let quad = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }

    #[inline(always)]
    fn maximum(self, v: Self::F) -> f32 {
        compute!({
            let half = _mm256_max_ps(v[0], v[1]);
            let quad = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }

    #[inline(always)]
    fn sums(self, v: [Self::F; LANES]) -> Self::F {
        [sum_eight(v, 0), sum_eight(v, 8)]
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = rows;
        for row in [0, 8] {
            for column in [0, 8] {
                let mut block = [rows[row][column / 8]; 8];
                for (v, from) in block.iter_mut().zip(&rows[row..]) {
                    *v = from[column / 8];
                }
                for (i, v) in transpose_block(block).into_iter().enumerate() {
                    out[column + i][row / 8] = v;
                }
            }
        }
        out
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
        compute!([_mm256_cvtph_ps(_mm_set1_epi16(bits as i16)); 2])
    }

    #[inline(always)]
    fn zero_below(self, v: Self::F, limit: f32, value: Self::F) -> Self::F {
        both(v, value, |v, value| {
            compute!(_mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(v, _mm256_set1_ps(limit)), value))
        })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        compute!([_mm256_set1_epi32(value); 2])
    }

    #[inline(always)]
    fn shl_int<const N: u32>(self, v: Self::I) -> Self::I {
        each(v, |v| compute!(_mm256_sll_epi32(v, _mm_cvtsi32_si128(N as i32))))
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        each(v, |v| compute!(_mm256_cvtepi32_ps(v)))
    }

    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        [dot_bytes::<VNNI>(acc[0], w[0], y[0]), dot_bytes::<VNNI>(acc[1], w[1], y[1])]
    }

    #[inline(always)]
    fn dot_plane<const P: usize>(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        if VNNI {
            return self.dot(acc, w, y);
        }
        let w = each(w, |w| {
            if P == 0 {
                compute!(_mm256_and_si256(w, _mm256_set1_epi16(0xff)))
            } else {
                compute!(_mm256_srli_epi16::<8>(w))
            }
        });
        let products = both(w, y, |w, y| compute!(_mm256_madd_epi16(w, y)));
        both(acc, products, |acc, product| compute!(_mm256_add_epi32(acc, product)))
    }

    #[inline(always)]
    fn next_plane(self, acc: Self::I) -> Self::I {
        if VNNI { self.shl_int::<7>(acc) } else { acc }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes, by the contract.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, v: Self::B) {
        // SAFETY: 64 writable bytes, by the contract.
        unsafe {
            _mm256_storeu_si256(to.cast(), v[0]);
            _mm256_storeu_si256(to.add(32).cast(), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn splat_bytes4(self, from: *const u8) -> Self::B {
        // SAFETY: 4 readable bytes, by the contract.
        unsafe { [_mm256_set1_epi32(from.cast::<i32>().read_unaligned()); 2] }
    }

    #[inline(always)]
    unsafe fn twice_bytes32(self, from: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes, by the contract.
        unsafe { [_mm256_loadu_si256(from.cast()); 2] }
    }

    #[inline(always)]
    unsafe fn join_bytes32(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes at each, by the contract.
        unsafe { [_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast())] }
    }

    #[inline(always)]
    unsafe fn twice_bytes16(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        unsafe {
            [
                _mm256_broadcastsi128_si256(_mm_loadu_si128(a.cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(b.cast())),
            ]
        }
    }

    #[inline(always)]
    fn shr_bytes(self, v: Self::B, counts: [u32; 4]) -> Self::B {
        let [a, b, c, d] = counts.map(i64::from);
        compute!([
            _mm256_srlv_epi64(v[0], _mm256_setr_epi64x(a, a, b, b)),
            _mm256_srlv_epi64(v[1], _mm256_setr_epi64x(c, c, d, d)),
        ])
    }

    #[inline(always)]
    fn shl_bytes<const N: u32>(self, v: Self::B) -> Self::B {
        each(v, |v| compute!(_mm256_sll_epi16(v, _mm_cvtsi32_si128(N as i32))))
    }

    #[inline(always)]
    fn and_bytes(self, v: Self::B, mask: u8) -> Self::B {
        each(v, |v| compute!(_mm256_and_si256(v, _mm256_set1_epi8(mask as i8))))
    }

    #[inline(always)]
    fn xor_bytes(self, v: Self::B, mask: u8) -> Self::B {
        each(v, |v| compute!(_mm256_xor_si256(v, _mm256_set1_epi8(mask as i8))))
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        both(a, b, |a, b| compute!(_mm256_or_si256(a, b)))
    }

    #[inline(always)]
    fn bytes_of_bits(self, bits: u64) -> Self::B {
        each([bits as u32, (bits >> 32) as u32], |bits| {
            compute!({
                // Byte i gets the byte of the word that holds its bit, then its own bit is tested.
                let spread = _mm256_setr_epi64x(
                    0,
                    0x0101_0101_0101_0101,
                    0x0202_0202_0202_0202,
                    0x0303_0303_0303_0303,
                );
                let word = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread);
                let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(word, bit), bit);
                _mm256_and_si256(set, _mm256_set1_epi8(1))
            })
        })
    }

    #[inline(always)]
    fn lookup(self, v: Self::B, table: &[u8; 16]) -> Self::B {
        // SAFETY: the table has 16 bytes.
        let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
        each(v, |v| compute!(_mm256_shuffle_epi8(table, v)))
    }

    #[inline(always)]
    fn widen_bytes(self, v: Self::B) -> [Self::F; 4] {
        let widen = |quarter: __m128i| {
            compute!([
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(quarter)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(quarter))),
            ])
        };
        let low = |v: __m256i| compute!(_mm256_castsi256_si128(v));
        let high = |v: __m256i| compute!(_mm256_extracti128_si256::<1>(v));
        [widen(low(v[0])), widen(high(v[0])), widen(low(v[1])), widen(high(v[1]))]
    }
}
