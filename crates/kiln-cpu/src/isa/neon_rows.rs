//! [`Rows`] on NEON.

use super::neon::{Neon, Product, widen_halves};
use super::rows::Rows;
use std::arch::aarch64::*;

/// The f16 that is word `word` at four of the addresses, as f32.
///
/// # Safety
/// They are readable, and Advanced SIMD is there.
#[inline(always)]
unsafe fn four_halves(from: &[*const u8; 8], first: usize, word: usize) -> float32x4_t {
    // SAFETY: by the contract.
    unsafe {
        let read = |i: usize| from[first + i].cast::<u16>().add(word).read_unaligned();
        let bits = [read(0), read(1), read(2), read(3)];
        widen_halves(vld1_u16(bits.as_ptr()))
    }
}

impl<P: Product> Rows for Neon<P> {
    #[inline(always)]
    unsafe fn join_bytes16(self, [a, b, c, d]: [*const u8; 4]) -> Self::B {
        // SAFETY: 16 readable bytes at each, by the contract.
        unsafe { [vld1q_u8(a), vld1q_u8(b), vld1q_u8(c), vld1q_u8(d)] }
    }

    #[inline(always)]
    unsafe fn eight_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        let [a, b] = unsafe { [four_halves(&from, 0, 0), four_halves(&from, 4, 0)] };
        [a, b, a, b]
    }

    #[inline(always)]
    unsafe fn eight_pairs_of_halves(self, from: [*const u8; 8]) -> Self::F {
        // SAFETY: by the contract.
        unsafe {
            [
                four_halves(&from, 0, 0),
                four_halves(&from, 4, 0),
                four_halves(&from, 0, 1),
                four_halves(&from, 4, 1),
            ]
        }
    }

    #[inline(always)]
    fn widen_words(self, words: [u32; 4]) -> Self::F {
        // SAFETY: the array has 16 bytes.
        let bytes = unsafe { vreinterpretq_u8_u32(vld1q_u32(words.as_ptr())) };
        compute!({
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        })
    }

    #[inline(always)]
    fn spread_quad<const J: usize>(self, v: Self::F) -> Self::F {
        let v = v[J];
        compute!([
            vdupq_laneq_f32::<0>(v),
            vdupq_laneq_f32::<1>(v),
            vdupq_laneq_f32::<2>(v),
            vdupq_laneq_f32::<3>(v),
        ])
    }

    #[inline(always)]
    fn spread_pair<const J: usize>(self, v: Self::F) -> Self::F {
        let v = v[J / 2];
        let (a, b) = if J % 2 == 0 {
            compute!((vdupq_laneq_f32::<0>(v), vdupq_laneq_f32::<1>(v)))
        } else {
            compute!((vdupq_laneq_f32::<2>(v), vdupq_laneq_f32::<3>(v)))
        };
        [a, a, b, b]
    }

    #[inline(always)]
    fn or_bits<const HIGH: bool>(self, q: Self::B, bits: Self::B) -> Self::B {
        let set = |q: uint8x16_t, bits: uint8x16_t| {
            compute!({
                let (low, high) = if HIGH {
                    (vdup_laneq_u8::<2>(bits), vdup_laneq_u8::<3>(bits))
                } else {
                    (vdup_laneq_u8::<0>(bits), vdup_laneq_u8::<1>(bits))
                };
                let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
                let set = vtstq_u8(vcombine_u8(low, high), bit);
                vorrq_u8(q, vandq_u8(set, vdupq_n_u8(16)))
            })
        };
        [set(q[0], bits[0]), set(q[1], bits[1]), set(q[2], bits[2]), set(q[3], bits[3])]
    }
}
