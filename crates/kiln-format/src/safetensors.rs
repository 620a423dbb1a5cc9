//! safetensors files, read through the `safetensors` crate.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use kiln_core::{DType, SharedBytes};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

use crate::FormatError;
use crate::error::{escaped, shown};
use crate::map::map;

/// Bytes before the header: its length.
const PREFIX_BYTES: usize = 8;
/// Most axes of a tensor.
const MAX_AXES: usize = 8;
/// The key of the header that is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// An opened safetensors file.
///
/// ```
/// use kiln_core::{DType, SharedBytes};
/// use kiln_format::Safetensors;
///
/// let mut bytes = Vec::new();
/// let header = br#"{"x":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
/// bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
/// bytes.extend_from_slice(header);
/// bytes.extend_from_slice(&[0; 12]);
///
/// let file = Safetensors::from_bytes(SharedBytes::from_vec(bytes))?;
/// let tensor = file.tensor("x")?;
/// assert_eq!(tensor.shape(), [2, 3]);
/// assert_eq!(tensor.dtype()?, DType::F16);
/// assert_eq!(file.tensor_bytes("x")?.len(), 12);
/// # Ok::<(), kiln_format::FormatError>(())
/// ```
pub struct Safetensors {
    file: SharedBytes,
    metadata: HashMap<String, String>,
    /// Sorted by name.
    tensors: Vec<SafetensorsInfo>,
}

/// One tensor of a safetensors file.
#[derive(Clone, Debug)]
pub struct SafetensorsInfo {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    bytes: usize,
}

impl SafetensorsInfo {
    /// The name, for example `model.norm.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Axis lengths, row-major: the last axis is contiguous.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of bytes the values take.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// The element type in the file, for example `I64`.
    pub fn dtype_name(&self) -> String {
        format!("{:?}", self.dtype)
    }

    /// The type Kiln computes with: F32, F16, BF16, U8 and U32 have one.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] for other types.
    pub fn dtype(&self) -> Result<DType, FormatError> {
        Ok(match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::U8 => DType::U8,
            Dtype::U32 => DType::U32,
            _ => {
                return Err(FormatError::UnsupportedType {
                    tensor: shown(&self.name),
                    got: self.dtype_name(),
                    supported: "F32, F16, BF16, U8, U32".to_owned(),
                });
            }
        })
    }
}

impl Safetensors {
    /// Maps the file at `path`, which must not be changed while it is in use, as for
    /// [`Gguf::open`](crate::Gguf::open).
    ///
    /// # Errors
    /// [`FormatError::Io`], [`FormatError::NotAFile`], and [`FormatError::File`] around
    /// [`FormatError::Safetensors`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = path.as_ref();
        Self::from_bytes(map(path)?).map_err(|error| error.at(path))
    }

    /// A file in memory.
    ///
    /// # Errors
    /// [`FormatError::Safetensors`] or [`FormatError::Truncated`].
    pub fn from_bytes(file: SharedBytes) -> Result<Self, FormatError> {
        let data_start = guard(file.as_ref())?;
        let (_, header) = SafeTensors::read_metadata(file.as_ref())
            .map_err(|error| invalid(escaped(&error.to_string())))?;
        let mut tensors: Vec<SafetensorsInfo> = header
            .tensors()
            .into_iter()
            .map(|(name, info)| SafetensorsInfo {
                name,
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data_start + info.data_offsets.0,
                bytes: info.data_offsets.1 - info.data_offsets.0,
            })
            .collect();
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { file, metadata, tensors })
    }

    /// The free-form text pairs of the header.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> &[SafetensorsInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&SafetensorsInfo, FormatError> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        found
            .map(|index| &self.tensors[index])
            .map_err(|_| FormatError::MissingTensor { tensor: shown(name) })
    }

    /// The data of the tensor of that name, where it lies: nothing is copied. safetensors does not
    /// promise any alignment.
    ///
    /// # Errors
    /// [`FormatError::MissingTensor`].
    pub fn tensor_bytes(&self, name: &str) -> Result<SharedBytes, FormatError> {
        let tensor = self.tensor(name)?;
        let end = tensor.start + tensor.bytes;
        self.file
            .slice(tensor.start..end)
            .ok_or(FormatError::Truncated { needs: end as u64, has: self.file.len() as u64 })
    }
}

impl fmt::Debug for Safetensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safetensors").field("tensors", &self.tensors.len()).finish()
    }
}

fn invalid(problem: impl Into<String>) -> FormatError {
    FormatError::Safetensors { problem: problem.into() }
}

/// Checks what the `safetensors` crate does not: that offsets end inside the file before it adds
/// them up, that no name occurs twice, and that the header has no parts it would buffer at many
/// times their size. Returns where the data begins.
fn guard(file: &[u8]) -> Result<usize, FormatError> {
    let has = file.len() as u64;
    let Some((prefix, rest)) = file.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(FormatError::Truncated { needs: PREFIX_BYTES as u64, has });
    };
    if prefix.starts_with(b"GGUF") {
        return Err(invalid("it is a GGUF file: open it as one"));
    }
    let header_bytes = u64::from_le_bytes(*prefix);
    let Some(header) = usize::try_from(header_bytes).ok().and_then(|len| rest.get(..len)) else {
        let needs = header_bytes.saturating_add(PREFIX_BYTES as u64);
        return Err(if rest.first() == Some(&b'{') {
            FormatError::Truncated { needs, has }
        } else {
            invalid("it does not begin with the length of a JSON header")
        });
    };
    let names: Header = serde_json::from_slice(header)
        .map_err(|error| invalid(format!("header: {}", escaped(&error.to_string()))))?;
    let data_bytes = (rest.len() - header.len()) as u64;
    if names.data_end > data_bytes {
        let needs = (PREFIX_BYTES as u64 + header_bytes).saturating_add(names.data_end);
        return Err(FormatError::Truncated { needs, has });
    }
    if names.data_end < data_bytes {
        let extra = data_bytes - names.data_end;
        return Err(invalid(format!("{extra} bytes after the last tensor")));
    }
    Ok(PREFIX_BYTES + header.len())
}

/// What [`guard`] keeps of a header.
struct Header {
    /// The largest end offset of a tensor.
    data_end: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor<'a> {
    #[serde(borrow, rename = "dtype")]
    _dtype: Cow<'a, str>,
    #[serde(rename = "shape", deserialize_with = "check_axes")]
    _shape: (),
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;

        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut names = BTreeSet::new();
                let mut data_end = 0;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<Option<HashMap<String, String>>>()?;
                    } else {
                        let (_, end) = map.next_value::<Tensor>()?.data_offsets;
                        data_end = data_end.max(end);
                    }
                    if let Some(twice) = names.replace(name) {
                        return Err(A::Error::custom(format!(
                            "tensor {} occurs twice",
                            shown(&twice)
                        )));
                    }
                }
                Ok(Header { data_end })
            }
        }

        deserializer.deserialize_map(Tensors)
    }
}

/// Accepts an array of at most [`MAX_AXES`] lengths without keeping them.
fn check_axes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    struct Axes;

    impl<'de> Visitor<'de> for Axes {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "at most {MAX_AXES} axis lengths")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            let mut axes = 0;
            while seq.next_element::<u64>()?.is_some() {
                axes += 1;
                if axes > MAX_AXES {
                    return Err(A::Error::invalid_length(axes, &self));
                }
            }
            Ok(())
        }
    }

    deserializer.deserialize_seq(Axes)
}
