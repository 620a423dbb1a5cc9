//! Block encoding: errors of seeded rows, hard inputs, rejected inputs.

// Miri takes hours for these searches, which have no unsafe code.
#![cfg(not(miri))]

use kiln_core::DType;
use kiln_core::quant::{QuantError, dequantize_row, quantize_row};

struct Random(u64);

impl Random {
    /// Uniform in `0.0..1.0` (splitmix64).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0, standard deviation 1 (Box-Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

const LEN: usize = 1024;

fn normal_row() -> Vec<f32> {
    let mut random = Random(1);
    (0..LEN).map(|_| random.normal() as f32).collect()
}

fn uniform_row() -> Vec<f32> {
    let mut random = Random(2);
    (0..LEN).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
}

/// Normal values whose scale differs from 32 to 32 by up to `e^6`.
fn uneven_row() -> Vec<f32> {
    let mut random = Random(3);
    let scales: Vec<f64> = (0..LEN / 32).map(|_| (6.0 * random.uniform() - 6.0).exp()).collect();
    (0..LEN).map(|i| (scales[i / 32] * random.normal()) as f32).collect()
}

fn encode(dtype: DType, row: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(row.len()).unwrap()];
    quantize_row(dtype, row, &mut bytes).unwrap();
    bytes
}

fn round_trip(dtype: DType, row: &[f32]) -> Vec<f64> {
    let mut values = vec![0.0; row.len()];
    dequantize_row(dtype, &encode(dtype, row), &mut values).unwrap();
    values
}

fn squared_error(row: &[f32], back: &[f64]) -> f64 {
    row.iter().zip(back).map(|(&x, &y)| (f64::from(x) - y).powi(2)).sum()
}

/// Root of the mean squared error, relative to that of the row.
fn relative_rmse(dtype: DType, row: &[f32]) -> f64 {
    let zeros = vec![0.0; row.len()];
    (squared_error(row, &round_trip(dtype, row)) / squared_error(row, &zeros)).sqrt()
}

/// Largest relative RMSE allowed: type, on normal values, on uniform values.
const BOUNDS: [(DType, f64, f64); 14] = [
    (DType::F16, 3.0e-4, 3.0e-4),
    (DType::BF16, 2.4e-3, 2.4e-3),
    (DType::Q4_0, 0.085, 0.062),
    (DType::Q4_1, 0.073, 0.056),
    (DType::Q5_0, 0.042, 0.030),
    (DType::Q5_1, 0.035, 0.027),
    (DType::Q8_0, 0.0053, 0.0037),
    (DType::Iq4Nl, 0.077, 0.064),
    (DType::Q2K, 0.275, 0.228),
    (DType::Q3K, 0.150, 0.123),
    (DType::Q4K, 0.073, 0.056),
    (DType::Q5K, 0.036, 0.028),
    (DType::Q6K, 0.0175, 0.0130),
    (DType::Iq4Xs, 0.077, 0.065),
];

#[test]
fn errors_of_random_rows_are_small() {
    let (normal, uniform) = (normal_row(), uniform_row());
    for (dtype, normal_bound, uniform_bound) in BOUNDS {
        let error = relative_rmse(dtype, &normal);
        assert!(error < normal_bound, "{dtype}, normal: {error} >= {normal_bound}");
        let error = relative_rmse(dtype, &uniform);
        assert!(error < uniform_bound, "{dtype}, uniform: {error} >= {uniform_bound}");
    }
    assert_eq!(relative_rmse(DType::F32, &normal), 0.0);
}

#[test]
fn more_bits_less_error() {
    use DType::*;
    for row in [normal_row(), uniform_row(), uneven_row()] {
        let chains: [&[DType]; 4] = [
            &[Q2K, Q3K, Q4K, Q5K, Q6K, Q8_0, BF16, F16, F32],
            &[Q4_0, Q5_0, Q8_0],
            &[Q4_1, Q5_1, Q8_0],
            &[Q3K, Iq4Xs, Q5K],
        ];
        for chain in chains {
            let errors: Vec<f64> = chain.iter().map(|&dtype| relative_rmse(dtype, &row)).collect();
            assert!(errors.is_sorted_by(|more, less| more > less), "{chain:?}: {errors:?}");
        }
    }
}

/// Rounding with the scale that just covers the range of the block, as an f16.
fn covering(dtype: DType, x: &[f32]) -> Vec<f64> {
    let f16 = |v: f64| f64::from(half::f16::from_f32(v as f32));
    let extreme = x.iter().fold(0.0f32, |e, &x| if x.abs() > e.abs() { x } else { e });
    let least = x.iter().copied().fold(f32::MAX, f32::min);
    let greatest = x.iter().copied().fold(f32::MIN, f32::max);
    let (ideal, m, lo, hi) = match dtype {
        DType::Q4_0 => (f64::from(extreme) / -8.0, 0.0, -8.0, 7.0),
        DType::Q5_0 => (f64::from(extreme) / -16.0, 0.0, -16.0, 15.0),
        DType::Q8_0 => (f64::from(extreme.abs()) / 127.0, 0.0, -127.0, 127.0),
        DType::Q4_1 => (f64::from(greatest - least) / 15.0, least.into(), 0.0, 15.0),
        DType::Q5_1 => (f64::from(greatest - least) / 31.0, least.into(), 0.0, 31.0),
        _ => unreachable!(),
    };
    x.iter()
        .map(|&x| f16(ideal) * ((f64::from(x) - m) / ideal).round().clamp(lo, hi) + f16(m))
        .collect()
}

#[test]
fn no_block_is_worse_than_covering_its_range() {
    for row in [normal_row(), uniform_row(), uneven_row()] {
        for dtype in [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0] {
            for x in row.chunks_exact(32) {
                let error = squared_error(x, &round_trip(dtype, x));
                let plain = squared_error(x, &covering(dtype, x));
                assert!(error <= plain * (1.0 + 1e-9), "{dtype}: {error} > {plain}");
            }
        }
    }
}

