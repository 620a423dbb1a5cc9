//! The tensor types a GGUF file can name.

use std::fmt;

use kiln_core::DType;

/// Declares [`GgmlType`] from one row per type: id in the file, name, values and bytes per block,
/// and the type Kiln computes with, if any.
macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal,
        $dtype:expr;)*) => {
        /// The type of a tensor in a GGUF file.
        ///
        /// Every type with a name in ggml is recognised, so that a file can be listed and copied
        /// whatever it holds; [`GgmlType::dtype`] tells which of them Kiln computes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum GgmlType {
            $($(#[$doc])* $variant,)*
        }

        impl GgmlType {
            /// Every type, by ascending id.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant,)*];

            /// The type with this id; `None` for ids that are unknown or were removed from ggml.
            ///
            /// ```
            /// use kiln_format::GgmlType;
            /// assert_eq!(GgmlType::from_id(12), Some(GgmlType::Q4K));
            /// assert_eq!(GgmlType::from_id(4), None);
            /// ```
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id {
                    $($id => Some(GgmlType::$variant),)*
                    _ => None,
                }
            }

            /// The id that stands for this type in a file.
            pub const fn id(self) -> u32 {
                match self {
                    $(GgmlType::$variant => $id,)*
                }
            }

            /// The name as model cards and file names spell it, for example `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$variant => $name,)*
                }
            }

            /// Values in one block; 1 for plain types. The last axis of a tensor is a whole
            /// number of blocks.
            pub const fn block_len(self) -> usize {
                match self {
                    $(GgmlType::$variant => $len,)*
                }
            }

            /// Bytes in one block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(GgmlType::$variant => $bytes,)*
                }
            }

            /// The type Kiln computes with, or `None` where it has no kernels for this one.
            ///
            /// ```
            /// use kiln_core::DType;
            /// use kiln_format::GgmlType;
            /// assert_eq!(GgmlType::Q6K.dtype(), Some(DType::Q6K));
            /// assert_eq!(GgmlType::Iq2Xxs.dtype(), None);
            /// ```
            pub const fn dtype(self) -> Option<DType> {
                match self {
                    $(GgmlType::$variant => $dtype,)*
                }
            }
        }
    };
}

ggml_types! {
    /// IEEE 754 single precision.
    F32 = 0, "F32", 1, 4, Some(DType::F32);
    /// IEEE 754 half precision.
    F16 = 1, "F16", 1, 2, Some(DType::F16);
    /// 4-bit values with a scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18, Some(DType::Q4_0);
    /// 4-bit values with a scale and a minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20, Some(DType::Q4_1);
    /// 5-bit values with a scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22, Some(DType::Q5_0);
    /// 5-bit values with a scale and a minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24, Some(DType::Q5_1);
    /// 8-bit values with a scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34, Some(DType::Q8_0);
    /// 8-bit values with a scale and a sum per 32; an activation format.
    Q8_1 = 9, "Q8_1", 32, 36, None;
    /// 2-bit values in blocks of 256.
    Q2K = 10, "Q2_K", 256, 84, Some(DType::Q2K);
    /// 3-bit values in blocks of 256.
    Q3K = 11, "Q3_K", 256, 110, Some(DType::Q3K);
    /// 4-bit values in blocks of 256.
    Q4K = 12, "Q4_K", 256, 144, Some(DType::Q4K);
    /// 5-bit values in blocks of 256.
    Q5K = 13, "Q5_K", 256, 176, Some(DType::Q5K);
    /// 6-bit values in blocks of 256.
    Q6K = 14, "Q6_K", 256, 210, Some(DType::Q6K);
    /// 8-bit values in blocks of 256; an activation format.
    Q8K = 15, "Q8_K", 256, 292, None;
    /// Codebook of about 2.06 bits per value.
    Iq2Xxs = 16, "IQ2_XXS", 256, 66, None;
    /// Codebook of about 2.31 bits per value.
    Iq2Xs = 17, "IQ2_XS", 256, 74, None;
    /// Codebook of about 3.06 bits per value.
    Iq3Xxs = 18, "IQ3_XXS", 256, 98, None;
    /// Codebook of about 1.56 bits per value.
    Iq1S = 19, "IQ1_S", 256, 50, None;
    /// 4-bit indices into a signed codebook with a scale per 32.
    Iq4Nl = 20, "IQ4_NL", 32, 18, Some(DType::Iq4Nl);
    /// Codebook of about 3.44 bits per value.
    Iq3S = 21, "IQ3_S", 256, 110, None;
    /// Codebook of about 2.56 bits per value.
    Iq2S = 22, "IQ2_S", 256, 82, None;
    /// 4-bit indices into a signed codebook in blocks of 256.
    Iq4Xs = 23, "IQ4_XS", 256, 136, Some(DType::Iq4Xs);
    /// Signed 8-bit integer.
    I8 = 24, "I8", 1, 1, None;
    /// Signed 16-bit integer.
    I16 = 25, "I16", 1, 2, None;
    /// Signed 32-bit integer.
    I32 = 26, "I32", 1, 4, None;
    /// Signed 64-bit integer.
    I64 = 27, "I64", 1, 8, None;
    /// IEEE 754 double precision.
    F64 = 28, "F64", 1, 8, None;
    /// Codebook of 1.75 bits per value.
    Iq1M = 29, "IQ1_M", 256, 56, None;
    /// bfloat16: the upper half of an f32.
    BF16 = 30, "BF16", 1, 2, Some(DType::BF16);
    /// Ternary values, five to a byte.
    Tq1_0 = 34, "TQ1_0", 256, 54, None;
    /// Ternary values, four to a byte.
    Tq2_0 = 35, "TQ2_0", 256, 66, None;
    /// Microscaling: 4-bit floats with a power-of-two scale per 32.
    Mxfp4 = 39, "MXFP4", 32, 17, None;
    /// 4-bit floats with an 8-bit float scale per 16, in blocks of 64.
    Nvfp4 = 40, "NVFP4", 64, 36, None;
    /// One sign bit per value with a scale per 128.
    Q1_0 = 41, "Q1_0", 128, 18, None;
    /// 2-bit values with a scale per 64.
    Q2_0 = 42, "Q2_0", 64, 18, None;
}

