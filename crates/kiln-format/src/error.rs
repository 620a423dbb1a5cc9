//! What can be wrong with a file.

use std::io;
use std::path::{Path, PathBuf};

use crate::GgmlType;
use crate::gguf::ValueType;

/// Why a file could not be read or written.
///
/// Every message is one line. Whatever comes from a file is escaped and cut to a readable length in
/// it, so messages are safe to print to a terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} {path:?}: {error}")]
    Io {
        /// What was tried, for example `open`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        error: io::Error,
    },
    /// The path names a directory, a pipe or a device.
    #[error("{path:?} is not a regular file: give the path of the model file itself")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The contents of the file at `path` are wrong.
    #[error("{path:?}: {error}")]
    File {
        /// The file; the part that is at fault where a model is split.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<FormatError>,
    },

    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file: starts with \"{found}\", expected \"GGUF\"{hint}")]
    BadMagic {
        /// The first four bytes, escaped.
        found: String,
        /// What the file seems to be and what to do, or nothing; begins with a separator.
        hint: &'static str,
    },
    /// The header is written most significant byte first.
    #[error(
        "big-endian file: Kiln reads little-endian GGUF only; convert it with llama.cpp's gguf_convert_endian.py"
    )]
    BigEndian,
    /// The version is not 2 or 3.
    #[error("GGUF version {version} is not supported: Kiln reads versions 2 and 3{}", version_advice(*.version))]
    UnsupportedVersion {
        /// The version in the file.
        version: u32,
    },
    /// The file ends before what its header promises.
    #[error("truncated: needs at least {needs} bytes, file has {has}: download it again")]
    Truncated {
        /// Bytes the file must have, as far as the header could be read.
        needs: u64,
        /// Bytes it has.
        has: u64,
    },
    /// A count in the header is larger than the rest of the file can hold.
    #[error(
        "header claims {count} {what}, the rest of the file holds at most {limit}: damaged or truncated, download it again"
    )]
    Count {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The most that fit into the remaining bytes.
        limit: u64,
    },
    /// A string is longer than allowed.
    #[error("string of {len} bytes at offset {at}, the limit is {limit}: the file is damaged")]
    StringLength {
        /// Offset of the string's length in the file.
        at: u64,
        /// Claimed length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A key or tensor name is not UTF-8.
    #[error("{what} at offset {at} is not UTF-8: the file is damaged")]
    NameNotUtf8 {
        /// Key or tensor name.
        what: &'static str,
        /// Offset of its length in the file.
        at: u64,
    },

    /// A metadata key has no characters.
    #[error("metadata entry {index} has an empty key")]
    EmptyKey {
        /// Position of the entry, from 0.
        index: usize,
    },
    /// Two metadata entries have the same key.
    #[error("metadata key {key:?} occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The type number of a metadata value is unknown.
    #[error(
        "metadata key {key:?} has unknown value type {id}: the file is damaged or newer than this version of Kiln"
    )]
    UnknownValueType {
        /// The key.
        key: String,
        /// The number in the file.
        id: u32,
    },
    /// A metadata value is an array of arrays.
    #[error("metadata key {key:?} is an array of arrays, which Kiln does not read")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A metadata array has more elements than allowed.
    #[error("metadata key {key:?} is an array of {len} elements, the limit is {limit}")]
    ArrayLength {
        /// The key.
        key: String,
        /// Claimed number of elements.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// A boolean is stored as something else than 0 or 1.
    #[error(
        "metadata key {key:?} has a boolean stored as {byte}, expected 0 or 1: the file is damaged"
    )]
    BoolByte {
        /// The key.
        key: String,
        /// The byte in the file.
        byte: u8,
    },
    /// `general.alignment` is not a sensible u32.
    #[error("general.alignment is {got}, expected a u32 power of two from 1 to {limit}")]
    Alignment {
        /// The value or type in the file.
        got: String,
        /// The largest accepted alignment in bytes.
        limit: u32,
    },

    /// A tensor name has no characters or too many.
    #[error("tensor name {name:?} has {len} bytes, expected 1 to {limit}")]
    TensorName {
        /// The name, cut to a readable length.
        name: String,
        /// Its length in bytes.
        len: usize,
        /// The longest accepted name in bytes.
        limit: usize,
    },
    /// Two tensors have the same name.
    #[error("tensor {tensor:?} occurs twice")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor has more axes than GGUF allows.
    #[error("tensor {tensor:?} has {axes} axes, the limit is {limit}")]
    TooManyAxes {
        /// The tensor.
        tensor: String,
        /// Its number of axes.
        axes: u64,
        /// The limit.
        limit: usize,
    },
    /// An axis of a tensor is negative or longer than memory can be.
    #[error("tensor {tensor:?} has length {len} on axis {axis} (axis 0 is the outermost)")]
    AxisLength {
        /// The tensor.
        tensor: String,
        /// The axis in row-major order.
        axis: usize,
        /// Its length in the file, read as a signed number.
        len: i64,
    },
    /// The number of elements or bytes of a tensor overflows.
    #[error(
        "tensor {tensor:?} of type {ggml_type} and shape {shape:?} is larger than memory can be"
    )]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
        /// Its shape in row-major order.
        shape: Vec<usize>,
    },
    /// The type number of a tensor is unknown.
    #[error(
        "tensor {tensor:?} has unknown type id {id}: the file is damaged or newer than this version of Kiln"
    )]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        id: u32,
    },
    /// The type of a tensor was removed from the format.
    #[error(
        "tensor {tensor:?} has type {name} (id {id}), which was removed from GGUF: quantise the model again, for example to Q4_0"
    )]
    RemovedTensorType {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        id: u32,
        /// The name it had.
        name: &'static str,
    },
    /// A row of a tensor is not a whole number of blocks.
    #[error("tensor {tensor:?} has {row} values per row, not a multiple of the {} of a {ggml_type} block", .ggml_type.block_len())]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
        /// Length of its last axis.
        row: usize,
    },
    /// The data of a tensor does not follow the data of the tensor before it.
    #[error("tensor {tensor:?} has data offset {got}, expected {expected}: the file is damaged")]
    TensorOffset {
        /// The tensor.
        tensor: String,
        /// The offset that follows from the tensors before it.
        expected: u64,
        /// The offset in the file.
        got: u64,
    },

    /// A metadata key that is needed is not in the file.
    #[error("metadata key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than asked for.
    #[error("metadata key {key:?}: expected {expected}, got {got}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// What the file has.
        got: ValueType,
    },
    /// A metadata integer does not fit what was asked for.
    #[error("metadata key {key:?}: expected {expected}, got {got}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// The value in the file.
        got: i128,
    },
    /// A metadata string asked for as text is not UTF-8.
    #[error("metadata key {key:?}: expected UTF-8 text, got other bytes")]
    NotText {
        /// The key.
        key: String,
    },
    /// The file has no tensor of that name.
    #[error("tensor {tensor:?} is missing")]
    MissingTensor {
        /// The name.
        tensor: String,
    },
    /// Kiln has no kernels for the type of this tensor.
    #[error(
        "tensor {tensor:?} has type {got}, which Kiln cannot compute with: use a file with only {supported}"
    )]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// The name of its type.
        got: String,
        /// The names of the types that can be used.
        supported: String,
    },

    /// A file name does not follow the naming of split models.
    #[error(
        "this is one of {count} parts, but its name does not end in \"{suffix}\": give the parts their original names back"
    )]
    SplitName {
        /// The number of parts.
        count: usize,
        /// How the name must end.
        suffix: String,
    },
    /// A later part of a split model was opened.
    #[error("this is part {part} of a split model: open the first part, {first:?}")]
    NotFirstSplit {
        /// Number of this part, from 1.
        part: usize,
        /// Name of the first part.
        first: PathBuf,
    },
    /// A part of a split model is not there.
    #[error(
        "part {part} of {count} is missing: {path:?} not found; download it into the same folder"
    )]
    MissingSplit {
        /// Number of the missing part, from 1.
        part: usize,
        /// The number of parts.
        count: usize,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The parts of a split model contradict each other.
    #[error(
        "part {part} of the split model: {what} is {got}, expected {expected}: parts are missing, out of order or of another model"
    )]
    SplitMismatch {
        /// Number of the part, from 1.
        part: usize,
        /// What was compared.
        what: &'static str,
        /// What it must be.
        expected: usize,
        /// What it is.
        got: usize,
    },

    /// The data given for a tensor has another length than its shape needs.
    #[error("tensor {tensor:?} needs {expected} bytes of data, got {got}")]
    DataLength {
        /// The tensor.
        tensor: String,
        /// Bytes that its type and shape need.
        expected: u64,
        /// Bytes that were given; for streamed data, those until the mismatch was seen.
        got: u64,
    },
    /// A metadata key or string to be written is too long.
    #[error("metadata key {key:?}: {what} of {len} bytes, the limit is {limit}")]
    WriteLength {
        /// The key, cut to a readable length.
        key: String,
        /// Whether the key itself or a string is too long.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Writing to the given stream failed.
    #[error("cannot write GGUF data: {error}")]
    Write {
        /// The stream's answer.
        error: io::Error,
    },

    /// The header of a safetensors file is wrong.
    #[error("not a valid safetensors file: {problem}")]
    Safetensors {
        /// What is wrong and what to do.
        problem: String,
    },
}

