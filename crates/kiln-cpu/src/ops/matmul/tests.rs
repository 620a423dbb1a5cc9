//! Products by tiles of bf16, where no unit is: the products in plain Rust, all around them as it is.

use crate::isa::{Isa, Plain, Scalar, Units, Vectors};
use crate::memory::AccessLock;
use crate::threads::Pool;
use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, MatmulId, Precision, SiluMul};
use kiln_core::{DType, Device, SharedBytes, Tensor, quant};
use std::sync::Arc;

/// What rounding both factors to bf16 loses, twice.
const BOUND: f64 = 1e-5;

fn tiled(threads: usize) -> Device {
    let vectors = Vectors::Scalar(Scalar);
    let isa = Isa { vectors, unit: Some(Units::Plain(Plain)) };
    let pool = Arc::new(Pool::new(threads).unwrap());
    Device::new(crate::Cpu { isa, pool, lock: AccessLock::default() })
}

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Rows of a weight of any type.
fn packed(dtype: DType, [rows, k]: [usize; 2], seed: u64) -> Vec<u8> {
    let values = values(rows * k, seed);
    match dtype {
        DType::F32 => bytemuck::cast_slice(&values).to_vec(),
        DType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => {
            let bytes = dtype.row_bytes(k).unwrap();
            let mut packed = vec![0; rows * bytes];
            for (row, values) in packed.chunks_exact_mut(bytes).zip(values.chunks_exact(k)) {
                quant::quantize_row(dtype, values, row).unwrap();
            }
            packed
        }
    }
}

fn weight(device: &Device, dtype: DType, shape: [usize; 2], seed: u64) -> Tensor {
    let bytes = SharedBytes::from_vec(packed(dtype, shape, seed));
    device.import(dtype, shape, bytes).unwrap()
}

