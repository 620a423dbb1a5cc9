//! [`Tiles`] on AArch64.

use super::{LANES, Tiles};
use crate::isa::Simd;
use crate::isa::neon::{Neon, Product, each, transpose_block};
use std::arch::aarch64::*;

impl<P: Product> Tiles for Neon<P> {
    const SIGNED_WEIGHTS: bool = P::SIGNED_WEIGHTS;

    #[inline(always)]
    fn dot_step(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        let y = each(y, |y| compute!(vreinterpretq_s8_u8(y)));
        compute!([
            P::dot_step(acc[0], w[0], y[0]),
            P::dot_step(acc[1], w[1], y[1]),
            P::dot_step(acc[2], w[2], y[2]),
            P::dot_step(acc[3], w[3], y[3]),
        ])
    }

    #[inline(always)]
    unsafe fn load_rows(self, rows: &[*const u8; LANES], offset: usize) -> [Self::B; 4] {
        // SAFETY: 16 readable bytes at each row, by the contract.
        let quarters = [0, 4, 8, 12].map(|first| unsafe {
            let row = |row: usize| vreinterpretq_f32_u8(vld1q_u8(rows[first + row].add(offset)));
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
    fn sar7_int(self, v: Self::I) -> Self::I {
        each(v, |v| compute!(vshrq_n_s32::<7>(v)))
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        each(v, |v| compute!(vcvtnq_s32_f32(v)))
    }

    #[inline(always)]
    fn narrow(self, v: [Self::I; 2]) -> [u8; 32] {
        let mut out = [0; 32];
        for (half, out) in v.iter().zip(out.chunks_exact_mut(16)) {
            // SAFETY: the chunk has 16 bytes.
            unsafe {
                let low = vcombine_s16(vmovn_s32(half[0]), vmovn_s32(half[1]));
                let high = vcombine_s16(vmovn_s32(half[2]), vmovn_s32(half[3]));
                let bytes = vcombine_s8(vmovn_s16(low), vmovn_s16(high));
                vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(bytes));
            }
        }
        out
    }

    #[inline(always)]
    fn sums_16(self, bytes: &[u8; 32]) -> [i32; 2] {
        [0, 16].map(|at| {
            // SAFETY: 16 bytes from there on.
            let bytes = unsafe { vld1q_s8(bytes.as_ptr().add(at).cast()) };
            i32::from(compute!(vaddlvq_s8(bytes)))
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
