//! Text to token ids and back, from the vocabulary a model file carries.
//!
//! Byte-level byte-pair (`gpt2`), byte-pair over characters (`gemma4`) and SentencePiece
//! (`llama`) vocabularies are supported; `bert` and `t5` ones are refused with
//! [`TokenizerError::UnsupportedModel`].
//!
//! ```
//! use kiln_models::tokenizer::{EncodeOptions, Tokenizer, Vocabulary};
//!
//! let tokenizer = Tokenizer::new(Vocabulary {
//!     model: "llama".into(),
//!     tokens: ["<unk>", "<s>", "</s>", "▁", "h", "i", "hi", "▁hi"].into_iter().collect(),
//!     scores: vec![0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -1.0],
//!     token_types: vec![2, 3, 3, 1, 1, 1, 1, 1],
//!     ..Vocabulary::default()
//! })?;
//! let ids = tokenizer.encode("hi hi", EncodeOptions { add_special: true, ..Default::default() });
//! assert_eq!(ids, [1, 7, 7]);
//! assert_eq!(tokenizer.decode(&ids), "hi hi");
//! assert!(tokenizer.is_end_of_generation(2));
//! # Ok::<(), kiln_models::tokenizer::TokenizerError>(())
//! ```

mod bpe;
mod byte_strings;
mod decode;
mod error;
mod gguf;
mod known_tokens;
mod merge;
mod pretokenizer;
mod special;
mod spm;
mod tokens;
mod vocabulary;

use std::ops::Range;
use std::sync::Arc;

use bpe::{Alphabet, Bpe};
pub use byte_strings::ByteStrings;
use byte_strings::TextIndex;
pub use decode::{StreamDecoder, Utf8Stream};
pub use error::{TokenizerError, TokenizerWarning};
use known_tokens::KnownTokens;
use merge::NO_TOKEN;
use special::{Fragment, SpecialTokens};
use spm::Spm;
use tokens::{Tokens, byte_token_text};
use vocabulary::SpecialIds;
pub use vocabulary::{TokenKind, Vocabulary};

use crate::chat::Prompt;

/// How [`Tokenizer::encode`] treats special tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the begin token in front and the end token behind, as far as the vocabulary asks for
    /// them and they are not there already.
    pub add_special: bool,
    /// Read the texts of control tokens, such as `<|im_end|>`, as those tokens. Leave this off for
    /// text that a user wrote: the text would steer the model. User-defined tokens are found
    /// either way.
    pub parse_special: bool,
}

/// Turns text into token ids and back. A clone shares the vocabulary.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    algorithm: Algorithm,
    special: SpecialTokens,
    ids: SpecialIds,
    /// Ascending.
    ends: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    space_prefix: bool,
    strip_after_special: bool,
    warnings: Vec<TokenizerWarning>,
}

#[derive(Debug)]
enum Algorithm {
    BytePair(Bpe),
    SentencePiece(Spm),
}

impl Algorithm {
    /// Bytes of UTF-8 text that have no token.
    fn missing_bytes(&self) -> usize {
        let table = match self {
            Self::BytePair(bpe) => bpe.bytes(),
            Self::SentencePiece(spm) => spm.bytes(),
        };
        let in_text = |byte: usize| !matches!(byte, 0xc0 | 0xc1 | 0xf5..);
        table.iter().enumerate().filter(|(byte, id)| in_text(*byte) && **id == NO_TOKEN).count()
    }
}

const SUPPORTED: &str = "gpt2, gemma4, llama";
const GEMMA4: &str = "gemma4";

