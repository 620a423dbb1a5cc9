//! Blocks of 256 values with integer scales per sub-block of 16 or 32 values.

use bytemuck::{Pod, Zeroable};

use super::fit::{self, Integers};
use super::{Block, Encode, F16Bytes, Real, fields};
use crate::DType;

/// 256 values `(d * s) * q - dmin * t`, `q` of 2 bits, `s` and `t` of 4 bits per 16 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ2K {
    /// Scale `s` (low nibble) and minimum `t` (high nibble) of each sub-block.
    pub scales: [u8; 16],
    /// 2-bit codes over 32 lanes.
    pub qs: [u8; 64],
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
}

const _: () = assert!(size_of::<BlockQ2K>() == DType::Q2K.block_bytes());

impl Block for BlockQ2K {
    const DTYPE: DType = DType::Q2K;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        let dmin = T::from(self.dmin.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let packed = self.scales[i / 16];
            let scale = d * T::from(packed & 15);
            let min = dmin * T::from(packed >> 4);
            *out = scale * T::from(fields::get::<32, 2>(&self.qs, i)) - min;
        }
    }
}

impl Encode for BlockQ2K {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::affine_blocks::<16>(values, 3, 15);
        Self {
            scales: std::array::from_fn(|j| fit.scales[j] | fit.mins[j] << 4),
            qs: fields::pack::<32, 2, 64>(fit.codes),
            d: fit.d,
            dmin: fit.dmin,
        }
    }
}

/// 256 values `(d * (s - 32)) * (q - 4)`, `q` of 3 bits, `s` of 6 bits per 16 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ3K {
    /// High bits of the codes over 32 lanes.
    pub hmask: [u8; 32],
    /// Low 2 bits of the codes over 32 lanes.
    pub qs: [u8; 64],
    /// Scales: 8 bytes of low 4 bits over 8 lanes, then 4 bytes of high 2 bits over 4 lanes.
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16Bytes,
}

const _: () = assert!(size_of::<BlockQ3K>() == DType::Q3K.block_bytes());

impl BlockQ3K {
    /// Scale `s - 32` of each sub-block, `-32..=31`.
    pub fn unpack_scales(&self) -> [i8; 16] {
        let (low, high) = self.scales.split_at(8);
        std::array::from_fn(|j| {
            (fields::get::<8, 4>(low, j) | fields::get::<4, 2>(high, j) << 4) as i8 - 32
        })
    }
}

impl Block for BlockQ3K {
    const DTYPE: DType = DType::Q3K;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        let scales = self.unpack_scales();
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * T::from(scales[i / 16]);
            let low = fields::get::<32, 2>(&self.qs, i);
            let high = fields::get::<32, 1>(&self.hmask, i);
            *out = scale * T::from((low | high << 2) as i8 - 4);
        }
    }
}

impl Encode for BlockQ3K {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::scaled_blocks::<16>(values, Integers::new(-4, 3), -32..=31);
        let codes = fit.scales.map(|scale| (scale + 32) as u8);
        let low: [u8; 8] = fields::pack::<8, 4, 8>(codes);
        let high: [u8; 4] = fields::pack::<4, 2, 4>(codes.map(|code| code >> 4));
        let mut scales = [0; 12];
        scales[..8].copy_from_slice(&low);
        scales[8..].copy_from_slice(&high);
        Self {
            hmask: fields::pack::<32, 1, 32>(fit.codes.map(|code| code >> 2)),
            qs: fields::pack::<32, 2, 64>(fit.codes),
            scales,
            d: fit.d,
        }
    }
}

/// 256 values `(d * s) * q - dmin * t`, `q` of 4 bits, `s` and `t` of 6 bits per 32 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ4K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
    /// Scales and minima: see [`BlockQ4K::unpack_scales`].
    pub scales: [u8; 12],
    /// 4-bit codes over 32 lanes.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == DType::Q4K.block_bytes());

