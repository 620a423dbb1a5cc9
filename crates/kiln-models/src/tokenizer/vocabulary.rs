//! The plain data a tokenizer is built from.

use super::ByteStrings;

/// What a token stands for: `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenKind {
    /// A piece of text (1), the kind of every token where the file gives none.
    Normal,
    /// Stands for text the vocabulary cannot express (2).
    Unknown,
    /// Steers the model and is no text: begin, end, roles (3).
    Control,
    /// Text that is always one token, whatever surrounds it (4).
    UserDefined,
    /// A gap in the ids (5), also every number without a meaning. Decodes to nothing.
    Unused,
    /// One byte of text that no other token covers, written `<0xNN>` (6).
    Byte,
}

impl TokenKind {
    pub(super) fn from_gguf(value: i32) -> Self {
        match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// True for the kinds that ordinary text may be turned into.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined)
    }

    /// True for the kinds that text means only where the caller parses special tokens.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// A vocabulary as a model file stores it, unchecked: [`Tokenizer::new`](super::Tokenizer::new)
/// checks it.
///
/// The fields are the keys of `tokenizer.ggml.*` without their prefix. An empty `scores`,
/// `token_types` or `merges` means that the file has none; ids and flags that are `None` take the
/// default of the model.
///
/// ```
/// use kiln_models::tokenizer::{EncodeOptions, Tokenizer, Vocabulary};
///
/// let tokenizer = Tokenizer::new(Vocabulary {
///     model: "gpt2".into(),
///     pre: Some("gpt-2".into()),
///     tokens: ["l", "o", "lo", "Ġ", "Ġlo"].into_iter().collect(),
///     merges: ["l o", "Ġ lo"].into_iter().collect(),
///     ..Vocabulary::default()
/// })?;
/// assert_eq!(tokenizer.encode("lo lol", EncodeOptions::default()), [2, 4, 0]);
/// # Ok::<(), kiln_models::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocabulary {
    /// The algorithm: `gpt2` (byte-level byte-pair), `gemma4` (byte-pair over characters) or
    /// `llama` (SentencePiece).
    pub model: String,
    /// The pre-tokenizer of a byte-pair vocabulary.
    pub pre: Option<String>,
    /// The text of every token, by id.
    pub tokens: ByteStrings,
    /// SentencePiece: log-probability or negated merge rank per token; higher merges first.
    pub scores: Vec<f32>,
    /// [`TokenKind`] per token as the file's number.
    pub token_types: Vec<i32>,
    /// Byte-pair: `left right`, best first. The two are split at the first space after the first
    /// byte.
    pub merges: ByteStrings,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message.
    pub eom: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding puts `bos` in front.
    pub add_bos: Option<bool>,
    /// Whether encoding puts `eos` behind.
    pub add_eos: Option<bool>,
    /// SentencePiece: whether text gets a space in front.
    pub add_space_prefix: Option<bool>,
    /// Whether white space right after a special token is dropped. GGUF has no key for it.
    pub strip_after_special: bool,
}
