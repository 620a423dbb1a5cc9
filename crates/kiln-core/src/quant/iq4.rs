//! Blocks of 4-bit indices into a fixed codebook.

use bytemuck::{Pod, Zeroable};

use super::fit::{self, Codebook};
use super::{Block, Encode, F16Bytes, Real, fields};
use crate::DType;

/// The values that [`BlockIq4Nl`] and [`BlockIq4Xs`] choose from, ascending; denser near zero.
pub const IQ4_CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values `d * IQ4_CODEBOOK[q]`, `q` of 4 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockIq4Nl {
    /// Scale.
    pub d: F16Bytes,
    /// 4-bit codes over 16 lanes.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == DType::Iq4Nl.block_bytes());

impl Block for BlockIq4Nl {
    const DTYPE: DType = DType::Iq4Nl;
    type Values<T: Real> = [T; 32];

    fn dequantize<T: Real>(&self, out: &mut [T; 32]) {
        let d = T::from(self.d.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let q = fields::get::<16, 4>(&self.qs, i);
            *out = d * T::from(IQ4_CODEBOOK[usize::from(q)]);
        }
    }
}

impl Encode for BlockIq4Nl {
    fn encode(values: &[f32; 32]) -> Self {
        let (d, codes) = fit::scaled(values, Codebook);
        Self { d, qs: fields::pack::<16, 4, 16>(codes) }
    }
}

/// 256 values `(d * (s - 32)) * IQ4_CODEBOOK[q]`, `q` of 4 bits, `s` of 6 bits per 32 values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BlockIq4Xs {
    /// Scale of the scales.
    pub d: F16Bytes,
    /// High 2 bits of the scales: a little-endian `u16`, bits `2 * j` and `2 * j + 1` for
    /// sub-block `j`.
    pub scales_h: [u8; 2],
    /// Low 4 bits of the scales over 1 lane.
    pub scales_l: [u8; 4],
    /// 4-bit codes over 16 lanes.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockIq4Xs>() == DType::Iq4Xs.block_bytes());

impl BlockIq4Xs {
    /// Scale `s - 32` of each sub-block, `-32..=31`.
    pub fn unpack_scales(&self) -> [i8; 8] {
        std::array::from_fn(|j| {
            let low = fields::get::<1, 4>(&self.scales_l, j);
            let high = fields::get::<1, 2>(&self.scales_h, j);
            (low | high << 4) as i8 - 32
        })
    }
}

impl Block for BlockIq4Xs {
    const DTYPE: DType = DType::Iq4Xs;
    type Values<T: Real> = [T; 256];

    fn dequantize<T: Real>(&self, out: &mut [T; 256]) {
        let d = T::from(self.d.to_f32());
        let scales = self.unpack_scales();
        for (i, out) in out.iter_mut().enumerate() {
            let scale = d * T::from(scales[i / 32]);
            let q = fields::get::<16, 4>(&self.qs, i);
            *out = scale * T::from(IQ4_CODEBOOK[usize::from(q)]);
        }
    }
}

impl Encode for BlockIq4Xs {
    fn encode(values: &[f32; 256]) -> Self {
        let fit = fit::scaled_blocks::<8>(values, Codebook, -32..=31);
        let scales = fit.scales.map(|scale| (scale + 32) as u8);
        Self {
            d: fit.d,
            scales_h: fields::pack::<1, 2, 2>(scales.map(|scale| scale >> 4)),
            scales_l: fields::pack::<1, 4, 4>(scales),
            qs: fields::pack::<16, 4, 128>(fit.codes),
        }
    }
}
