//! Errors of models and sessions.

use std::fmt;

use crate::Problem;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model file cannot be run; every reason is listed.
    #[error("the model cannot be run: {}", Lines(.problems))]
    Problems {
        /// All problems of the file, in its order; at least one.
        problems: Vec<Problem>,
    },
    /// An operation, a plan or the device failed.
    #[error(transparent)]
    Device(#[from] kiln::Error),
    /// The file could not be read.
    #[error(transparent)]
    Format(#[from] kiln::format::FormatError),
    /// Values could not be encoded or decoded.
    #[error(transparent)]
    Quant(#[from] kiln::quant::QuantError),
    /// More tokens than the context of the session has room for; nothing was run.
    #[error(
        "the context would need {needed} tokens, its capacity is {capacity}: shorten the input, \
         rewind, or make a session with a larger `context`"
    )]
    ContextFull {
        /// Tokens the context would hold.
        needed: usize,
        /// Tokens it can hold.
        capacity: usize,
    },
    /// A token id that the model does not have; nothing was run.
    #[error("token {index} of the input is {token}, the vocabulary has {vocab} tokens")]
    Token {
        /// Position in the input.
        index: usize,
        /// The id.
        token: u32,
        /// Number of tokens of the model.
        vocab: usize,
    },
    /// No tokens where at least `needed` are.
    #[error("{operation} needs at least {needed} tokens, got {got}")]
    TooFewTokens {
        /// What was asked for.
        operation: &'static str,
        /// The smallest number.
        needed: usize,
        /// Tokens given.
        got: usize,
    },
    /// A step without a token to continue from.
    #[error("there is no token to continue from: call `prefill` first")]
    NothingToContinue,
    /// A position that the context does not hold.
    #[error("cannot rewind to position {position}: the context holds {held} tokens")]
    Rewind {
        /// The position asked for.
        position: usize,
        /// Tokens in the context.
        held: usize,
    },
    /// A saved context that does not fit the session.
    #[error("the saved context does not fit this session: {what}: expected {expected}, got {got}")]
    Snapshot {
        /// What differs.
        what: &'static str,
        /// What the session has.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// An option has a value that cannot be used.
    #[error("option {option}: expected {expected}, got {got}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it must be.
        expected: String,
        /// Its value.
        got: String,
    },
    /// The callback asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl ModelError {
    pub(crate) fn option(
        option: &'static str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        ModelError::Option { option, expected: expected.to_string(), got: got.to_string() }
    }
}

/// One problem on the same line, several on a line each.
struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [problem] => problem.fmt(f),
            problems => {
                write!(f, "{} problems", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}
