//! Unpacking of block-quantised weights to unsigned bytes, 64 values at a time.
//!
//! Every format is `value = scale * q + minimum` with an unsigned byte `q` and one scale and minimum
//! per group of 16 or 32 values; for signed codes the minimum is minus the scale times their bias.
//! The layouts are those of `kiln_core::quant`.

use crate::isa::Simd;
use kiln_core::DType;

/// 64 unpacked values; scales and minima by 16 values.
pub(crate) struct Chunk<S: Simd> {
    pub(crate) q: S::B,
    pub(crate) scale: [f32; 4],
    pub(crate) minimum: [f32; 4],
}

/// Values in a chunk.
pub(crate) const CHUNK: usize = 64;

/// A block format.
pub(crate) trait Format: 'static {
    /// Values that share a scale: 16 or 32.
    const GROUP: usize;

    /// Bits of the unsigned values.
    const BITS: u32;

    /// What makes signed codes unsigned: a minimum is minus the scale times this. 0 for formats with
    /// minima of their own.
    const BIAS: f32;

    /// Unpacks chunk `index` of a row. In a row of an odd number of 32-value blocks, `half` says
    /// that only the first half of the chunk exists; the second is then any finite values.
    ///
    /// # Safety
    /// `row` is a row of blocks with that chunk.
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, half: bool) -> Chunk<S>;
}

#[inline(always)]
pub(super) unsafe fn read_u16(from: *const u8) -> u16 {
    // SAFETY: the caller's two bytes.
    u16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read_unaligned() })
}

#[inline(always)]
pub(super) unsafe fn read_u32(from: *const u8) -> u32 {
    // SAFETY: the caller's four bytes.
    u32::from_le_bytes(unsafe { from.cast::<[u8; 4]>().read_unaligned() })
}

#[inline(always)]
unsafe fn read_half<S: Simd>(s: S, from: *const u8) -> f32 {
    // SAFETY: the caller's two bytes.
    s.half_to_float(unsafe { read_u16(from) })
}

/// The f16 at `a` and at `b`, twice each.
#[inline(always)]
unsafe fn pairs_of_halves<S: Simd>(s: S, a: *const u8, b: *const u8) -> [f32; 4] {
    // SAFETY: the caller's two bytes at each.
    let bits = unsafe { [read_u16(a), read_u16(b), 0, 0] };
    let [a, b, _, _] = s.halves_to_floats(bits);
    pairs(a, b)
}

/// The two f16 at `a` and the two at `b`: the first ones, then the second ones, twice each.
#[inline(always)]
unsafe fn pairs_of_two_halves<S: Simd>(s: S, a: *const u8, b: *const u8) -> [[f32; 4]; 2] {
    // SAFETY: the caller's four bytes at each.
    let (a, b) = unsafe { (read_u32(a), read_u32(b)) };
    let bits = [a as u16, (a >> 16) as u16, b as u16, (b >> 16) as u16];
    let [a, next_a, b, next_b] = s.halves_to_floats(bits);
    [pairs(a, b), pairs(next_a, next_b)]
}

/// The f16 at `from` and the one after it.
#[inline(always)]
unsafe fn two_halves<S: Simd>(s: S, from: *const u8) -> (f32, f32) {
    // SAFETY: the caller's four bytes.
    let bits = unsafe { read_u32(from) };
    let [a, b, _, _] = s.halves_to_floats([bits as u16, (bits >> 16) as u16, 0, 0]);
    (a, b)
}

#[inline(always)]
fn pairs(a: f32, b: f32) -> [f32; 4] {
    [a, a, b, b]
}

/// The minima of codes that have a bias.
#[inline(always)]
fn biased<F: Format>(scale: [f32; 4]) -> [f32; 4] {
    scale.map(|scale| -F::BIAS * scale)
}

/// The two 32-value blocks of a chunk; the same one twice where there is only one.
#[inline(always)]
unsafe fn two_blocks(row: *const u8, bytes: usize, index: usize, half: bool) -> [*const u8; 2] {
    // SAFETY: the first block exists, the second where the chunk is whole.
    unsafe {
        let first = row.add(2 * index * bytes);
        [first, if half { first } else { first.add(bytes) }]
    }
}

