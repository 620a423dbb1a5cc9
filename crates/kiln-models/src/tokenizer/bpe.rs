//! Byte-pair encoding over bytes (`gpt2`) or over characters (`gemma4`).

use std::collections::HashMap;

use super::merge::{Merge, Merger, Merges, NO_TOKEN, Symbol};
use super::pretokenizer::PreTokenizer;
use super::{ByteStrings, TokenizerError, Tokens, byte_token_text};

/// What the texts of a byte-pair vocabulary are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// One printable character per byte.
    Bytes,
    /// Plain UTF-8 with `▁` for a space; other bytes are `<0xNN>` tokens.
    Characters,
}

/// The character that stands for `byte` in the texts of a byte-level vocabulary: itself where it
/// prints, else the next one from U+0100 on.
pub(super) fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `character` stands for in a byte-level vocabulary.
pub(super) fn char_to_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The merge table and the rules around it.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    pub(super) pre: PreTokenizer,
    alphabet: Alphabet,
    /// The token of each byte, or [`NO_TOKEN`].
    bytes: Box<[u32; 256]>,
    pairs: HashMap<(u32, u32), (u32, u32)>,
}

impl Bpe {
    /// The merge table, and the merges that had to be left out by index.
    pub(super) fn new(
        alphabet: Alphabet,
        pre: Option<&str>,
        tokens: &Tokens,
        merges: &ByteStrings,
    ) -> Result<(Self, Vec<usize>), TokenizerError> {
        let bytes = Box::new(std::array::from_fn(|byte| {
            let id = match alphabet {
                Alphabet::Bytes => {
                    tokens.text_id(byte_to_char(byte as u8).encode_utf8(&mut [0; 4]).as_bytes())
                }
                Alphabet::Characters => tokens.id(&byte_token_text(byte as u8)),
            };
            id.unwrap_or(NO_TOKEN)
        }));
        let mut pairs = HashMap::with_capacity(merges.len());
        let mut unusable = Vec::new();
        let mut joined = Vec::new();
        for (index, merge) in merges.iter().enumerate() {
            joined.clear();
            match parse_merge(tokens, merge, &mut joined) {
                Some((pair, id)) => {
                    pairs.entry(pair).or_insert((u32::try_from(index).unwrap_or(u32::MAX), id));
                }
                None => unusable.push(index),
            }
        }
        let pre = PreTokenizer::new(pre)?;
        Ok((Self { pre, alphabet, bytes, pairs }, unusable))
    }

    /// The token of each byte, or [`NO_TOKEN`].
    pub(super) fn bytes(&self) -> &[u32; 256] {
        &self.bytes
    }

    /// Appends the ids of `text`, which holds no special tokens any more.
    pub(super) fn encode(&self, tokens: &Tokens, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut spelled = String::new();
        let escaped;
        let text = match self.alphabet {
            Alphabet::Bytes => text,
            Alphabet::Characters => {
                escaped = text.replace(' ', "▁");
                escaped.as_str()
            }
        };
        let mut start = 0;
        for end in self.pre.split(text) {
            let word = &text[start..end];
            start = end;
            match self.whole_word(tokens, word, &mut spelled) {
                Some(id) => out.push(id),
                None => self.encode_word(tokens, word, &mut merger, out),
            }
        }
    }

    /// The token that is the whole word, where the rules take it without merges.
    fn whole_word(&self, tokens: &Tokens, word: &str, spelled: &mut String) -> Option<u32> {
        match self.alphabet {
            Alphabet::Bytes if self.pre.ignore_merges => {
                spelled.clear();
                spelled.extend(word.bytes().map(byte_to_char));
                tokens.text_id(spelled.as_bytes())
            }
            Alphabet::Characters if word.starts_with('\n') => tokens.text_id(word.as_bytes()),
            _ => None,
        }
    }

    fn encode_word(&self, tokens: &Tokens, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        merger.clear();
        match self.alphabet {
            Alphabet::Bytes => {
                for byte in word.bytes() {
                    merger.push(1, self.bytes[usize::from(byte)]);
                }
            }
            Alphabet::Characters => {
                for character in word.chars() {
                    let id = tokens.text_id(character.encode_utf8(&mut [0; 4]).as_bytes());
                    merger.push(character.len_utf8(), id.unwrap_or(NO_TOKEN));
                }
            }
        }
        merger.run(word.as_bytes(), self);
        for symbol in merger.symbols() {
            if symbol.id == NO_TOKEN {
                let bytes = &word.as_bytes()[symbol.start..symbol.start + symbol.len];
                tokens.push_bytes(bytes, &self.bytes, out);
            } else {
                out.push(symbol.id);
            }
        }
    }
}

impl Merges for Bpe {
    fn merge(&self, _: &[u8], left: &Symbol, right: &Symbol) -> Option<Merge> {
        let &(rank, id) = self.pairs.get(&(left.id, right.id))?;
        Some(Merge { rank, id })
    }
}

/// The ids of the two halves of `left right` and of their union.
fn parse_merge(tokens: &Tokens, merge: &[u8], joined: &mut Vec<u8>) -> Option<((u32, u32), u32)> {
    let space = 1 + merge.get(1..)?.iter().position(|&byte| byte == b' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    joined.extend_from_slice(left);
    joined.extend_from_slice(right);
    Some(((tokens.text_id(left)?, tokens.text_id(right)?), tokens.text_id(joined)?))
}