impl Tokenizer {
    /// Checks a vocabulary and builds its tables.
    ///
    /// Oddities that leave a working tokenizer are kept as [`Self::warnings`].
    ///
    /// # Errors
    /// [`TokenizerError`] for a model or pre-tokenizer that is not known, for arrays that do not
    /// fit the tokens, and for scores or merges that are missing.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let sentence_piece = match vocabulary.model.as_str() {
            "llama" => true,
            "gpt2" | GEMMA4 => false,
            _ => {
                return Err(TokenizerError::UnsupportedModel {
                    model: vocabulary.model,
                    supported: SUPPORTED,
                });
            }
        };
        vocabulary.check(sentence_piece)?;

        let mut warnings = Vec::new();
        let ids = vocabulary.special_ids(sentence_piece, &mut warnings);
        let known = KnownTokens::find(&vocabulary);
        let kinds = vocabulary.kinds(&ids, &known);
        let mut ends = known.ends;
        ends.extend([ids.eos, ids.eot, ids.eom].into_iter().flatten());
        ends.extend(vocabulary.more_ends());
        ends.sort_unstable();
        ends.dedup();

        let special = SpecialTokens::new(&vocabulary.tokens, &kinds)?;
        let pre = if vocabulary.model == GEMMA4 { Some(GEMMA4) } else { vocabulary.pre.as_deref() };
        let gemma4 = !sentence_piece && pre == Some(GEMMA4);
        let alphabet =
            if sentence_piece || gemma4 { Alphabet::Characters } else { Alphabet::Bytes };
        let tokens = Tokens::new(vocabulary.tokens, kinds, alphabet, ids.unk, &mut warnings);
        let algorithm = if sentence_piece {
            Algorithm::SentencePiece(Spm::new(&tokens, &vocabulary.scores))
        } else {
            if pre.is_none() {
                warnings.push(TokenizerWarning::MissingPreTokenizer);
            }
            let (bpe, unusable) = Bpe::new(alphabet, pre, &tokens, &vocabulary.merges)?;
            if let Some(&first) = unusable.first() {
                let count = unusable.len();
                warnings.push(TokenizerWarning::UnusableMerges { count, first });
            }
            Algorithm::BytePair(bpe)
        };
        let missing = algorithm.missing_bytes();
        if missing > 0 {
            warnings.push(TokenizerWarning::MissingBytes { count: missing });
        }
        let add_bos_by_default = match &algorithm {
            Algorithm::BytePair(bpe) => bpe.pre.add_bos,
            Algorithm::SentencePiece(_) => true,
        };
        // Files of this family say no where the model was trained with the token.
        let add_bos = gemma4 || vocabulary.add_bos.unwrap_or(add_bos_by_default);
        let add_eos = vocabulary.add_eos.unwrap_or(false);
        for (key, asked, id) in [("bos", add_bos, ids.bos), ("eos", add_eos, ids.eos)] {
            if asked && id.is_none() {
                warnings.push(TokenizerWarning::MissingId { key });
            }
        }
        let inner = Inner {
            tokens,
            algorithm,
            special,
            ids,
            ends,
            add_bos,
            add_eos,
            space_prefix: vocabulary.add_space_prefix.unwrap_or(true) && sentence_piece,
            strip_after_special: vocabulary.strip_after_special,
            warnings,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The token ids of `text`.
    ///
    /// Time and memory grow with the length of the text only (times its logarithm).
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let whole = 0..text.len();
        let parsed = if options.parse_special { std::slice::from_ref(&whole) } else { &[] };
        self.encode_parts(text, parsed, options.add_special)
    }

    /// The token ids of a chat prompt: special tokens count where the template wrote them, never
    /// inside a message.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Vec<u32> {
        self.encode_parts(prompt.text(), prompt.template_ranges(), true)
    }

    fn encode_parts(&self, text: &str, parsed: &[Range<usize>], add_special: bool) -> Vec<u32> {
        let inner = &*self.inner;
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        let bos = inner.ids.bos.filter(|_| add_special && inner.add_bos);
        ids.extend(bos);
        let mut after_special = true;
        let mut strip = false;
        for fragment in inner.special.split(text, parsed) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                    strip = self.strips_after(id);
                }
                Fragment::Text(range) => {
                    let text = &text[range];
                    let text = if strip { text.trim_ascii_start() } else { text };
                    if !text.is_empty() {
                        self.encode_text(text, after_special, &mut ids);
                        after_special = false;
                    }
                }
            }
        }
        if bos.is_some() && ids.get(1) == bos.as_ref() {
            ids.remove(0);
        }
        let eos = inner.ids.eos.filter(|_| add_special && inner.add_eos);
        if ids.last() != eos.as_ref() {
            ids.extend(eos);
        }
        ids
    }

    fn encode_text(&self, text: &str, after_special: bool, ids: &mut Vec<u32>) {
        let inner = &*self.inner;
        match &inner.algorithm {
            Algorithm::BytePair(bpe) => bpe.encode(&inner.tokens, text, ids),
            Algorithm::SentencePiece(spm) => {
                spm.encode(&inner.tokens, text, inner.space_prefix && after_special, ids);
            }
        }
    }

    /// Tokens that begin a sequence leave the white space behind them alone.
    fn strips_after(&self, id: u32) -> bool {
        self.inner.strip_after_special
            && !matches!(self.inner.tokens.text(id), Some(b"<unk>" | b"<s>" | b"<|endoftext|>"))
    }

    /// The special tokens whose texts stand in `text`, as byte ranges.
    pub(crate) fn find_special(&self, text: &str) -> Vec<Range<usize>> {
        self.inner.special.find_special(text)
    }

    /// How many tokens there are; ids are below this.
    pub fn len(&self) -> usize {
        self.inner.tokens.len()
    }

    /// Never true: an empty vocabulary is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is odd about the vocabulary.
    pub fn warnings(&self) -> &[TokenizerWarning] {
        &self.inner.warnings
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.inner.ids.bos
    }

    /// End of sequence; see [`Self::is_end_of_generation`] for where to stop.
    pub fn eos(&self) -> Option<u32> {
        self.inner.ids.eos
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.inner.ids.unk
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.inner.ids.pad
    }

    /// Whether [`EncodeOptions::add_special`] puts the begin token in front.
    pub fn adds_bos(&self) -> bool {
        self.inner.add_bos && self.inner.ids.bos.is_some()
    }

    /// Whether [`EncodeOptions::add_special`] puts the end token behind.
    pub fn adds_eos(&self) -> bool {
        self.inner.add_eos && self.inner.ids.eos.is_some()
    }

    /// True for every token at which generation stops: the end of the sequence, of a turn and of a
    /// message, by id and by the texts the model families use.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.inner.ends.binary_search(&id).is_ok()
    }

    /// Those tokens, ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.inner.ends
    }

    /// The token with exactly this text in the file's spelling, whatever its kind.
    pub fn token_id(&self, text: impl AsRef<[u8]>) -> Option<u32> {
        self.inner.tokens.id(text.as_ref())
    }

    /// The text of a token in the file's spelling, or `None` for an id out of range.
    pub fn token_text(&self, id: u32) -> Option<&[u8]> {
        self.inner.tokens.text(id)
    }

    /// The kind of a token, or `None` for an id out of range.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.inner.tokens.kind(id)
    }

    /// The bytes a token adds to a text, which need not be whole characters. Control and unknown
    /// tokens add nothing, nor do ids out of range.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match self.token_kind(id) {
            Some(kind) if !kind.is_special() => self.token_bytes_with_special(id),
            _ => &[],
        }
    }

    /// As [`Self::token_bytes`], but control and unknown tokens add their names.
    pub fn token_bytes_with_special(&self, id: u32) -> &[u8] {
        self.inner.tokens.bytes(id).unwrap_or_default()
    }

    /// The text of `ids` without control tokens. Bytes that are no UTF-8 become U+FFFD. The space
    /// that encoding put in front of the text is taken away again.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text = String::new();
        for &id in ids {
            text.push_str(decoder.push(id));
        }
        text.push_str(decoder.finish());
        text
    }

    /// A decoder for tokens that arrive one by one and begin a text.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }
}

#[cfg(test)]
mod tests;