/// Formats of 32 nibbles: low nibbles are the first 16 values, high ones the rest.
macro_rules! nibble_format {
    ($Name:ident, $dtype:ident, high: $high:literal, minimum: $minimum:literal, bias: $bias:literal) => {
        pub(crate) struct $Name;

        impl Format for $Name {
            const GROUP: usize = 32;
            const BITS: u32 = if $high { 5 } else { 4 };
            const BIAS: f32 = $bias;

            #[inline(always)]
            unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, half: bool) -> Chunk<S> {
                const HEAD: usize = if $minimum { 4 } else { 2 };
                const NIBBLES: usize = HEAD + if $high { 4 } else { 0 };
                // SAFETY: both blocks are inside the row, by the contract.
                unsafe {
                    let [a, b] = two_blocks(row, DType::$dtype.block_bytes(), index, half);
                    let nibbles = s.twice_bytes16(a.add(NIBBLES), b.add(NIBBLES));
                    let mut q = s.and_bytes(s.shr_bytes(nibbles, [0, 4, 0, 4]), 15);
                    if $high {
                        let bits = [read_u32(a.add(HEAD)), read_u32(b.add(HEAD))];
                        let bits = u64::from(bits[0]) | u64::from(bits[1]) << 32;
                        q = s.or_bytes(q, s.shl_bytes::<4>(s.bytes_of_bits(bits)));
                    }
                    let [scale, minimum] = if $minimum {
                        pairs_of_two_halves(s, a, b)
                    } else {
                        let scale = pairs_of_halves(s, a, b);
                        [scale, biased::<Self>(scale)]
                    };
                    Chunk { q, scale, minimum }
                }
            }
        }
    };
}

nibble_format!(Q4_0, Q4_0, high: false, minimum: false, bias: 8.0);
nibble_format!(Q4_1, Q4_1, high: false, minimum: true, bias: 0.0);
nibble_format!(Q5_0, Q5_0, high: true, minimum: false, bias: 16.0);
nibble_format!(Q5_1, Q5_1, high: true, minimum: true, bias: 0.0);

pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const GROUP: usize = 32;
    const BITS: u32 = 8;
    const BIAS: f32 = 128.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, half: bool) -> Chunk<S> {
        // SAFETY: both blocks are inside the row, by the contract.
        unsafe {
            let [a, b] = two_blocks(row, DType::Q8_0.block_bytes(), index, half);
            let q = s.xor_bytes(s.join_bytes32(a.add(2), b.add(2)), 0x80);
            let scale = pairs_of_halves(s, a, b);
            Chunk { q, scale, minimum: biased::<Self>(scale) }
        }
    }
}

/// The codebook of the IQ4 formats, offset by 128.
pub(super) const IQ4_VALUES: [u8; 16] = {
    let values: [i16; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] + 128) as u8;
        i += 1;
    }
    table
};

pub(crate) struct Iq4Nl;

impl Format for Iq4Nl {
    const GROUP: usize = 32;
    const BITS: u32 = 8;
    const BIAS: f32 = 128.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, half: bool) -> Chunk<S> {
        // SAFETY: both blocks are inside the row, by the contract.
        unsafe {
            let [a, b] = two_blocks(row, DType::Iq4Nl.block_bytes(), index, half);
            let nibbles = s.twice_bytes16(a.add(2), b.add(2));
            let index = s.and_bytes(s.shr_bytes(nibbles, [0, 4, 0, 4]), 15);
            let scale = pairs_of_halves(s, a, b);
            Chunk { q: s.lookup(index, &IQ4_VALUES), scale, minimum: biased::<Self>(scale) }
        }
    }
}

/// Block and place of a chunk in a row of 256-value blocks.
#[inline(always)]
unsafe fn in_super_block(row: *const u8, dtype: DType, index: usize) -> (*const u8, usize) {
    // SAFETY: the block is inside the row, by the caller's contract.
    (unsafe { row.add(index / 4 * dtype.block_bytes()) }, index % 4)
}

pub(crate) struct Iq4Xs;

impl Format for Iq4Xs {
    const GROUP: usize = 32;
    const BITS: u32 = 8;
    const BIAS: f32 = 128.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, _half: bool) -> Chunk<S> {
        // SAFETY: the block is inside the row, by the contract.
        unsafe {
            let (block, c) = in_super_block(row, DType::Iq4Xs, index);
            let quants = block.add(8 + 32 * c);
            let nibbles = s.twice_bytes16(quants, quants.add(16));
            let index = s.and_bytes(s.shr_bytes(nibbles, [0, 4, 0, 4]), 15);
            let d = read_half(s, block);
            let high = read_u16(block.add(2)) >> (4 * c);
            let low = *block.add(4 + c);
            let scale = |low: u8, high: u16| {
                d * (i32::from(low & 15) + i32::from((high & 3) << 4) - 32) as f32
            };
            let scale = pairs(scale(low, high), scale(low >> 4, high >> 2));
            Chunk { q: s.lookup(index, &IQ4_VALUES), scale, minimum: biased::<Self>(scale) }
        }
    }
}

/// Scale and minimum `j` of the twelve bytes that Q4_K and Q5_K pack eight of each into.
#[inline(always)]
unsafe fn six_bits(packed: *const u8, j: usize) -> (u8, u8) {
    // SAFETY: twelve bytes, and `j` is below 8.
    unsafe {
        if j < 4 {
            (*packed.add(j) & 63, *packed.add(j + 4) & 63)
        } else {
            let low = *packed.add(j + 4);
            (low & 15 | *packed.add(j - 4) >> 6 << 4, low >> 4 | *packed.add(j) >> 6 << 4)
        }
    }
}

