//! What matrix products need of an instruction set beside [`Simd`]: the shape and the inner loop of a
//! tile, and the interleaving of 16 rows of packed weights.
//!
//! Lane `l` of every vector belongs to row `l` of a strip of 16 rows.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

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

    /// How activations are stored for [`Tiles::dot_tile`] with weights of that many bits. Words lie in
    /// one part, and are multiplied with words of weights.
    #[inline(always)]
    fn tile_planes(bits: u32) -> Planes {
        if Self::NARROW_BYTES && bits <= 6 { Planes::Bytes } else { Self::PLANES }
    }

    /// Adds the dot products of 4 weights and 4 activations to each lane, or of 2 where both are words.
    #[inline(always)]
    fn dot_step(self, acc: Self::I, w: Self::B, y: Self::B) -> Self::I {
        self.dot(acc, w, y)
    }

    /// Adds the products of a tile: `V` strips of 16 rows, whose values of at most `BITS` bits lie by
    /// fours of bytes (`[fours][V][16 rows][4]`), with one plane of `N` columns (`[fours][width][4]`).
    /// Where [`Tiles::tile_planes`] are words, a four of bytes has two values.
    ///
    /// # Safety
    /// That many fours are readable in the strips and in the columns.
    #[inline(always)]
    unsafe fn dot_tile<const BITS: u32, const V: usize, const N: usize>(
        self,
        mut acc: [[Self::I; N]; V],
        weights: *const u8,
        (columns, width): (*const u8, usize),
        fours: usize,
    ) -> [[Self::I; N]; V] {
        // SAFETY: by the contract.
        unsafe { dot_fours::<Self, V, N>(self, &mut acc, weights, (columns, width), fours) };
        acc
    }

    /// Of each four of unsigned bytes, minus a bias, the first two as words, and the last two.
    #[inline(always)]
    fn words(self, v: Self::B, bias: u8) -> [Self::B; 2] {
        let (mut bytes, mut words) = ([0u8; 64], [[0u8; 64]; 2]);
        // SAFETY: the arrays have 64 bytes.
        unsafe {
            self.store_bytes(bytes.as_mut_ptr(), v);
            for (i, byte) in bytes.iter().enumerate() {
                let word = (i16::from(*byte) - i16::from(bias)).to_le_bytes();
                words[i % 4 / 2][i / 4 * 4 + i % 2 * 2..][..2].copy_from_slice(&word);
            }
            [self.load_bytes(words[0].as_ptr()), self.load_bytes(words[1].as_ptr())]
        }
    }

    /// The 16 bytes at an offset of each of 16 rows, by fours: lane `l` of vector `i` is four `i` of
    /// row `l`.
    ///
    /// # Safety
    /// 16 readable bytes at each.
    unsafe fn load_rows(self, rows: &[*const u8; LANES], offset: usize) -> [Self::B; 4];

    /// The same bits.
    fn ints(self, v: Self::B) -> Self::I;
    /// The same bits.
    fn bytes(self, v: Self::I) -> Self::B;
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_int(self, v: Self::I, mask: i32) -> Self::I;
    /// Shifts right, zeros coming in.
    fn shr_int(self, v: Self::I, count: u32) -> Self::I;
    /// Shifts right by 7, copies of the sign coming in.
    fn sar7_int(self, v: Self::I) -> Self::I;
    /// The nearest integer, ties to even, of values within its range.
    fn to_int(self, v: Self::F) -> Self::I;
    /// The lanes of two vectors as signed bytes, which they fit.
    fn narrow(self, v: [Self::I; 2]) -> [u8; 32];
    /// The lanes of two vectors as words, which they fit, by 16.
    #[inline(always)]
    fn narrow_words(self, v: [Self::I; 2]) -> [[u8; 32]; 2] {
        let mut out = [[0; 32]; 2];
        for (v, out) in v.into_iter().zip(&mut out) {
            let mut ints = [0u8; 64];
            // SAFETY: the array has 64 bytes.
            unsafe { self.store_bytes(ints.as_mut_ptr(), self.bytes(v)) };
            for (int, word) in ints.chunks_exact(4).zip(out.chunks_exact_mut(2)) {
                word.copy_from_slice(&int[..2]);
            }
        }
        out
    }
    /// The sums of the first and of the last 16 signed bytes.
    fn sums_16(self, bytes: &[u8; 32]) -> [i32; 2];
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
unsafe fn dot_fours<S: Tiles, const V: usize, const N: usize>(
    s: S,
    acc: &mut [[S::I; N]; V],
    weights: *const u8,
    (columns, width): (*const u8, usize),
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
                let y = s.splat_bytes4(columns.add(4 * (four * width + column)));
                for (acc, w) in acc.iter_mut().zip(&w) {
                    acc[column] = s.dot_step(acc[column], *w, y);
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
    unsafe fn load_rows(self, rows: &[*const u8; LANES], offset: usize) -> [Self::B; 4] {
        // SAFETY: 16 readable bytes at each, by the contract.
        let rows = rows.map(|row| unsafe { row.add(offset).cast::<[u8; 16]>().read_unaligned() });
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

    #[inline(always)]
    fn sar7_int(self, v: Self::I) -> Self::I {
        v.map(|v| v >> 7)
    }

    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        v.map(|v| v.round_ties_even() as i32)
    }

    #[inline(always)]
    fn narrow(self, v: [Self::I; 2]) -> [u8; 32] {
        std::array::from_fn(|i| v[i / LANES][i % LANES] as u8)
    }

    #[inline(always)]
    fn sums_16(self, bytes: &[u8; 32]) -> [i32; 2] {
        [0, 16].map(|at| bytes[at..at + 16].iter().map(|byte| i32::from(*byte as i8)).sum())
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
