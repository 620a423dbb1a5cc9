//! Finding special and user-defined tokens in text.

use std::cmp::Reverse;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

use super::{ByteStrings, TokenKind, TokenizerError};

/// Bytes of special and user-defined text that the matchers accept; they take a multiple in memory.
const MAX_TEXT: usize = 1 << 20;

/// A part of a text: a token found by its text, or text still to be tokenized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

#[derive(Debug, Clone)]
struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Found {
    id: u32,
    range: Range<usize>,
}

impl Matcher {
    fn new(
        tokens: &ByteStrings,
        kinds: &[TokenKind],
        wanted: impl Fn(TokenKind) -> bool,
    ) -> Result<Option<Self>, TokenizerError> {
        let (ids, texts): (Vec<u32>, Vec<&[u8]>) = (0u32..)
            .zip(tokens.iter())
            .zip(kinds)
            .filter(|((_, text), kind)| wanted(**kind) && is_matchable(text))
            .map(|(token, _)| token)
            .unzip();
        let bytes = texts.iter().map(|text| text.len()).sum();
        if bytes > MAX_TEXT {
            return Err(TokenizerError::SpecialTextTooLong { bytes, max: MAX_TEXT });
        }
        if ids.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(texts)
            .map_err(|error| TokenizerError::Build {
                part: "special token matcher",
                reason: error.to_string(),
            })?;
        Ok(Some(Self { automaton, ids }))
    }

    /// The leftmost match in `range`, the longest of those that begin there.
    fn find(&self, text: &str, range: Range<usize>) -> Option<Found> {
        let found = self.automaton.find(Input::new(text).range(range))?;
        Some(Found { id: self.ids[found.pattern().as_usize()], range: found.range() })
    }
}

/// Only whole characters match, so that a match never cuts one.
fn is_matchable(text: &[u8]) -> bool {
    !text.is_empty() && std::str::from_utf8(text).is_ok()
}

/// Splits text at special and user-defined tokens.
#[derive(Debug, Clone)]
pub(super) struct SpecialTokens {
    /// Matched wherever they stand.
    user_defined: Option<Matcher>,
    /// Control and unknown tokens, matched only where the caller allows it.
    special: Option<Matcher>,
}

impl SpecialTokens {
    pub(super) fn new(tokens: &ByteStrings, kinds: &[TokenKind]) -> Result<Self, TokenizerError> {
        Ok(Self {
            user_defined: Matcher::new(tokens, kinds, |kind| kind == TokenKind::UserDefined)?,
            special: Matcher::new(tokens, kinds, TokenKind::is_special)?,
        })
    }

    /// The special tokens in `text`, leftmost and longest first, without overlaps.
    pub(super) fn find_special(&self, text: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(next) =
            self.special.as_ref().and_then(|matcher| matcher.find(text, at..text.len()))
        {
            at = next.range.end;
            found.push(next.range);
        }
        found
    }

    /// Splits `text`. Special tokens count only inside one of the `allowed` ranges, which are
    /// ascending and do not touch; user-defined tokens count everywhere.
    pub(super) fn split(&self, text: &str, allowed: &[Range<usize>]) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        let mut cursor = Cursor {
            text,
            allowed,
            special_matcher: self.special.as_ref(),
            special: None,
            user_matcher: self.user_defined.as_ref(),
            user: None,
        };
        let mut at = 0;
        while let Some(found) = cursor.next(at) {
            if found.range.start > at {
                fragments.push(Fragment::Text(at..found.range.start));
            }
            fragments.push(Fragment::Token(found.id));
            at = found.range.end;
        }
        if at < text.len() {
            fragments.push(Fragment::Text(at..text.len()));
        }
        fragments
    }
}

/// Both searches side by side. Each keeps its latest match until the text passes it, and its
/// matcher goes once nothing is left to find.
struct Cursor<'a> {
    text: &'a str,
    allowed: &'a [Range<usize>],
    special_matcher: Option<&'a Matcher>,
    special: Option<Found>,
    user_matcher: Option<&'a Matcher>,
    user: Option<Found>,
}

impl Cursor<'_> {
    /// The first match that begins at `at` or later; of two that begin together the longer one.
    fn next(&mut self, at: usize) -> Option<Found> {
        if self.special.as_ref().is_none_or(|found| found.range.start < at) {
            self.special = self.next_special(at);
        }
        if self.user.as_ref().is_none_or(|found| found.range.start < at) {
            let matcher = self.user_matcher;
            self.user = matcher.and_then(|matcher| matcher.find(self.text, at..self.text.len()));
            if self.user.is_none() {
                self.user_matcher = None;
            }
        }
        [&self.special, &self.user]
            .into_iter()
            .flatten()
            .min_by_key(|found| (found.range.start, Reverse(found.range.end)))
            .cloned()
    }

    fn next_special(&mut self, at: usize) -> Option<Found> {
        let matcher = self.special_matcher?;
        while let Some(range) = self.allowed.first() {
            let start = range.start.max(at);
            if start < range.end
                && let Some(found) = matcher.find(self.text, start..range.end)
            {
                return Some(found);
            }
            self.allowed = &self.allowed[1..];
        }
        None
    }
}
