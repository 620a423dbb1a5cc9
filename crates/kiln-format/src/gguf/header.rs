//! The header of one GGUF file: metadata and tensor list, checked against the file's size.
//!
//! The header is walked twice: first to check it, which allocates nothing, then to keep it, with
//! exactly the room the first walk has proved necessary.

use kiln_core::{DType, SharedBytes};

use super::cursor::Cursor;
use super::layout;
use super::metadata::{Entry, Metadata};
use super::value::{ARRAY_ID, ElementType};
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_ARRAY_LEN, MAX_AXES, MAX_KEY_BYTES,
    MAX_STRING_BYTES,
};
use crate::error::shown;
use crate::{FormatError, GgmlType};

/// Fewest bytes of a metadata entry: key length, one character, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor's entry: name length, one character, axis count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// One tensor of a GGUF file: what the header says about it.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    name: Box<str>,
    ggml_type: GgmlType,
    axes: u8,
    shape: [usize; MAX_AXES],
    offset: u64,
    bytes: usize,
    part: u32,
}

impl TensorInfo {
    /// The name, for example `blk.0.ffn_up.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type in the file.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// The type Kiln computes with.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] where Kiln has no kernels for the type in the file.
    pub fn dtype(&self) -> Result<DType, FormatError> {
        self.ggml_type.dtype().ok_or_else(|| FormatError::unsupported(&self.name, self.ggml_type))
    }

    /// Axis lengths in row-major order: the last axis is contiguous. This is the reverse of the
    /// order in the file. A weight matrix is `[out features, in features]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..usize::from(self.axes)]
    }

    /// Number of values: the product of the axis lengths.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Number of bytes the values take.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Offset of the first byte from the start of the file, or of the part that holds it.
    pub fn file_offset(&self) -> u64 {
        self.offset
    }

    /// This tensor as one of part `part`, from 0.
    pub(crate) fn in_part(self, part: u32) -> Self {
        Self { part, ..self }
    }

    /// The part that holds the data, from 0; always 0 where the model is one file.
    pub fn part(&self) -> usize {
        self.part as usize
    }
}

/// One parsed file.
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) alignment: u32,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Parses and checks the whole header of `file`.
pub(crate) fn parse(file: &SharedBytes) -> Result<Header, FormatError> {
    let bytes = file.as_ref();
    let mut cursor = Cursor::new(bytes);
    let version = preamble(&mut cursor)?;
    let tensor_count = cursor.u64()?;
    let entry_count = cursor.u64()?;

    let entry_count = bounded("metadata entries", entry_count, &cursor, MIN_ENTRY_BYTES)?;
    let entries = cursor.clone();
    for index in 0..entry_count {
        read_entry(&mut cursor, index)?;
    }
    let tensor_count = bounded("tensors", tensor_count, &cursor, MIN_TENSOR_BYTES)?;
    let mut tensors = cursor.clone();
    for _ in 0..tensor_count {
        read_tensor(&mut cursor)?;
    }
    let header_end = cursor.at() as u64;

    let metadata = keep_entries(file, entries, entry_count)?;
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        Some(value) => layout::alignment(&value)?,
        None => DEFAULT_ALIGNMENT,
    };
    let mut kept = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        kept.push(read_tensor(&mut tensors)?);
    }
    let tensors = place_tensors(kept, header_end, alignment, bytes.len())?;
    Ok(Header { version, alignment, metadata, tensors })
}

/// Checks magic and version; returns the version.
fn preamble(cursor: &mut Cursor) -> Result<u32, FormatError> {
    let magic = cursor.magic()?;
    if magic != MAGIC {
        let found = magic.escape_ascii().to_string();
        return Err(FormatError::BadMagic { found, hint: magic_hint(magic) });
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        version if version != 0 && version & 0xffff == 0 => Err(FormatError::BigEndian),
        version => Err(FormatError::UnsupportedVersion { version }),
    }
}

/// What a file with these first bytes is likely to be.
fn magic_hint(magic: [u8; 4]) -> &'static str {
    match &magic {
        b"vers" => "; it looks like a Git LFS pointer: run `git lfs pull`",
        b"<!DO" | b"<!do" | b"<htm" | b"<HTM" => "; it looks like a web page: download it again",
        b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            "; it is a model from before GGUF: convert the original model again"
        }
        b"PK\x03\x04" => "; it looks like a zip archive or a PyTorch model: convert it to GGUF",
        b"FUGG" => "; its bytes are swapped",
        _ => "",
    }
}

/// A count from the header, refused where the remaining bytes cannot hold that many items.
fn bounded(
    what: &'static str,
    count: u64,
    cursor: &Cursor,
    min_bytes: u64,
) -> Result<usize, FormatError> {
    let limit = cursor.remaining() as u64 / min_bytes;
    usize::try_from(count).ok().filter(|_| count <= limit).ok_or(FormatError::Count {
        what,
        count,
        limit,
    })
}

/// A metadata entry as it lies in the file.
struct RawEntry<'a> {
    key: &'a str,
    element: ElementType,
    array: bool,
    /// Number of elements; 1 for a scalar.
    len: usize,
    /// Offset of the first element in the file.
    start: usize,
    /// Offset of the byte after the last element.
    end: usize,
}