/// Q4_K and Q5_K: the same but for a plane of high bits.
macro_rules! k_format {
    ($Name:ident, $dtype:ident, high: $high:literal) => {
        pub(crate) struct $Name;

        impl Format for $Name {
            const GROUP: usize = 32;
            const BITS: u32 = if $high { 5 } else { 4 };
            const BIAS: f32 = 0.0;

            #[inline(always)]
            unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, _half: bool) -> Chunk<S> {
                const NIBBLES: usize = if $high { 48 } else { 16 };
                // SAFETY: the block is inside the row, by the contract.
                unsafe {
                    let (block, c) = in_super_block(row, DType::$dtype, index);
                    let nibbles = s.twice_bytes32(block.add(NIBBLES + 32 * c));
                    let mut q = s.and_bytes(s.shr_bytes(nibbles, [0, 0, 4, 4]), 15);
                    if $high {
                        let (a, b) = (2 * c as u32, 2 * c as u32 + 1);
                        let plane = s.shr_bytes(s.twice_bytes32(block.add(16)), [a, a, b, b]);
                        q = s.or_bytes(q, s.shl_bytes::<4>(s.and_bytes(plane, 1)));
                    }
                    let (d, dmin) = two_halves(s, block);
                    let (scale_a, minimum_a) = six_bits(block.add(4), 2 * c);
                    let (scale_b, minimum_b) = six_bits(block.add(4), 2 * c + 1);
                    Chunk {
                        q,
                        scale: pairs(d * f32::from(scale_a), d * f32::from(scale_b)),
                        minimum: pairs(-dmin * f32::from(minimum_a), -dmin * f32::from(minimum_b)),
                    }
                }
            }
        }
    };
}

k_format!(Q4K, Q4K, high: false);
k_format!(Q5K, Q5K, high: true);

pub(crate) struct Q6K;

impl Format for Q6K {
    const GROUP: usize = 16;
    const BITS: u32 = 6;
    const BIAS: f32 = 32.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, _half: bool) -> Chunk<S> {
        // SAFETY: the block is inside the row, by the contract.
        unsafe {
            let (block, c) = in_super_block(row, DType::Q6K, index);
            let (half, odd) = (c / 2, 4 * (c as u32 % 2));
            let low = s.shr_bytes(s.load_bytes(block.add(64 * half)), [odd; 4]);
            let high = s.twice_bytes32(block.add(128 + 32 * half));
            let high = s.and_bytes(s.shr_bytes(high, [odd, odd, odd + 2, odd + 2]), 3);
            let q = s.or_bytes(s.and_bytes(low, 15), s.shl_bytes::<4>(high));
            let d = read_half(s, block.add(208));
            let scales = block.add(192 + 4 * c).cast::<[i8; 4]>().read_unaligned();
            let scale = scales.map(|scale| d * f32::from(scale));
            Chunk { q, scale, minimum: biased::<Self>(scale) }
        }
    }
}

pub(crate) struct Q2K;

impl Format for Q2K {
    const GROUP: usize = 16;
    const BITS: u32 = 2;
    const BIAS: f32 = 0.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, _half: bool) -> Chunk<S> {
        // SAFETY: the block is inside the row, by the contract.
        unsafe {
            let (block, c) = in_super_block(row, DType::Q2K, index);
            let q = two_bits(s, block.add(16), c);
            let (d, dmin) = two_halves(s, block.add(80));
            let packed = block.add(4 * c).cast::<[u8; 4]>().read_unaligned();
            Chunk {
                q,
                scale: packed.map(|byte| d * f32::from(byte & 15)),
                minimum: packed.map(|byte| -dmin * f32::from(byte >> 4)),
            }
        }
    }
}

/// Chunk `c` of the 2-bit values of Q2_K and Q3_K: 32 bytes hold four planes of 32 values.
#[inline(always)]
unsafe fn two_bits<S: Simd>(s: S, quants: *const u8, c: usize) -> S::B {
    let shift = 4 * (c as u32 % 2);
    // SAFETY: 64 bytes of quants, by the caller's contract.
    let bytes = unsafe { s.twice_bytes32(quants.add(32 * (c / 2))) };
    s.and_bytes(s.shr_bytes(bytes, [shift, shift, shift + 2, shift + 2]), 3)
}

pub(crate) struct Q3K;

impl Format for Q3K {
    const GROUP: usize = 16;
    const BITS: u32 = 3;
    const BIAS: f32 = 4.0;

