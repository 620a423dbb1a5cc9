//! Metadata arrays: typed slices and lists of strings, borrowed from the file where they can be.

use std::borrow::Cow;
use std::fmt;

use bytemuck::Pod;

use super::value::{ElementType, Value};

/// A number type with a little-endian form in the file.
pub(crate) trait Number: Pod {
    /// The first value in `bytes`; 0 where they are too short for one.
    fn first(bytes: &[u8]) -> Self;
    /// The values in `bytes`; a remainder shorter than one value is left out.
    fn decode(bytes: &[u8]) -> Vec<Self>;
    /// Appends the bytes of `values`.
    fn encode(values: &[Self], out: &mut Vec<u8>);
}

/// Declares [`Array`], its conversions and [`Number`] from one row per number type.
macro_rules! arrays {
    ($($(#[$doc:meta])* $variant:ident($type:ty);)*) => {
        /// The values of a metadata array.
        ///
        /// Numbers are borrowed where the file happens to store them aligned, and copied
        /// otherwise; either way they are a slice:
        ///
        /// ```
        /// use kiln_format::Array;
        /// let scores = Array::from(vec![0.5f32, -1.0]);
        /// let Array::F32(values) = &scores else { unreachable!() };
        /// assert_eq!(&values[..], &[0.5, -1.0]);
        /// ```
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array<'a> {
            $($(#[$doc])* $variant(Cow<'a, [$type]>),)*
            /// Booleans.
            Bool(Vec<bool>),
            /// Strings.
            String(Strings<'a>),
        }

        impl<'a> Array<'a> {
            /// The type of the elements.
            pub fn element_type(&self) -> ElementType {
                match self {
                    $(Array::$variant(_) => ElementType::$variant,)*
                    Array::Bool(_) => ElementType::Bool,
                    Array::String(_) => ElementType::String,
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(values) => values.len(),)*
                    Array::Bool(values) => values.len(),
                    Array::String(strings) => strings.len(),
                }
            }

            /// The element at `index`; `None` where there are not that many.
            pub fn get(&self, index: usize) -> Option<Value<'a>> {
                match self {
                    $(Array::$variant(values) => values.get(index).copied().map(Value::$variant),)*
                    Array::Bool(values) => values.get(index).copied().map(Value::Bool),
                    Array::String(strings) => {
                        Some(Value::String(Cow::Borrowed(strings.get(index)?)))
                    }
                }
            }

            /// The array stored in `bytes`; `starts` are the offsets of strings in them.
            pub(crate) fn from_file(
                element: ElementType,
                bytes: &'a [u8],
                starts: &'a [usize],
            ) -> Self {
                match element {
                    $(ElementType::$variant => Array::$variant(numbers(bytes)),)*
                    ElementType::Bool => Array::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
                    ElementType::String => {
                        Array::String(Strings(Repr::File { bytes, starts }))
                    }
                }
            }

            /// Appends the elements as they are stored in a file.
            pub(crate) fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Array::$variant(values) => Number::encode(values, out),)*
                    Array::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
                    Array::String(strings) => {
                        for string in strings.iter() {
                            out.extend_from_slice(&(string.len() as u64).to_le_bytes());
                            out.extend_from_slice(string);
                        }
                    }
                }
            }
        }

        impl<'a> Value<'a> {
            /// The value stored in `bytes`.
            pub(crate) fn from_file(element: ElementType, bytes: &'a [u8]) -> Self {
                match element {
                    $(ElementType::$variant => Value::$variant(Number::first(bytes)),)*
                    ElementType::Bool => Value::Bool(u8::first(bytes) != 0),
                    ElementType::String => {
                        let strings = Strings(Repr::File { bytes, starts: &[0] });
                        Value::String(Cow::Borrowed(strings.get(0).unwrap_or_default()))
                    }
                }
            }
        }

        $(
            impl Number for $type {
                fn first(bytes: &[u8]) -> Self {
                    bytes.first_chunk().map(|chunk| <$type>::from_le_bytes(*chunk)).unwrap_or_default()
                }

                fn decode(bytes: &[u8]) -> Vec<Self> {
                    let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                    chunks.iter().map(|chunk| <$type>::from_le_bytes(*chunk)).collect()
                }

                fn encode(values: &[Self], out: &mut Vec<u8>) {
                    for value in values {
                        out.extend_from_slice(&value.to_le_bytes());
                    }
                }
            }

            impl<'a> From<&'a [$type]> for Array<'a> {
                fn from(values: &'a [$type]) -> Self {
                    Array::$variant(Cow::Borrowed(values))
                }
            }

            impl From<Vec<$type>> for Array<'_> {
                fn from(values: Vec<$type>) -> Self {
                    Array::$variant(Cow::Owned(values))
                }
            }
        )*
    };
}

