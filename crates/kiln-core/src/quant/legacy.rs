//! Blocks of 32 values with one f16 scale, and an f16 minimum in the `_1` types.

use bytemuck::{Pod, Zeroable};

use super::fit::{self, Integers};
use super::{Block, Encode, F16Bytes, Real, fields};
use crate::DType;

/// 32 values `d * (q - 8)`, `q` of 4 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// Scale.
    pub d: F16Bytes,
    /// 4-bit codes over 16 lanes.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == DType::Q4_0.block_bytes());

impl Block for BlockQ4_0 {
    const DTYPE: DType = DType::Q4_0;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * T::from(fields::get::<16, 4>(&self.qs, i) as i8 - 8);
        }
    }
}

impl Encode for BlockQ4_0 {
    fn encode(values: &[f32; 32]) -> Self {
        let (d, codes) = fit::scaled(values, Integers::new(-8, 7));
        Self { d, qs: fields::pack::<16, 4, 16>(codes) }
    }
}

/// 32 values `d * q + m`, `q` of 4 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// 4-bit codes over 16 lanes.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_1>() == DType::Q4_1.block_bytes());

impl Block for BlockQ4_1 {
    const DTYPE: DType = DType::Q4_1;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        let m = T::from(self.m.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * T::from(fields::get::<16, 4>(&self.qs, i)) + m;
        }
    }
}

impl Encode for BlockQ4_1 {
    fn encode(values: &[f32; 32]) -> Self {
        let (d, m, codes) = fit::affine(values, 15);
        Self { d, m, qs: fields::pack::<16, 4, 16>(codes) }
    }
}

/// 32 values `d * (q - 16)`, `q` of 5 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ5_0 {
    /// Scale.
    pub d: F16Bytes,
    /// High bits of the codes over 1 lane: a little-endian `u32`, bit `i` for value `i`.
    pub qh: [u8; 4],
    /// Low 4 bits of the codes over 16 lanes.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == DType::Q5_0.block_bytes());

impl Block for BlockQ5_0 {
    const DTYPE: DType = DType::Q5_0;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * T::from(five_bits(&self.qh, &self.qs, i) as i8 - 16);
        }
    }
}

impl Encode for BlockQ5_0 {
    fn encode(values: &[f32; 32]) -> Self {
        let (d, codes) = fit::scaled(values, Integers::new(-16, 15));
        let (qh, qs) = split_five_bits(codes);
        Self { d, qh, qs }
    }
}

/// 32 values `d * q + m`, `q` of 5 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// Scale.
    pub d: F16Bytes,
    /// Minimum.
    pub m: F16Bytes,
    /// High bits of the codes over 1 lane: a little-endian `u32`, bit `i` for value `i`.
    pub qh: [u8; 4],
    /// Low 4 bits of the codes over 16 lanes.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_1>() == DType::Q5_1.block_bytes());

impl Block for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        let m = T::from(self.m.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * T::from(five_bits(&self.qh, &self.qs, i)) + m;
        }
    }
}

impl Encode for BlockQ5_1 {
    fn encode(values: &[f32; 32]) -> Self {
        let (d, m, codes) = fit::affine(values, 31);
        let (qh, qs) = split_five_bits(codes);
        Self { d, m, qh, qs }
    }
}

/// 32 values `d * q`, `q` a signed byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// Scale.
    pub d: F16Bytes,
    /// Codes.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == DType::Q8_0.block_bytes());

impl Block for BlockQ8_0 {
    const DTYPE: DType = DType::Q8_0;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        for (&q, out) in self.qs.iter().zip(out) {
            *out = d * T::from(q);
        }
    }
}

impl Encode for BlockQ8_0 {
    /// Codes stay within `-127..=127`: kernels may negate them in a byte.
    fn encode(values: &[f32; 32]) -> Self {
        let (d, codes) = fit::scaled(values, Integers::new(-127, 127));
        Self { d, qs: codes.map(|code| (i16::from(code) - 127) as i8) }
    }
}

fn five_bits(high: &[u8; 4], low: &[u8; 16], i: usize) -> u8 {
    fields::get::<16, 4>(low, i) | fields::get::<1, 1>(high, i) << 4
}

fn split_five_bits(codes: [u8; 32]) -> ([u8; 4], [u8; 16]) {
    (fields::pack::<1, 1, 4>(codes.map(|code| code >> 4)), fields::pack::<16, 4, 16>(codes))
}
