//! Chat messages to one prompt, by the template a model file carries.
//!
//! A template is a program from an untrusted file. It runs in a sandbox: it sees only the messages
//! and options it is given, has no files, no environment and no clock, and stops after a number of
//! steps and bytes of output ([`ChatLimits`]).
//!
//! ```
//! use kiln_models::chat::{ChatOptions, ChatTemplate, Message};
//!
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n\
//!      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
//! )?;
//! let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
//! assert_eq!(
//!     template.render(&[Message::user(" Hi ")], &options)?,
//!     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
//! );
//! # Ok::<(), kiln_models::chat::ChatError>(())
//! ```

mod civil_time;
mod engine;
mod json;
mod prompt;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use civil_time::CivilTime;
use kiln::format::{FormatError, Gguf};
pub use prompt::Prompt;
use thiserror::Error;

use crate::tokenizer::Tokenizer;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// What the model is told to be.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// What a template is given beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// End the prompt where the model's answer begins.
    pub add_generation_prompt: bool,
    /// The text of the begin token. [`ChatTemplate::prompt`] takes the tokenizer's where this is
    /// `None`, [`ChatTemplate::render`] nothing.
    pub bos_token: Option<String>,
    /// The text of the end token; as `bos_token`.
    pub eos_token: Option<String>,
    /// The date and time for templates that print one. `None` hides the function from the
    /// template: some then fall back to a fixed date, others fail with [`ChatError::NoDate`].
    pub now: Option<CivilTime>,
    /// More variables by name, such as `enable_thinking` or `tools`. Their text counts as the
    /// template's own: keep user text out of it.
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// Bounds on one rendering.
///
/// They bound the steps and the output. The strings a template builds on the way are bounded by its
/// steps alone, and concatenation can double a string with each of them: run templates of unknown
/// origin in a process whose memory is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatLimits {
    /// Instructions of the template engine, at most 10 million. A message takes some hundred.
    pub fuel: u64,
    /// Bytes of rendered text.
    pub output: usize,
}

impl Default for ChatLimits {
    /// 1 million instructions and 64 MiB.
    fn default() -> Self {
        Self { fuel: 1_000_000, output: 64 << 20 }
    }
}

/// A template that cannot be used, or a conversation it does not take.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The metadata of the model file cannot be read.
    #[error(transparent)]
    Metadata(#[from] FormatError),
    /// The model file has no template.
    #[error(
        "the model has no chat template (`{key}`); encode a plain prompt instead, or pass the \
         template of the model it was tuned from"
    )]
    NoTemplate {
        /// The metadata key that is missing.
        key: String,
    },
    /// The source is longer than any template.
    #[error("the chat template is {got} bytes long, the limit is {max}")]
    TemplateTooLong {
        /// Bytes of source.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// The source does not parse.
    #[error("the chat template has a syntax error in line {line}: {reason}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        reason: String,
    },
    /// The template itself refuses the conversation.
    #[error("the chat template refuses these messages: {reason}")]
    Refused {
        /// The template's words.
        reason: String,
    },
    /// The template needs a date and none was given.
    #[error("the chat template prints the date: set `ChatOptions::now`")]
    NoDate,
    /// The template ran too long.
    #[error("the chat template did not end within {fuel} steps; see `ChatLimits::fuel`")]
    OutOfFuel {
        /// The limit.
        fuel: u64,
    },
    /// The template printed too much.
    #[error("the chat template printed more than {max} bytes; see `ChatLimits::output`")]
    OutputTooLong {
        /// The limit.
        max: usize,
    },
    /// Rendering failed in another way.
    #[error("the chat template failed in line {line}: {reason}")]
    Render {
        /// Counted from 1; 0 where the engine does not know.
        line: usize,
        /// The engine's words.
        reason: String,
    },
    /// A role holds the text of a special token.
    #[error("the role of message {message} holds the special token `{token}`; roles are names")]
    SpecialInRole {
        /// The index of the message.
        message: usize,
        /// The text of the token.
        token: String,
    },
    /// A message holds the text of a special token and the template rewrites messages in a way that
    /// hides where they went, so the token cannot be told from the template's own.
    #[error(
        "message {message} holds the special token `{token}`, which cannot be told from the \
         template's own here; remove it, or render and encode the prompt yourself"
    )]
    SpecialInContent {
        /// The index of the message.
        message: usize,
        /// The text of the token.
        token: String,
    },
}

