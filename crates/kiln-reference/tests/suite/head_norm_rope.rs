//! Per-head normalisation and rotation.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Tensor};

/// Plain interleaved RoPE of all pairs, without outputs.
fn rope(input: &Tensor, half: usize) -> HeadNormRope<&Tensor> {
    HeadNormRope {
        input,
        weight: None,
        positions: None,
        freq_factors: None,
        cos: None,
        sin: None,
        cache_start: None,
        output: None,
        output_bf16: None,
        output_f32: None,
        cache: None,
        pairing: RopePairing::Interleaved,
        half,
        theta: 10000.0,
        normalize: false,
        eps: 1e-6,
        copy_layout: HeadLayout::TokenMajor,
    }
}

/// Turns the pair `(a, b)` of `x` by `angle`.
fn turn(x: &mut [f64], a: usize, b: usize, angle: f64) {
    let (s, c) = angle.sin_cos();
    (x[a], x[b]) = (x[a] * c - x[b] * s, x[a] * s + x[b] * c);
}

const HEAD: [f64; 6] = [1.0, 2.0, -3.0, 0.5, 4.0, -1.5];

/// The result for one head at one position.
fn rotated(pairing: RopePairing, half: usize, position: u32, factors: Option<&[f64]>) -> Vec<f64> {
    let lab = Lab::new();
    let (x, y) = (lab.f32(&HEAD, [1, 1, 6]), lab.zeros(DType::F32, [1, 1, 6]));
    let positions = lab.u32(&[position]);
    let factors = factors.map(|factors| lab.f32(factors, [half]));
    lab.run(HeadNormRope {
        positions: Some(&positions),
        freq_factors: factors.as_ref(),
        output: Some(&y),
        pairing,
        ..rope(&x, half)
    });
    values(&y)
}

#[track_caller]
fn assert_head(got: &[f64], turns: &[(usize, usize, f64)]) {
    let mut expected = HEAD;
    for &(a, b, angle) in turns {
        turn(&mut expected, a, b, angle);
    }
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
    }
}

/// `10000^(-n / d)`
fn freq(n: f64, d: f64) -> f64 {
    (-n / d * 10000f64.ln()).exp()
}

#[test]
fn pairings_and_their_exponents() {
    use RopePairing::*;
    let p = 7.0;
    assert_head(
        &rotated(Interleaved, 3, 7, None),
        &[(0, 1, p), (2, 3, p * freq(2.0, 6.0)), (4, 5, p * freq(4.0, 6.0))],
    );
    assert_head(&rotated(Interleaved, 2, 7, None), &[(0, 1, p), (2, 3, p * freq(2.0, 4.0))]);
    assert_head(&rotated(Leading, 2, 7, None), &[(0, 2, p), (1, 3, p * freq(2.0, 4.0))]);
    assert_head(&rotated(Spanning, 2, 7, None), &[(0, 3, p), (1, 4, p * freq(2.0, 6.0))]);
    let all = [(0, 3, p), (1, 4, p * freq(2.0, 6.0)), (2, 5, p * freq(4.0, 6.0))];
    assert_head(&rotated(Leading, 3, 7, None), &all);
    assert_head(&rotated(Spanning, 3, 7, None), &all);
}

#[test]
fn factors_divide_the_angle_and_large_ones_leave_a_pair() {
    let got = rotated(RopePairing::Leading, 2, 5, Some(&[2.0, 1e30]));
    assert_head(&got, &[(0, 2, 2.5)]);
    let got = rotated(RopePairing::Interleaved, 3, 0, None);
    assert_head(&got, &[]);
}

#[test]
fn far_positions_stay_accurate() {
    let p = 131071.0;
    let got = rotated(RopePairing::Interleaved, 2, 131071, None);
    assert_head(&got, &[(0, 1, p), (2, 3, p * 0.01)]);
}

