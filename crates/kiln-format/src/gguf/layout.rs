//! Rules of the format that reader and writer share.

use super::value::Value;
use super::{MAX_ALIGNMENT, MAX_AXES, MAX_NAME_BYTES};
use crate::error::shown;
use crate::{FormatError, GgmlType};

/// Accepts tensor names of 1 to [`MAX_NAME_BYTES`] bytes.
pub(crate) fn check_tensor_name(name: &str) -> Result<(), FormatError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(FormatError::TensorName {
            name: shown(name),
            len: name.len(),
            limit: MAX_NAME_BYTES,
        });
    }
    Ok(())
}

/// Bytes of a tensor with this row-major shape.
///
/// Refuses shapes whose element count passes `i64::MAX` even where another axis is 0, so that no
/// product of axis lengths can overflow later.
pub(crate) fn tensor_bytes(
    name: &str,
    ggml_type: GgmlType,
    shape: &[usize],
) -> Result<usize, FormatError> {
    if shape.len() > MAX_AXES {
        let axes = shape.len() as u64;
        return Err(FormatError::TooManyAxes { tensor: shown(name), axes, limit: MAX_AXES });
    }
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(ggml_type.block_len()) {
        return Err(FormatError::PartialBlock { tensor: shown(name), ggml_type, row });
    }
    let bytes = shape
        .iter()
        .try_fold(1usize, |product, &len| product.checked_mul(len.max(1)))
        .filter(|&elements| i64::try_from(elements).is_ok())
        .and_then(|elements| {
            (elements / ggml_type.block_len()).checked_mul(ggml_type.block_bytes())
        })
        .ok_or_else(|| FormatError::ShapeOverflow {
            tensor: shown(name),
            ggml_type,
            shape: shape.to_vec(),
        })?;
    Ok(if shape.contains(&0) { 0 } else { bytes })
}

/// The alignment that a value of the key `general.alignment` stands for.
pub(crate) fn alignment(value: &Value) -> Result<u32, FormatError> {
    match value {
        Value::U32(bytes) if bytes.is_power_of_two() && *bytes <= MAX_ALIGNMENT => Ok(*bytes),
        Value::U32(bytes) => {
            Err(FormatError::Alignment { got: bytes.to_string(), limit: MAX_ALIGNMENT })
        }
        other => Err(FormatError::Alignment {
            got: format!("of type {}", other.value_type()),
            limit: MAX_ALIGNMENT,
        }),
    }
}

/// `offset` rounded up to a multiple of `alignment`, a power of two; `None` on overflow.
pub(crate) fn padded(offset: u64, alignment: u32) -> Option<u64> {
    offset.checked_next_multiple_of(u64::from(alignment))
}
