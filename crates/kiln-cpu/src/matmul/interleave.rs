//! Unpacking of block-quantised weights by strips of 16 rows, interleaved by fours of values.
//!
//! Fours of packed bytes are interleaved first and unpacked after, lane `l` being row `l`: the fields
//! of 16 blocks are taken apart at once.

use super::format::*;
use crate::isa::{LANES, Planes, Tiles};

/// The same block of 16 rows.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub(crate) rows: &'a [*const u8; LANES],
    /// Where the block begins in each.
    pub(crate) offset: usize,
}

/// Parts of a panel, from the place of a strip's group on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    /// `[groups][fours][strips][16 rows][4]`, fours being four values or two words.
    pub(crate) bytes: *mut u8,
    /// `[groups][strips][16 rows]`
    pub(crate) scales: *mut f32,
    /// As `scales`.
    pub(crate) minima: *mut f32,
    /// As `scales`, i32: what sums begin with.
    pub(crate) starts: *mut f32,
    /// Strips of the panel.
    pub(crate) strips: usize,
}

impl Groups {
    /// Those from group `group` on, of so many bytes a row.
    pub(crate) fn skip(self, group: usize, bytes: usize) -> Self {
        let lanes = group * self.strips * LANES;
        Self {
            bytes: self.bytes.wrapping_add(lanes * bytes),
            scales: self.scales.wrapping_add(lanes),
            minima: self.minima.wrapping_add(lanes),
            starts: self.starts.wrapping_add(lanes),
            strips: self.strips,
        }
    }

    /// Writes a group of zeros.
    ///
    /// # Safety
    /// The group is inside the panel.
    #[inline(always)]
    pub(crate) unsafe fn put_zeros<S: Tiles, F: Format>(self, s: S, group: usize) {
        let (zero, none) = (s.splat(0.0), s.bytes(s.splat_int(0)));
        // SAFETY: by the contract.
        unsafe { self.put::<F>(s, group, &[none; 8][..F::GROUP / 4], [zero; 2]) }
    }
}

/// Where the unpacked values of a strip go.
pub(crate) trait Unpacked<S: Tiles>: Copy {
    /// Writes the unsigned values of a group by fours, and its scale; the minimum is that of formats
    /// with minima of their own.
    ///
    /// # Safety
    /// The group is inside the panel.
    unsafe fn put<F: Format>(self, s: S, group: usize, q: &[S::B], pair: [S::F; 2]);
}

impl<S: Tiles> Unpacked<S> for Groups {
    #[inline(always)]
    unsafe fn put<F: Format>(self, s: S, group: usize, q: &[S::B], [scale, minimum]: [S::F; 2]) {
        let at = group * self.strips * LANES;
        // SAFETY: by the contract.
        unsafe {
            let mut bytes = self.bytes.add(at * F::GROUP * value_bytes::<S, F>());
            let mut sum = s.splat_int(0);
            for q in q {
                if in_words::<S, F>() {
                    for words in s.words(*q, F::BIAS as u8) {
                        s.store_bytes(bytes, words);
                        bytes = bytes.add(self.strips * 4 * LANES);
                    }
                    continue;
                }
                let signed = S::SIGNED_WEIGHTS && F::BIAS != 0.0;
                let w = if signed { s.sub_bytes(*q, F::BIAS as u8) } else { *q };
                s.store_bytes(bytes, w);
                bytes = bytes.add(self.strips * 4 * LANES);
                if S::COLUMN_BIAS != 0 {
                    sum = s.dot_step(sum, w, s.splat_bytes4([S::COLUMN_BIAS; 4].as_ptr()));
                }
            }
            s.store(self.scales.add(at), scale);
            if has_minima::<S, F>() {
                let bias = s.mul(scale, s.splat(-F::BIAS));
                s.store(self.minima.add(at), if F::BIAS == 0.0 { minimum } else { bias });
            }
            if S::COLUMN_BIAS != 0 {
                let start = s.bytes(s.sub_int(s.splat_int(0), sum));
                s.store_bytes(self.starts.add(at).cast(), start);
            }
        }
    }
}