    #[inline(always)]
    unsafe fn chunk<S: Simd>(s: S, row: *const u8, index: usize, _half: bool) -> Chunk<S> {
        // SAFETY: the block is inside the row, by the contract.
        unsafe {
            let (block, c) = in_super_block(row, DType::Q3K, index);
            let (a, b) = (2 * c as u32, 2 * c as u32 + 1);
            let high = s.shr_bytes(s.twice_bytes32(block), [a, a, b, b]);
            let high = s.shl_bytes::<2>(s.and_bytes(high, 1));
            let q = s.or_bytes(two_bits(s, block.add(32), c), high);
            let d = read_half(s, block.add(108));
            let packed = block.add(96);
            let low = packed.add(4 * (c % 2)).cast::<[u8; 4]>().read_unaligned();
            let top = packed.add(8).cast::<[u8; 4]>().read_unaligned();
            let scale = std::array::from_fn(|i| {
                let low = low[i] >> (4 * (c / 2)) & 15;
                let top = top[i] >> (2 * c) & 3;
                d * (i32::from(low | top << 4) - 32) as f32
            });
            Chunk { q, scale, minimum: biased::<Self>(scale) }
        }
    }
}

/// Evaluates an expression, generic over the format, for a block-quantised type.
macro_rules! with_format {
    ($dtype:expr, $Format:ident => $work:expr, else => $other:expr) => {
        match $dtype {
            kiln_core::DType::Q4_0 => $crate::matmul::format::with_format!(@ Q4_0, $Format => $work),
            kiln_core::DType::Q4_1 => $crate::matmul::format::with_format!(@ Q4_1, $Format => $work),
            kiln_core::DType::Q5_0 => $crate::matmul::format::with_format!(@ Q5_0, $Format => $work),
            kiln_core::DType::Q5_1 => $crate::matmul::format::with_format!(@ Q5_1, $Format => $work),
            kiln_core::DType::Q8_0 => $crate::matmul::format::with_format!(@ Q8_0, $Format => $work),
            kiln_core::DType::Iq4Nl => $crate::matmul::format::with_format!(@ Iq4Nl, $Format => $work),
            kiln_core::DType::Q2K => $crate::matmul::format::with_format!(@ Q2K, $Format => $work),
            kiln_core::DType::Q3K => $crate::matmul::format::with_format!(@ Q3K, $Format => $work),
            kiln_core::DType::Q4K => $crate::matmul::format::with_format!(@ Q4K, $Format => $work),
            kiln_core::DType::Q5K => $crate::matmul::format::with_format!(@ Q5K, $Format => $work),
            kiln_core::DType::Q6K => $crate::matmul::format::with_format!(@ Q6K, $Format => $work),
            kiln_core::DType::Iq4Xs => $crate::matmul::format::with_format!(@ Iq4Xs, $Format => $work),
            _ => $other,
        }
    };
    (@ $Type:ident, $Format:ident => $work:expr) => {{
        type $Format = $crate::matmul::format::$Type;
        $work
    }};
}
pub(crate) use with_format;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, with_simd};
    use kiln_core::quant;

    fn unpack<F: Format, S: Simd>(s: S, row: &[u8], values: usize) -> Vec<f32> {
        let mut out = Vec::new();
        s.run(
            #[inline(always)]
            || {
                for index in 0..values.div_ceil(CHUNK) {
                    let half = values - index * CHUNK < CHUNK;
                    // SAFETY: the row has `values` values.
                    let chunk = unsafe { F::chunk(s, row.as_ptr(), index, half) };
                    for (quarter, lanes) in s.widen_bytes(chunk.q).into_iter().enumerate() {
                        for q in s.to_array(lanes) {
                            out.push(chunk.scale[quarter].mul_add(q, chunk.minimum[quarter]));
                        }
                    }
                }
            },
        );
        out.truncate(values);
        out
    }

    #[test]
    fn every_format_unpacks_to_its_values_on_every_instruction_set() {
        for dtype in DType::QUANTIZED {
            let values = if dtype.block_len() == 32 { 160 } else { 512 };
            let source: Vec<f32> =
                (0..values).map(|i| (i as f32 * 0.7).sin() * 3.0 - 0.5).collect();
            let mut row = vec![0; dtype.row_bytes(values).unwrap()];
            quant::quantize_row(dtype, &source, &mut row).unwrap();
            let mut expected = vec![0.0; values];
            quant::dequantize_row(dtype, &row, &mut expected).unwrap();
            for isa in Isa::available() {
                let got = with_format!(dtype, F => with_simd!(isa, s => unpack::<F, _>(s, &row, values)),
                    else => unreachable!());
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let close = (got - expected).abs() <= 1e-6 * expected.abs().max(1.0);
                    assert!(close, "{dtype} {} value {i}: {got} {expected}", isa.name());
                }
            }
        }
    }
}