fn read_entry<'a>(cursor: &mut Cursor<'a>, index: usize) -> Result<RawEntry<'a>, FormatError> {
    let key = cursor.name("metadata key", MAX_KEY_BYTES)?;
    if key.is_empty() {
        return Err(FormatError::EmptyKey { index });
    }
    let mut id = cursor.u32()?;
    let array = id == ARRAY_ID;
    if array {
        id = cursor.u32()?;
    }
    let Some(element) = ElementType::from_id(id) else {
        return Err(match (array, id) {
            (true, ARRAY_ID) => FormatError::NestedArray { key: shown(key) },
            _ => FormatError::UnknownValueType { key: shown(key), id },
        });
    };
    let len = if array { array_len(cursor, key, element)? } else { 1 };
    let start = cursor.at();
    match element {
        ElementType::String => {
            for _ in 0..len {
                cursor.string(MAX_STRING_BYTES)?;
            }
        }
        ElementType::Bool => {
            if let Some(&byte) = cursor.take(len as u64)?.iter().find(|&&byte| byte > 1) {
                return Err(FormatError::BoolByte { key: shown(key), byte });
            }
        }
        number => {
            cursor.take((len as u64).saturating_mul(number.min_bytes()))?;
        }
    }
    Ok(RawEntry { key, element, array, len, start, end: cursor.at() })
}

/// Reads the length of an array and refuses what the remaining bytes cannot hold.
fn array_len(cursor: &mut Cursor, key: &str, element: ElementType) -> Result<usize, FormatError> {
    let len = cursor.u64()?;
    if len > MAX_ARRAY_LEN {
        return Err(FormatError::ArrayLength { key: shown(key), len, limit: MAX_ARRAY_LEN });
    }
    bounded("array elements", len, cursor, element.min_bytes())
}

/// Reads checked entries again, now to keep them.
fn keep_entries(
    file: &SharedBytes,
    mut cursor: Cursor,
    count: usize,
) -> Result<Metadata, FormatError> {
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        let raw = read_entry(&mut cursor, index)?;
        let starts = if raw.array && raw.element == ElementType::String {
            string_starts(file, &raw)?
        } else {
            Vec::new()
        };
        entries.push(Entry {
            key: raw.key.into(),
            element: raw.element,
            array: raw.array,
            range: raw.start..raw.end,
            starts: starts.into(),
        });
    }
    Metadata::new(file.clone(), entries)
}

/// Where each string of an array begins, relative to the first.
fn string_starts(file: &SharedBytes, raw: &RawEntry) -> Result<Vec<usize>, FormatError> {
    let mut strings = Cursor::new(file.as_ref().get(raw.start..raw.end).unwrap_or_default());
    let mut starts = Vec::with_capacity(raw.len);
    for _ in 0..raw.len {
        starts.push(strings.at());
        strings.string(MAX_STRING_BYTES)?;
    }
    Ok(starts)
}

/// Reads one tensor's entry; `offset` is still relative to the data section.
fn read_tensor(cursor: &mut Cursor) -> Result<TensorInfo, FormatError> {
    let name = cursor.name("tensor name", MAX_STRING_BYTES)?;
    layout::check_tensor_name(name)?;
    let axes = cursor.u32()?;
    if axes as usize > MAX_AXES {
        let axes = u64::from(axes);
        return Err(FormatError::TooManyAxes { tensor: shown(name), axes, limit: MAX_AXES });
    }
    let mut shape = [1; MAX_AXES];
    for axis in (0..axes as usize).rev() {
        let len = cursor.u64()?;
        shape[axis] =
            i64::try_from(len).ok().and_then(|len| usize::try_from(len).ok()).ok_or_else(|| {
                FormatError::AxisLength { tensor: shown(name), axis, len: len.cast_signed() }
            })?;
    }
    let id = cursor.u32()?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| match GgmlType::removed_name(id) {
        Some(removed) => FormatError::RemovedTensorType { tensor: shown(name), id, name: removed },
        None => FormatError::UnknownTensorType { tensor: shown(name), id },
    })?;
    let bytes = layout::tensor_bytes(name, ggml_type, &shape[..axes as usize])?;
    let offset = cursor.u64()?;
    Ok(TensorInfo { name: name.into(), ggml_type, axes: axes as u8, shape, offset, bytes, part: 0 })
}

/// Checks that the data of each tensor follows the one before and lies inside the file; makes
/// offsets relative to the file.
fn place_tensors(
    mut tensors: Vec<TensorInfo>,
    header_end: u64,
    alignment: u32,
    file_bytes: usize,
) -> Result<Vec<TensorInfo>, FormatError> {
    let data_start = layout::padded(header_end, alignment).unwrap_or(u64::MAX);
    let mut next = 0u64;
    let mut needs = header_end;
    for tensor in &mut tensors {
        if tensor.offset != next {
            return Err(FormatError::TensorOffset {
                tensor: shown(&tensor.name),
                expected: next,
                got: tensor.offset,
            });
        }
        let end = next.checked_add(tensor.bytes as u64);
        let padded = end.and_then(|end| layout::padded(end, alignment));
        let in_file = end.and_then(|end| end.checked_add(data_start));
        let (Some(in_file), Some(padded)) = (in_file, padded) else {
            return Err(FormatError::ShapeOverflow {
                tensor: shown(&tensor.name),
                ggml_type: tensor.ggml_type,
                shape: tensor.shape().to_vec(),
            });
        };
        tensor.offset = data_start + next;
        needs = in_file;
        next = padded;
    }
    let has = file_bytes as u64;
    if needs > has {
        return Err(FormatError::Truncated { needs, has });
    }
    Ok(tensors)
}
