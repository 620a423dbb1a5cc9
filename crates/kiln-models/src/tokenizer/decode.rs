//! Token ids to text, without ever cutting a character.

use super::Tokenizer;

/// Bytes that arrive in pieces, given out as text in whole characters.
///
/// A character whose bytes are not all there is held back. Bytes that no further ones can complete
/// become U+FFFD, one for each run that [`String::from_utf8_lossy`] would replace; all pieces
/// together are exactly its result, however the bytes are cut.
///
/// ```
/// use kiln_models::tokenizer::Utf8Stream;
///
/// let mut stream = Utf8Stream::default();
/// assert_eq!(stream.push(&[0xe2, 0x82]), "");
/// assert_eq!(stream.push(&[0xac, b'!']), "€!");
/// assert_eq!(stream.push(&[0xf0, 0x9f]), "");
/// assert_eq!(stream.finish(), "\u{fffd}");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Utf8Stream {
    /// The start of a character, at most three bytes.
    held: Vec<u8>,
    text: String,
}

impl Utf8Stream {
    /// Takes the next bytes and returns the text that is now complete.
    pub fn push(&mut self, bytes: &[u8]) -> &str {
        self.held.extend_from_slice(bytes);
        self.text.clear();
        let mut done = self.held.len();
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_incomplete(invalid) {
                done -= invalid.len();
            } else if !invalid.is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held.drain(..done);
        &self.text
    }

    /// Ends the text: bytes still held become U+FFFD. The stream is empty again afterwards.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.held.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
        &self.text
    }
}

/// True for the start of a character that more bytes can complete.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Token ids that arrive one by one, given out as text in whole characters.
///
/// ```
/// use kiln_models::tokenizer::{Tokenizer, Vocabulary};
///
/// let tokenizer = Tokenizer::new(Vocabulary {
///     model: "gpt2".into(),
///     pre: Some("gpt-2".into()),
///     tokens: ["Ã", "©", "Ġ", "Ã©"].into_iter().collect(),
///     merges: ["Ã ©"].into_iter().collect(),
///     ..Vocabulary::default()
/// })?;
/// let mut decoder = tokenizer.decoder();
/// assert_eq!(decoder.push(0), "");
/// assert_eq!(decoder.push(1), "é");
/// assert_eq!(decoder.push(2), " ");
/// assert_eq!(decoder.finish(), "");
/// # Ok::<(), kiln_models::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    utf8: Utf8Stream,
    with_special: bool,
    /// The next text loses one leading space, the one that encoding put there.
    strip_space: bool,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let strip_space = tokenizer.inner.space_prefix;
        Self { tokenizer, utf8: Utf8Stream::default(), with_special: false, strip_space }
    }

    /// Gives out the names of control and unknown tokens too.
    #[must_use]
    pub fn with_special(mut self) -> Self {
        self.with_special = true;
        self
    }

    /// Keeps a leading space: the tokens continue a text that is there already.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.strip_space = false;
        self
    }

    /// Takes the next token and returns the text that is now complete; an id out of range adds
    /// nothing.
    pub fn push(&mut self, id: u32) -> &str {
        let mut bytes = if self.with_special {
            self.tokenizer.token_bytes_with_special(id)
        } else {
            self.tokenizer.token_bytes(id)
        };
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.utf8.push(bytes)
    }

    /// Ends the text; a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.utf8.finish()
    }
}
