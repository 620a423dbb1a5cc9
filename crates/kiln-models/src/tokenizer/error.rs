//! What can be wrong with a vocabulary: errors that stop, warnings that are kept for the caller.

use kiln::format::FormatError;
use thiserror::Error;

/// A vocabulary that cannot become a [`Tokenizer`](super::Tokenizer).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The metadata of the model file does not hold a vocabulary.
    #[error(transparent)]
    Metadata(#[from] FormatError),
    /// `tokenizer.ggml.model` names an algorithm that is not implemented.
    #[error(
        "tokenizer model `{model}` is not supported (supported: {supported}); \
         tokenize outside Kiln and pass token ids"
    )]
    UnsupportedModel {
        /// The name in the file.
        model: String,
        /// The names that are supported.
        supported: &'static str,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not known.
    #[error(
        "pre-tokenizer `{pre}` is unknown (known: {known}); a wrong one gives wrong token ids, so \
         none is guessed: set `Vocabulary::pre` to a known one with the same rules"
    )]
    UnknownPreTokenizer {
        /// The name in the file.
        pre: String,
        /// Every known name, comma separated.
        known: String,
    },
    /// The vocabulary has no tokens.
    #[error("the vocabulary has no tokens; is `tokenizer.ggml.tokens` empty?")]
    Empty,
    /// More tokens than ids.
    #[error("the vocabulary has {got} tokens, more than the {max} that ids can name")]
    TooManyTokens {
        /// Tokens in the vocabulary.
        got: usize,
        /// The largest supported number.
        max: usize,
    },
    /// A per-token array is shorter than the token list.
    #[error("`{array}` has {got} elements for {expected} tokens; it needs one per token or none")]
    ArrayLength {
        /// The array: `scores` or `token_types`.
        array: &'static str,
        /// Tokens in the vocabulary.
        expected: usize,
        /// Elements in the array.
        got: usize,
    },
    /// A SentencePiece vocabulary without scores.
    #[error("a `llama` (SentencePiece) vocabulary needs `scores`, one per token")]
    MissingScores,
    /// A score that cannot be ordered.
    #[error("the score of token {token} is not a number")]
    InvalidScore {
        /// The token id.
        token: u32,
    },
    /// A byte-pair vocabulary without merges.
    #[error("a `{model}` (byte-pair) vocabulary needs `merges`")]
    MissingMerges {
        /// The name of the tokenizer model.
        model: String,
    },
    /// The texts of the special and user-defined tokens do not fit the matcher.
    #[error(
        "the special and user-defined tokens hold {bytes} bytes of text, the matcher takes {max}"
    )]
    SpecialTextTooLong {
        /// Bytes of special and user-defined text.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The matcher for special tokens or a pre-tokenizer expression could not be built.
    #[error("building the {part} failed: {reason}")]
    Build {
        /// Which part.
        part: &'static str,
        /// The builder's own words.
        reason: String,
    },
}

/// Something odd in a vocabulary that still gives a working tokenizer.
///
/// The library prints nothing: a caller reads these with
/// [`Tokenizer::warnings`](super::Tokenizer::warnings) and decides.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenizerWarning {
    /// A byte-pair vocabulary that does not name its pre-tokenizer.
    #[error(
        "`tokenizer.ggml.pre` is missing: the `default` rules are used and token ids may differ \
         from those the model was trained with; convert the model again"
    )]
    MissingPreTokenizer,
    /// Tokens without text; they are never produced and decode to nothing.
    #[error("{count} tokens have no text, the first is token {first}")]
    EmptyTokens {
        /// How many.
        count: usize,
        /// The first one.
        first: u32,
    },
    /// Tokens whose text another token has already; they are never produced.
    #[error("{count} tokens repeat the text of another token, the first is token {first}")]
    DuplicateTokens {
        /// How many.
        count: usize,
        /// The first one.
        first: u32,
    },
    /// Bytes of UTF-8 text that no token stands for. They become the unknown token, or are dropped
    /// when there is none.
    #[error("{count} bytes that text may hold have no token; they are lost")]
    MissingBytes {
        /// How many of the 243 bytes of UTF-8.
        count: usize,
    },
    /// Merges that name a text which is not a token, or that would form a special token.
    #[error("{count} merges do not join two tokens into a third, the first is merge {first}")]
    UnusableMerges {
        /// How many.
        count: usize,
        /// The index of the first one.
        first: usize,
    },
    /// A special token id beyond the vocabulary; it is ignored.
    #[error("`{key}` is {id}, beyond the {tokens} tokens of the vocabulary; it is ignored")]
    IdOutOfRange {
        /// Which id: `bos`, `eos`, ...
        key: &'static str,
        /// Its value.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// The vocabulary asks for a token at an end of the text but does not say which.
    #[error("the vocabulary asks for {key} to be added but has no such token; none is added")]
    MissingId {
        /// `bos` or `eos`.
        key: &'static str,
    },
}