impl FormatError {
    /// The error without the file names around it: what was wrong, rather than where.
    ///
    /// ```
    /// use kiln_core::SharedBytes;
    /// use kiln_format::{FormatError, Gguf};
    /// let error = Gguf::from_bytes(SharedBytes::from_vec(b"GGML....".to_vec())).unwrap_err();
    /// assert!(matches!(error.cause(), FormatError::BadMagic { .. }));
    /// ```
    pub fn cause(&self) -> &FormatError {
        match self {
            FormatError::File { error, .. } => error.cause(),
            other => other,
        }
    }

    /// This error about the contents of the file at `path`.
    pub(crate) fn at(self, path: &Path) -> Self {
        FormatError::File { path: path.to_owned(), error: Box::new(self) }
    }

    /// An [`FormatError::UnsupportedType`] that lists the GGUF types Kiln computes with.
    pub(crate) fn unsupported(tensor: &str, got: GgmlType) -> Self {
        let supported: Vec<&str> =
            GgmlType::ALL.iter().filter(|ty| ty.dtype().is_some()).map(|ty| ty.name()).collect();
        FormatError::UnsupportedType {
            tensor: shown(tensor),
            got: got.name().to_owned(),
            supported: supported.join(", "),
        }
    }
}

/// A name from a file, cut to a length that fits a message.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 96;
    match name.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// Text that may hold parts of a file, made safe to print.
pub(crate) fn escaped(text: &str) -> String {
    shown(text).escape_debug().to_string()
}

fn version_advice(version: u32) -> &'static str {
    if version < 2 {
        "; convert the model again with a current converter"
    } else {
        "; a newer version of Kiln may read it"
    }
}

const _: () = assert!(size_of::<FormatError>() <= 96);