/// A chat template, parsed once to be checked and run for each prompt.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    limits: ChatLimits,
}

/// Bytes of template source; the longest known templates have a fifth of this.
const MAX_SOURCE: usize = 128 << 10;

impl ChatTemplate {
    /// Parses a Jinja template as model files carry them in `tokenizer.chat_template`.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] with the line, or [`ChatError::TemplateTooLong`].
    pub fn new(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_SOURCE {
            return Err(ChatError::TemplateTooLong { got: source.len(), max: MAX_SOURCE });
        }
        let source = engine::without_generation_tags(source).into_owned();
        engine::check(&source)?;
        Ok(Self { source, limits: ChatLimits::default() })
    }

    /// The template of a model file: `tokenizer.chat_template`, or with a name
    /// `tokenizer.chat_template.NAME`.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`] where the file has none; else as [`Self::new`].
    pub fn from_gguf(file: &Gguf, name: Option<&str>) -> Result<Self, ChatError> {
        let mut key = "tokenizer.chat_template".to_owned();
        if let Some(name) = name {
            key.push('.');
            key.push_str(name);
        }
        let source = file.metadata().str_of(&key)?.ok_or(ChatError::NoTemplate { key })?;
        Self::new(source)
    }

    /// Sets other bounds than the default ones.
    #[must_use]
    pub fn with_limits(mut self, limits: ChatLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The prompt as text.
    ///
    /// Special tokens in messages stand in the text like the template's own. [`Self::prompt`] keeps
    /// the two apart and is the one to feed to a model.
    ///
    /// A template that refuses a leading system message gets it as the first lines of the user
    /// message behind it.
    ///
    /// # Errors
    /// [`ChatError`] when the template refuses the messages, fails, or passes a bound.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, ChatError> {
        self.render_accepted(messages, options).map(|(text, _)| text)
    }

    /// The prompt with the knowledge which parts are the template's own, for
    /// [`Tokenizer::encode_prompt`]: special tokens in the text of a message stay text.
    ///
    /// The template runs a second time with marks around each message. Where the marks change what
    /// it does, they are set around the special tokens within messages only. Tags at which the
    /// template cuts the model's own messages, such as `</think>`, cannot be marked there; they
    /// stay tokens in messages of the role `assistant`.
    ///
    /// # Errors
    /// As [`Self::render`]; [`ChatError::SpecialInRole`] for a role that is no name, and
    /// [`ChatError::SpecialInContent`] where no way works and a message holds a special token.
    pub fn prompt(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Prompt, ChatError> {
        for (message, Message { role, .. }) in messages.iter().enumerate() {
            if let Some(token) = tokenizer.find_special(role).into_iter().next() {
                return Err(ChatError::SpecialInRole { message, token: role[token].to_owned() });
            }
        }
        let name = |id: Option<u32>| {
            let text = tokenizer.token_text(id?)?;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let options = ChatOptions {
            bos_token: options.bos_token.clone().or_else(|| name(tokenizer.bos())),
            eos_token: options.eos_token.clone().or_else(|| name(tokenizer.eos())),
            ..options.clone()
        };
        let (text, messages) = self.render_accepted(messages, &options)?;
        prompt::separate(text, &self.source, &messages, tokenizer, |messages| {
            engine::render(&self.source, self.limits, messages, &options)
        })
    }

    /// Renders, and returns the messages that the template took.
    fn render_accepted<'a>(
        &self,
        messages: &'a [Message],
        options: &ChatOptions,
    ) -> Result<(String, Cow<'a, [Message]>), ChatError> {
        let render =
            |messages: &[Message]| engine::render(&self.source, self.limits, messages, options);
        match render(messages) {
            Ok(text) => Ok((text, Cow::Borrowed(messages))),
            Err(error @ ChatError::Refused { .. }) => {
                let Some(merged) = merge_system(messages) else { return Err(error) };
                let text = render(&merged).map_err(|_| error)?;
                Ok((text, Cow::Owned(merged)))
            }
            Err(error) => Err(error),
        }
    }
}

/// The messages with a leading system message moved into the user message behind it.
fn merge_system(messages: &[Message]) -> Option<Vec<Message>> {
    let [system, user, rest @ ..] = messages else { return None };
    if system.role != "system" || user.role != "user" {
        return None;
    }
    let first = Message::user(format!("{}\n\n{}", system.content, user.content));
    Some(std::iter::once(first).chain(rest.iter().cloned()).collect())
}

#[cfg(test)]
mod tests;
