//! Advanced SIMD: four registers per vector. The byte products are one instruction with I8MM, two
//! with DotProd; without, they are widened to 16 bits, which no byte value can overflow.

use super::{LANES, Simd};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::marker::PhantomData;

/// Proof that Advanced SIMD and the instructions of the byte product `P` are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<P>(PhantomData<P>);

impl<P: Product> Neon<P> {
    /// The token, where the machine has the instructions.
    pub(crate) fn new() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && P::is_there()).then_some(Self(PhantomData))
    }

    /// The same without the byte products.
    pub(crate) fn floats(self) -> Neon<Widening> {
        Neon(PhantomData)
    }
}

/// How products of unsigned and signed bytes are summed by fours.
pub(crate) trait Product: Copy + Send + Sync + 'static {
    const NAME: &'static str;

    fn is_there() -> bool;

    /// Calls `work` with the instructions enabled.
    ///
    /// # Safety
    /// They are there.
    unsafe fn run<R>(work: impl FnOnce() -> R) -> R;

    /// [`Simd::dot`] of a quarter.
    ///
    /// # Safety
    /// The instructions are there.
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t;

    /// Whether the bytes of weights in tiles are signed.
    const SIGNED_WEIGHTS: bool = false;

    /// A quarter of a step of a tile.
    ///
    /// # Safety
    /// The instructions are there.
    #[inline(always)]
    unsafe fn dot_step(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t {
        // SAFETY: by the contract.
        unsafe { Self::dot(acc, w, y) }
    }
}

/// Multiplications of 16-bit lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widening;

/// The signed dot product of DotProd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DotProd;

/// The mixed dot product of I8MM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct I8mm;

#[target_feature(enable = "neon,dotprod")]
fn enabled_dotprod<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[target_feature(enable = "neon,i8mm")]
fn enabled_i8mm<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: the function has the instruction; it only computes.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: the function has the instruction; it only computes.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Four f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widen_halves(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: the function has the instruction; it only computes.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

impl Product for Widening {
    const NAME: &'static str = "neon";

    fn is_there() -> bool {
        true
    }

    #[inline(always)]
    unsafe fn run<R>(work: impl FnOnce() -> R) -> R {
        // Every target of this architecture enables Advanced SIMD for all code.
        work()
    }

    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t {
        // SAFETY: by the contract; no memory is touched.
        unsafe {
            let w_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
            let w_high = vreinterpretq_s16_u16(vmovl_high_u8(w));
            let low = vmulq_s16(w_low, vmovl_s8(vget_low_s8(y)));
            let high = vmulq_s16(w_high, vmovl_high_s8(y));
            vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }
    }
}

impl Product for DotProd {
    const NAME: &'static str = "neon-dotprod";

    fn is_there() -> bool {
        is_aarch64_feature_detected!("dotprod")
    }

    #[inline(always)]
    unsafe fn run<R>(work: impl FnOnce() -> R) -> R {
        // SAFETY: by the contract.
        unsafe { enabled_dotprod(work) }
    }

    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t {
        // SAFETY: by the contract; no memory is touched.
        unsafe {
            // The weights minus 128 as signed bytes, and -128 times the sum of `y` taken off again.
            let bias = vdupq_n_s8(-128);
            let centred = veorq_s8(vreinterpretq_s8_u8(w), bias);
            vsubq_s32(sdot(acc, centred, y), sdot(vdupq_n_s32(0), bias, y))
        }
    }

    const SIGNED_WEIGHTS: bool = true;

    #[inline(always)]
    unsafe fn dot_step(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t {
        // SAFETY: by the contract; no memory is touched.
        unsafe { sdot(acc, vreinterpretq_s8_u8(w), y) }
    }
}

impl Product for I8mm {
    const NAME: &'static str = "neon-i8mm";

    fn is_there() -> bool {
        is_aarch64_feature_detected!("i8mm")
    }

    #[inline(always)]
    unsafe fn run<R>(work: impl FnOnce() -> R) -> R {
        // SAFETY: by the contract.
        unsafe { enabled_i8mm(work) }
    }

    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, y: int8x16_t) -> int32x4_t {
        // SAFETY: by the contract; no memory is touched.
        unsafe { usdot(acc, w, y) }
    }
}

/// Unlike `array::map`, always inlined.
#[inline(always)]
pub(super) fn each<T: Copy, U>(v: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    [f(v[0]), f(v[1]), f(v[2]), f(v[3])]
}

#[inline(always)]
fn both<T: Copy, U: Copy, R>(a: [T; 4], b: [U; 4], f: impl Fn(T, U) -> R) -> [R; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// The low halves of both quarters, and the high ones.
#[inline(always)]
fn split_halves(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    compute!({
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        [vreinterpretq_f32_f64(vtrn1q_f64(a, b)), vreinterpretq_f32_f64(vtrn2q_f64(a, b))]
    })
}

#[inline(always)]
fn add_halves(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    let [low, high] = split_halves(a, b);
    compute!(vaddq_f32(low, high))
}

#[inline(always)]
fn add_quarters(v: [float32x4_t; 4]) -> float32x4_t {
    compute!(vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])))
}

