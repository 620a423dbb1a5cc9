//! The plain data a tokenizer is built from.

use super::known_tokens::KnownTokens;
use super::spm::parse_byte_token;
use super::{ByteStrings, TokenizerError, TokenizerWarning};

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
    /// More tokens at which generation stops.
    pub ends: Vec<u32>,
    /// Whether encoding puts `bos` in front.
    pub add_bos: Option<bool>,
    /// Whether encoding puts `eos` behind.
    pub add_eos: Option<bool>,
    /// SentencePiece: whether text gets a space in front.
    pub add_space_prefix: Option<bool>,
    /// Whether white space right after a special token is dropped. GGUF has no key for it.
    pub strip_after_special: bool,
}

/// The ids that have a meaning of their own, checked against the vocabulary.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// The id that byte-pair files mean when they name neither a begin nor an end token.
const LEGACY_END: u32 = 11;

impl Vocabulary {
    /// Checks the lengths and values of the per-token arrays.
    pub(super) fn check(&self, sentence_piece: bool) -> Result<(), TokenizerError> {
        let tokens = self.tokens.len();
        let max = i32::MAX as usize;
        if tokens == 0 {
            return Err(TokenizerError::Empty);
        }
        if tokens > max {
            return Err(TokenizerError::TooManyTokens { got: tokens, max });
        }
        for (array, got) in [("scores", self.scores.len()), ("token_types", self.token_types.len())]
        {
            if got > 0 && got < tokens {
                return Err(TokenizerError::ArrayLength { array, expected: tokens, got });
            }
        }
        if sentence_piece {
            if self.scores.is_empty() {
                return Err(TokenizerError::MissingScores);
            }
            if let Some((token, _)) = (0u32..).zip(&self.scores).find(|(_, score)| score.is_nan()) {
                return Err(TokenizerError::InvalidScore { token });
            }
        } else if self.merges.is_empty() {
            return Err(TokenizerError::MissingMerges { model: self.model.clone() });
        }
        Ok(())
    }

    /// The ids in `ends` that exist.
    pub(super) fn more_ends(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied().filter(|&id| (id as usize) < self.tokens.len())
    }

    /// The special ids: those of the file, without the ones out of range, else the model's defaults.
    pub(super) fn special_ids(
        &self,
        sentence_piece: bool,
        warnings: &mut Vec<TokenizerWarning>,
    ) -> SpecialIds {
        let tokens = self.tokens.len();
        let exists = |id: &u32| (*id as usize) < tokens;
        let mut checked = |key, id: Option<u32>, default: Option<u32>| {
            if let Some(id) = id.filter(|id| !exists(id)) {
                warnings.push(TokenizerWarning::IdOutOfRange { key, id, tokens });
            }
            id.filter(exists).or(default.filter(exists))
        };
        let (bos, eos, unk) = if sentence_piece {
            (Some(1), Some(2), Some(0))
        } else {
            // Without the file's word, only a control token can be meant.
            let control = self.token_types.get(LEGACY_END as usize) == Some(&3);
            let end = Some(LEGACY_END).filter(|_| control);
            (end, end, None)
        };
        SpecialIds {
            bos: checked("bos", self.bos, bos),
            eos: checked("eos", self.eos, eos),
            eot: checked("eot", self.eot, None),
            eom: checked("eom", self.eom, None),
            unk: checked("unk", self.unk, unk),
            pad: checked("pad", self.pad, None),
        }
    }

    /// The kind of every token. Known ends and marks are control tokens even where the file calls
    /// them text, so that they are never shown nor read from a user's words.
    pub(super) fn kinds(&self, ids: &SpecialIds, known: &KnownTokens) -> Vec<TokenKind> {
        let mut kinds: Vec<TokenKind> = if self.token_types.is_empty() {
            vec![TokenKind::Normal; self.tokens.len()]
        } else {
            self.token_types[..self.tokens.len()].iter().map(|&n| TokenKind::from_gguf(n)).collect()
        };
        if self.token_types.is_empty() {
            for (kind, text) in kinds.iter_mut().zip(self.tokens.iter()) {
                if parse_byte_token(text, TokenKind::Byte).is_some() && self.model != "gpt2" {
                    *kind = TokenKind::Byte;
                }
            }
            for id in [ids.bos, ids.eos, ids.eot, ids.eom].into_iter().flatten() {
                kinds[id as usize] = TokenKind::Control;
            }
            if let Some(id) = ids.unk {
                kinds[id as usize] = TokenKind::Unknown;
            }
        }
        for &id in known.ends.iter().chain(&known.marks) {
            kinds[id as usize] = TokenKind::Control;
        }
        kinds
    }
}
