//! Rows of blocks, 256 values at a time: scales of all their groups in one vector, and dot products with
//! a packed column.

use crate::isa::Rows;
use crate::matmul::format::{
    Format, IQ4_VALUES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    read_u16, read_u32,
};
use kiln_core::DType;

/// Values in a segment: a block of 256, or eight of 32.
pub(crate) const SEGMENT: usize = 256;

/// Order of the activations of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// That of the row.
    Natural,
    /// Of each four groups of 32, the first halves and then the second ones: where the nibbles of four
    /// blocks are unpacked at once.
    Halves,
}

/// Where the blocks of a segment lie.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(super) start: *const u8,
    /// Of blocks of 32 values.
    pub(super) offsets: [usize; 8],
    /// Whether they follow each other without gaps.
    pub(super) whole: bool,
}

impl Blocks {
    /// Byte `byte` of a block.
    #[inline(always)]
    fn at(&self, block: usize, byte: usize) -> *const u8 {
        self.start.wrapping_add(self.offsets[block] + byte)
    }

    /// The starts of all blocks.
    #[inline(always)]
    fn all(&self) -> [*const u8; 8] {
        self.offsets.map(|offset| self.start.wrapping_add(offset))
    }

    /// Byte `byte` of the four blocks of unit `unit`.
    #[inline(always)]
    fn four(&self, unit: usize, byte: usize) -> [*const u8; 4] {
        [0, 1, 2, 3].map(|i| self.at(4 * unit + i, byte))
    }
}

/// A block format as the row kernel wants it.
pub(crate) trait RowFormat: Format {
    const DTYPE: DType;

    const ORDER: Order = Order::Natural;

    /// Units of a segment: what [`RowFormat::dots`] multiplies at once.
    const UNITS: usize = match Self::ORDER {
        Order::Natural => 4,
        Order::Halves => 2,
    };

    /// Bytes of a segment.
    const BYTES: usize = Self::DTYPE.block_bytes() * (SEGMENT / Self::DTYPE.block_len());

    /// Scales and minima of the groups of a segment: of 16 groups each in a vector; of 8 groups both in
    /// one, first the scales, and that twice.
    ///
    /// # Safety
    /// The blocks exist.
    unsafe fn factors<S: Rows>(s: S, blocks: &Blocks) -> [S::F; 2];

    /// Dot products of unit `J` with a segment of a column, whose planes begin at `y`. Unless `both`, the
    /// second plane has zeros there, or is no plane of low bytes.
    ///
    /// # Safety
    /// The blocks exist, and `y` is a segment of a column in the same order.
    unsafe fn dots<S: Rows, const J: usize>(
        s: S,
        blocks: &Blocks,
        y: [*const u8; 2],
        both: bool,
    ) -> S::I;

    /// The factors of the lanes of [`RowFormat::dots`].
    #[inline(always)]
    fn spread<S: Rows, const J: usize>(s: S, factors: S::F) -> S::F {
        if Self::GROUP == 16 || Self::ORDER == Order::Halves {
            s.spread_quad::<J>(factors)
        } else {
            s.spread_pair::<J>(factors)
        }
    }
}

/// One for the scales and `minimum` for the minima, to multiply factors of 8 groups by.
const fn signs(minimum: f32) -> [f32; 16] {
    let mut lanes = [1.0; 16];
    let mut lane = 8;
    while lane < 16 {
        lanes[lane] = minimum;
        lane += 1;
    }
    lanes
}

/// The same scale for both, times `-BIAS` for the minima.
#[inline(always)]
fn biased<S: Rows, F: Format>(s: S, scales: S::F) -> [S::F; 2] {
    let signs = const { signs(-F::BIAS) };
    // SAFETY: the array has 16 values.
    [s.mul(scales, unsafe { s.load(signs.as_ptr()) }); 2]
}

/// The f16 that blocks of `BYTES` begin with, twice.
///
/// # Safety
/// The blocks exist.
#[inline(always)]
unsafe fn scales<S: Rows, const BYTES: usize>(s: S, blocks: &Blocks) -> S::F {
    // SAFETY: by the contract.
    unsafe {
        if blocks.whole {
            s.eight_halves_apart::<BYTES>(blocks.start)
        } else {
            s.eight_halves(blocks.all())
        }
    }
}

