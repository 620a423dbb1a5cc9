//! Matrix products.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Tensor};

fn matmul(lab: &Lab, input: &Tensor, weight: &Tensor, input_layout: InputLayout) -> Tensor {
    let m = input.extent(if input_layout == InputLayout::RowMajor { 0 } else { 1 });
    let output = lab.zeros(DType::F32, [m, weight.extent(0)]);
    let precision = Precision::Exact;
    lab.run(Matmul { input, weight, output: &output, input_layout, precision });
    output
}

/// `x [m, k]` times the transpose of `w [n, k]`.
fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let columns = || w.chunks(k);
    x.chunks(k).flat_map(|x| columns().map(|w| (0..k).map(|i| x[i] * w[i]).sum())).collect()
}

#[test]
fn by_hand() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0, 2.0, -1.0, 0.5], [2, 2]);
    let w = lab.f32(&[3.0, 4.0, 5.0, -6.0, 0.0, 2.0], [3, 2]);
    let y = matmul(&lab, &x, &w, InputLayout::RowMajor);
    assert_eq!(values(&y), [11.0, -7.0, 4.0, -1.0, -8.0, 1.0]);
}

#[test]
fn every_weight_type_and_input_type() {
    let mut rng = Rng(40);
    let (m, n, k) = (3, 4, 256);
    for dtype in DType::WEIGHTS {
        for input in DType::FLOATS {
            let lab = Lab::new();
            let w = lab.of(dtype, &rng.values(n * k), [n, k]);
            let x = lab.of(input, &rng.values(m * k), [m, k]);
            let y = matmul(&lab, &x, &w, InputLayout::RowMajor);
            assert_close(&y, &product(&values(&x), &values(&w), k));
        }
    }
}

#[test]
fn head_major_input_is_the_permuted_one() {
    let (lab, mut rng) = (Lab::new(), Rng(41));
    let (h, m, d, n) = (3, 2, 32, 5);
    for dtype in [DType::F32, DType::Q4_0, DType::Q8_0] {
        let w = lab.of(dtype, &rng.values(n * h * d), [n, h * d]);
        let heads = lab.f32(&rng.values(h * m * d), [h, m, d]);
        let rows = lab.zeros(DType::F32, [m, h, d]);
        lab.run(Copy { input: &heads.transpose(0, 1).unwrap(), output: &rows });
        let rows = rows.reshape([m, h * d]).unwrap();
        let expected = matmul(&lab, &rows, &w, InputLayout::RowMajor);
        let got = matmul(&lab, &heads, &w, InputLayout::HeadMajor);
        assert_eq!(bits(&got), bits(&expected));
    }
}

#[test]
fn views_of_inputs_weights_and_outputs() {
    let (lab, mut rng) = (Lab::new(), Rng(42));
    let w = lab.of(DType::Q4_0, &rng.values(4 * 64), [4, 64]);
    let x = lab.f32(&rng.values(2 * 128), [2, 128]);
    let y = lab.f32(&[9.0; 10], [2, 5]);
    let (x_part, w_part) = (x.slice(1, 64..128).unwrap(), w.slice(0, 1..3).unwrap());
    lab.run(Matmul {
        input: &x_part,
        weight: &w_part,
        output: &y.slice(1, 1..3).unwrap(),
        input_layout: InputLayout::RowMajor,
        precision: Precision::Fast,
    });
    let (x, w) = (values(&x), values(&w));
    let x: Vec<f64> = [&x[64..128], &x[192..256]].concat();
    let p = product(&x, &w[64..192], 64);
    assert_close(&y, &[9.0, p[0], p[1], 9.0, 9.0, 9.0, p[2], p[3], 9.0, 9.0]);
}

#[test]
fn gated() {
    let (lab, mut rng) = (Lab::new(), Rng(43));
    let (m, n, k) = (2, 3, 32);
    let x = lab.f32(&rng.values(m * k), [m, k]);
    let gate = lab.of(DType::Q8_0, &rng.values(n * k), [n, k]);
    let up = lab.of(DType::Q4_0, &rng.values(n * k), [n, k]);
    let g = product(&values(&x), &values(&gate), k);
    let u = product(&values(&x), &values(&up), k);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu =
        |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh());
    let output = lab.zeros(DType::F32, [m, n]);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        lab.run(GatedMatmul {
            input: &x,
            gate: &gate,
            up: &up,
            output: &output,
            activation,
            precision: Precision::Exact,
        });
        let act = |x| if activation == Activation::Silu { silu(x) } else { gelu(x) };
        for (got, (g, u)) in values(&output).into_iter().zip(g.iter().zip(&u)) {
            // Both products are rounded to f32 first.
            let expected = act(*g) * u;
            assert!((got - expected).abs() <= 4e-7 * (1.0 + expected.abs()), "{got} {expected}");
        }
    }
}

fn experts(lab: &Lab, input: &Tensor, weight: &Tensor, ids: &Tensor) -> Tensor {
    let output = lab.zeros(DType::F32, [ids.extent(0), ids.extent(1), weight.extent(1)]);
    lab.run(MatmulId { input, weight, ids, output: &output, precision: Precision::Exact });
    output
}

#[test]
fn routed_equals_the_product_of_each_expert() {
    let (lab, mut rng) = (Lab::new(), Rng(44));
    let (e, n, k, m, top_k) = (4, 3, 32, 5, 2);
    // Repeated ids, an expert without rows, and one with all of them.
    for ids in [[0, 3, 3, 0, 0, 0, 1, 3, 3, 1], [2; 10]] {
        for dtype in [DType::F16, DType::Q4_0] {
            let weight = lab.of(dtype, &rng.values(e * n * k), [e, n, k]);
            let each = lab.f32(&rng.values(m * top_k * k), [m, top_k, k]);
            let shared = lab.f32(&rng.values(m * k), [m, k]);
            let id_tensor = lab.device.upload(&ids, [m, top_k]).unwrap();
            for input in [&each, &shared] {
                let got = experts(&lab, input, &weight, &id_tensor);
                for (slot, id) in ids.iter().map(|&id: &u32| id as usize).enumerate() {
                    let w = weight.slice(0, id..id + 1).unwrap().reshape([n, k]).unwrap();
                    let row = if input.rank() == 2 { slot / top_k } else { slot };
                    let flat = input.reshape([input.values() / k, k]).unwrap();
                    let x = flat.slice(0, row..row + 1).unwrap();
                    let expected = matmul(&lab, &x, &w, InputLayout::RowMajor);
                    let got = got.reshape([m * top_k, n]).unwrap().slice(0, slot..slot + 1);
                    assert_eq!(bits(&got.unwrap()), bits(&expected));
                }
            }
        }
    }
}

#[test]
fn an_id_out_of_range_gives_nan() {
    let lab = Lab::new();
    let weight = lab.f32(&[1.0; 2 * 2 * 4], [2, 2, 4]);
    let ids = lab.device.upload(&[1u32, 2, u32::MAX], [1, 3]).unwrap();
    let got = values(&experts(&lab, &lab.f32(&[0.25; 4], [1, 4]), &weight, &ids));
    assert_eq!(got[..2], [1.0, 1.0]);
    assert!(got[2..].iter().all(|x| x.is_nan()));
}