/// Transposes 4 rows of 4.
#[inline(always)]
pub(super) fn transpose_block(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let [a, b, c, d] = rows;
    let (even_low, odd_low) = compute!((vtrn1q_f32(a, b), vtrn2q_f32(a, b)));
    let (even_high, odd_high) = compute!((vtrn1q_f32(c, d), vtrn2q_f32(c, d)));
    let ([first, third], [second, fourth]) =
        (split_halves(even_low, even_high), split_halves(odd_low, odd_high));
    [first, second, third, fourth]
}

impl<P: Product> Simd for Neon<P> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    const NAME: &'static str = P::NAME;
    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(PhantomData)
    }

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the token proves that the instructions are there.
        unsafe { P::run(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        compute!([vdupq_n_f32(value); 4])
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe {
            [
                vld1q_f32(from),
                vld1q_f32(from.add(4)),
                vld1q_f32(from.add(8)),
                vld1q_f32(from.add(12)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: 16 writable values, by the contract.
        unsafe {
            vst1q_f32(to, v[0]);
            vst1q_f32(to.add(4), v[1]);
            vst1q_f32(to.add(8), v[2]);
            vst1q_f32(to.add(12), v[3]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe {
            [
                widen_halves(vld1_u16(from)),
                widen_halves(vld1_u16(from.add(4))),
                widen_halves(vld1_u16(from.add(8))),
                widen_halves(vld1_u16(from.add(12))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        let (low, high) = unsafe { (vld1q_u16(from), vld1q_u16(from.add(8))) };
        let quarters = compute!([
            vmovl_u16(vget_low_u16(low)),
            vmovl_high_u16(low),
            vmovl_u16(vget_low_u16(high)),
            vmovl_high_u16(high),
        ]);
        each(quarters, |v| compute!(vreinterpretq_f32_u32(vshlq_n_u32::<16>(v))))
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F {
        // SAFETY: 16 readable bytes, by the contract.
        let bytes = unsafe { vld1q_s8(from) };
        compute!({
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        })
    }

    #[inline(always)]
    fn spread(self, values: [f32; 4]) -> Self::F {
        each(values, |value| compute!(vdupq_n_f32(value)))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(vaddq_f32(a, b)))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(vsubq_f32(a, b)))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(vmulq_f32(a, b)))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| compute!(vdivq_f32(a, b)))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        compute!([
            vfmaq_f32(c[0], a[0], b[0]),
            vfmaq_f32(c[1], a[1], b[1]),
            vfmaq_f32(c[2], a[2], b[2]),
            vfmaq_f32(c[3], a[3], b[3]),
        ])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // Not the maximum instruction, whose result is NaN wherever either is.
        both(a, b, |a, b| compute!(vbslq_f32(vcgtq_f32(a, b), a, b)))
    }

    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        each(v, |v| compute!(vrndnq_f32(v)))
    }

    #[inline(always)]
    fn exp2_int(self, v: Self::F) -> Self::F {
        each(v, |v| {
            compute!({
                let biased = vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
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
            let quad = add_quarters(v);
            vpadds_f32(vadd_f32(vget_low_f32(quad), vget_high_f32(quad)))
        })
    }

    #[inline(always)]
    fn maximum(self, v: Self::F) -> f32 {
        compute!(vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v[0], v[2]), vmaxnmq_f32(v[1], v[3]))))
    }

    #[inline(always)]
    fn sums(self, v: [Self::F; LANES]) -> Self::F {
        each([0, 4, 8, 12], |at| {
            let low = add_halves(add_quarters(v[at]), add_quarters(v[at + 1]));
            let high = add_halves(add_quarters(v[at + 2]), add_quarters(v[at + 3]));
            compute!(vpaddq_f32(low, high))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = rows;
        for row in (0..LANES).step_by(4) {
            for column in (0..LANES).step_by(4) {
                let block = each([0, 1, 2, 3], |i: usize| rows[row + i][column / 4]);
                for (i, v) in transpose_block(block).into_iter().enumerate() {
                    out[column + i][row / 4] = v;
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
        compute!(vgetq_lane_f32::<0>(widen_halves(vdup_n_u16(bits))))
    }

    #[inline(always)]
    fn splat_f16(self, bits: u16) -> Self::F {
        compute!([widen_halves(vdup_n_u16(bits)); 4])
    }

    #[inline(always)]
    fn zero_below(self, v: Self::F, limit: f32, value: Self::F) -> Self::F {
        both(v, value, |v, value| {
            compute!({
                let keep = vcgeq_f32(v, vdupq_n_f32(limit));
                vreinterpretq_f32_u32(vandq_u32(keep, vreinterpretq_u32_f32(value)))
            })
        })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        compute!([vdupq_n_s32(value); 4])
    }

    #[inline(always)]
    fn shl_int<const N: u32>(self, v: Self::I) -> Self::I {
        each(v, |v| compute!(vshlq_s32(v, vdupq_n_s32(N as i32))))
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        each(v, |v| compute!(vcvtq_f32_s32(v)))
    }

    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        let y = each(y, |y| compute!(vreinterpretq_s8_u8(y)));
        compute!([
            P::dot(acc[0], w[0], y[0]),
            P::dot(acc[1], w[1], y[1]),
            P::dot(acc[2], w[2], y[2]),
            P::dot(acc[3], w[3], y[3]),
        ])
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes, by the contract.
        unsafe {
            [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))]
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, v: Self::B) {
        // SAFETY: 64 writable bytes, by the contract.
        unsafe {
            vst1q_u8(to, v[0]);
            vst1q_u8(to.add(16), v[1]);
            vst1q_u8(to.add(32), v[2]);
            vst1q_u8(to.add(48), v[3]);
        }
    }

    #[inline(always)]
    unsafe fn splat_bytes4(self, from: *const u8) -> Self::B {
        // SAFETY: 4 readable bytes, by the contract.
        let bytes = unsafe { from.cast::<u32>().read_unaligned() };
        compute!([vreinterpretq_u8_u32(vdupq_n_u32(bytes)); 4])
    }

    #[inline(always)]
    unsafe fn twice_bytes32(self, from: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes, by the contract.
        let (a, b) = unsafe { (vld1q_u8(from), vld1q_u8(from.add(16))) };
        [a, b, a, b]
    }

    #[inline(always)]
    unsafe fn join_bytes32(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes at each, by the contract.
        unsafe { [vld1q_u8(a), vld1q_u8(a.add(16)), vld1q_u8(b), vld1q_u8(b.add(16))] }
    }

    #[inline(always)]
    unsafe fn twice_bytes16(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        let (a, b) = unsafe { (vld1q_u8(a), vld1q_u8(b)) };
        [a, a, b, b]
    }

    #[inline(always)]
    fn shr_bytes(self, v: Self::B, counts: [u32; 4]) -> Self::B {
        // A shift to the left by less than zero is one to the right.
        both(v, counts, |v, count| compute!(vshlq_u8(v, vdupq_n_s8(-(count as i8)))))
    }

    #[inline(always)]
    fn shl_bytes<const N: u32>(self, v: Self::B) -> Self::B {
        each(v, |v| compute!(vshlq_u8(v, vdupq_n_s8(N as i8))))
    }

    #[inline(always)]
    fn and_bytes(self, v: Self::B, mask: u8) -> Self::B {
        each(v, |v| compute!(vandq_u8(v, vdupq_n_u8(mask))))
    }

    #[inline(always)]
    fn xor_bytes(self, v: Self::B, mask: u8) -> Self::B {
        each(v, |v| compute!(veorq_u8(v, vdupq_n_u8(mask))))
    }

    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        both(a, b, |a, b| compute!(vorrq_u8(a, b)))
    }

    #[inline(always)]
    fn bytes_of_bits(self, bits: u64) -> Self::B {
        each([0, 16, 32, 48], |at| {
            compute!({
                // Each byte gets the byte of the word that holds its bit, then its own bit is tested.
                let low = vdup_n_u8((bits >> at) as u8);
                let word = vcombine_u8(low, vdup_n_u8((bits >> (at + 8)) as u8));
                let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
                vandq_u8(vtstq_u8(word, bit), vdupq_n_u8(1))
            })
        })
    }

    #[inline(always)]
    fn lookup(self, v: Self::B, table: &[u8; 16]) -> Self::B {
        // SAFETY: the table has 16 bytes.
        let table = unsafe { vld1q_u8(table.as_ptr()) };
        each(v, |v| compute!(vqtbl1q_u8(table, v)))
    }

    #[inline(always)]
    fn widen_bytes(self, v: Self::B) -> [Self::F; 4] {
        each(v, |v| {
            compute!({
                let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v));
                [
                    vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                    vcvtq_f32_u32(vmovl_high_u16(low)),
                    vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                    vcvtq_f32_u32(vmovl_high_u16(high)),
                ]
            })
        })
    }
}
