//! Element and block types of tensors.

use std::fmt;

/// The element type of a [`Tensor`](crate::Tensor): a plain scalar or a block of quantised values.
///
/// A row of a tensor is a whole number of blocks; plain types are blocks of one value. The block
/// layouts are those of the GGUF format, byte for byte; see [`crate::quant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// Unsigned 32-bit integer: token ids, positions, lengths.
    U32,
    /// Unsigned byte: boolean masks and tile maps.
    U8,
    /// 32 values in 18 bytes: f16 scale, 16 bytes of nibbles.
    Q4_0,
    /// 32 values in 20 bytes: f16 scale, f16 minimum, 16 bytes of nibbles.
    Q4_1,
    /// 32 values in 22 bytes: f16 scale, 32 high bits, 16 bytes of nibbles.
    Q5_0,
    /// 32 values in 24 bytes: f16 scale, f16 minimum, 32 high bits, 16 bytes of nibbles.
    Q5_1,
    /// 32 values in 34 bytes: f16 scale, 32 signed bytes.
    Q8_0,
    /// 32 values in 18 bytes: f16 scale, 16 bytes of indices into a signed codebook.
    Iq4Nl,
    /// 256 values in 84 bytes: 2-bit values, 4-bit scales and minima per 16.
    Q2K,
    /// 256 values in 110 bytes: 3-bit values, 6-bit scales per 16.
    Q3K,
    /// 256 values in 144 bytes: 4-bit values, 6-bit scales and minima per 32.
    Q4K,
    /// 256 values in 176 bytes: 5-bit values, 6-bit scales and minima per 32.
    Q5K,
    /// 256 values in 210 bytes: 6-bit values, 8-bit scales per 16.
    Q6K,
    /// 256 values in 136 bytes: codebook indices, 6-bit scales per 32.
    Iq4Xs,
}

impl DType {
    /// Every type, in declaration order.
    pub const ALL: [DType; 17] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::U32,
        DType::U8,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Iq4Nl,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Iq4Xs,
    ];

    /// The floating-point scalar types: what activations may be.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// The block-quantised types.
    pub const QUANTIZED: [DType; 12] = [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Iq4Nl,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Iq4Xs,
    ];

    /// What a weight matrix may be: [`DType::FLOATS`] and [`DType::QUANTIZED`].
    pub const WEIGHTS: [DType; 15] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Iq4Nl,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Iq4Xs,
    ];

    /// Values in one block; 1 for plain types.
    ///
    /// ```
    /// use kiln_core::DType;
    /// assert_eq!(DType::F16.block_len(), 1);
    /// assert_eq!(DType::Q4K.block_len(), 256);
    /// ```
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::U8 => 1,
            DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::Q8_0 | DType::Iq4Nl => {
                32
            }
            DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K | DType::Iq4Xs => 256,
        }
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
            DType::Q4_0 | DType::Iq4Nl => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q8_0 => 34,
            DType::Q2K => 84,
            DType::Q3K => 110,
            DType::Q4K => 144,
            DType::Q5K => 176,
            DType::Q6K => 210,
            DType::Iq4Xs => 136,
        }
    }

    /// True for block-quantised types.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// True for F32, F16 and BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Bytes of a row of `values` values, or `None` where the row is not a whole number of blocks
    /// or the size overflows.
    pub const fn row_bytes(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_len()) {
            return None;
        }
        (values / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Unit roundoff of the floating-point types (half the distance from 1 to the next value);
    /// `None` for the others.
    pub const fn unit_roundoff(self) -> Option<f64> {
        match self {
            DType::F32 => Some(1.0 / (1u64 << 24) as f64),
            DType::F16 => Some(1.0 / (1u64 << 11) as f64),
            DType::BF16 => Some(1.0 / (1u64 << 8) as f64),
            _ => None,
        }
    }

    /// The name used in files and messages, for example `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::U8 => "u8",
            DType::Q4_0 => "q4_0",
            DType::Q4_1 => "q4_1",
            DType::Q5_0 => "q5_0",
            DType::Q5_1 => "q5_1",
            DType::Q8_0 => "q8_0",
            DType::Iq4Nl => "iq4_nl",
            DType::Q2K => "q2_k",
            DType::Q3K => "q3_k",
            DType::Q4K => "q4_k",
            DType::Q5K => "q5_k",
            DType::Q6K => "q6_k",
            DType::Iq4Xs => "iq4_xs",
        }
    }

    /// The type of that name, in any letter case.
    ///
    /// ```
    /// use kiln_core::DType;
    /// assert_eq!(DType::from_name("Q4_K"), Some(DType::Q4K));
    /// ```
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