const _: () = {
    let mut i = 0;
    while i < GgmlType::ALL.len() {
        let ty = GgmlType::ALL[i];
        assert!(matches!(GgmlType::from_id(ty.id()), Some(back) if back as u32 == ty as u32));
        if let Some(dtype) = ty.dtype() {
            assert!(dtype.block_len() == ty.block_len());
            assert!(dtype.block_bytes() == ty.block_bytes());
        }
        i += 1;
    }
};

impl GgmlType {
    /// The name of a type that ggml removed, for ids that old files may still carry.
    ///
    /// ```
    /// use kiln_format::GgmlType;
    /// assert_eq!(GgmlType::removed_name(31), Some("Q4_0_4_4"));
    /// assert_eq!(GgmlType::removed_name(12), None);
    /// ```
    pub const fn removed_name(id: u32) -> Option<&'static str> {
        match id {
            4 => Some("Q4_2"),
            5 => Some("Q4_3"),
            31 => Some("Q4_0_4_4"),
            32 => Some("Q4_0_4_8"),
            33 => Some("Q4_0_8_8"),
            36 => Some("IQ4_NL_4_4"),
            37 => Some("IQ4_NL_4_8"),
            38 => Some("IQ4_NL_8_8"),
            _ => None,
        }
    }

    /// The type of that name, in any letter case.
    ///
    /// ```
    /// use kiln_format::GgmlType;
    /// assert_eq!(GgmlType::from_name("iq4_xs"), Some(GgmlType::Iq4Xs));
    /// ```
    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// The GGUF type with the layout of `dtype`; `None` for types that GGUF cannot store.
    ///
    /// ```
    /// use kiln_core::DType;
    /// use kiln_format::GgmlType;
    /// assert_eq!(GgmlType::from_dtype(DType::Q4K), Some(GgmlType::Q4K));
    /// assert_eq!(GgmlType::from_dtype(DType::U8), None);
    /// ```
    pub fn from_dtype(dtype: DType) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|ty| ty.dtype() == Some(dtype))
    }

    /// Bytes of a row of `values` values; `None` where the row is not a whole number of blocks or
    /// the size overflows.
    ///
    /// ```
    /// use kiln_format::GgmlType;
    /// assert_eq!(GgmlType::Q4K.row_bytes(512), Some(288));
    /// assert_eq!(GgmlType::Q4K.row_bytes(100), None);
    /// ```
    pub const fn row_bytes(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_len()) {
            return None;
        }
        (values / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
