//! Plain Rust: the instruction set of every machine.

use super::{LANES, Simd};
use crate::view::f16_bits_to_f32;

/// Arrays and loops; what the compiler makes of them. Work on bytes is not inlined: it would be huge
/// and no faster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

#[inline(always)]
fn map<T: Copy, U, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> U) -> [U; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];

    const NAME: &'static str = "scalar";
    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self
    }

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: 16 writable values, by the contract.
        unsafe { to.cast::<Self::F>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(f16_bits_to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::F {
        // SAFETY: 16 readable values, by the contract.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::F {
        // SAFETY: 16 readable bytes, by the contract.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    fn spread(self, values: [f32; 4]) -> Self::F {
        std::array::from_fn(|lane| values[lane / 4])
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        v.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn exp2_int(self, v: Self::F) -> Self::F {
        v.map(|v| f32::from_bits(((v as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn to_array(self, v: Self::F) -> [f32; LANES] {
        v
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn half_to_float(self, bits: u16) -> f32 {
        f16_bits_to_f32(bits)
    }

    #[inline(always)]
    fn zero_below(self, v: Self::F, limit: f32, value: Self::F) -> Self::F {
        map(v, value, |v, value| if v >= limit { value } else { 0.0 })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        [value; LANES]
    }

    #[inline(always)]
    fn shl_int<const N: u32>(self, v: Self::I) -> Self::I {
        v.map(|v| v << N)
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        v.map(|v| v as f32)
    }

    #[inline(never)]
    fn dot(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        std::array::from_fn(|lane| {
            let products =
                (0..4).map(|i| i32::from(w[4 * lane + i]) * i32::from(y[4 * lane + i] as i8));
            acc[lane] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes, by the contract.
        unsafe { from.cast::<Self::B>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, v: Self::B) {
        // SAFETY: 64 writable bytes, by the contract.
        unsafe { to.cast::<Self::B>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn splat_bytes4(self, from: *const u8) -> Self::B {
        // SAFETY: 4 readable bytes, by the contract.
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 4])
    }

    #[inline(never)]
    unsafe fn twice_bytes32(self, from: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes, by the contract.
        let bytes = unsafe { from.cast::<[u8; 32]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 32])
    }

    #[inline(never)]
    unsafe fn join_bytes32(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 32 readable bytes at each, by the contract.
        let halves = unsafe {
            [a.cast::<[u8; 32]>().read_unaligned(), b.cast::<[u8; 32]>().read_unaligned()]
        };
        std::array::from_fn(|i| halves[i / 32][i % 32])
    }

    #[inline(never)]
    unsafe fn twice_bytes16(self, a: *const u8, b: *const u8) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        let halves = unsafe {
            [a.cast::<[u8; 16]>().read_unaligned(), b.cast::<[u8; 16]>().read_unaligned()]
        };
        std::array::from_fn(|i| halves[i / 32][i % 16])
    }

    #[inline(never)]
    fn shr_bytes(self, v: Self::B, counts: [u32; 4]) -> Self::B {
        std::array::from_fn(|i| v[i] >> counts[i / 16])
    }

    #[inline(never)]
    fn shl_bytes<const N: u32>(self, v: Self::B) -> Self::B {
        v.map(|byte| byte << N)
    }

    #[inline(never)]
    fn and_bytes(self, v: Self::B, mask: u8) -> Self::B {
        v.map(|byte| byte & mask)
    }

    #[inline(never)]
    fn xor_bytes(self, v: Self::B, mask: u8) -> Self::B {
        v.map(|byte| byte ^ mask)
    }

    #[inline(never)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        map(a, b, |a, b| a | b)
    }

    #[inline(never)]
    fn bytes_of_bits(self, bits: u64) -> Self::B {
        std::array::from_fn(|i| (bits >> i & 1) as u8)
    }

    #[inline(never)]
    fn lookup(self, v: Self::B, table: &[u8; 16]) -> Self::B {
        v.map(|index| table[usize::from(index & 15)])
    }

    #[inline(never)]
    fn widen_bytes(self, v: Self::B) -> [Self::F; 4] {
        std::array::from_fn(|quarter| std::array::from_fn(|lane| f32::from(v[16 * quarter + lane])))
    }
}
