//! Telling the template's text from the messages' text in a rendered prompt.

use std::ops::Range;

use super::{ChatError, Message};
use crate::tokenizer::Tokenizer;

/// A rendered chat, with the ranges that the template wrote.
///
/// [`ChatTemplate::prompt`](super::ChatTemplate::prompt) makes one,
/// [`Tokenizer::encode_prompt`] takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    template: Vec<Range<usize>>,
}

impl Prompt {
    /// A prompt without messages: special tokens count everywhere.
    pub fn from_template_text(text: impl Into<String>) -> Self {
        let text = text.into();
        let whole = 0..text.len();
        Self { text, template: if whole.is_empty() { Vec::new() } else { vec![whole] } }
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The byte ranges of the text that the template wrote, ascending and apart. Special tokens
    /// count inside them only.
    pub fn template_ranges(&self) -> &[Range<usize>] {
        &self.template
    }
}

/// Finds out which parts of `text`, rendered from `messages`, the template wrote.
///
/// Each attempt sets marks and renders again; it holds when the text is the same but for the marks.
pub(super) fn separate(
    text: String,
    source: &str,
    messages: &[Message],
    tokenizer: &Tokenizer,
    render: impl Fn(&[Message]) -> Result<String, ChatError>,
) -> Result<Prompt, ChatError> {
    let contents = || messages.iter().map(|message| message.content.as_str());
    let marks = Marks::absent_from(|| contents().chain([source, &text]));
    let attempt = |ranges: &dyn Fn(&Message) -> Vec<Range<usize>>| -> Option<Prompt> {
        let marks = marks?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| Message {
                role: message.role.clone(),
                content: marks.put(&message.content, &ranges(message)),
            })
            .collect();
        let prompt = marks.take(&render(&marked).ok()?)?;
        (prompt.text == text).then_some(prompt)
    };
    let specials = |message: &Message| tokenizer.find_special(&message.content);

    if let Some(prompt) = attempt(&|message| vec![trimmed(&message.content)]) {
        return Ok(prompt);
    }
    let Some(error) = first_special(messages, tokenizer) else {
        return Ok(Prompt::from_template_text(text));
    };
    if let Some(prompt) = attempt(&specials) {
        return Ok(prompt);
    }
    // Templates cut the model's own words at its tags, which are tokens there.
    let said_by_model = |message: &Message| message.role == "assistant";
    let mut tags: Vec<&str> = Vec::new();
    for message in messages.iter().filter(|message| said_by_model(message)) {
        tags.extend(specials(message).into_iter().map(|range| &message.content[range]));
    }
    tags.sort_unstable();
    tags.dedup();
    tags.truncate(MAX_TAGS);
    tags.retain(|tag| {
        let only_tag = |message: &Message| {
            let mut ranges = specials(message);
            ranges
                .retain(|range| said_by_model(message) && &message.content[range.clone()] == *tag);
            ranges
        };
        attempt(&only_tag).is_none()
    });
    attempt(&|message| {
        let mut ranges = specials(message);
        ranges.retain(|range| {
            !said_by_model(message) || !tags.contains(&&message.content[range.clone()])
        });
        ranges
    })
    .ok_or(error)
}

/// Different special tokens in the words of the model that are tried one by one.
const MAX_TAGS: usize = 32;

/// The error that names the first special token in a message, if there is one.
fn first_special(messages: &[Message], tokenizer: &Tokenizer) -> Option<ChatError> {
    messages.iter().enumerate().find_map(|(message, Message { content, .. })| {
        let token = tokenizer.find_special(content).into_iter().next()?;
        Some(ChatError::SpecialInContent { message, token: content[token].to_owned() })
    })
}

/// The content without the white space around it, which templates may trim.
fn trimmed(content: &str) -> Range<usize> {
    let start = content.len() - content.trim_start().len();
    start..start + content.trim().len()
}

/// Two characters that enclose what a message says.
#[derive(Debug, Clone, Copy)]
struct Marks {
    open: char,
    close: char,
}

impl Marks {
    /// Two private-use characters that none of the texts has.
    fn absent_from<'a, I: Iterator<Item = &'a str>>(texts: impl Fn() -> I) -> Option<Self> {
        let mut free =
            ('\u{F0000}'..='\u{F00FF}').filter(|&c| !texts().any(|text| text.contains(c)));
        Some(Self { open: free.next()?, close: free.next()? })
    }

    /// `content` with marks around each of the ranges, which ascend.
    fn put(self, content: &str, ranges: &[Range<usize>]) -> String {
        let mut marked = String::with_capacity(content.len() + 8 * ranges.len());
        let mut at = 0;
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            marked.push_str(&content[at..range.start]);
            marked.push(self.open);
            marked.push_str(&content[range.clone()]);
            marked.push(self.close);
            at = range.end;
        }
        marked.push_str(&content[at..]);
        marked
    }

    /// The text without marks, and the ranges outside of them; `None` when they do not pair.
    fn take(self, marked: &str) -> Option<Prompt> {
        let mut text = String::with_capacity(marked.len());
        let mut template = Vec::new();
        let mut outside_from = Some(0);
        for character in marked.chars() {
            if character == self.open {
                let range = outside_from.take()?..text.len();
                template.extend(Some(range).filter(|range| !range.is_empty()));
            } else if character == self.close {
                if outside_from.replace(text.len()).is_some() {
                    return None;
                }
            } else {
                text.push(character);
            }
        }
        let range = outside_from?..text.len();
        template.extend(Some(range).filter(|range| !range.is_empty()));
        Some(Prompt { text, template })
    }
}
