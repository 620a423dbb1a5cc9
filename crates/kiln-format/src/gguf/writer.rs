//! Writing GGUF files, version 3.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use kiln_core::SharedBytes;

use super::layout;
use super::value::{ARRAY_ID, Value, ValueType};
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ARRAY_LEN, MAX_KEY_BYTES, MAX_STRING_BYTES,
};
use crate::error::shown;
use crate::replace::Replacement;
use crate::{FormatError, GgmlType};

const VERSION: u32 = 3;
const BUFFER_BYTES: usize = 1 << 20;

/// Where the data of one tensor comes from.
///
/// Borrowed bytes, a `Vec<u8>` and [`SharedBytes`] convert into it; [`TensorData::stream`] makes
/// data while it is written, so that a model larger than memory can be converted.
pub struct TensorData<'a>(Source<'a>);

type Stream<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

enum Source<'a> {
    Bytes(Cow<'a, [u8]>),
    Shared(SharedBytes),
    Stream(Stream<'a>),
}

impl<'a> TensorData<'a> {
    /// Data that `produce` writes when its turn comes; it must write exactly the bytes that the
    /// tensor's type and shape need.
    pub fn stream(produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a) -> Self {
        TensorData(Source::Stream(Box::new(produce)))
    }

    fn len(&self) -> Option<usize> {
        match &self.0 {
            Source::Bytes(bytes) => Some(bytes.len()),
            Source::Shared(bytes) => Some(bytes.len()),
            Source::Stream(_) => None,
        }
    }
}

impl<'a> From<&'a [u8]> for TensorData<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        TensorData(Source::Bytes(Cow::Borrowed(bytes)))
    }
}

impl From<Vec<u8>> for TensorData<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        TensorData(Source::Bytes(Cow::Owned(bytes)))
    }
}

impl From<SharedBytes> for TensorData<'_> {
    fn from(bytes: SharedBytes) -> Self {
        TensorData(Source::Shared(bytes))
    }
}

struct Pending<'a> {
    name: String,
    ggml_type: GgmlType,
    shape: Vec<usize>,
    bytes: usize,
    data: TensorData<'a>,
}

/// Collects metadata and tensors, then writes them as one GGUF file.
///
/// What the reader would refuse is refused when it is added. A file is written beside its target
/// under a temporary name and takes the target's place only when it is complete.
///
/// ```
/// use kiln_format::{GgmlType, Gguf, GgufWriter, TensorData};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("tiny.gguf");
///
/// let ones: Vec<u8> = [1.0f32; 8].iter().flat_map(|x| x.to_le_bytes()).collect();
/// let mut writer = GgufWriter::new();
/// writer.insert("general.architecture", "llama")?;
/// writer.insert("tokenizer.ggml.tokens", vec!["<s>", "</s>"])?;
/// writer.tensor("output_norm.weight", GgmlType::F32, &[8], &ones[..])?;
/// writer.tensor(
///     "token_embd.weight",
///     GgmlType::Q8_0,
///     &[2, 32],
///     TensorData::stream(|out| (0..2).try_for_each(|_| out.write_all(&[0; 34]))),
/// )?;
/// writer.write(&path)?;
///
/// let file = Gguf::open(&path)?;
/// assert_eq!(file.tensor("token_embd.weight")?.shape(), [2, 32]);
/// assert_eq!(file.tensor_bytes("output_norm.weight")?.as_ref(), ones);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct GgufWriter<'a> {
    alignment: Option<u32>,
    entries: Vec<(String, Value<'a>)>,
    tensors: Vec<Pending<'a>>,
    keys: HashSet<String>,
    names: HashSet<String>,
}

impl<'a> GgufWriter<'a> {
    /// A writer with neither metadata nor tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata entry. The key `general.alignment`, a u32, also sets the alignment of tensor
    /// data, which is 32 bytes otherwise.
    ///
    /// # Errors
    /// [`FormatError::EmptyKey`], [`FormatError::DuplicateKey`], [`FormatError::Alignment`];
    /// [`FormatError::WriteLength`] and [`FormatError::ArrayLength`] for values over the limits of
    /// the format.
    pub fn insert(
        &mut self,
        key: impl Into<String>,
        value: impl Into<Value<'a>>,
    ) -> Result<&mut Self, FormatError> {
        let (key, value) = (key.into(), value.into());
        check_entry(&key, &value, self.entries.len())?;
        if key == ALIGNMENT_KEY {
            self.alignment = Some(layout::alignment(&value)?);
        }
        if !self.keys.insert(key.clone()) {
            return Err(FormatError::DuplicateKey { key: shown(&key) });
        }
        self.entries.push((key, value));
        Ok(self)
    }

