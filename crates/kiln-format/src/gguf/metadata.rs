//! The metadata of a GGUF file and its typed accessors.

use std::borrow::Cow;
use std::ops::Range;

use kiln_core::SharedBytes;

use super::array::{Array, Strings};
use super::value::{ElementType, Value, ValueType};
use crate::FormatError;
use crate::error::shown;

/// Where one value lies in the file.
pub(crate) struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) element: ElementType,
    pub(crate) array: bool,
    pub(crate) range: Range<usize>,
    /// Offsets of the strings of an array of strings.
    pub(crate) starts: Box<[usize]>,
}

/// The key-value pairs of a GGUF file.
///
/// Values stay in the file and are read when asked for: a vocabulary of any size costs one offset
/// per token. Accessors come in pairs: `x_of(key)` gives `None` where the key is absent,
/// `required_x(key)` an error that names it. Both give an error where the key is there with a value
/// that does not fit.
///
/// ```
/// use kiln_core::SharedBytes;
/// use kiln_format::{Gguf, GgufWriter};
///
/// let mut writer = GgufWriter::new();
/// writer.insert("general.architecture", "llama")?;
/// writer.insert("llama.block_count", 2u64)?;
/// writer.insert("llama.attention.head_count_kv", vec![4i32, 2])?;
/// let mut bytes = Vec::new();
/// writer.write_to(&mut bytes)?;
///
/// let file = Gguf::from_bytes(SharedBytes::from_vec(bytes))?;
/// let metadata = file.metadata();
/// assert_eq!(metadata.required_str("general.architecture")?, "llama");
/// assert_eq!(metadata.required_usize("llama.block_count")?, 2);
/// assert_eq!(metadata.f32_of("llama.rope.freq_base")?, None);
/// let heads = metadata.required_per_layer("llama.attention.head_count_kv")?;
/// assert_eq!(heads.get(1), Some(2));
/// let error = metadata.required_f32("llama.block_count").unwrap_err();
/// assert_eq!(error.to_string(), "metadata key \"llama.block_count\": expected f32, got u64");
/// # Ok::<(), kiln_format::FormatError>(())
/// ```
pub struct Metadata {
    file: SharedBytes,
    entries: Vec<Entry>,
    /// Indices into `entries`, sorted by key.
    by_key: Vec<usize>,
}

impl Metadata {
    /// Keeps the entries of `file`; refuses two of the same key.
    pub(crate) fn new(file: SharedBytes, entries: Vec<Entry>) -> Result<Self, FormatError> {
        let by_key = sorted_by(&entries, |entry| &entry.key)
            .map_err(|key| FormatError::DuplicateKey { key: shown(key) })?;
        Ok(Self { file, entries, by_key })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every key and value, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|entry| (&*entry.key, self.value(entry)))
    }

    /// The value of `key`, or `None` where the file has no such key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let found = self.by_key.binary_search_by(|&index| (*self.entries[index].key).cmp(key));
        Some(self.value(&self.entries[self.by_key[found.ok()?]]))
    }

    fn value<'a>(&'a self, entry: &'a Entry) -> Value<'a> {
        let bytes = self.file.as_ref().get(entry.range.clone()).unwrap_or_default();
        if entry.array {
            return Value::Array(Array::from_file(entry.element, bytes, &entry.starts));
        }
        Value::from_file(entry.element, bytes)
    }

    fn convert<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, FormatError> {
        self.get(key).map(|value| T::from_value(key, value)).transpose()
    }

    fn required<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, FormatError> {
        self.convert(key)?.ok_or_else(|| FormatError::MissingKey { key: shown(key) })
    }
}

/// Indices of `items` sorted by `key`, or the first key that occurs twice.
pub(crate) fn sorted_by<T>(items: &[T], key: impl Fn(&T) -> &str) -> Result<Vec<usize>, &str> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by_key(|&index| key(&items[index]));
    let pairs = order.windows(2);
    match pairs.map(|pair| (&items[pair[0]], &items[pair[1]])).find(|(a, b)| key(a) == key(b)) {
        Some((twice, _)) => Err(key(twice)),
        None => Ok(order),
    }
}

/// One value for all layers of a model, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerLayer<T> {
    /// The same value for every layer.
    Same(T),
    /// The values of layer 0, 1, and so on.
    Each(Vec<T>),
}

impl<T: Copy> PerLayer<T> {
    /// The value of a layer, counted from 0; `None` past the end of [`PerLayer::Each`].
    pub fn get(&self, layer: usize) -> Option<T> {
        match self {
            PerLayer::Same(value) => Some(*value),
            PerLayer::Each(values) => values.get(layer).copied(),
        }
    }
}

/// What an accessor can return.
trait FromValue<'a>: Sized {
    fn from_value(key: &str, value: Value<'a>) -> Result<Self, FormatError>;
}

fn wrong_type(key: &str, expected: &'static str, got: ValueType) -> FormatError {
    FormatError::WrongType { key: shown(key), expected, got }
}

