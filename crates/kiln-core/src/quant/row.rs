//! Whole rows, with the element type chosen at run time.

use bytemuck::{try_cast_slice, try_cast_slice_mut};

use super::*;

/// Runs `$body` with `$block` as the block type of a weight type.
macro_rules! with_block {
    ($dtype:expr, $block:ident => $body:expr) => {
        with_block!(@match $dtype, $block, $body;
            F32 F32Bytes, F16 F16Bytes, BF16 Bf16Bytes,
            Q4_0 BlockQ4_0, Q4_1 BlockQ4_1, Q5_0 BlockQ5_0, Q5_1 BlockQ5_1, Q8_0 BlockQ8_0,
            Iq4Nl BlockIq4Nl, Iq4Xs BlockIq4Xs,
            Q2K BlockQ2K, Q3K BlockQ3K, Q4K BlockQ4K, Q5K BlockQ5K, Q6K BlockQ6K)
    };
    (@match $dtype:expr, $block:ident, $body:expr; $($variant:ident $type:ty),*) => {
        match $dtype {
            $(DType::$variant => {
                type $block = $type;
                $body
            })*
            DType::U32 | DType::U8 => Err(QuantError::NotAWeight { dtype: $dtype }),
        }
    };
}

/// Views bytes as blocks, without a copy. Any alignment will do.
///
/// # Errors
/// [`QuantError::PartialBlock`] where the bytes are not a whole number of blocks.
///
/// ```
/// use kiln_core::quant::{BlockQ4K, blocks};
/// let bytes = [0; 3 * 144];
/// assert_eq!(blocks::<BlockQ4K>(&bytes)?.len(), 3);
/// assert!(blocks::<BlockQ4K>(&bytes[1..]).is_err());
/// # Ok::<(), kiln_core::quant::QuantError>(())
/// ```
pub fn blocks<B: Block>(bytes: &[u8]) -> Result<&[B], QuantError> {
    try_cast_slice(bytes).map_err(|_| partial_block::<B>(bytes.len()))
}

/// Decodes a row of any of [`DType::WEIGHTS`] to `out`, whose length is the number of values.
///
/// `T = f64` gives the exact values, `T = f32` the exact values rounded once.
///
/// # Errors
/// [`QuantError::NotAWeight`], [`QuantError::PartialBlock`], [`QuantError::PartialRow`] and
/// [`QuantError::LengthMismatch`].
///
/// ```
/// use kiln_core::{DType, quant::dequantize_row};
/// let mut values = [0.0f64; 2];
/// dequantize_row(DType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut values)?;
/// assert_eq!(values, [1.0, -2.0]);
/// # Ok::<(), kiln_core::quant::QuantError>(())
/// ```
pub fn dequantize_row<T: Real>(
    dtype: DType,
    bytes: &[u8],
    out: &mut [T],
) -> Result<(), QuantError> {
    fn decode<B: Block, T: Real>(bytes: &[u8], out: &mut [T]) -> Result<(), QuantError> {
        let len = out.len();
        let blocks = blocks::<B>(bytes)?;
        let out: &mut [B::Values<T>] =
            try_cast_slice_mut(out).map_err(|_| partial_row::<B>(len))?;
        check_lengths::<B>(out.len(), blocks.len())?;
        for (block, out) in blocks.iter().zip(out) {
            block.dequantize(out);
        }
        Ok(())
    }
    with_block!(dtype, B => decode::<B, T>(bytes, out))
}

/// Encodes a row to any of [`DType::WEIGHTS`], with scales that keep the squared error small.
///
/// The result depends on the values alone: it is the same on every machine. Values too large for
/// the type saturate; the scales are always finite.
///
/// # Errors
/// Those of [`dequantize_row`] and [`QuantError::NonFinite`], before anything is written.
///
/// ```
/// use kiln_core::{DType, quant::{dequantize_row, quantize_row}};
/// let row: [f32; 32] = std::array::from_fn(|i| (i as f32).sin());
/// let mut bytes = [0; DType::Q8_0.block_bytes()];
/// quantize_row(DType::Q8_0, &row, &mut bytes)?;
/// let mut back = [0.0f32; 32];
/// dequantize_row(DType::Q8_0, &bytes, &mut back)?;
/// assert!(row.iter().zip(back).all(|(x, y)| (x - y).abs() < 0.005));
/// # Ok::<(), kiln_core::quant::QuantError>(())
/// ```
pub fn quantize_row(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    fn encode<B: Encode>(values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(QuantError::NonFinite { dtype: B::DTYPE, index, value: values[index] });
        }
        let bytes = out.len();
        let values: &[B::Values<f32>] =
            try_cast_slice(values).map_err(|_| partial_row::<B>(values.len()))?;
        let out: &mut [B] = try_cast_slice_mut(out).map_err(|_| partial_block::<B>(bytes))?;
        check_lengths::<B>(values.len(), out.len())?;
        for (values, out) in values.iter().zip(out) {
            *out = B::encode(values);
        }
        Ok(())
    }
    with_block!(dtype, B => encode::<B>(values, out))
}

fn partial_block<B: Block>(bytes: usize) -> QuantError {
    let dtype = B::DTYPE;
    QuantError::PartialBlock { dtype, bytes, block_bytes: dtype.block_bytes() }
}

fn partial_row<B: Block>(values: usize) -> QuantError {
    let dtype = B::DTYPE;
    QuantError::PartialRow { dtype, values, block_len: dtype.block_len() }
}

/// Checks that a row of `values` blocks was given in `bytes` blocks.
fn check_lengths<B: Block>(values: usize, bytes: usize) -> Result<(), QuantError> {
    let dtype = B::DTYPE;
    if values == bytes {
        return Ok(());
    }
    Err(QuantError::LengthMismatch {
        dtype,
        values: values * dtype.block_len(),
        expected: values * dtype.block_bytes(),
        got: bytes * dtype.block_bytes(),
    })
}
