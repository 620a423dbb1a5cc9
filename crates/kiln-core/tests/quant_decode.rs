//! Block decoding: blocks worked out by hand, and blocks decoded by the `gguf` Python package.

use std::fs;
use std::ops::Range;
use std::path::Path;

use kiln_core::DType;
use kiln_core::quant::{
    Bf16Bytes, BlockQ3K, BlockQ4_0, BlockQ4K, F16Bytes, QuantError, blocks, dequantize_row,
};

const F16_QUARTER: [u8; 2] = [0x00, 0x34];
const F16_HALF: [u8; 2] = [0x00, 0x38];
const F16_ONE: [u8; 2] = [0x00, 0x3c];
const F16_MINUS_ONE: [u8; 2] = [0x00, 0xbc];
const F16_TWO: [u8; 2] = [0x00, 0x40];
const F16_EIGHT: [u8; 2] = [0x00, 0x48];

/// One block: bytes all `fill` but for `patches` (offset, bytes); values as `expected` says, the
/// later ranges over the earlier.
fn check(dtype: DType, fill: u8, patches: &[(usize, &[u8])], expected: &[(Range<usize>, f64)]) {
    let mut block = vec![fill; dtype.block_bytes()];
    for (offset, bytes) in patches {
        block[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    let mut want = vec![f64::NAN; dtype.block_len()];
    for (range, value) in expected {
        want[range.clone()].fill(*value);
    }
    let mut exact = vec![0.0f64; dtype.block_len()];
    dequantize_row(dtype, &block, &mut exact).unwrap();
    assert_eq!(exact, want, "{dtype}");
    let mut rounded = vec![0.0f32; dtype.block_len()];
    dequantize_row(dtype, &block, &mut rounded).unwrap();
    assert!(rounded.iter().zip(want).all(|(&got, want)| got == want as f32), "{dtype}");
}

#[test]
fn q4_0_by_hand() {
    let patches: [(usize, &[u8]); 3] = [(0, &F16_HALF), (2, &[0x1f]), (17, &[0xf0])];
    check(
        DType::Q4_0,
        0x88,
        &patches,
        &[
            (0..32, 0.0),
            (0..1, 0.5 * (15 - 8) as f64),
            (16..17, 0.5 * (1 - 8) as f64),
            (15..16, 0.5 * (0 - 8) as f64),
            (31..32, 0.5 * (15 - 8) as f64),
        ],
    );
}

#[test]
fn q4_1_by_hand() {
    let patches: [(usize, &[u8]); 3] = [(0, &F16_QUARTER), (2, &F16_MINUS_ONE), (4, &[0x2f])];
    check(
        DType::Q4_1,
        0,
        &patches,
        &[(0..32, -1.0), (0..1, 15.0 * 0.25 - 1.0), (16..17, 2.0 * 0.25 - 1.0)],
    );
}

#[test]
fn q5_0_by_hand() {
    // High bits of values 0 and 31.
    let patches: [(usize, &[u8]); 4] =
        [(0, &F16_TWO), (2, &[0x01, 0, 0, 0x80]), (6, &[0x03]), (21, &[0x90])];
    check(
        DType::Q5_0,
        0,
        &patches,
        &[
            (0..32, 2.0 * -16.0),
            (0..1, 2.0 * (16 + 3 - 16) as f64),
            (31..32, 2.0 * (16 + 9 - 16) as f64),
        ],
    );
}

#[test]
fn q5_1_by_hand() {
    // High bit of value 17.
    let patches: [(usize, &[u8]); 4] =
        [(0, &F16_HALF), (2, &F16_EIGHT), (4, &[0, 0, 0x02, 0]), (9, &[0x71])];
    check(
        DType::Q5_1,
        0,
        &patches,
        &[(0..32, 8.0), (1..2, 0.5 + 8.0), (17..18, 0.5 * (7 + 16) as f64 + 8.0)],
    );
}

#[test]
fn q8_0_by_hand() {
    let patches: [(usize, &[u8]); 3] = [(0, &F16_QUARTER), (2, &[0x80]), (33, &[0x7f])];
    check(DType::Q8_0, 0, &patches, &[(0..32, 0.0), (0..1, 0.25 * -128.0), (31..32, 0.25 * 127.0)]);
}

#[test]
fn iq4_nl_by_hand() {
    // Index 8 is 1, index 0 is -127, index 15 is 113.
    let patches: [(usize, &[u8]); 2] = [(0, &F16_TWO), (2, &[0xf0])];
    check(
        DType::Iq4Nl,
        0x88,
        &patches,
        &[(0..32, 2.0), (0..1, 2.0 * -127.0), (16..17, 2.0 * 113.0)],
    );
}

#[test]
fn q2_k_by_hand() {
    // Sub-block 0: s = 1, t = 2. Sub-block 13 (values 208 to 223): s = 15, t = 4.
    let patches: [(usize, &[u8]); 6] = [
        (0, &[0x21]),
        (13, &[0x4f]),
        (16, &[0x02]),
        (16 + 32 + 16, &[3 << 4]),
        (80, &F16_ONE),
        (82, &F16_HALF),
    ];
    check(
        DType::Q2K,
        0,
        &patches,
        &[
            (0..256, 0.0),
            (0..16, -0.5 * 2.0),
            (0..1, 2.0 - 0.5 * 2.0),
            (208..224, -0.5 * 4.0),
            (208..209, 15.0 * 3.0 - 0.5 * 4.0),
        ],
    );
}

#[test]
fn q3_k_by_hand() {
    // A set high bit and low bits of 0 are q - 4 = 0. Sub-block 0: s = 0x25. Sub-block 11
    // (values 176 to 191): s = 0x1a.
    let mut block = [0; 110];
    block[..32].fill(0xff);
    block[1] = 0xfe;
    block[32] = 0x03;
    block[32 + 32 + 16] = 2 << 2;
    block[96] = 0x05;
    block[96 + 8] = 0x02;
    block[96 + 3] = 0xa0;
    block[96 + 8 + 3] = 1 << 4;
    block[108..].copy_from_slice(&F16_ONE);
    check(
        DType::Q3K,
        0,
        &[(0, &block)],
        &[
            (0..256, 0.0),
            (0..1, (0x25 - 32) as f64 * 3.0),
            (1..2, (0x25 - 32) as f64 * -4.0),
            (176..177, (0x1a - 32) as f64 * 2.0),
        ],
    );
    let scales = blocks::<BlockQ3K>(&block).unwrap()[0].unpack_scales();
    assert_eq!((scales[0], scales[1], scales[11]), (5, -32, -6));
}

#[test]
fn q4_k_by_hand() {
    // Sub-block 2 (values 64 to 95): s = 63, t = 16. Sub-block 6 (192 to 223): s = 0x3c, t = 0x19,
    // their high bits above those of sub-block 2.
    let patches: [(usize, &[u8]); 7] = [
        (0, &F16_HALF),
        (2, &F16_QUARTER),
        (4 + 2, &[0x3f | 3 << 6]),
        (4 + 6, &[0x10 | 1 << 6]),
        (4 + 10, &[0x9c]),
        (16 + 32, &[0x0f]),
        (16 + 127, &[0x05]),
    ];
    check(
        DType::Q4K,
        0,
        &patches,
        &[
            (0..256, 0.0),
            (64..96, -0.25 * 16.0),
            (64..65, 0.5 * 63.0 * 15.0 - 0.25 * 16.0),
            (192..224, -0.25 * 25.0),
            (223..224, 0.5 * 60.0 * 5.0 - 0.25 * 25.0),
        ],
    );
}

#[test]
fn q5_k_by_hand() {
    // Sub-block 7 (values 224 to 255): s = 1, t = 2.
    let patches: [(usize, &[u8]); 5] =
        [(0, &F16_ONE), (2, &F16_ONE), (4 + 11, &[0x21]), (16 + 31, &[0x80]), (48 + 127, &[0xe0])];
    check(
        DType::Q5K,
        0,
        &patches,
        &[(0..256, 0.0), (224..256, -2.0), (255..256, (14 + 16) as f64 - 2.0)],
    );
}

#[test]
fn q6_k_by_hand() {
    let patches: [(usize, &[u8]); 7] = [
        (0, &[0x07]),
        (127, &[0xf0]),
        (128, &[0x03]),
        (128 + 63, &[3 << 6]),
        (192, &[-2i8 as u8]),
        (192 + 15, &[127]),
        (208, &F16_HALF),
    ];
    check(
        DType::Q6K,
        0,
        &patches,
        &[
            (0..256, 0.0),
            (0..16, 0.5 * -2.0 * -32.0),
            (0..1, 0.5 * -2.0 * (7 + 48 - 32) as f64),
            (240..256, 0.5 * 127.0 * -32.0),
            (255..256, 0.5 * 127.0 * (15 + 48 - 32) as f64),
        ],
    );
}

#[test]
fn iq4_xs_by_hand() {
    // Zero scale bits are -32. Sub-block 0: s = 0x25. Sub-block 7 (values 224 to 255): s = 0x31.
    let patches: [(usize, &[u8]); 6] = [
        (0, &F16_ONE),
        (2, &[0x02, 0xc0]),
        (4, &[0x05]),
        (7, &[0x10]),
        (8, &[0xf8]),
        (8 + 127, &[0x70]),
    ];
    check(
        DType::Iq4Xs,
        0,
        &patches,
        &[
            (0..256, -32.0 * -127.0),
            (0..32, 5.0 * -127.0),
            (0..1, 5.0),
            (16..17, 5.0 * 113.0),
            (224..256, 17.0 * -127.0),
            (255..256, 17.0 * -10.0),
        ],
    );
}

#[test]
fn decoding_agrees_with_gguf_py_to_the_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant");
    let mut checked = 0;
    for dtype in DType::WEIGHTS.into_iter().filter(|&dtype| dtype != DType::F32) {
        let fixture = fs::read(folder.join(format!("{dtype}.bin"))).unwrap();
        let block = dtype.block_bytes();
        let blocks = fixture.len() / (block + 4 * dtype.block_len());
        let (bytes, expected) = fixture.split_at(blocks * block);
        let expected: Vec<u32> =
            expected.as_chunks().0.iter().map(|&value| u32::from_le_bytes(value)).collect();
        let mut values = vec![0.0f32; blocks * dtype.block_len()];
        dequantize_row(dtype, bytes, &mut values).unwrap();
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, expected, "{dtype}");

        let mut exact = vec![0.0f64; values.len()];
        dequantize_row(dtype, bytes, &mut exact).unwrap();
        let rounded: Vec<f32> = exact.iter().map(|&value| value as f32).collect();
        assert_eq!(rounded, values, "{dtype}: f32 is the exact value rounded once");
        checked += values.len();
    }
    assert_eq!(checked, 2 * 64 + 6 * 4 * 32 + 6 * 2 * 256);
}