fn fitting<T: TryFrom<i128>>(key: &str, integer: i128) -> Result<T, FormatError> {
    integer.try_into().map_err(|_| FormatError::OutOfRange {
        key: shown(key),
        expected: "a non-negative integer that fits usize",
        got: integer,
    })
}

impl FromValue<'_> for usize {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value.as_integer() {
            Some(integer) => fitting(key, integer),
            None => Err(wrong_type(key, "an integer", value.value_type())),
        }
    }
}

impl FromValue<'_> for f32 {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::F32(x) => Ok(x),
            Value::F64(x) => Ok(x as f32),
            other => Err(wrong_type(key, "f32", other.value_type())),
        }
    }
}

impl FromValue<'_> for bool {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Bool(x) => Ok(x),
            other => Err(wrong_type(key, "bool", other.value_type())),
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    fn from_value(key: &str, value: Value<'a>) -> Result<Self, FormatError> {
        match value {
            Value::String(Cow::Borrowed(bytes)) => {
                std::str::from_utf8(bytes).map_err(|_| FormatError::NotText { key: shown(key) })
            }
            other => Err(wrong_type(key, "string", other.value_type())),
        }
    }
}

impl<'a> FromValue<'a> for Strings<'a> {
    fn from_value(key: &str, value: Value<'a>) -> Result<Self, FormatError> {
        match value {
            Value::Array(Array::String(strings)) => Ok(strings),
            other => Err(wrong_type(key, "array of string", other.value_type())),
        }
    }
}

impl FromValue<'_> for Vec<usize> {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        fn all<T: Copy + Into<i128>>(key: &str, x: &[T]) -> Result<Vec<usize>, FormatError> {
            x.iter().map(|&integer| fitting(key, integer.into())).collect()
        }
        match value {
            Value::Array(Array::U8(x)) => all(key, &x),
            Value::Array(Array::I8(x)) => all(key, &x),
            Value::Array(Array::U16(x)) => all(key, &x),
            Value::Array(Array::I16(x)) => all(key, &x),
            Value::Array(Array::U32(x)) => all(key, &x),
            Value::Array(Array::I32(x)) => all(key, &x),
            Value::Array(Array::U64(x)) => all(key, &x),
            Value::Array(Array::I64(x)) => all(key, &x),
            other => Err(wrong_type(key, "array of integers", other.value_type())),
        }
    }
}

impl FromValue<'_> for Vec<f32> {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Array(Array::F32(x)) => Ok(x.into_owned()),
            Value::Array(Array::F64(x)) => Ok(x.iter().map(|&x| x as f32).collect()),
            other => Err(wrong_type(key, "array of f32", other.value_type())),
        }
    }
}

impl FromValue<'_> for Vec<i32> {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Array(Array::I32(x)) => Ok(x.into_owned()),
            other => Err(wrong_type(key, "array of i32", other.value_type())),
        }
    }
}

impl FromValue<'_> for Vec<bool> {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Array(Array::Bool(x)) => Ok(x),
            other => Err(wrong_type(key, "array of bool", other.value_type())),
        }
    }
}

impl FromValue<'_> for PerLayer<usize> {
    fn from_value(key: &str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Array(_) => Vec::from_value(key, value).map(PerLayer::Each),
            scalar => usize::from_value(key, scalar).map(PerLayer::Same),
        }
    }
}

/// Declares the two accessors of one type.
macro_rules! accessors {
    ($($of:ident, $required:ident -> $type:ty: $what:literal;)*) => {
        /// Typed values by key.
        ///
        /// # Errors
        /// [`FormatError::WrongType`] where the value has another type,
        /// [`FormatError::OutOfRange`] where an integer does not fit,
        /// [`FormatError::NotText`] where a string is not UTF-8, and from the `required_` methods
        /// [`FormatError::MissingKey`] where there is no such key.
        impl Metadata {
            $(
                #[doc = concat!($what, "; `None` where the key is absent.")]
                pub fn $of(&self, key: &str) -> Result<Option<$type>, FormatError> {
                    self.convert(key)
                }

                #[doc = concat!($what, "; an error where the key is absent.")]
                pub fn $required(&self, key: &str) -> Result<$type, FormatError> {
                    self.required(key)
                }
            )*
        }
    };
}

accessors! {
    usize_of, required_usize -> usize: "The integer, of any integer type, at `key`";
    f32_of, required_f32 -> f32: "The f32 at `key`; an f64 is rounded";
    bool_of, required_bool -> bool: "The boolean at `key`";
    str_of, required_str -> &str: "The text at `key`";
    strings_of, required_strings -> Strings<'_>: "The array of strings at `key`";
    usizes_of, required_usizes -> Vec<usize>: "The array of integers, of any integer type, at `key`";
    f32s_of, required_f32s -> Vec<f32>: "The array of f32 at `key`; f64 are rounded";
    i32s_of, required_i32s -> Vec<i32>: "The array of i32 at `key`";
    bools_of, required_bools -> Vec<bool>: "The array of booleans at `key`";
    per_layer_of, required_per_layer -> PerLayer<usize>: "The integer or array of integers at `key`, which stands for one value per layer";
}
