//! What keeps a model file from being run, one line each.

use std::fmt;

use kiln::format::{FormatError, GgmlType};

/// Something that keeps a model file from being run, found in its header.
///
/// Every message is one line that names the key or tensor, what was expected and what the file has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The architecture is not one of [`Architecture::ALL`](crate::Architecture::ALL).
    #[error("architecture {got:?} is not supported (supported: {supported})")]
    Architecture {
        /// The name in the file.
        got: String,
        /// The names that are supported, comma separated.
        supported: String,
    },
    /// A metadata key is missing or has a value that cannot be used.
    #[error("metadata key {key:?}: expected {expected}, got {got}")]
    Key {
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// The value in the file, or `nothing`.
        got: String,
    },
    /// A tensor of the architecture is not in the file.
    #[error("tensor {tensor:?} is missing, expected one of shape {}", Axes(.shape))]
    MissingTensor {
        /// Its name.
        tensor: String,
        /// The shape it must have, row-major.
        shape: Vec<usize>,
    },
    /// A tensor has another shape than the metadata asks for.
    #[error("tensor {tensor:?}: expected shape {}, got {}", Axes(.expected), Axes(.got))]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape it must have, row-major.
        expected: Vec<usize>,
        /// The shape in the file, row-major.
        got: Vec<usize>,
    },
    /// A tensor has a type that cannot be computed with there.
    #[error(
        "tensor {tensor:?}: expected type {supported}, got {got}: quantise the model again with one of those"
    )]
    Type {
        /// Its name.
        tensor: String,
        /// The types that can be used, comma separated.
        supported: String,
        /// The type in the file.
        got: GgmlType,
    },
}

/// A shape as `[2, 3]`.
struct Axes<'a>(&'a [usize]);

impl fmt::Display for Axes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Problem {
    /// A value that cannot be used.
    pub(crate) fn key(key: String, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Problem::Key { key, expected: expected.to_string(), got: got.to_string() }
    }

    /// A value that could not be read.
    pub(crate) fn unreadable(key: String, error: &FormatError) -> Self {
        match error.cause() {
            FormatError::WrongType { expected, got, .. } => Problem::key(key, expected, got),
            FormatError::OutOfRange { got, .. } => {
                Problem::key(key, "an integer from 0 that fits memory", got)
            }
            FormatError::NotText { .. } => Problem::key(key, "UTF-8 text", "other bytes"),
            FormatError::MissingKey { .. } => Problem::key(key, "a value", "nothing"),
            other => Problem::key(key, "a readable value", other),
        }
    }
}