fn close(label: &str, bound: f64, got: &Tensor, expected: &Tensor) {
    let [got, expected] = [got, expected].map(|tensor| tensor.to_vec::<f32>().unwrap());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(&expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    assert!(error <= bound * size, "{label}: NMSE {:e}", error / size);
}

fn matmul(
    device: &Device,
    dtype: DType,
    [m, n, k]: [usize; 3],
    rows: std::ops::Range<usize>,
) -> Tensor {
    let x = &values(m * k, 3)[rows.start * k..rows.end * k];
    let input = device.upload(x, [rows.len(), k]).unwrap();
    let output = device.upload(&vec![f32::NAN; rows.len() * n], [rows.len(), n]).unwrap();
    let weight = weight(device, dtype, [n, k], 5);
    let mut rec = device.record();
    let (input_layout, precision) = (InputLayout::RowMajor, Precision::Fast);
    rec.push(Matmul { input: &input, weight: &weight, output: &output, input_layout, precision })
        .unwrap();
    rec.finish().unwrap().run().unwrap();
    output
}

#[test]
fn every_type_and_ragged_shapes() {
    let (tiled, reference) = (tiled(2), kiln_reference::device());
    for dtype in DType::WEIGHTS {
        let long = dtype.block_len() == 256;
        let depths: &[usize] = match dtype {
            _ if long => &[256, 768],
            DType::F16 | DType::BF16 => &[1, 33, 576],
            _ => &[32, 160, 576],
        };
        for (&k, m) in depths.iter().flat_map(|k| [2, 16, 17, 33, 48].map(|m| (k, m))) {
            let shape = [m, if m == 33 { 77 } else { 37 }, k];
            let case = format!("{dtype} {shape:?}");
            let [got, expected] =
                [&tiled, &reference].map(|device| matmul(device, dtype, shape, 0..m));
            close(&case, BOUND, &got, &expected);
        }
    }
}

#[test]
fn many_columns_and_many_rows() {
    let (one, three, reference) = (tiled(1), tiled(3), kiln_reference::device());
    let shape = [545, 530, 64];
    let [one, three, expected] =
        [&one, &three, &reference].map(|device| matmul(device, DType::Q4_0, shape, 0..shape[0]));
    close("many", BOUND, &one, &expected);
    assert_eq!(one.to_vec::<f32>().unwrap(), three.to_vec::<f32>().unwrap(), "threads");
}

#[test]
fn rows_do_not_depend_on_the_others() {
    let tiled = tiled(2);
    let all = matmul(&tiled, DType::Q6K, [70, 40, 512], 0..70).to_vec::<f32>().unwrap();
    for rows in [0..16, 16..18, 20..69] {
        let part = matmul(&tiled, DType::Q6K, [70, 40, 512], rows.clone());
        assert_eq!(part.to_vec::<f32>().unwrap(), all[rows.start * 40..rows.end * 40], "{rows:?}");
    }
}

#[test]
fn gated_products_of_mixed_types() {
    let gated = |device: &Device, [gate, up]: [DType; 2], m: usize| {
        let (n, k) = (83, 256);
        let input = device.upload(&values(m * k, 7), [m, k]).unwrap();
        let output = device.upload(&vec![f32::NAN; m * n], [m, n]).unwrap();
        let [gate, up] =
            [(gate, 11), (up, 13)].map(|(dtype, seed)| weight(device, dtype, [n, k], seed));
        let (activation, precision) = (Activation::Silu, Precision::Fast);
        let mut rec = device.record();
        rec.push(GatedMatmul {
            input: &input,
            gate: &gate,
            up: &up,
            output: &output,
            activation,
            precision,
        })
        .unwrap();
        rec.finish().unwrap().run().unwrap();
        output
    };
    let (tiled, reference) = (tiled(2), kiln_reference::device());
    for types in
        [[DType::Q4_0; 2], [DType::Q4K, DType::Q6K], [DType::BF16, DType::Q8_0], [DType::F32; 2]]
    {
        for m in [3, 40] {
            let [got, expected] = [&tiled, &reference].map(|device| gated(device, types, m));
            close(&format!("{types:?} m {m}"), 4.0 * BOUND, &got, &expected);
        }
    }
}

#[test]
fn a_gated_product_has_the_bits_of_its_parts() {
    let (device, [m, n, k]) = (tiled(2), [35, 83, 256]);
    let input = device.upload(&values(m * k, 23), [m, k]).unwrap();
    let [gate, up] = [29, 31].map(|seed| weight(&device, DType::Q4K, [n, k], seed));
    let outputs = [0; 4].map(|_| device.tensor(DType::F32, [m, n]).unwrap());
    let [of_gate, of_up, parts, fused] = &outputs;
    let (precision, input_layout) = (Precision::Fast, InputLayout::RowMajor);
    let mut rec = device.record();
    for (weight, output) in [(&gate, of_gate), (&up, of_up)] {
        rec.push(Matmul { input: &input, weight, output, input_layout, precision }).unwrap();
    }
    rec.push(SiluMul { gate: of_gate, up: of_up, output: parts }).unwrap();
    let (gate, up, activation) = (&gate, &up, Activation::Silu);
    rec.push(GatedMatmul { input: &input, gate, up, output: fused, activation, precision })
        .unwrap();
    rec.finish().unwrap().run().unwrap();
    assert_eq!(parts.to_vec::<f32>().unwrap(), fused.to_vec::<f32>().unwrap());
}

fn routed(device: &Device, dtype: DType, [m, top_k, experts]: [usize; 3]) -> Tensor {
    let (n, k) = (70, 256);
    let input = device.upload(&values(m * k, 17), [m, k]).unwrap();
    let output = device.upload(&vec![f32::NAN; m * top_k * n], [m, top_k, n]).unwrap();
    let bytes = SharedBytes::from_vec(packed(dtype, [experts * n, k], 19));
    let weight = device.import(dtype, [experts, n, k], bytes).unwrap();
    let ids: Vec<u32> =
        (0..m * top_k).map(|slot| ((slot * slot / 3 + slot % 5) % experts) as u32).collect();
    let ids = device.upload(&ids, [m, top_k]).unwrap();
    let precision = Precision::Fast;
    let mut rec = device.record();
    rec.push(MatmulId { input: &input, weight: &weight, ids: &ids, output: &output, precision })
        .unwrap();
    rec.finish().unwrap().run().unwrap();
    output
}

#[test]
fn expert_routed_products() {
    let (tiled, reference) = (tiled(2), kiln_reference::device());
    for dtype in [DType::Q4_0, DType::Q5K, DType::BF16, DType::F32] {
        for shape in [[1, 2, 1], [5, 2, 4], [64, 2, 3], [300, 2, 1]] {
            let [got, expected] = [&tiled, &reference].map(|device| routed(device, dtype, shape));
            close(&format!("{dtype} {shape:?}"), BOUND, &got, &expected);
        }
    }
}

#[test]
fn expert_routed_products_of_one_token() {
    // What rounding a column to bytes loses at most.
    const BOUND: f64 = 6.2e-5;
    let (tiled, reference) = (tiled(2), kiln_reference::device());
    for dtype in [DType::Q4_0, DType::Q5K, DType::BF16] {
        let [got, expected] = [&tiled, &reference].map(|device| routed(device, dtype, [1, 2, 4]));
        close(&format!("{dtype}"), BOUND, &got, &expected);
    }
}

#[test]
fn no_slot_is_cut_off_alone() {
    let tiled = tiled(2);
    let all = routed(&tiled, DType::Q4_0, [258, 1, 1]).to_vec::<f32>().unwrap();
    let less = routed(&tiled, DType::Q4_0, [257, 1, 1]).to_vec::<f32>().unwrap();
    assert_eq!(less, all[..less.len()]);
}