#[test]
fn zeros_stay_zero() {
    for dtype in DType::WEIGHTS {
        assert_eq!(round_trip(dtype, &[0.0; 256]), [0.0; 256], "{dtype}");
        assert_eq!(round_trip(dtype, &[-0.0; 256]), [0.0; 256], "{dtype}");
    }
}

#[test]
fn constants_are_kept() {
    for dtype in DType::WEIGHTS {
        // Large enough for every scale to be a normal f16.
        for constant in [1.0f32, -1.0, 0.5, -1234.5, 1000.3] {
            // One rounding of a scale and one of a minimum.
            let bound = f64::from(constant.abs()) * if dtype == DType::BF16 { 4e-3 } else { 1e-3 };
            for value in round_trip(dtype, &[constant; 256]) {
                let error = (value - f64::from(constant)).abs();
                assert!(error <= bound, "{dtype}: {constant} became {value}");
            }
        }
    }
}

#[test]
fn sparse_rows_keep_their_spike() {
    for dtype in DType::QUANTIZED {
        for (position, spike) in [(0, 100.0f32), (77, -100.0), (255, 3.0)] {
            let mut row = [0.0; 256];
            row[position] = spike;
            let back = round_trip(dtype, &row);
            let error = (back[position] / f64::from(spike) - 1.0).abs();
            assert!(error < 0.02, "{dtype}: {spike} became {}", back[position]);
            let rest = back.iter().enumerate().filter(|&(i, _)| i != position);
            let largest = rest.map(|(_, value)| value.abs()).fold(0.0, f64::max);
            assert!(largest < 0.02 * f64::from(spike.abs()), "{dtype}: 0 became {largest}");
        }
    }
}

#[test]
fn extreme_magnitudes_stay_finite() {
    let signs = |magnitude: f32| -> Vec<f32> {
        let mut random = Random(4);
        (0..256).map(|_| magnitude * (random.uniform() * 2.0 - 1.0) as f32).collect()
    };
    for dtype in DType::WEIGHTS {
        let largest = f32::MAX;
        for mut row in [
            signs(largest),
            vec![largest; 256],
            vec![-largest; 256],
            signs(6.0e4),
            signs(1.0e6),
            signs(1.0e-6),
            signs(1.0e-8),
            signs(1.0e-30),
            signs(f32::MIN_POSITIVE),
            vec![f32::from_bits(1); 256],
        ] {
            for value in round_trip(dtype, &row) {
                assert!(value.is_finite(), "{dtype}: {row:?}");
            }
            row[200] = largest;
            row[3] = -largest;
            let back = round_trip(dtype, &row);
            assert!(back.iter().all(|value| value.is_finite()), "{dtype}");
            assert!(back[200] > 0.0 && back[3] < 0.0, "{dtype}: {} {}", back[200], back[3]);
        }
        for row in [signs(1.0e-6), signs(1.0e-8), signs(1.0e-30)] {
            let zeros = vec![0.0; row.len()];
            let error = squared_error(&row, &round_trip(dtype, &row));
            assert!(error <= squared_error(&row, &zeros), "{dtype}: worse than zero");
        }
    }
}

#[test]
fn values_beyond_the_range_saturate() {
    assert_eq!(round_trip(DType::F16, &[1.0e6, -1.0e6]), [65504.0, -65504.0]);
    let largest = f64::from(half::bf16::MAX);
    assert_eq!(round_trip(DType::BF16, &[f32::MAX, f32::MIN]), [largest, -largest]);
    let back = round_trip(DType::Q8_0, &[1.0e30; 32]);
    assert_eq!(back, [65504.0 * 127.0; 32]);
}

#[test]
fn blocks_are_independent() {
    let row = normal_row();
    for dtype in DType::QUANTIZED {
        let whole = encode(dtype, &row);
        let parts: Vec<u8> =
            row.chunks_exact(dtype.block_len()).flat_map(|x| encode(dtype, x)).collect();
        assert_eq!(whole, parts, "{dtype}");
    }
}

#[test]
fn non_finite_values_are_rejected() {
    for dtype in DType::WEIGHTS {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; 512];
            row[300] = value;
            let mut bytes = vec![0xaa; dtype.row_bytes(512).unwrap()];
            let result = quantize_row(dtype, &row, &mut bytes);
            assert!(
                matches!(result, Err(QuantError::NonFinite { index: 300, .. })),
                "{dtype}: {result:?}"
            );
            assert!(bytes.iter().all(|&byte| byte == 0xaa), "{dtype}: wrote");
        }
    }
}

#[test]
fn lengths_are_checked() {
    let row = [0.0; 64];
    let mut bytes = [0; 68];
    assert_eq!(
        quantize_row(DType::Q8_0, &row[..33], &mut bytes),
        Err(QuantError::PartialRow { dtype: DType::Q8_0, values: 33, block_len: 32 })
    );
    assert_eq!(
        quantize_row(DType::Q8_0, &row, &mut bytes[..67]),
        Err(QuantError::PartialBlock { dtype: DType::Q8_0, bytes: 67, block_bytes: 34 })
    );
    assert_eq!(
        quantize_row(DType::Q8_0, &row[..32], &mut bytes),
        Err(QuantError::LengthMismatch { dtype: DType::Q8_0, values: 32, expected: 34, got: 68 })
    );
    assert_eq!(
        quantize_row(DType::U8, &row, &mut bytes),
        Err(QuantError::NotAWeight { dtype: DType::U8 })
    );
    assert_eq!(quantize_row(DType::Q6K, &[], &mut []), Ok(()));
}
