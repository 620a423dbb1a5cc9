//! Values on the host: encoding, decoding, and quantised blocks to draw weights from.

use crate::rng::{Dist, Rng};
use half::{bf16, f16};
use kiln_core::DType;
use kiln_core::quant::{QuantError, dequantize_row, quantize_row};
use std::sync::OnceLock;

/// Bytes of plain values in a float type, rounded to nearest, ties to even.
pub(crate) fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Values of bytes of any type, exactly. Bytes that are not whole blocks give no values.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::U8 => bytes.iter().map(|&v| f64::from(v)).collect(),
        DType::U32 => {
            bytes.as_chunks::<4>().0.iter().map(|&v| u32::from_le_bytes(v).into()).collect()
        }
        _ => {
            let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
            match dequantize_row(dtype, bytes, &mut values) {
                Ok(()) => values,
                Err(_) => Vec::new(),
            }
        }
    }
}

/// Which blocks a weight is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// Half of them quantised from values whose spread differs by sub-block, half random codes and
    /// scales under random block scales of both signs.
    Mixed,
    /// As `Mixed`, with block scales that are subnormal in f16.
    Subnormal,
}

/// Bytes of `values` weights of a type, whole blocks of it, in either kind of blocks.
pub(crate) fn weight_bytes(
    dtype: DType,
    values: usize,
    blocks: Blocks,
    rng: &mut Rng,
) -> Result<Vec<u8>, QuantError> {
    if dtype.is_float() {
        return Ok(encode(dtype, &rng.values(values, Dist::Normal(0.5))));
    }
    let pool = pool(dtype)?;
    let size = dtype.block_bytes();
    let count = pool.len() / size;
    let mut bytes = Vec::with_capacity(values / dtype.block_len() * size);
    for _ in 0..values / dtype.block_len() {
        let start = rng.below(count) * size;
        bytes.extend_from_slice(&pool[start..start + size]);
    }
    if blocks == Blocks::Subnormal {
        for block in bytes.chunks_exact_mut(size) {
            for &(offset, _) in scales(dtype) {
                // Clears the exponent and keeps the sign and the mantissa.
                block[offset + 1] &= 0x83;
            }
        }
    }
    Ok(bytes)
}

const POOL_BLOCKS: usize = 256;

/// Blocks of one type, made once.
fn pool(dtype: DType) -> Result<&'static [u8], QuantError> {
    static POOLS: [OnceLock<Result<Vec<u8>, QuantError>>; DType::QUANTIZED.len()] =
        [const { OnceLock::new() }; DType::QUANTIZED.len()];
    let Some(index) = DType::QUANTIZED.into_iter().position(|other| other == dtype) else {
        return Err(QuantError::NotAWeight { dtype });
    };
    let pool = POOLS[index].get_or_init(|| fill_pool(dtype, &mut Rng::new(index as u64)));
    pool.as_deref().map_err(|&error| error)
}

fn fill_pool(dtype: DType, rng: &mut Rng) -> Result<Vec<u8>, QuantError> {
    let values = POOL_BLOCKS / 2 * dtype.block_len();
    let mut spread = Vec::with_capacity(values);
    for _ in 0..values / 16 {
        let std = 0.5 / (1u32 << rng.below(4)) as f32;
        spread.extend(rng.values(16, Dist::Normal(std)));
    }
    let size = dtype.block_bytes();
    let mut bytes = vec![0; POOL_BLOCKS / 2 * size];
    quantize_row(dtype, &spread, &mut bytes)?;
    for _ in 0..POOL_BLOCKS / 2 {
        let mut block: Vec<u8> = (0..size).map(|_| rng.bits() as u8).collect();
        for &(offset, scale) in scales(dtype) {
            let sign = if rng.below(2) == 0 { -1.0 } else { 1.0 };
            let value = f16::from_f32(sign * scale * (0.5 + rng.unit()));
            block[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(&block);
    }
    Ok(bytes)
}

/// Offsets of the f16 scales of a block, with a size that gives values around 0.5.
fn scales(dtype: DType) -> &'static [(usize, f32)] {
    match dtype {
        DType::Q4_0 => &[(0, 0.1)],
        DType::Q4_1 => &[(0, 0.1), (2, 0.7)],
        DType::Q5_0 => &[(0, 0.05)],
        DType::Q5_1 => &[(0, 0.05), (2, 0.7)],
        DType::Q8_0 | DType::Iq4Nl => &[(0, 0.007)],
        DType::Q2K => &[(80, 0.04), (82, 0.06)],
        DType::Q3K => &[(108, 0.015)],
        DType::Q4K => &[(0, 0.0016), (2, 0.012)],
        DType::Q5K => &[(0, 0.0008), (2, 0.012)],
        DType::Q6K => &[(208, 0.0004)],
        DType::Iq4Xs => &[(0, 0.0004)],
        DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::U8 => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_type_are_finite_of_both_signs_and_of_size_one_half() {
        for dtype in DType::WEIGHTS {
            let bytes = weight_bytes(dtype, 64 * 256, Blocks::Mixed, &mut Rng::new(3)).unwrap();
            assert_eq!(Some(bytes.len()), dtype.row_bytes(64 * 256));
            let values = decode(dtype, &bytes);
            let rms = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
            assert!((0.2..2.0).contains(&rms), "{dtype}: rms {rms}");
            let negative = values.iter().filter(|&&v| v < 0.0).count();
            assert!((4000..12_000).contains(&negative), "{dtype}: {negative} negative");
        }
    }

    #[test]
    fn subnormal_scales_are_subnormal() {
        for dtype in DType::QUANTIZED {
            let bytes = weight_bytes(dtype, 1024, Blocks::Subnormal, &mut Rng::new(3)).unwrap();
            let largest = decode(dtype, &bytes).into_iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            assert!(largest > 0.0 && largest < 1.0, "{dtype}: {largest}");
            for block in bytes.chunks_exact(dtype.block_bytes()) {
                for &(offset, _) in scales(dtype) {
                    let d = f16::from_le_bytes([block[offset], block[offset + 1]]);
                    assert!(!d.is_normal(), "{dtype}: {d}");
                }
            }
        }
    }
}