/// Whether tiles take the weights of a format as words.
#[inline(always)]
pub(crate) fn in_words<S: Tiles, F: Format>() -> bool {
    S::tile_planes(F::BITS) == Planes::Words
}

/// Bytes of a value in a panel.
#[inline(always)]
fn value_bytes<S: Tiles, F: Format>() -> usize {
    if in_words::<S, F>() { 2 } else { 1 }
}

/// Whether tiles with weights of a format add minima.
#[inline(always)]
pub(crate) fn has_minima<S: Tiles, F: Format>() -> bool {
    F::BIAS == 0.0 || !(S::SIGNED_WEIGHTS || in_words::<S, F>())
}

/// A format whose rows can be interleaved.
pub(crate) trait Interleave: Format + Sized {
    /// Bytes of a row in a group of a panel.
    #[inline(always)]
    fn group_bytes<S: Tiles>() -> usize {
        Self::GROUP * value_bytes::<S, Self>()
    }

    /// Unpacks one block of 16 rows to groups of `out`.
    ///
    /// # Safety
    /// The blocks are readable and the groups writable.
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O);
}

/// The 16 bytes at an offset, by fours.
#[inline(always)]
unsafe fn load16<S: Tiles>(s: S, blocks: Blocks<'_>, bytes: usize) -> [S::B; 4] {
    // SAFETY: inside the block, by the caller.
    unsafe { s.load_rows(blocks.rows, blocks.offset + bytes) }
}

/// The 32 bytes at an offset, by fours.
#[inline(always)]
unsafe fn load32<S: Tiles>(s: S, blocks: Blocks<'_>, bytes: usize) -> [S::B; 8] {
    // SAFETY: inside the block, by the caller.
    let [[a, b, c, d], [e, f, g, h]] =
        unsafe { [load16(s, blocks, bytes), load16(s, blocks, bytes + 16)] };
    [a, b, c, d, e, f, g, h]
}

/// The f16 at an offset.
#[inline(always)]
unsafe fn load_half<S: Tiles>(s: S, blocks: Blocks<'_>, bytes: usize) -> S::F {
    // SAFETY: inside the block, by the caller.
    s.halves(blocks.rows.map(|row| unsafe { read_u16(row.add(blocks.offset + bytes)) }))
}

/// Bits of every byte from `shift` on.
#[inline(always)]
fn bits<S: Tiles>(s: S, v: S::B, shift: u32, mask: u8) -> S::B {
    s.and_bytes(if shift == 0 { v } else { s.shr_bytes(v, [shift; 4]) }, mask)
}

#[inline(always)]
fn each<T: Copy, const N: usize>(mut v: [T; N], f: impl Fn(T) -> T) -> [T; N] {
    for v in &mut v {
        *v = f(*v);
    }
    v
}

/// 32 values: the low nibbles, then the high ones.
#[inline(always)]
fn nibbles<S: Tiles>(s: S, [a, b, c, d]: [S::B; 4]) -> [S::B; 8] {
    let (low, high) = (|v| bits(s, v, 0, 15), |v| bits(s, v, 4, 15));
    [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
}

/// Byte `index` of 16 bytes by fours, below `mask`, from bit `shift` on.
#[inline(always)]
fn field<S: Tiles>(s: S, fours: &[S::B; 4], index: usize, shift: usize, mask: i32) -> S::I {
    let shift = 8 * (index % 4) + shift;
    s.and_int(s.shr_int(s.ints(fours[index / 4]), shift as u32), mask)
}

/// `low + factor * high` of fields, as f32.
#[inline(always)]
fn join<S: Tiles>(s: S, low: S::I, high: S::I, factor: f32) -> S::F {
    s.fma(s.to_float(high), s.splat(factor), s.to_float(low))
}

/// Formats of 32 nibbles: low nibbles are the first 16 values, high ones the rest.
macro_rules! nibble_format {
    ($Name:ident, high: $high:literal, minimum: $minimum:literal) => {
        impl Interleave for $Name {
            #[inline(always)]
            unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
                const HEAD: usize = if $minimum { 4 } else { 2 };
                const NIBBLES: usize = HEAD + if $high { 4 } else { 0 };
                // SAFETY: by the contract.
                unsafe {
                    let mut q = nibbles(s, load16(s, blocks, NIBBLES));
                    if $high {
                        let high = load16(s, blocks, HEAD)[0];
                        for (four, q) in q.iter_mut().enumerate() {
                            let bit = s.spread_bits(s.ints(high), 4 * four as u32);
                            *q = s.or_bytes(*q, bit);
                        }
                    }
                    let scale = load_half(s, blocks, 0);
                    let minimum = if $minimum { load_half(s, blocks, 2) } else { scale };
                    out.put::<Self>(s, 0, &q, [scale, minimum]);
                }
            }
        }
    };
}

