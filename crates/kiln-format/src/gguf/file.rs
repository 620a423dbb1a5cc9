//! A GGUF model: one file, or the parts of a split one.

use std::fmt;
use std::path::{Path, PathBuf};

use kiln_core::SharedBytes;

use super::header::{self, Header, TensorInfo};
use super::metadata::{Metadata, sorted_by};
use super::split::Split;
use crate::error::shown;
use crate::map::map;
use crate::{FormatError, GgmlType};

/// An opened GGUF model, version 2 or 3, little-endian.
///
/// Opening checks the whole header against the size of the file before it keeps anything: counts,
/// lengths, names, types, shapes and the place of every tensor's data. What was opened can be read
/// without further surprises, and a damaged or hostile file costs memory of the order of its own
/// size at most. Tensor data is mapped, not read, so opening takes about as long as walking the
/// vocabulary.
pub struct Gguf {
    parts: Vec<SharedBytes>,
    /// Where the parts were opened; empty for a model in memory.
    paths: Vec<PathBuf>,
    version: u32,
    alignment: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<usize>,
}

/// How many tensors have a type, and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeTotal {
    /// The type.
    pub ggml_type: GgmlType,
    /// Number of tensors of this type.
    pub tensors: usize,
    /// Bytes of their data.
    pub bytes: u64,
}

