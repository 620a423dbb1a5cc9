//! Errors as the one line that a user sees.

use std::fmt;
use std::io;
use std::path::Path;

use kiln::OpenError;
use kiln::format::FormatError;
use kiln::quant::QuantError;
use kiln_models::chat::ChatError;
use kiln_models::tokenizer::TokenizerError;
use kiln_models::{ModelError, Problem};

use crate::output;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// One line: what is wrong and what to do next.
    Message(String),
    /// Standard output was closed by its reader.
    OutputClosed,
}

impl CliError {
    /// A message; lines are joined.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
        CliError::Message(lines.collect::<Vec<_>>().join(" "))
    }

    /// What clap says about wrong arguments of a command, without its usage text.
    pub(crate) fn usage(rendered: &str, command: &str) -> Self {
        let text = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more");
        let lines: Vec<&str> = rendered.lines().map(str::trim).take_while(text).collect();
        let text = lines.join(" ");
        let text = text.strip_prefix("error:").unwrap_or(&text).trim();
        Self::new(format_args!("{text} (see `{command} --help`)"))
    }

    /// A file other than the model could not be read or written.
    pub(crate) fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(format_args!("cannot {action} {path:?}: {error}{}", advice(error)))
    }
}

/// What to do about a file that the system does not give.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::PermissionDenied => ": check its permissions",
        _ => "",
    }
}

impl From<io::Error> for CliError {
    /// An error of standard output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::OutputClosed,
            _ => Self::new(format_args!("cannot write to standard output: {error}")),
        }
    }
}

impl From<FormatError> for CliError {
    fn from(error: FormatError) -> Self {
        match &error {
            FormatError::Io { error: system, .. } => {
                Self::new(format_args!("{error}{}", advice(system)))
            }
            _ => Self::new(error),
        }
    }
}

impl From<kiln::Error> for CliError {
    fn from(error: kiln::Error) -> Self {
        match error {
            kiln::Error::OutOfMemory { device, requested } => Self::new(format_args!(
                "{device} cannot allocate {}: free some memory, or give a smaller --ctx or model",
                output::bytes(requested as u64)
            )),
            other => Self::new(other),
        }
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Problems { problems } => Self::problems(&problems),
            ModelError::Device(error) => error.into(),
            ModelError::Format(error) => error.into(),
            ModelError::ContextFull { needed, capacity } => Self::new(format_args!(
                "the context would need {needed} tokens, its capacity is {capacity}: \
                 shorten the input or give --ctx {needed} or more"
            )),
            ModelError::Snapshot { .. } => {
                Self::new(format_args!("{error}: give another --prompt-cache, or delete the file"))
            }
            ModelError::Token { index, token, vocab } => Self::new(format_args!(
                "token {index} of the input is {token}, the model has {vocab} tokens: \
                 use tokens made with the tokenizer of this model"
            )),
            other => Self::new(other),
        }
    }
}

impl CliError {
    /// The first problem of a model, and how to see the others.
    fn problems(problems: &[Problem]) -> Self {
        let advice = match problems.first() {
            Some(Problem::Architecture { .. }) => ": use a model of one of these",
            Some(Problem::MissingTensor { .. }) => ": convert or download the model again",
            _ => "",
        };
        let first = problems.first().map(Problem::to_string).unwrap_or_default();
        let more = match problems.len() {
            0 | 1 => String::new(),
            2 => " (and 1 more problem, see `kiln inspect FILE`)".to_owned(),
            n => format!(" (and {} more problems, see `kiln inspect FILE`)", n - 1),
        };
        Self::new(format_args!("the model cannot be run: {first}{advice}{more}"))
    }
}

macro_rules! from_display {
    ($($Error:ty),*) => {$(
        impl From<$Error> for CliError {
            fn from(error: $Error) -> Self {
                Self::new(error)
            }
        }
    )*};
}

from_display!(TokenizerError, ChatError, OpenError, QuantError);