#[test]
fn plain_rows() {
    let mut values = [0.0f64; 2];
    dequantize_row(DType::F32, &[0, 0, 0x80, 0x3f, 0xdb, 0x0f, 0x49, 0xc0], &mut values).unwrap();
    assert_eq!(values, [1.0, f64::from(-std::f32::consts::PI)]);
    dequantize_row(DType::F16, &[0x01, 0x00, 0xff, 0x7b], &mut values).unwrap();
    assert_eq!(values, [1.0 / 16_777_216.0, 65504.0]);
    dequantize_row(DType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut values).unwrap();
    assert_eq!(values, [1.0, -2.0]);
    assert_eq!(F16Bytes(F16_HALF).to_f32(), 0.5);
    assert_eq!(Bf16Bytes([0x00, 0x3f]).to_f32(), 0.5);
}

#[test]
fn blocks_need_no_alignment() {
    let bytes = [0x38; 2 * 144 + 1];
    for start in 0..2 {
        let view = blocks::<BlockQ4K>(&bytes[start..start + 2 * 144]).unwrap();
        assert_eq!(view.len(), 2);
        assert_eq!(view[1].d, F16Bytes([0x38, 0x38]));
    }
    assert_eq!(align_of::<BlockQ4K>(), 1);
}

#[test]
fn lengths_are_checked() {
    let mut values = [0.0f32; 64];
    assert_eq!(
        dequantize_row(DType::Q4_0, &[0; 35], &mut values),
        Err(QuantError::PartialBlock { dtype: DType::Q4_0, bytes: 35, block_bytes: 18 })
    );
    assert_eq!(
        dequantize_row(DType::Q4_0, &[0; 36], &mut values[..63]),
        Err(QuantError::PartialRow { dtype: DType::Q4_0, values: 63, block_len: 32 })
    );
    assert_eq!(
        dequantize_row(DType::Q4_0, &[0; 18], &mut values),
        Err(QuantError::LengthMismatch { dtype: DType::Q4_0, values: 64, expected: 36, got: 18 })
    );
    assert_eq!(
        dequantize_row(DType::U32, &[0; 4], &mut values[..1]),
        Err(QuantError::NotAWeight { dtype: DType::U32 })
    );
    assert!(blocks::<BlockQ4_0>(&[0; 17]).is_err());
    for dtype in DType::WEIGHTS {
        assert_eq!(dequantize_row::<f32>(dtype, &[], &mut []), Ok(()));
    }
}
