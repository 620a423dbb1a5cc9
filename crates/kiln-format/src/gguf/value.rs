//! Metadata values: their types, and one value as a Rust value.

use std::borrow::Cow;
use std::fmt;

use super::array::Array;

/// The type of one metadata value or of the elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// IEEE 754 single precision.
    F32,
    /// A boolean, stored as one byte, 0 or 1.
    Bool,
    /// Bytes of any content with their length; mostly UTF-8 text.
    String,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
    /// IEEE 754 double precision.
    F64,
}

/// The number that announces an array where a value type is expected.
pub(crate) const ARRAY_ID: u32 = 9;

impl ElementType {
    pub(crate) const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::U8 => 0,
            Self::I8 => 1,
            Self::U16 => 2,
            Self::I16 => 3,
            Self::U32 => 4,
            Self::I32 => 5,
            Self::F32 => 6,
            Self::Bool => 7,
            Self::String => 8,
            Self::U64 => 10,
            Self::I64 => 11,
            Self::F64 => 12,
        }
    }

    /// Fewest bytes one element takes in the file: its size, or an empty string's length prefix.
    pub(crate) const fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
        }
    }

    /// The name used in messages, for example `u32` or `string`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One value.
    Scalar(ElementType),
    /// Any number of values of one type.
    Array(ElementType),
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Scalar(element) => write!(f, "{element}"),
            ValueType::Array(element) => write!(f, "array of {element}"),
        }
    }
}

/// A metadata value, borrowed from the file where it can be.
///
/// Plain Rust values convert into it, which is how the writer takes them:
///
/// ```
/// use kiln_format::{ElementType, Value, ValueType};
/// let value = Value::from(32u32);
/// assert_eq!(value, Value::U32(32));
/// let value = Value::from(vec!["a", "b"]);
/// assert_eq!(value.value_type(), ValueType::Array(ElementType::String));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Unsigned 8-bit integer.
    U8(u8),
    /// Signed 8-bit integer.
    I8(i8),
    /// Unsigned 16-bit integer.
    U16(u16),
    /// Signed 16-bit integer.
    I16(i16),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// Signed 32-bit integer.
    I32(i32),
    /// IEEE 754 single precision.
    F32(f32),
    /// A boolean.
    Bool(bool),
    /// Bytes of any content; [`Value::as_str`] checks that they are text.
    String(Cow<'a, [u8]>),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Signed 64-bit integer.
    I64(i64),
    /// IEEE 754 double precision.
    F64(f64),
    /// Values of one type.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The type of this value.
    pub fn value_type(&self) -> ValueType {
        ValueType::Scalar(match self {
            Value::U8(_) => ElementType::U8,
            Value::I8(_) => ElementType::I8,
            Value::U16(_) => ElementType::U16,
            Value::I16(_) => ElementType::I16,
            Value::U32(_) => ElementType::U32,
            Value::I32(_) => ElementType::I32,
            Value::F32(_) => ElementType::F32,
            Value::Bool(_) => ElementType::Bool,
            Value::String(_) => ElementType::String,
            Value::U64(_) => ElementType::U64,
            Value::I64(_) => ElementType::I64,
            Value::F64(_) => ElementType::F64,
            Value::Array(array) => return ValueType::Array(array.element_type()),
        })
    }

    /// The value of any of the integer types; `None` for other types.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            _ => return None,
        })
    }

    /// The text of a string; `None` for other types and for bytes that are not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// Short and safe to print: control characters and bytes that are not text are escaped, and only
/// the first elements of an array are shown.
///
/// ```
/// use kiln_format::Value;
/// assert_eq!(Value::from("a\n").to_string(), r#""a\n""#);
/// assert_eq!(Value::from(vec![1u8; 100]).to_string(), "[1, 1, 1, 1, 1, 1, 1, 1, ... 100 in all]");
/// ```
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        match self {
            Value::Array(array) => {
                f.write_str("[")?;
                for index in 0..array.len().min(SHOWN) {
                    let Some(element) = array.get(index) else { break };
                    write!(f, "{}{element}", if index == 0 { "" } else { ", " })?;
                }
                if array.len() > SHOWN {
                    write!(f, ", ... {} in all", array.len())?;
                }
                f.write_str("]")
            }
            Value::String(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => write!(f, "{text:?}"),
                Err(_) => write!(f, "\"{}\"", bytes.escape_ascii()),
            },
            Value::F32(x) => write!(f, "{x}"),
            Value::F64(x) => write!(f, "{x}"),
            Value::Bool(x) => write!(f, "{x}"),
            integer => write!(f, "{}", integer.as_integer().unwrap_or_default()),
        }
    }
}

macro_rules! from_scalars {
    ($($type:ty => $variant:ident),*) => {
        $(
            impl From<$type> for Value<'_> {
                fn from(value: $type) -> Self {
                    Value::$variant(value)
                }
            }
        )*
    };
}

from_scalars!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32,
    bool => Bool, u64 => U64, i64 => I64, f64 => F64);

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::String(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::String(Cow::Owned(text.into_bytes()))
    }
}

impl<'a, T> From<T> for Value<'a>
where
    Array<'a>: From<T>,
{
    fn from(values: T) -> Self {
        Value::Array(values.into())
    }
}
