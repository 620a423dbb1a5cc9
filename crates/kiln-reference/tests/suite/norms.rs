//! RMS and layer normalisation.

use crate::common::*;
use half::bf16;
use kiln_core::DType;
use kiln_core::ops::*;

/// `x / sqrt(mean(x^2) + eps)`, by another route than the reference.
fn rms(x: &[f64], eps: f64) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.powi(2)).sum();
    let root = (sum / x.len() as f64 + eps).powf(0.5);
    x.iter().map(|x| x / root).collect()
}

const X: [f64; 6] = [3.0, -4.0, 0.5, 1.0, 2.0, -0.25];
const W: [f64; 3] = [2.0, -1.0, 0.5];

fn expected(x: &[f64], eps: f64, f: impl Fn(usize, usize, f64) -> f64) -> Vec<f64> {
    let rows = x.chunks(3).enumerate();
    rows.flat_map(|(r, row)| {
        rms(row, eps).into_iter().enumerate().map(|(c, x)| f(r, c, x)).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn rms_norm_of_every_type_and_weight_type() {
    for dtype in DType::FLOATS {
        for weight_dtype in [dtype, DType::F32] {
            let lab = Lab::new();
            let (x, w) = (lab.of(dtype, &X, [2, 3]), lab.of(weight_dtype, &W, [3]));
            let y = lab.zeros(dtype, [2, 3]);
            lab.run(RmsNorm { input: &x, weight: Some(&w), output: &y, eps: 0.5 });
            assert_close(&y, &expected(&X, 0.5, |_, c, x| x * W[c]));
        }
    }
}

#[test]
fn rms_norm_by_hand() {
    let lab = Lab::new();
    let x = lab.f32(&[3.0, 4.0, 0.0, 0.0], [2, 2]);
    // In place, without weight: mean(9, 16) = 12.5, and eps keeps the row of zeros finite.
    lab.run(RmsNorm { input: &x, weight: None, output: &x, eps: 3.5 });
    assert_close(&x, &[0.75, 1.0, 0.0, 0.0]);
}

#[test]
fn rms_norm_reads_strided_rows() {
    let lab = Lab::new();
    let wide = lab.f32(&[9.0, 3.0, 4.0, 9.0, 9.0, 1.0, 1.0, 9.0], [2, 4]);
    let x = wide.slice(1, 1..3).unwrap();
    lab.run(RmsNorm { input: &x, weight: None, output: &x, eps: 0.0 });
    let r = 12.5f64.sqrt();
    assert_close(&wide, &[9.0, 3.0 / r, 4.0 / r, 9.0, 9.0, 1.0, 1.0, 9.0]);
}

#[test]
fn rms_norm_mul() {
    let lab = Lab::new();
    let (x, w) = (lab.f32(&X, [2, 3]), lab.f32(&W, [3]));
    let scale = [1.0, 2.0, 3.0, -1.0, -2.0, -3.0];
    let s = lab.f32(&scale, [2, 3]);
    lab.run(RmsNormMul { input: &x, weight: Some(&w), scale: &s, output: &s, eps: 0.5 });
    assert_close(&s, &expected(&X, 0.5, |r, c, x| x * W[c] * scale[3 * r + c]));
}

#[test]
fn rms_norm_triple() {
    let lab = Lab::new();
    let x = lab.f32(&X, [2, 3]);
    let weights: [[f64; 3]; 3] = [W, [1.0, 1.0, 1.0], [0.0, -3.0, 8.0]];
    let w = weights.map(|w| lab.f32(&w, [3]));
    let y = [(); 3].map(|()| lab.zeros(DType::F32, [2, 3]));
    lab.run(RmsNormTriple {
        input: &x,
        weight_a: &w[0],
        weight_b: &w[1],
        weight_c: &w[2],
        output_a: &y[0],
        output_b: &y[1],
        output_c: &y[2],
        eps: 0.5,
    });
    for (y, w) in y.iter().zip(weights) {
        assert_close(y, &expected(&X, 0.5, |_, c, x| x * w[c]));
    }
}

/// Rows of bf16 values, 16 of dimension 8.
fn bf16_rows(rng: &mut Rng) -> Vec<f64> {
    rng.full_values(128).iter().map(|&x| bf16::from_f64(x).to_f64()).collect()
}

fn to_bf16(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| bf16::from_f64(x).to_f64()).collect()
}

fn rms_rows(x: &[f64], w: &[f64]) -> Vec<f64> {
    let rows = x.chunks(w.len());
    rows.flat_map(|row| rms(row, 1e-6).into_iter().zip(w).map(|(x, w)| x * w).collect::<Vec<_>>())
        .collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn add_rms_norm_takes_its_statistic_from_the_rounded_residual() {
    let (lab, mut rng) = (Lab::new(), Rng(1));
    let (a, b, w) = (bf16_rows(&mut rng), bf16_rows(&mut rng), rng.values(8));
    let tensor = |x: &[f64]| lab.of(DType::BF16, x, [16, 8]);
    let (ta, tb, tw) = (tensor(&a), tensor(&b), lab.f32(&w, [8]));
    let y = lab.zeros(DType::BF16, [16, 8]);
    let weight = Some(&tw);
    // The residual takes the place of `a`.
    lab.run(AddRmsNorm { a: &ta, b: &tb, weight, residual: &ta, output: &y, eps: 1e-6 });
    let residual = to_bf16(&add(&a, &b));
    assert_eq!(values(&ta), residual);
    assert_eq!(values(&y), to_bf16(&rms_rows(&residual, &w)));
    assert_ne!(values(&y), to_bf16(&rms_rows(&add(&a, &b), &w)));
}

#[test]
fn post_attn_triple_norm_takes_its_statistic_before_rounding() {
    let (lab, mut rng) = (Lab::new(), Rng(2));
    let (hidden, attn) = (bf16_rows(&mut rng), bf16_rows(&mut rng));
    let w = [(); 4].map(|()| rng.values(8));
    let tensor = |x: &[f64]| lab.of(DType::BF16, x, [16, 8]);
    let (h, a) = (tensor(&hidden), tensor(&attn));
    let tw = [0, 1, 2, 3].map(|i| lab.f32(&w[i], [8]));
    let y = [(); 3].map(|()| lab.zeros(DType::BF16, [16, 8]));
    lab.run(PostAttnTripleNorm {
        hidden: &h,
        attn: &a,
        weight_post: &tw[3],
        weight_a: &tw[0],
        weight_b: &tw[1],
        weight_c: &tw[2],
        residual: &h,
        output_a: &y[0],
        output_b: &y[1],
        output_c: &y[2],
        eps: 1e-6,
    });
    let residual = add(&hidden, &rms_rows(&attn, &w[3]));
    assert_eq!(values(&h), to_bf16(&residual));
    for i in 0..3 {
        assert_eq!(values(&y[i]), to_bf16(&rms_rows(&residual, &w[i])));
    }
    assert_ne!(values(&y[0]), to_bf16(&rms_rows(&to_bf16(&residual), &w[0])));
}

#[test]
fn end_of_layer_with_both_forms_of_the_scalar() {
    let (lab, mut rng) = (Lab::new(), Rng(3));
    let [attn, moe, residual] = [(); 3].map(|()| bf16_rows(&mut rng));
    let (w2, w3) = (rng.values(8), rng.values(8));
    for scalar in [vec![0.75], rng.values(8)] {
        let tensor = |x: &[f64]| lab.of(DType::BF16, x, [16, 8]);
        let (attn_t, moe_t, residual_t) = (tensor(&attn), tensor(&moe), tensor(&residual));
        let mlp = lab.zeros(DType::BF16, [16, 8]);
        lab.run(PostFfNormEndLayer {
            attn: &attn_t,
            moe: &moe_t,
            weight_moe: &lab.f32(&w2, [8]),
            residual: &residual_t,
            weight_mlp: &lab.f32(&w3, [8]),
            layer_scalar: &lab.f32(&scalar, [scalar.len()]),
            mlp: &mlp,
            output: &residual_t,
            eps: 1e-6,
        });
        let sum = add(&attn, &rms_rows(&moe, &w2));
        let output = add(&residual, &rms_rows(&sum, &w3));
        let output = output.iter().enumerate().map(|(i, x)| x * scalar[i % 8 % scalar.len()]);
        assert_eq!(values(&mlp), to_bf16(&sum));
        assert_eq!(values(&residual_t), to_bf16(&output.collect::<Vec<_>>()));
    }
}

#[test]
fn moe_end_of_layer_sums_the_experts_first() {
    let (lab, mut rng) = (Lab::new(), Rng(4));
    let [attn, residual] = [(); 2].map(|()| lab.f32(&rng.values(6), [2, 3]));
    let [w2, w3] = [(); 2].map(|()| lab.f32(&rng.values(3), [3]));
    let scalar = lab.f32(&[0.5], [1]);
    let experts = rng.values(12);
    let route = [0.25, 0.5, 1.0, -2.0];
    // Sums of such small dyadic numbers are exact in f32.
    let moe: Vec<f64> = (0..6)
        .map(|i| {
            let (r, c) = (i / 3, i % 3);
            (0..2).map(|k| route[2 * r + k] * experts[6 * r + 3 * k + c]).sum()
        })
        .collect();
    let [mlp, output, mlp_moe, output_moe] = [(); 4].map(|()| lab.zeros(DType::F32, [2, 3]));
    lab.run(PostFfNormEndLayer {
        attn: &attn,
        moe: &lab.f32(&moe, [2, 3]),
        weight_moe: &w2,
        residual: &residual,
        weight_mlp: &w3,
        layer_scalar: &scalar,
        mlp: &mlp,
        output: &output,
        eps: 1e-6,
    });
    lab.run(MoePostFfNormEndLayer {
        attn: &attn,
        experts: &lab.f32(&experts, [2, 2, 3]),
        route: &lab.f32(&route, [2, 2]),
        weight_moe: &w2,
        residual: &residual,
        weight_mlp: &w3,
        layer_scalar: &scalar,
        mlp: &mlp_moe,
        output: &output_moe,
        eps: 1e-6,
    });
    assert_eq!(bits(&mlp), bits(&mlp_moe));
    assert_eq!(bits(&output), bits(&output_moe));
}

#[test]
fn layer_norm_by_hand() {
    let lab = Lab::new();
    // Mean 2.5, variance 1.25; with eps 1 the divisor is 1.5.
    let x = lab.f32(&[1.0, 2.0, 3.0, 4.0], [1, 4]);
    let w = lab.f32(&[1.0, 2.0, -1.0, 3.0], [4]);
    let bias = lab.f32(&[10.0, 0.0, 1.0, -1.0], [4]);
    let y = lab.zeros(DType::F32, [1, 4]);
    lab.run(LayerNorm { input: &x, weight: &w, bias: Some(&bias), output: &y, eps: 1.0 });
    assert_close(&y, &[9.0, -2.0 / 3.0, 2.0 / 3.0, 2.0]);
    lab.run(LayerNorm { input: &x, weight: &w, bias: None, output: &x, eps: 1.0 });
    assert_close(&x, &[-1.0, -2.0 / 3.0, -1.0 / 3.0, 3.0]);
}