#[test]
fn tables_by_token_and_shared() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], [2, 1, 4]);
    let y = lab.zeros(DType::F32, [2, 1, 4]);
    let cos = lab.f32(&[0.6, 1.0, 0.0, -1.0], [2, 2]);
    let sin = lab.f32(&[0.8, 0.0, 1.0, 0.0], [2, 2]);
    let op = rope(&x, 2);
    lab.run(HeadNormRope { cos: Some(&cos), sin: Some(&sin), output: Some(&y), ..op.clone() });
    assert_close(&y, &[-1.0, 2.0, 3.0, 4.0, -2.0, 1.0, -3.0, -4.0]);
    let [cos, sin] = [&cos, &sin].map(|table| table.slice(0, 1..2).unwrap());
    lab.run(HeadNormRope { cos: Some(&cos), sin: Some(&sin), output: Some(&y), ..op });
    assert_close(&y, &[-2.0, 1.0, -3.0, -4.0, -2.0, 1.0, -3.0, -4.0]);
}

#[test]
fn norm_only_needs_no_positions() {
    let lab = Lab::new();
    let x = lab.of(DType::F16, &[3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], [1, 2, 4]);
    let (w, y) = (lab.f32(&[1.0, 2.0, 3.0, 4.0], [4]), lab.zeros(DType::F16, [1, 2, 4]));
    let op = HeadNormRope { normalize: true, output: Some(&y), eps: 0.0, ..rope(&x, 0) };
    lab.run(HeadNormRope { weight: Some(&w), ..op.clone() });
    assert_close(&y, &[1.2, 3.2, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    lab.run(op);
    assert_close(&y, &[1.2, 1.6, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn normalises_before_it_rotates_and_fills_all_outputs() {
    let (lab, mut rng) = (Lab::new(), Rng(20));
    let (t, h, d) = (3, 2, 4);
    let data = rng.values(t * h * d);
    let weight = rng.values(d);
    let x = lab.f32(&data, [t, h, d]);
    let w = lab.f32(&weight, [d]);
    let positions = lab.u32(&[4, 0, 9]);
    let start = lab.u32(&[1]);
    let output = lab.zeros(DType::F32, [t, h, d]);
    let head_major = lab.zeros(DType::F32, [h, t, d]);
    let cache = lab.of(DType::F16, &[7.0; 24], [h, 3, d]);
    let op = |copy, copy_layout| HeadNormRope {
        weight: Some(&w),
        positions: Some(&positions),
        cache_start: Some(&start),
        output: Some(&output),
        output_bf16: Some(copy),
        output_f32: Some(&head_major),
        cache: Some(&cache),
        pairing: RopePairing::Leading,
        normalize: true,
        copy_layout,
        ..rope(&x, 1)
    };
    let copy_heads = lab.zeros(DType::BF16, [h, t, d]);
    let copy_tokens = lab.zeros(DType::BF16, [t, h, d]);
    lab.run(op(&copy_heads, HeadLayout::HeadMajor));
    lab.run(op(&copy_tokens, HeadLayout::TokenMajor));

    let mut by_token = Vec::new();
    for (row, head) in data.chunks(d).enumerate() {
        let mean = head.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-6;
        let mut head: Vec<f64> =
            head.iter().zip(&weight).map(|(x, w)| x * w / mean.sqrt()).collect();
        turn(&mut head, 0, 1, [4.0, 0.0, 9.0][row / h]);
        by_token.push(head);
    }
    let by_head: Vec<f64> = (0..h)
        .flat_map(|h_| (0..t).flat_map(|t_| by_token[t_ * h + h_].clone()).collect::<Vec<_>>())
        .collect();
    assert_close(&output, &by_token.concat());
    assert_close(&copy_tokens, &by_token.concat());
    assert_close(&copy_heads, &by_head);
    assert_close(&head_major, &by_head);
    // Slot 0 keeps its content, slots 1 and 2 get tokens 0 and 1, token 2 is past the capacity.
    for h_ in 0..h {
        let mut expected = vec![7.0; d];
        expected.extend(by_token[h_].iter().chain(&by_token[h + h_]));
        assert_close(&cache.slice(0, h_..h_ + 1).unwrap(), &expected);
    }
}
