//! Plain floats as stored: little-endian bytes without alignment. Each is a block of one value.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::{Block, Encode, Real};
use crate::DType;

macro_rules! float_bytes {
    ($(#[$doc:meta])* $name:ident, $float:ty, $size:literal, $dtype:expr, $round:expr) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name(pub [u8; $size]);

        const _: () = assert!(size_of::<$name>() == $dtype.block_bytes());

        impl $name {
            /// The number stored.
            pub fn to_f32(self) -> f32 {
                <$float>::from_le_bytes(self.0).into()
            }
        }

        impl From<f32> for $name {
            /// Rounds to nearest, ties to even. Finite values beyond the largest saturate.
            fn from(value: f32) -> Self {
                let round: fn(f32) -> $float = $round;
                let bound = f32::from(<$float>::MAX);
                let value = if value.is_finite() { value.clamp(-bound, bound) } else { value };
                Self(round(value).to_le_bytes())
            }
        }

        impl Block for $name {
            const DTYPE: DType = $dtype;
            type Values<T: Real> = [T; 1];

            fn dequantize<T: Real>(&self, out: &mut [T; 1]) {
                *out = [self.to_f32().into()];
            }
        }

        impl Encode for $name {
            fn encode(&[value]: &[f32; 1]) -> Self {
                value.into()
            }
        }
    };
}

float_bytes!(
    /// An f32 as stored.
    F32Bytes, f32, 4, DType::F32, |value| value
);
float_bytes!(
    /// An f16 as stored: an [`DType::F16`] value, or the scale of a block.
    F16Bytes, f16, 2, DType::F16, f16::from_f32
);
float_bytes!(
    /// A bf16 as stored.
    Bf16Bytes, bf16, 2, DType::BF16, bf16::from_f32
);
