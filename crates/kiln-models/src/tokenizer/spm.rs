//! SentencePiece (`llama`): neighbours merge by the score of the token they form.

use super::merge::{Merge, Merger, Merges, NO_TOKEN, Symbol};
use super::{TokenKind, Tokens, byte_token_text};

/// Ranks and byte tokens of a SentencePiece vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Spm {
    /// Per token, 0 for the highest score; equal scores share a rank.
    ranks: Vec<u32>,
    /// The token of each byte, or [`NO_TOKEN`].
    bytes: Box<[u32; 256]>,
}

impl Spm {
    /// `scores` holds a number for every token, none of them NaN.
    pub(super) fn new(tokens: &Tokens, scores: &[f32]) -> Self {
        // Adding zero makes one of the two zeros.
        let score = |id: &u32| scores[*id as usize] + 0.0;
        let mut order: Vec<u32> = (0u32..).take(tokens.len()).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let mut ranks = vec![0; tokens.len()];
        let mut rank = 0;
        for (position, id) in order.iter().enumerate() {
            if position > 0 && score(&order[position - 1]) != score(id) {
                rank += 1;
            }
            ranks[*id as usize] = rank;
        }
        let bytes = Box::new(std::array::from_fn(|byte| {
            let byte = byte as u8;
            let id = tokens.id(&byte_token_text(byte)).or_else(|| tokens.text_id(&[byte]));
            id.unwrap_or(NO_TOKEN)
        }));
        Self { ranks, bytes }
    }

    /// The token of each byte, or [`NO_TOKEN`].
    pub(super) fn bytes(&self) -> &[u32; 256] {
        &self.bytes
    }

    /// Appends the ids of `text`, which holds no special tokens any more.
    pub(super) fn encode(&self, tokens: &Tokens, text: &str, prefix: bool, out: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + 3);
        if prefix {
            escaped.push('▁');
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { '▁' } else { c }));
        let mut merger = Merger::default();
        for character in escaped.chars() {
            let id = tokens.text_id(character.encode_utf8(&mut [0; 4]).as_bytes());
            merger.push(character.len_utf8(), id.unwrap_or(NO_TOKEN));
        }
        merger.run(escaped.as_bytes(), &Table { ranks: &self.ranks, tokens });
        for symbol in merger.symbols() {
            if symbol.id == NO_TOKEN {
                let bytes = &escaped.as_bytes()[symbol.start..symbol.start + symbol.len];
                tokens.push_bytes(bytes, &self.bytes, out);
            } else {
                out.push(symbol.id);
            }
        }
    }
}

struct Table<'a> {
    ranks: &'a [u32],
    tokens: &'a Tokens,
}

impl Merges for Table<'_> {
    fn merge(&self, text: &[u8], left: &Symbol, right: &Symbol) -> Option<Merge> {
        let joined = &text[left.start..right.start + right.len];
        let id = self.tokens.text_id(joined)?;
        Some(Merge { rank: self.ranks[id as usize], id })
    }
}

/// The byte that a `<0xNN>` token stands for.
pub(super) fn parse_byte_token(text: &[u8], kind: TokenKind) -> Option<u8> {
    if kind != TokenKind::Byte {
        return None;
    }
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