arrays! {
    /// Unsigned 8-bit integers.
    U8(u8);
    /// Signed 8-bit integers.
    I8(i8);
    /// Unsigned 16-bit integers.
    U16(u16);
    /// Signed 16-bit integers.
    I16(i16);
    /// Unsigned 32-bit integers.
    U32(u32);
    /// Signed 32-bit integers.
    I32(i32);
    /// IEEE 754 single precision.
    F32(f32);
    /// Unsigned 64-bit integers.
    U64(u64);
    /// Signed 64-bit integers.
    I64(i64);
    /// IEEE 754 double precision.
    F64(f64);
}

impl Array<'_> {
    /// True where there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Little-endian numbers: in place where the memory has that order and is aligned.
fn numbers<T: Number>(bytes: &[u8]) -> Cow<'_, [T]> {
    if cfg!(target_endian = "little")
        && let Ok(values) = bytemuck::try_cast_slice(bytes)
    {
        return Cow::Borrowed(values);
    }
    Cow::Owned(T::decode(bytes))
}

/// The strings of a metadata array, for example a vocabulary.
///
/// Strings stay where they lie in the file, whatever their number; access by index is constant
/// time. They are bytes, as tokens need not be UTF-8.
///
/// ```
/// use kiln_format::Strings;
/// let strings = Strings::from(vec!["a", "b c"]);
/// assert_eq!(strings.get(1), Some(&b"b c"[..]));
/// assert_eq!(strings.str(0), Some("a"));
/// assert_eq!(strings.get(2), None);
/// ```
#[derive(Clone)]
pub struct Strings<'a>(Repr<'a>);

#[derive(Clone)]
enum Repr<'a> {
    /// Length-prefixed strings back to back; `starts` are the offsets of the prefixes.
    File {
        bytes: &'a [u8],
        starts: &'a [usize],
    },
    List(Vec<&'a [u8]>),
}

impl<'a> Strings<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::File { starts, .. } => starts.len(),
            Repr::List(list) => list.len(),
        }
    }

    /// True where there are no strings.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the string at `index`; `None` where there are not that many.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        match &self.0 {
            Repr::File { bytes, starts } => {
                let (len, rest) = bytes.get(*starts.get(index)?..)?.split_first_chunk::<8>()?;
                rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)
            }
            Repr::List(list) => list.get(index).copied(),
        }
    }

    /// The text of the string at `index`; `None` where it is not UTF-8 or not there.
    pub fn str(&self, index: usize) -> Option<&'a str> {
        std::str::from_utf8(self.get(index)?).ok()
    }

    /// The bytes of every string, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }
}

impl PartialEq for Strings<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Strings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|bytes| bytes.escape_ascii().to_string())).finish()
    }
}

impl<'a> From<Vec<&'a [u8]>> for Strings<'a> {
    fn from(list: Vec<&'a [u8]>) -> Self {
        Strings(Repr::List(list))
    }
}

impl<'a> From<Vec<&'a str>> for Strings<'a> {
    fn from(list: Vec<&'a str>) -> Self {
        Strings(Repr::List(list.into_iter().map(str::as_bytes).collect()))
    }
}

impl<'a> From<&'a [String]> for Strings<'a> {
    fn from(list: &'a [String]) -> Self {
        Strings(Repr::List(list.iter().map(String::as_bytes).collect()))
    }
}

impl<'a> From<Strings<'a>> for Array<'a> {
    fn from(strings: Strings<'a>) -> Self {
        Array::String(strings)
    }
}

impl<'a> From<Vec<&'a [u8]>> for Array<'a> {
    fn from(list: Vec<&'a [u8]>) -> Self {
        Array::String(list.into())
    }
}

impl<'a> From<Vec<&'a str>> for Array<'a> {
    fn from(list: Vec<&'a str>) -> Self {
        Array::String(list.into())
    }
}

impl<'a> From<&'a [String]> for Array<'a> {
    fn from(list: &'a [String]) -> Self {
        Array::String(list.into())
    }
}

impl From<Vec<bool>> for Array<'_> {
    fn from(values: Vec<bool>) -> Self {
        Array::Bool(values)
    }
}