nibble_format!(Q4_0, high: false, minimum: false);
nibble_format!(Q4_1, high: false, minimum: true);
nibble_format!(Q5_0, high: true, minimum: false);
nibble_format!(Q5_1, high: true, minimum: true);

impl Interleave for Q8_0 {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let q = each(load32(s, blocks, 2), |v| s.xor_bytes(v, 0x80));
            out.put::<Self>(s, 0, &q, [load_half(s, blocks, 0); 2]);
        }
    }
}

impl Interleave for Iq4Nl {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let q = each(nibbles(s, load16(s, blocks, 2)), |v| s.lookup(v, &IQ4_VALUES));
            out.put::<Self>(s, 0, &q, [load_half(s, blocks, 0); 2]);
        }
    }
}

impl Interleave for Iq4Xs {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let head = load16(s, blocks, 0);
            let d = s.low_halves(s.ints(head[0]));
            for group in 0..8 {
                let q = load16(s, blocks, 8 + 16 * group);
                let q = each(nibbles(s, q), |v| s.lookup(v, &IQ4_VALUES));
                let low = field(s, &head, 4 + group / 2, 4 * (group % 2), 15);
                let high = field(s, &head, 2, 2 * group, 3);
                let scale = s.sub(join(s, low, high, 16.0), s.splat(32.0));
                out.put::<Self>(s, group, &q, [s.mul(d, scale); 2]);
            }
        }
    }
}

/// Q4_K and Q5_K: the same but for a plane of high bits.
macro_rules! k_format {
    ($Name:ident, high: $high:literal) => {
        impl Interleave for $Name {
            #[inline(always)]
            unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
                const NIBBLES: usize = if $high { 48 } else { 16 };
                // SAFETY: by the contract.
                unsafe {
                    let head = load16(s, blocks, 0);
                    let both = s.ints(head[0]);
                    let d = s.low_halves(both);
                    let dmin = s.sub(s.splat(0.0), s.low_halves(s.shr_int(both, 16)));
                    let plane = if $high { load32(s, blocks, 16) } else { [s.bytes(both); 8] };
                    for pair in 0..4 {
                        let packed = load32(s, blocks, NIBBLES + 32 * pair);
                        for odd in 0..2 {
                            let group = 2 * pair + odd;
                            let mut q = each(packed, |v| bits(s, v, 4 * odd as u32, 15));
                            if $high {
                                for (q, plane) in q.iter_mut().zip(plane) {
                                    let bit = bits(s, plane, group as u32, 1);
                                    *q = s.or_bytes(*q, s.shl_bytes::<4>(bit));
                                }
                            }
                            let [scale, minimum] = six_bits_of(s, &head, group);
                            let pair = [s.mul(d, scale), s.mul(dmin, minimum)];
                            out.put::<Self>(s, group, &q, pair);
                        }
                    }
                }
            }
        }
    };
}