impl Gguf {
    /// Maps the model at `path`; for a split model give the first part, the others are opened with
    /// it.
    ///
    /// The file must not be changed while it is in use: on most systems the change would show
    /// through, and cutting the file short ends the process. Replacing it by a new file of the same
    /// name, as [`GgufWriter::write`](crate::GgufWriter::write) does, is safe.
    ///
    /// # Errors
    /// [`FormatError::Io`] and [`FormatError::NotAFile`]; [`FormatError::MissingSplit`],
    /// [`FormatError::SplitName`] and [`FormatError::NotFirstSplit`] for split models;
    /// [`FormatError::File`] around whatever is wrong with the contents.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        let at = |error: FormatError| error.at(path);
        let bytes = map(path)?;
        let first = header::parse(&bytes).map_err(at)?;
        let split = Split::of(&first.metadata).map_err(at)?;
        let mut parts = vec![(bytes, first)];
        let mut paths = vec![path.to_owned()];
        if split.count > 1 {
            for (index, path) in (1..).zip(split.other_parts(path).map_err(at)?) {
                if !path.exists() {
                    let (part, count) = (index + 1, split.count);
                    return Err(FormatError::MissingSplit { part, count, path });
                }
                parts.push(open_part(&path, index, &split)?);
                paths.push(path);
            }
        }
        let model = Self::assemble(parts, &split).map_err(at)?;
        Ok(Self { paths, ..model })
    }

    /// A model in memory.
    ///
    /// ```
    /// use kiln_core::SharedBytes;
    /// use kiln_format::{GgmlType, Gguf, GgufWriter};
    ///
    /// let mut writer = GgufWriter::new();
    /// writer.tensor("x", GgmlType::F32, &[2, 3], vec![0u8; 24])?;
    /// let mut bytes = Vec::new();
    /// writer.write_to(&mut bytes)?;
    ///
    /// let file = Gguf::from_bytes(SharedBytes::from_vec(bytes))?;
    /// assert_eq!(file.tensor("x")?.shape(), [2, 3]);
    /// # Ok::<(), kiln_format::FormatError>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with the contents; [`FormatError::SplitMismatch`] where the bytes are one part
    /// of a split model.
    pub fn from_bytes(bytes: SharedBytes) -> Result<Self, FormatError> {
        Self::from_parts([bytes])
    }

    /// A split model in memory, its parts in order.
    ///
    /// # Errors
    /// As [`Gguf::from_bytes`]; [`FormatError::SplitMismatch`] where the parts do not belong
    /// together or some are missing; [`FormatError::Truncated`] where there are no parts.
    pub fn from_parts(parts: impl IntoIterator<Item = SharedBytes>) -> Result<Self, FormatError> {
        let mut parsed = Vec::new();
        for bytes in parts {
            let header = header::parse(&bytes)?;
            parsed.push((bytes, header));
        }
        let Some((_, first)) = parsed.first() else {
            return Err(FormatError::Truncated { needs: 1, has: 0 });
        };
        let split = Split::of(&first.metadata)?;
        if split.count != parsed.len() {
            return Err(FormatError::SplitMismatch {
                part: 1,
                what: "number of parts",
                expected: split.count,
                got: parsed.len(),
            });
        }
        for (index, (_, header)) in parsed.iter().enumerate() {
            Split::of(&header.metadata)?.check(index, &split)?;
        }
        Self::assemble(parsed, &split)
    }

    /// Joins parts that have been checked one by one.
    fn assemble(parts: Vec<(SharedBytes, Header)>, split: &Split) -> Result<Self, FormatError> {
        let mut parts = parts.into_iter();
        let Some((bytes, first)) = parts.next() else {
            return Err(FormatError::Truncated { needs: 1, has: 0 });
        };
        let Header { version, alignment, metadata, mut tensors } = first;
        let mut files = vec![bytes];
        for (part, (bytes, header)) in (1..).zip(parts) {
            files.push(bytes);
            tensors.extend(header.tensors.into_iter().map(|tensor| tensor.in_part(part)));
        }
        split.check_tensors(tensors.len())?;
        let by_name = sorted_by(&tensors, TensorInfo::name)
            .map_err(|name| FormatError::DuplicateTensor { tensor: shown(name) })?;
        Ok(Self { parts: files, paths: Vec::new(), version, alignment, metadata, tensors, by_name })
    }

    /// The version in the header: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes, a power of two.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Bytes of all parts together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Number of files the model is split into.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The files the model was opened from, first part first; none for a model in memory.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The key-value pairs; those of the first part where the model is split.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The value of `general.architecture`, for example `llama`.
    ///
    /// # Errors
    /// [`FormatError::MissingKey`], [`FormatError::WrongType`] or [`FormatError::NotText`].
    pub fn architecture(&self) -> Result<&str, FormatError> {
        self.metadata.required_str("general.architecture")
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name, or `None`.
    pub fn find_tensor(&self, name: &str) -> Option<&TensorInfo> {
        let found = self.by_name.binary_search_by(|&index| self.tensors[index].name().cmp(name));
        Some(&self.tensors[self.by_name[found.ok()?]])
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, FormatError> {
        self.find_tensor(name).ok_or_else(|| FormatError::MissingTensor { tensor: shown(name) })
    }

    /// The data of the tensor of that name, where it lies: nothing is copied, and the bytes stay
    /// valid after this value is dropped. They begin at a multiple of [`Gguf::alignment`] from the
    /// start of the file.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`].
    pub fn tensor_bytes(&self, name: &str) -> Result<SharedBytes, FormatError> {
        self.bytes_of(self.tensor(name)?)
    }

    /// The data of `tensor`, one of [`Gguf::tensors`].
    ///
    /// # Errors
    /// [`FormatError::Truncated`] where `tensor` belongs to another file and does not fit this one.
    pub fn bytes_of(&self, tensor: &TensorInfo) -> Result<SharedBytes, FormatError> {
        let part = self.parts.get(tensor.part());
        let needs = tensor.file_offset().saturating_add(tensor.byte_len() as u64);
        part.and_then(|part| {
            let start = usize::try_from(tensor.file_offset()).ok()?;
            part.slice(start..start.checked_add(tensor.byte_len())?)
        })
        .ok_or(FormatError::Truncated { needs, has: part.map_or(0, |part| part.len() as u64) })
    }

    /// Checks that Kiln can compute with every tensor, before any data is read.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] for the first tensor it cannot compute with.
    pub fn check_types(&self) -> Result<(), FormatError> {
        self.tensors.iter().try_for_each(|tensor| tensor.dtype().map(drop))
    }

    /// Number and size of the tensors of each type that occurs, by ascending id.
    pub fn type_totals(&self) -> Vec<TypeTotal> {
        let total = |&ggml_type: &GgmlType| {
            let of_type = self.tensors.iter().filter(|tensor| tensor.ggml_type() == ggml_type);
            let (tensors, bytes) = of_type.fold((0, 0u64), |(tensors, bytes), tensor| {
                (tensors + 1, bytes + tensor.byte_len() as u64)
            });
            TypeTotal { ggml_type, tensors, bytes }
        };
        GgmlType::ALL.iter().map(total).filter(|total| total.tensors > 0).collect()
    }
}

/// Opens and checks part `index` of a split model.
fn open_part(
    path: &Path,
    index: usize,
    split: &Split,
) -> Result<(SharedBytes, Header), FormatError> {
    let at = |error: FormatError| error.at(path);
    let bytes = map(path)?;
    let header = header::parse(&bytes).map_err(at)?;
    Split::of(&header.metadata).and_then(|part| part.check(index, split)).map_err(at)?;
    Ok((bytes, header))
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version)
            .field("parts", &self.parts.len())
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}
