//! Names and numbers: what a token means without its types.

use std::collections::HashSet;

use super::kernel::after_group;
use super::lexer::{Kind, Token};

/// The lanes of a swizzle of two to four letters, as template arguments.
pub(super) fn swizzle(name: &str) -> Option<String> {
    if !(2..=4).contains(&name.len()) {
        return None;
    }
    ["xyzw", "rgba"].iter().find_map(|letters| {
        let lanes: Option<Vec<String>> =
            name.chars().map(|c| letters.find(c).map(|lane| lane.to_string())).collect();
        lanes.map(|lanes| lanes.join(","))
    })
}

/// The lane of a component.
pub(super) fn component(name: &str) -> Option<usize> {
    match name.len() {
        1 => ["xyzw", "rgba"].iter().find_map(|letters| letters.find(name)),
        _ => None,
    }
}

/// Names like swizzles that the source declares as fields.
pub(super) fn fields<'a>(tokens: &[Token<'a>]) -> HashSet<&'a str> {
    let mut found = HashSet::new();
    for (at, token) in tokens.iter().enumerate() {
        if !(token.is("struct") || token.is("union") || token.is("class")) {
            continue;
        }
        let Some(open) =
            tokens[at..].iter().position(|t| matches!(t.text, "{" | ";" | "(" | ">" | ","))
        else {
            continue;
        };
        if !tokens[at + open].is("{") {
            continue;
        }
        let (mut inner, end) = (at + open + 1, after_group(tokens, at + open));
        while inner + 1 < end {
            if matches!(tokens[inner].text, "{" | "(" | "[") && tokens[inner].kind == Kind::Punct {
                inner = after_group(tokens, inner);
                continue;
            }
            let declared = matches!(tokens[inner + 1].text, ";" | "," | "[" | "=");
            if tokens[inner].kind == Kind::Ident
                && declared
                && swizzle(tokens[inner].text).is_some()
            {
                found.insert(tokens[inner].text);
            }
            inner += 1;
        }
    }
    found
}

/// A number as C++ spells it: `h` and `bf` are suffixes of half and bfloat.
pub(super) fn number(text: &str) -> String {
    let hex = text.starts_with("0x") || text.starts_with("0X");
    for (suffix, ty) in [("bf", "bfloat"), ("BF", "bfloat"), ("h", "half"), ("H", "half")] {
        if let Some(digits) = text.strip_suffix(suffix)
            && !hex
        {
            let point = if digits.contains(['.', 'e', 'E']) { "f" } else { ".0f" };
            return format!("::{ty}({digits}{point})");
        }
    }
    text.into()
}

/// The value of sums, differences and products of whole numbers, without spaces.
pub(super) fn integer(text: &str) -> Option<u32> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')'))
        && !inner.contains(['(', ')'])
    {
        return integer(inner);
    }
    for operators in [&['+', '-'][..], &['*'][..]] {
        let mut depth = 0i32;
        let split = text.char_indices().rev().find(|&(at, c)| {
            depth += i32::from(c == ')') - i32::from(c == '(');
            depth == 0 && at > 0 && operators.contains(&c)
        });
        if let Some((at, operator)) = split {
            let (a, b) = (integer(&text[..at])?, integer(&text[at + 1..])?);
            return match operator {
                '+' => a.checked_add(b),
                '-' => a.checked_sub(b),
                _ => a.checked_mul(b),
            };
        }
    }
    text.trim_end_matches(['u', 'U']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::lexer::lex;
    use super::*;

    #[test]
    fn swizzles_and_fields() {
        assert_eq!(swizzle("zyx").as_deref(), Some("2,1,0"));
        assert_eq!(swizzle("rg").as_deref(), Some("0,1"));
        assert_eq!(swizzle("xg"), None);
        assert_eq!(swizzle("x"), None);
        let tokens = lex("struct S { float2 xy; int f() { int zw; return zw; } };").unwrap();
        assert!(fields(&tokens).contains("xy") && !fields(&tokens).contains("zw"));
    }

    #[test]
    fn integers() {
        assert_eq!(integer("7"), Some(7));
        assert_eq!(integer("100+20-3"), Some(117));
        assert_eq!(integer("(2+3)*4u"), Some(20));
        assert_eq!(integer("N+1"), None);
    }

    #[test]
    fn half_literals() {
        assert_eq!(number("1.5h"), "::half(1.5f)");
        assert_eq!(number("2h"), "::half(2.0f)");
        assert_eq!(number("0xbf"), "0xbf");
        assert_eq!(number("3u"), "3u");
    }
}