/// Scale and minimum `j` of the twelve bytes that Q4_K and Q5_K pack eight of each into, behind four
/// other bytes.
#[inline(always)]
fn six_bits_of<S: Tiles>(s: S, head: &[S::B; 4], j: usize) -> [S::F; 2] {
    if j < 4 {
        let (scale, minimum) = (field(s, head, 4 + j, 0, 63), field(s, head, 8 + j, 0, 63));
        return [s.to_float(scale), s.to_float(minimum)];
    }
    let (scale, minimum) = (field(s, head, 8 + j, 0, 15), field(s, head, 8 + j, 4, 15));
    let (scale_top, minimum_top) = (field(s, head, j, 6, 3), field(s, head, 4 + j, 6, 3));
    [join(s, scale, scale_top, 16.0), join(s, minimum, minimum_top, 16.0)]
}

k_format!(Q4K, high: false);
k_format!(Q5K, high: true);

impl Interleave for Q6K {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let d = load_half(s, blocks, 208);
            let scales = each(load16(s, blocks, 192), |v| s.xor_bytes(v, 0x80));
            for part in 0..4 {
                let (half, sixteen) = (part / 2, part % 2);
                let high = load16(s, blocks, 128 + 32 * half + 16 * sixteen);
                for second in 0..2 {
                    let low = load16(s, blocks, 64 * half + 32 * second + 16 * sixteen);
                    for nibble in 0..2 {
                        let (place, mut q) = (2 * nibble + second, low);
                        for (q, high) in q.iter_mut().zip(high) {
                            let high = bits(s, high, 2 * place as u32, 3);
                            let low = bits(s, *q, 4 * nibble as u32, 15);
                            *q = s.or_bytes(low, s.shl_bytes::<4>(high));
                        }
                        let group = 8 * half + 2 * place + sixteen;
                        let scale = s.to_float(field(s, &scales, group, 0, 255));
                        let scale = s.mul(d, s.sub(scale, s.splat(128.0)));
                        out.put::<Self>(s, group, &q, [scale; 2]);
                    }
                }
            }
        }
    }
}

impl Interleave for Q2K {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let d = load_half(s, blocks, 80);
            let dmin = s.sub(s.splat(0.0), load_half(s, blocks, 82));
            let packed = load16(s, blocks, 0);
            for part in 0..4 {
                let (half, sixteen) = (part / 2, part % 2);
                let quants = load16(s, blocks, 16 + 32 * half + 16 * sixteen);
                for place in 0..4 {
                    let q = each(quants, |v| bits(s, v, 2 * place as u32, 3));
                    let group = 8 * half + 2 * place + sixteen;
                    let scale = s.to_float(field(s, &packed, group, 0, 15));
                    let minimum = s.to_float(field(s, &packed, group, 4, 15));
                    out.put::<Self>(s, group, &q, [s.mul(d, scale), s.mul(dmin, minimum)]);
                }
            }
        }
    }
}

impl Interleave for Q3K {
    #[inline(always)]
    unsafe fn interleave<S: Tiles, O: Unpacked<S>>(s: S, blocks: Blocks<'_>, out: O) {
        // SAFETY: by the contract.
        unsafe {
            let d = load_half(s, blocks, 108);
            // The last two bytes of quants, twelve of scales and the factor.
            let packed = load16(s, blocks, 94);
            for part in 0..4 {
                let (half, sixteen) = (part / 2, part % 2);
                let quants = load16(s, blocks, 32 + 32 * half + 16 * sixteen);
                let plane = load16(s, blocks, 16 * sixteen);
                for place in 0..4 {
                    let mut q = each(quants, |v| bits(s, v, 2 * place as u32, 3));
                    for (q, plane) in q.iter_mut().zip(plane) {
                        let bit = bits(s, plane, (4 * half + place) as u32, 1);
                        *q = s.or_bytes(*q, s.shl_bytes::<2>(bit));
                    }
                    let group = 8 * half + 2 * place + sixteen;
                    let low = field(s, &packed, 2 + group % 8, 4 * (group / 8), 15);
                    let top = field(s, &packed, 10 + group % 4, 2 * (group / 4), 3);
                    let scale = s.sub(join(s, low, top, 16.0), s.splat(32.0));
                    out.put::<Self>(s, group, &q, [s.mul(d, scale); 2]);
                }
            }
        }
    }
}
