//! Tokens of preprocessed MSL.

use crate::CompileError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ident,
    Number,
    Text,
    Punct,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) line: u32,
}

impl Token<'_> {
    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text && self.kind != Kind::Text
    }
}

const PUNCTUATION: [&str; 25] = [
    "<<=", ">>=", "...", "->*", "::", "->", "<<", "<=", ">=", "==", "!=", "&&", "||", "++", "--",
    "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", ".*", "##",
];

/// Cuts preprocessed text into tokens. Line markers set the line; other directives are dropped.
pub(super) fn lex(text: &str) -> Result<Vec<Token<'_>>, CompileError> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut fresh) = (0, 1u32, true);
    let mut tokens = Vec::with_capacity(text.len() / 4);
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            (at, line, fresh) = (at + 1, line + 1, true);
            continue;
        }
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if byte == b'#' && fresh {
            let end = text[at..].find('\n').map_or(bytes.len(), |n| at + n);
            let marker = text[at + 1..end].trim_start_matches(" line").trim_start();
            let digits = marker.split(' ').next().unwrap_or_default();
            if let Ok(number) = digits.parse::<u32>() {
                // The newline that ends the marker counts one.
                line = number.wrapping_sub(1);
            }
            at = end;
            continue;
        }
        fresh = false;
        let rest = &text[at..];
        let (kind, length) = if byte == b'"' || byte == b'\'' {
            let closing = quoted(rest.as_bytes()).ok_or_else(|| CompileError::Syntax {
                line,
                message: "a quoted text does not end".into(),
            })?;
            (Kind::Text, closing)
        } else if byte.is_ascii_digit()
            || (byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit))
        {
            (Kind::Number, number(rest.as_bytes()))
        } else if byte == b'_' || byte == b'$' || byte.is_ascii_alphabetic() || byte >= 0x80 {
            let end = rest
                .find(|c: char| !(c == '_' || c == '$' || c.is_alphanumeric()))
                .unwrap_or(rest.len());
            (Kind::Ident, end.max(1))
        } else {
            let long = PUNCTUATION.iter().find(|p| rest.starts_with(**p));
            (Kind::Punct, long.map_or(1, |p| p.len()))
        };
        let Some(piece) = rest.get(..length) else {
            return Err(CompileError::Syntax { line, message: "a character is not MSL".into() });
        };
        tokens.push(Token { kind, text: piece, line });
        at += length;
    }
    Ok(tokens)
}

fn quoted(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'\n' => return None,
            byte if byte == bytes[0] => return Some(at + 1),
            _ => {}
        }
        at += 1;
    }
    None
}

fn number(bytes: &[u8]) -> usize {
    let hex = bytes.len() > 1 && bytes[0] == b'0' && (bytes[1] | 32) == b'x';
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        let sign = (byte == b'+' || byte == b'-')
            && at > 0
            && matches!((bytes[at - 1] | 32, hex), (b'e', false) | (b'p', true));
        if !(byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || byte == b'\'' || sign)
        {
            break;
        }
        at += 1;
    }
    at
}
