//! GGUF: reading, versions 2 and 3, and writing, version 3.

mod array;
mod cursor;
mod file;
mod header;
mod layout;
mod metadata;
mod split;
mod value;
mod writer;

pub use array::{Array, Strings};
pub use file::{Gguf, TypeTotal};
pub use header::TensorInfo;
pub use metadata::{Metadata, PerLayer};
pub use value::{ElementType, Value, ValueType};
pub use writer::{GgufWriter, TensorData};

/// The first four bytes of every file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The key that sets the alignment of tensor data.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment of tensor data where [`ALIGNMENT_KEY`] is absent.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest accepted alignment in bytes: a huge page.
pub(crate) const MAX_ALIGNMENT: u32 = 1 << 21;
/// Longest accepted metadata string in bytes.
pub(crate) const MAX_STRING_BYTES: u64 = 1 << 30;
/// Most elements of a metadata array.
pub(crate) const MAX_ARRAY_LEN: u64 = 1 << 30;
/// Longest metadata key in bytes.
pub(crate) const MAX_KEY_BYTES: u64 = 65535;
/// Longest tensor name in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 63;
/// Most axes of a tensor.
pub(crate) const MAX_AXES: usize = 4;
