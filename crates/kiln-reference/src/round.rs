//! Rounding of f64 to the stored types, in one step.
//!
//! Conversions by way of f32, as libraries and processors do them, round twice and are wrong near
//! ties.

use half::{bf16, f16};
use kiln_core::DType;

/// The value of a float type nearest to `x`, ties to even; infinite where `x` is out of range.
/// Other types leave `x` as it is.
pub(crate) fn round(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::F16 => nearest(x, 11, -14, f16::MAX.into()),
        DType::BF16 => nearest(x, 8, -126, bf16::MAX.into()),
        _ => x,
    }
}

/// Rounds to `precision` significant bits, fewer below the exponent `min`.
fn nearest(x: f64, precision: i32, min: i32, max: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let unit = power_of_two(exponent.max(min) + 1 - precision);
    let rounded = (x / unit).round_ties_even() * unit;
    if rounded.abs() > max { f64::INFINITY.copysign(x) } else { rounded }
}

/// `2^exponent`, for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Appends `x` as a value of a plain type.
pub(crate) fn encode(x: f64, dtype: DType, out: &mut Vec<u8>) {
    let x = round(x, dtype);
    match dtype {
        DType::F16 => out.extend(f16::from_f32(x as f32).to_le_bytes()),
        DType::BF16 => out.extend(bf16::from_f32(x as f32).to_le_bytes()),
        DType::U32 => out.extend((x as u32).to_le_bytes()),
        DType::U8 => out.push(x as u8),
        _ => out.extend((x as f32).to_le_bytes()),
    }
}

/// Appends 32 values as a q8_0 block: scale `max|x| / 127`, codes `x / scale` to nearest, ties to
/// even, then the scale as f16. A value that is not finite makes the whole block NaN.
pub(crate) fn encode_q8_0(values: &[f64], out: &mut Vec<u8>) {
    let largest = values.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let finite = values.iter().all(|x| x.is_finite());
    let scale = if finite { largest / 127.0 } else { f64::NAN };
    encode(scale, DType::F16, out);
    for x in values {
        let code = if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 };
        out.extend((code as i8).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(x: f64, dtype: DType) -> Vec<u8> {
        let mut out = Vec::new();
        encode(x, dtype, &mut out);
        out
    }

    /// Every value of a 16-bit type, its neighbour above, and the point between them.
    fn check_all(dtype: DType, decode: fn(u16) -> f64) {
        for bits in 0..=u16::MAX {
            let x = decode(bits);
            if !x.is_finite() {
                continue;
            }
            assert_eq!(encoded(x, dtype), bits.to_le_bytes(), "{x}");
            let above = bits + 1;
            let next = match decode(above) {
                y if y.is_finite() => y,
                // The tie with infinity lies where the next value would be.
                _ => x + (x - decode(bits - 1)),
            };
            let middle = (x + next) / 2.0;
            let even = if bits % 2 == 0 { bits } else { above };
            let tiny = middle.abs() * 1e-13;
            let sign = x.signum();
            assert_eq!(encoded(middle, dtype), even.to_le_bytes(), "tie {middle}");
            assert_eq!(encoded(middle - sign * tiny, dtype), bits.to_le_bytes(), "below {middle}");
            assert_eq!(encoded(middle + sign * tiny, dtype), above.to_le_bytes(), "above {middle}");
        }
    }

    #[test]
    fn f16_rounds_to_nearest_even_in_one_step() {
        check_all(DType::F16, |bits| f16::from_bits(bits).into());
    }

    #[test]
    fn bf16_rounds_to_nearest_even_in_one_step() {
        check_all(DType::BF16, |bits| bf16::from_bits(bits).into());
    }

    #[test]
    fn special_values_survive() {
        for dtype in DType::FLOATS {
            assert!(round(f64::NAN, dtype).is_nan());
            assert_eq!(round(f64::INFINITY, dtype), f64::INFINITY);
            assert_eq!(round(-1e300, dtype), f64::NEG_INFINITY);
            assert_eq!(round(1e-300, dtype).to_bits(), 0.0f64.to_bits());
            assert_eq!(round(-0.0, dtype).to_bits(), (-0.0f64).to_bits());
        }
        assert_eq!(encoded(4294967295.0, DType::U32), [255; 4]);
        assert_eq!(encoded(7.0, DType::U8), [7]);
    }

    #[test]
    fn q8_0_block() {
        let mut values = [0.0; 32];
        values[0] = -254.0;
        values[1] = 3.0;
        values[2] = 1.0;
        values[3] = 100.9;
        let mut block = Vec::new();
        encode_q8_0(&values, &mut block);
        assert_eq!(block.len(), 34);
        assert_eq!(block[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(block[2..6].iter().map(|&b| b as i8).collect::<Vec<_>>(), [-127, 2, 0, 50]);
        assert!(block[6..].iter().all(|&b| b == 0));

        values[5] = f64::INFINITY;
        block.clear();
        encode_q8_0(&values, &mut block);
        assert!(f16::from_le_bytes([block[0], block[1]]).is_nan());
    }
}
