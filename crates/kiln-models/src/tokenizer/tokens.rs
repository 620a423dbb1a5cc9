//! The checked tokens of a vocabulary: texts, kinds, bytes, and the way from text to id.

use super::bpe::{Alphabet, char_to_byte};
use super::merge::NO_TOKEN;
use super::spm::parse_byte_token;
use super::{ByteStrings, TextIndex, TokenKind, TokenizerWarning};

/// Every token of a vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    texts: ByteStrings,
    kinds: Vec<TokenKind>,
    /// What each token adds to a text; see [`Tokens::bytes`].
    bytes: ByteStrings,
    index: TextIndex,
    longest: usize,
    /// Stands for text without a token.
    unknown: Option<u32>,
}

/// The text of the token for one byte in a vocabulary of characters.
pub(super) fn byte_token_text(byte: u8) -> Vec<u8> {
    format!("<0x{byte:02X}>").into_bytes()
}

impl Tokens {
    /// Indexes `texts`; `kinds` has one element for each of them.
    pub(super) fn new(
        mut texts: ByteStrings,
        kinds: Vec<TokenKind>,
        alphabet: Alphabet,
        unknown: Option<u32>,
        warnings: &mut Vec<TokenizerWarning>,
    ) -> Self {
        let ids = || (0u32..).zip(&kinds);
        let mut index = TextIndex::with_capacity(texts.len());
        let (mut empty, mut duplicate) = (Vec::new(), Vec::new());
        // Text goes first: where a special token has the same text, words become the other one.
        let (text, rest): (Vec<_>, Vec<_>) = ids().partition(|(_, kind)| kind.is_text());
        for (id, _) in text.into_iter().chain(rest) {
            if texts.get(id as usize).is_none_or(<[u8]>::is_empty) {
                empty.push(id);
            } else if !index.insert(&texts, id) {
                duplicate.push(id);
            }
        }
        if let Some(&first) = empty.iter().min() {
            warnings.push(TokenizerWarning::EmptyTokens { count: empty.len(), first });
        }
        if let Some(&first) = duplicate.iter().min() {
            warnings.push(TokenizerWarning::DuplicateTokens { count: duplicate.len(), first });
        }
        let mut bytes = ByteStrings::new();
        let mut scratch = Vec::new();
        for (text, &kind) in texts.iter().zip(&kinds) {
            scratch.clear();
            append_bytes(text, kind, alphabet, &mut scratch);
            bytes.push(&scratch);
        }
        texts.shrink_to_fit();
        bytes.shrink_to_fit();
        let longest = texts.iter().map(<[u8]>::len).max().unwrap_or(0);
        Self { texts, kinds, bytes, index, longest, unknown }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The text as the file spells it.
    pub(super) fn text(&self, id: u32) -> Option<&[u8]> {
        self.texts.get(id as usize)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// What the token adds to a text, as bytes: its text undone of the vocabulary's spelling. The
    /// bytes of a special token are its name.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize)
    }

    /// The token with this text, whatever its kind.
    pub(super) fn id(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest { None } else { self.index.get(&self.texts, text) }
    }

    /// The token that text may be turned into; never a special one.
    pub(super) fn text_id(&self, text: &[u8]) -> Option<u32> {
        self.id(text).filter(|&id| self.kinds[id as usize].is_text())
    }

    /// Appends a character that has no token, byte by byte where `table` has all of them, as the
    /// unknown token where there is one, else as the bytes that have one.
    pub(super) fn push_bytes(&self, bytes: &[u8], table: &[u32; 256], out: &mut Vec<u32>) {
        let ids = bytes.iter().map(|&byte| table[usize::from(byte)]);
        match self.unknown {
            Some(unknown) if ids.clone().any(|id| id == NO_TOKEN) => out.push(unknown),
            _ => out.extend(ids.filter(|&id| id != NO_TOKEN)),
        }
    }
}

/// Appends what a token adds to a text.
fn append_bytes(text: &[u8], kind: TokenKind, alphabet: Alphabet, out: &mut Vec<u8>) {
    if let Some(byte) = parse_byte_token(text, kind) {
        out.push(byte);
        return;
    }
    match (kind, std::str::from_utf8(text)) {
        (TokenKind::Unused, _) => {}
        (TokenKind::Normal, Ok(text)) => match alphabet {
            Alphabet::Bytes => {
                let start = out.len();
                for character in text.chars() {
                    let Some(byte) = char_to_byte(character) else {
                        // A text that is not spelled in bytes stands for itself.
                        out.truncate(start);
                        out.extend_from_slice(text.as_bytes());
                        return;
                    };
                    out.push(byte);
                }
            }
            Alphabet::Characters => {
                out.extend_from_slice(text.replace('▁', " ").as_bytes());
            }
        },
        _ => out.extend_from_slice(text),
    }
}