/// Formats of 32 nibbles in a block.
macro_rules! nibble_rows {
    ($Name:ident, head: $head:literal, high: $high:literal, codebook: $codebook:literal) => {
        impl RowFormat for $Name {
            const DTYPE: DType = DType::$Name;
            const ORDER: Order = Order::Halves;

            #[inline(always)]
            unsafe fn factors<S: Rows>(s: S, blocks: &Blocks) -> [S::F; 2] {
                // SAFETY: blocks begin with one or two f16.
                unsafe {
                    if $head == 4 && blocks.whole {
                        let start = blocks.start;
                        [s.eight_pairs_of_halves_apart::<{ DType::$Name.block_bytes() }>(start); 2]
                    } else if $head == 4 {
                        [s.eight_pairs_of_halves(blocks.all()); 2]
                    } else {
                        biased::<S, Self>(s, scales::<S, { DType::$Name.block_bytes() }>(s, blocks))
                    }
                }
            }

            #[inline(always)]
            unsafe fn dots<S: Rows, const J: usize>(
                s: S,
                blocks: &Blocks,
                y: [*const u8; 2],
                both: bool,
            ) -> S::I {
                const NIBBLES: usize = $head + if $high { 4 } else { 0 };
                // SAFETY: the 16 bytes of nibbles, and those from the high bits on, are in the block; a
                // unit has 128 values.
                unsafe {
                    let nibbles = s.join_bytes16(blocks.four(J, NIBBLES));
                    let mut low = s.and_bytes(nibbles, 15);
                    let mut high = s.and_bytes(s.shr_bytes(nibbles, [4; 4]), 15);
                    if $high {
                        let bits = s.join_bytes16(blocks.four(J, $head));
                        low = s.or_bits::<false>(low, bits);
                        high = s.or_bits::<true>(high, bits);
                    }
                    if $codebook {
                        low = s.lookup(low, &IQ4_VALUES);
                        high = s.lookup(high, &IQ4_VALUES);
                    }
                    let y = [y[0].add(128 * J), y[1].add(128 * J)];
                    match Self::BITS {
                        4 => s.dot_two_rows::<4>([low, high], y, both),
                        5 => s.dot_two_rows::<5>([low, high], y, both),
                        _ => s.dot_two_rows::<8>([low, high], y, both),
                    }
                }
            }
        }
    };
}

nibble_rows!(Q4_0, head: 2, high: false, codebook: false);
nibble_rows!(Q4_1, head: 4, high: false, codebook: false);
nibble_rows!(Q5_0, head: 2, high: true, codebook: false);
nibble_rows!(Q5_1, head: 4, high: true, codebook: false);
nibble_rows!(Iq4Nl, head: 2, high: false, codebook: true);

impl RowFormat for Q8_0 {
    const DTYPE: DType = DType::Q8_0;

    #[inline(always)]
    unsafe fn factors<S: Rows>(s: S, blocks: &Blocks) -> [S::F; 2] {
        // SAFETY: blocks begin with an f16.
        unsafe { biased::<S, Self>(s, scales::<S, { DType::Q8_0.block_bytes() }>(s, blocks)) }
    }

    #[inline(always)]
    unsafe fn dots<S: Rows, const J: usize>(
        s: S,
        blocks: &Blocks,
        y: [*const u8; 2],
        both: bool,
    ) -> S::I {
        // SAFETY: blocks have 32 bytes after the scale; a unit has 64 values.
        unsafe {
            let q = s.join_bytes32(blocks.at(2 * J, 2), blocks.at(2 * J + 1, 2));
            let y = [y[0].add(64 * J), y[1].add(64 * J)];
            s.dot_row::<8>(s.xor_bytes(q, 0x80), y, both)
        }
    }
}

/// Formats of blocks of 256 values.
macro_rules! super_block_rows {
    ($Name:ident, $bits:literal, $factors:ident) => {
        impl RowFormat for $Name {
            const DTYPE: DType = DType::$Name;

            #[inline(always)]
            unsafe fn factors<S: Rows>(s: S, blocks: &Blocks) -> [S::F; 2] {
                // SAFETY: the block exists.
                unsafe { $factors::<S>(s, blocks.start) }
            }

            #[inline(always)]
            unsafe fn dots<S: Rows, const J: usize>(
                s: S,
                blocks: &Blocks,
                y: [*const u8; 2],
                both: bool,
            ) -> S::I {
                // SAFETY: the block exists; a unit has 64 values.
                unsafe {
                    let q = Self::chunk(s, blocks.start, J, false).q;
                    s.dot_row::<$bits>(q, [y[0].add(64 * J), y[1].add(64 * J)], both)
                }
            }
        }
    };
}