    /// Adds a tensor; `shape` is row-major, its last axis contiguous. The order of tensors is the
    /// order of the calls.
    ///
    /// # Errors
    /// [`FormatError::TensorName`], [`FormatError::DuplicateTensor`], [`FormatError::TooManyAxes`],
    /// [`FormatError::PartialBlock`], [`FormatError::ShapeOverflow`]; [`FormatError::DataLength`]
    /// where `data` has another length than type and shape need.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        ggml_type: GgmlType,
        shape: &[usize],
        data: impl Into<TensorData<'a>>,
    ) -> Result<&mut Self, FormatError> {
        let (name, data) = (name.into(), data.into());
        layout::check_tensor_name(&name)?;
        let bytes = layout::tensor_bytes(&name, ggml_type, shape)?;
        if let Some(got) = data.len().filter(|&got| got != bytes) {
            return Err(data_length(&name, bytes, got as u64));
        }
        if !self.names.insert(name.clone()) {
            return Err(FormatError::DuplicateTensor { tensor: shown(&name) });
        }
        self.tensors.push(Pending { name, ggml_type, shape: shape.to_vec(), bytes, data });
        Ok(self)
    }

    /// Writes the file to `path` and returns its size in bytes.
    ///
    /// The data goes to a temporary file in the same folder, is flushed to the device and then
    /// renamed. After an error the target is as it was before. A model that is open from `path`
    /// stays valid: it keeps the file it has mapped.
    ///
    /// # Errors
    /// [`FormatError::Io`], [`FormatError::NotAFile`] where `path` cannot be a file, and
    /// [`FormatError::File`] around the errors of [`GgufWriter::write_to`].
    pub fn write(self, path: impl AsRef<Path>) -> Result<u64, FormatError> {
        let path = path.as_ref();
        let replacement = Replacement::create(path)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, replacement.file());
        let bytes = self.write_to(&mut out).map_err(|error| error.at(path))?;
        out.flush().map_err(|error| FormatError::Write { error }.at(path))?;
        drop(out);
        replacement.finish()?;
        Ok(bytes)
    }

    /// Writes the file to `out` and returns its size in bytes. Many small writes are made: give a
    /// buffered stream.
    ///
    /// # Errors
    /// [`FormatError::Write`] where `out` or a streamed tensor fails; [`FormatError::DataLength`]
    /// where a streamed tensor writes too much or too little; [`FormatError::ShapeOverflow`] where
    /// the file would be larger than a file can be.
    pub fn write_to(self, out: &mut dyn Write) -> Result<u64, FormatError> {
        let alignment = self.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let header = self.header(alignment)?;
        let mut out = Counted { out, written: 0, limit: u64::MAX, exceeded: false };
        let write = |error| FormatError::Write { error };
        out.write_all(&header).map_err(write)?;
        out.pad(alignment).map_err(write)?;
        for tensor in self.tensors {
            let Pending { name, bytes, data, .. } = tensor;
            let start = out.written;
            out.limit = start.saturating_add(bytes as u64);
            let result = match data.0 {
                Source::Bytes(data) => out.write_all(&data),
                Source::Shared(data) => out.write_all(data.as_ref()),
                Source::Stream(produce) => produce(&mut out),
            };
            let got = out.written - start;
            if out.exceeded || (result.is_ok() && got != bytes as u64) {
                return Err(data_length(&name, bytes, got));
            }
            result.map_err(write)?;
            out.limit = u64::MAX;
            out.pad(alignment).map_err(write)?;
        }
        Ok(out.written)
    }

    fn header(&self, alignment: u32) -> Result<Vec<u8>, FormatError> {
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut header, tensor.name.as_bytes());
            header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for &len in tensor.shape.iter().rev() {
                header.extend_from_slice(&(len as u64).to_le_bytes());
            }
            header.extend_from_slice(&tensor.ggml_type.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset = offset
                .checked_add(tensor.bytes as u64)
                .and_then(|end| layout::padded(end, alignment))
                .ok_or_else(|| FormatError::ShapeOverflow {
                    tensor: shown(&tensor.name),
                    ggml_type: tensor.ggml_type,
                    shape: tensor.shape.clone(),
                })?;
        }
        Ok(header)
    }
}

impl fmt::Debug for GgufWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufWriter")
            .field("metadata", &self.entries.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

fn data_length(tensor: &str, expected: usize, got: u64) -> FormatError {
    FormatError::DataLength { tensor: shown(tensor), expected: expected as u64, got }
}

fn check_entry(key: &str, value: &Value, index: usize) -> Result<(), FormatError> {
    if key.is_empty() {
        return Err(FormatError::EmptyKey { index });
    }
    let check = |what, len: usize, limit| {
        if len as u64 <= limit {
            return Ok(());
        }
        Err(FormatError::WriteLength { key: shown(key), what, len: len as u64, limit })
    };
    check("key", key.len(), MAX_KEY_BYTES)?;
    match value {
        Value::String(bytes) => check("string", bytes.len(), MAX_STRING_BYTES),
        Value::Array(array) if array.len() as u64 > MAX_ARRAY_LEN => {
            let len = array.len() as u64;
            Err(FormatError::ArrayLength { key: shown(key), len, limit: MAX_ARRAY_LEN })
        }
        Value::Array(super::Array::String(strings)) => {
            strings.iter().try_for_each(|bytes| check("string", bytes.len(), MAX_STRING_BYTES))
        }
        _ => Ok(()),
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value.value_type() {
        ValueType::Scalar(element) => out.extend_from_slice(&element.id().to_le_bytes()),
        ValueType::Array(element) => {
            out.extend_from_slice(&ARRAY_ID.to_le_bytes());
            out.extend_from_slice(&element.id().to_le_bytes());
        }
    }
    match value {
        Value::U8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(bytes) => put_string(out, bytes),
        Value::U64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Array(array) => {
            out.extend_from_slice(&(array.len() as u64).to_le_bytes());
            array.encode(out);
        }
    }
}

/// Counts what passes through and refuses to write past a limit.
struct Counted<'a> {
    out: &'a mut dyn Write,
    written: u64,
    limit: u64,
    exceeded: bool,
}

impl Counted<'_> {
    /// Writes zeros up to the next multiple of `alignment`.
    fn pad(&mut self, alignment: u32) -> io::Result<()> {
        let end = self.written.next_multiple_of(u64::from(alignment));
        io::copy(&mut io::Read::take(io::repeat(0), end - self.written), self).map(drop)
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.limit - self.written {
            self.exceeded = true;
            self.written = self.written.saturating_add(bytes.len() as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much tensor data"));
        }
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
