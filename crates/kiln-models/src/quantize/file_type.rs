//! The kinds of quantised files by name.

use std::fmt;

use kiln::DType;

/// Declares [`FileType`] from one row per kind: number in the file, name, type of most matrices.
macro_rules! file_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $dtype:ident;)*) => {
        /// What a quantised file is made of: one type for most matrices, others for the sensitive.
        ///
        /// The names and numbers are those of GGUF files (`general.file_type`). A letter at the end
        /// of a name stands for the size of a mix: small, medium or large.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FileType {
            $($(#[$doc])* $variant,)*
        }

        impl FileType {
            /// Every kind, from many bits per weight to few.
            pub const ALL: &[FileType] = &[$(FileType::$variant,)*];

            /// The name, for example `q4_k_m`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(FileType::$variant => $name,)*
                }
            }

            /// The value of `general.file_type`.
            pub const fn id(self) -> u32 {
                match self {
                    $(FileType::$variant => $id,)*
                }
            }

            /// The type of most matrices, and of all of them in a pure file.
            pub const fn dtype(self) -> DType {
                match self {
                    $(FileType::$variant => DType::$dtype,)*
                }
            }
        }
    };
}

file_types! {
    /// Every matrix in f32.
    F32 = 0, "f32", F32;
    /// Every matrix in f16.
    F16 = 1, "f16", F16;
    /// Every matrix in bf16.
    BF16 = 32, "bf16", BF16;
    /// Every matrix in q8_0.
    Q8_0 = 7, "q8_0", Q8_0;
    /// q6_k.
    Q6K = 18, "q6_k", Q6K;
    /// q5_k, with half of the value and down projections in q6_k.
    Q5KM = 17, "q5_k_m", Q5K;
    /// q5_k, with the output in q6_k.
    Q5KS = 16, "q5_k_s", Q5K;
    /// q5_1, with the output in q6_k.
    Q5_1 = 9, "q5_1", Q5_1;
    /// q5_0, with the output in q6_k.
    Q5_0 = 8, "q5_0", Q5_0;
    /// q4_k, with half of the value and down projections in q6_k.
    Q4KM = 15, "q4_k_m", Q4K;
    /// q4_k, with the first value and down projections in q5_k.
    Q4KS = 14, "q4_k_s", Q4K;
    /// q4_1, with the output in q6_k.
    Q4_1 = 3, "q4_1", Q4_1;
    /// q4_0, with the output in q6_k.
    Q4_0 = 2, "q4_0", Q4_0;
    /// iq4_nl, with the first down projections in q5_k.
    Iq4Nl = 25, "iq4_nl", Iq4Nl;
    /// iq4_xs, with the first down projections in q5_k.
    Iq4Xs = 30, "iq4_xs", Iq4Xs;
    /// q3_k, with the value, down and attention output projections in q5_k.
    Q3KL = 13, "q3_k_l", Q3K;
    /// q3_k, with the value, down and attention output projections in q4_k and q5_k.
    Q3KM = 12, "q3_k_m", Q3K;
    /// q3_k, with the output in q6_k.
    Q3KS = 11, "q3_k_s", Q3K;
    /// q2_k, with the value, down and attention output projections in q3_k and q4_k.
    Q2K = 10, "q2_k", Q2K;
}

/// Short names and what they stand for.
const SHORT: [(&str, FileType); 3] =
    [("q5_k", FileType::Q5KM), ("q4_k", FileType::Q4KM), ("q3_k", FileType::Q3KM)];

impl FileType {
    /// The kind of that name, in any letter case; `q3_k`, `q4_k` and `q5_k` are the medium mixes.
    ///
    /// ```
    /// use kiln_models::quantize::FileType;
    /// assert_eq!(FileType::from_name("Q4_K_M"), Some(FileType::Q4KM));
    /// assert_eq!(FileType::from_name("q4_k"), Some(FileType::Q4KM));
    /// assert_eq!(FileType::from_name("q9"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        let full = Self::ALL.iter().copied().map(|file_type| (file_type.name(), file_type));
        let mut names = full.chain(SHORT);
        names.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, file_type)| file_type)
    }

    /// The names of all kinds, comma separated.
    pub fn supported() -> String {
        let names: Vec<&str> = Self::ALL.iter().map(|file_type| file_type.name()).collect();
        names.join(", ")
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