super_block_rows!(Q2K, 2, q2_k_factors);
super_block_rows!(Q3K, 3, q3_k_factors);
super_block_rows!(Q4K, 4, q4_k_factors);
super_block_rows!(Q5K, 5, q4_k_factors);
super_block_rows!(Q6K, 6, q6_k_factors);
super_block_rows!(Iq4Xs, 8, iq4_xs_factors);

/// # Safety
/// A Q2_K block.
#[inline(always)]
unsafe fn q2_k_factors<S: Rows>(s: S, block: *const u8) -> [S::F; 2] {
    // SAFETY: 16 bytes of scales and minima; two f16 after the quants.
    unsafe {
        let words = block.cast::<[u32; 4]>().read_unaligned();
        let scales = s.widen_words(words.map(|word| word & 0x0f0f_0f0f));
        let minima = s.widen_words(words.map(|word| word >> 4 & 0x0f0f_0f0f));
        let (d, dmin) =
            (s.splat_f16(read_u16(block.add(80))), s.splat_f16(read_u16(block.add(82))));
        [s.mul(scales, d), s.mul(minima, s.sub(s.splat(0.0), dmin))]
    }
}

/// Scales of 16 groups, and minima that are minus `bias` times them.
#[inline(always)]
fn signed_factors<S: Rows>(s: S, scales: S::F, bias: f32) -> [S::F; 2] {
    [scales, s.mul(scales, s.splat(-bias))]
}

/// # Safety
/// A Q3_K block.
#[inline(always)]
unsafe fn q3_k_factors<S: Rows>(s: S, block: *const u8) -> [S::F; 2] {
    // SAFETY: 12 bytes of scales, then an f16.
    unsafe {
        let [a, b, top] = block.add(96).cast::<[u32; 3]>().read_unaligned();
        let words = [(a, 0), (b, 0), (a, 4), (b, 4)];
        let mut quarter = 0;
        let words = words.map(|(low, shift)| {
            let high = top >> quarter & 0x0303_0303;
            quarter += 2;
            low >> shift & 0x0f0f_0f0f | high << 4
        });
        let scales = s.sub(s.widen_words(words), s.splat(32.0));
        let scales = s.mul(scales, s.splat_f16(read_u16(block.add(108))));
        signed_factors(s, scales, Q3K::BIAS)
    }
}

/// # Safety
/// A Q4_K or Q5_K block.
#[inline(always)]
unsafe fn q4_k_factors<S: Rows>(s: S, block: *const u8) -> [S::F; 2] {
    // SAFETY: two f16, then 12 bytes of scales and minima.
    unsafe {
        let [a, b, c] = block.add(4).cast::<[u32; 3]>().read_unaligned();
        let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
        let words = [a & six, c & four | a >> 2 & two, b & six, c >> 4 & four | b >> 2 & two];
        let factors = s.mul(s.widen_words(words), s.two_halves(block));
        let signs = const { signs(-1.0) };
        [s.mul(factors, s.load(signs.as_ptr())); 2]
    }
}

/// # Safety
/// A Q6_K block.
#[inline(always)]
unsafe fn q6_k_factors<S: Rows>(s: S, block: *const u8) -> [S::F; 2] {
    // SAFETY: 16 scales, then an f16.
    unsafe {
        let scales = s.load_i8(block.add(192).cast());
        let scales = s.mul(scales, s.splat_f16(read_u16(block.add(208))));
        signed_factors(s, scales, Q6K::BIAS)
    }
}

/// # Safety
/// An IQ4_XS block.
#[inline(always)]
unsafe fn iq4_xs_factors<S: Rows>(s: S, block: *const u8) -> [S::F; 2] {
    // SAFETY: an f16, eight pairs of high bits, eight low nibbles.
    unsafe {
        let mut high = u64::from(read_u16(block.add(2)));
        high = (high | high << 24) & 0x0000_00ff_0000_00ff;
        high = (high | high << 12) & 0x000f_000f_000f_000f;
        high = (high | high << 6) & 0x0303_0303_0303_0303;
        let mut low = u64::from(read_u32(block.add(4)));
        low = (low | low << 16) & 0x0000_ffff_0000_ffff;
        low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
        low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let all = low | high << 4;
        let (a, b) = (all as u32, (all >> 32) as u32);
        let scales = s.sub(s.widen_words([a, b, a, b]), s.splat(32.0));
        biased::<S, Iq4Xs>(s, s.mul(scales, s.splat_f16(read_u16(block))))
    }
}