impl BlockQ4K {
    /// Scale `s` and minimum `t` of each sub-block, all `0..=63`.
    ///
    /// Sub-blocks 0 to 3 keep theirs in the low 6 bits of bytes `j` and `j + 4`. Sub-blocks 4 to 7
    /// keep the low 4 bits in the nibbles of byte `j + 4` and the high 2 bits at the top of bytes
    /// `j - 4` and `j`.
    pub fn unpack_scales(&self) -> ([u8; 8], [u8; 8]) {
        unpack_scales_mins(&self.scales)
    }
}

impl Block for BlockQ4K {
    const DTYPE: DType = DType::Q4K;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        let dmin = T::from(self.dmin.to_f32());
        let (scales, mins) = self.unpack_scales();
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * T::from(scales[i / 32]);
            let min = dmin * T::from(mins[i / 32]);
            let q = fields::get::<32, 4>(&self.qs, i);
            *out = scale * T::from(q) - min;
        }
    }
}

impl Encode for BlockQ4K {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::affine_blocks::<8>(values, 15, 63);
        Self {
            d: fit.d,
            dmin: fit.dmin,
            scales: pack_scales_mins(&fit.scales, &fit.mins),
            qs: fields::pack::<32, 4, 128>(fit.codes),
        }
    }
}

/// 256 values `(d * s) * q - dmin * t`, `q` of 5 bits, `s` and `t` of 6 bits per 32 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ5K {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// Scale of the minima.
    pub dmin: F16Bytes,
    /// Scales and minima, packed as in [`BlockQ4K::unpack_scales`].
    pub scales: [u8; 12],
    /// High bits of the codes over 32 lanes.
    pub qh: [u8; 32],
    /// Low 4 bits of the codes over 32 lanes.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == DType::Q5K.block_bytes());

impl BlockQ5K {
    /// Scale `s` and minimum `t` of each sub-block, all `0..=63`.
    pub fn unpack_scales(&self) -> ([u8; 8], [u8; 8]) {
        unpack_scales_mins(&self.scales)
    }
}

impl Block for BlockQ5K {
    const DTYPE: DType = DType::Q5K;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        let dmin = T::from(self.dmin.to_f32());
        let (scales, mins) = self.unpack_scales();
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * T::from(scales[i / 32]);
            let min = dmin * T::from(mins[i / 32]);
            let q = fields::get::<32, 4>(&self.qs, i) | fields::get::<32, 1>(&self.qh, i) << 4;
            *out = scale * T::from(q) - min;
        }
    }
}

impl Encode for BlockQ5K {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::affine_blocks::<8>(values, 31, 63);
        Self {
            d: fit.d,
            dmin: fit.dmin,
            scales: pack_scales_mins(&fit.scales, &fit.mins),
            qh: fields::pack::<32, 1, 32>(fit.codes.map(|code| code >> 4)),
            qs: fields::pack::<32, 4, 128>(fit.codes),
        }
    }
}

/// 256 values `(d * s) * (q - 32)`, `q` of 6 bits, `s` a signed byte per 16 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ6K {
    /// Low 4 bits of the codes over 64 lanes.
    pub ql: [u8; 128],
    /// High 2 bits of the codes over 32 lanes.
    pub qh: [u8; 64],
    /// Scale of each sub-block.
    pub scales: [i8; 16],
    /// Scale of the scales.
    pub d: F16Bytes,
}

const _: () = assert!(size_of::<BlockQ6K>() == DType::Q6K.block_bytes());

impl Block for BlockQ6K {
    const DTYPE: DType = DType::Q6K;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * T::from(self.scales[i / 16]);
            let q = fields::get::<64, 4>(&self.ql, i) | fields::get::<32, 2>(&self.qh, i) << 4;
            *out = scale * T::from(q as i8 - 32);
        }
    }
}

impl Encode for BlockQ6K {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::scaled_blocks::<16>(values, Integers::new(-32, 31), -128..=127);
        Self {
            ql: fields::pack::<64, 4, 128>(fit.codes),
            qh: fields::pack::<32, 2, 64>(fit.codes.map(|code| code >> 4)),
            scales: fit.scales.map(|scale| scale as i8),
            d: fit.d,
        }
    }
}

fn unpack_scales_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

fn pack_scales_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    packed
}
