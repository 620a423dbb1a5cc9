//! Softmax, argmax and sampling.

use crate::common::*;
use kiln_core::DType;
use kiln_core::ops::*;

#[test]
fn softmax_by_hand() {
    for dtype in DType::FLOATS {
        let lab = Lab::new();
        let inf = f64::NEG_INFINITY;
        let x = lab.of(dtype, &[0.0, 2.0, inf, 2048.0, 2048.0, 2032.0], [2, 3]);
        lab.run(Softmax { input: &x, output: &x, scale: 0.5 });
        let (a, b) = (1f64.exp(), (-8f64).exp());
        let expected =
            [1.0 / (1.0 + a), a / (1.0 + a), 0.0, 1.0 / (2.0 + b), 1.0 / (2.0 + b), b / (2.0 + b)];
        assert_close(&x, &expected);
    }
}

#[test]
fn argmax_ties_and_nan() {
    let lab = Lab::new();
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let rows: [([f64; 4], u32); 7] = [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([nan, -5.0, nan, -6.0], 1),
        ([nan, nan, nan, nan], 0),
        ([nan, -inf, -inf, nan], 1),
        ([-0.0, 0.0, 0.0, -1.0], 0),
        ([1.0, inf, 2.0, inf], 1),
        ([-3.0, -2.0, -1.0, -0.5], 3),
    ];
    let x = lab.f32(&rows.map(|(row, _)| row).concat(), [rows.len(), 4]);
    let y = lab.zeros(DType::U32, [rows.len()]);
    lab.run(Argmax { input: &x, output: &y });
    assert_eq!(y.to_vec::<u32>().unwrap(), rows.map(|(_, index)| index));
}

/// What [`Sample`] draws from one row for each of several random numbers.
fn draws(logits: &[f64], random: &[f64], temperature: f32, top_k: usize, top_p: f32) -> Vec<u32> {
    let lab = Lab::new();
    let rows = random.len();
    let all = logits.repeat(rows);
    let output = lab.zeros(DType::U32, [rows]);
    lab.run(Sample {
        logits: &lab.f32(&all, [rows, logits.len()]),
        random: &lab.f32(random, [rows]),
        output: &output,
        temperature,
        top_k,
        top_p,
    });
    output.to_vec::<u32>().unwrap()
}

#[test]
fn sample_follows_the_cumulative_distribution() {
    // Probabilities 0.2, 0.5, 0.3; in falling order 1, 2, 0 with ends 0.5, 0.8, 1.
    let logits = [0.2f64, 0.5, 0.3].map(f64::ln);
    let random = [0.0, 0.49, 0.51, 0.79, 0.81, 0.999];
    assert_eq!(draws(&logits, &random, 1.0, 0, 1.0), [1, 1, 2, 2, 0, 0]);
    // Temperature 0.5 squares the probabilities: 4, 25, 9 of 38, ends 0.658, 0.895, 1.
    assert_eq!(draws(&logits, &random, 0.5, 0, 1.0), [1, 1, 1, 2, 2, 0]);
    // Two candidates: 5/8, 3/8.
    assert_eq!(draws(&logits, &random, 1.0, 2, 1.0), [1, 1, 1, 2, 2, 2]);
    assert_eq!(draws(&logits, &random, 1.0, 1, 1.0), [1; 6]);
    assert_eq!(draws(&logits, &random, 1.0, 99, 1.0), [1, 1, 2, 2, 0, 0]);
    // The shortest prefix that reaches 0.45 has one candidate, that of 0.6 two.
    assert_eq!(draws(&logits, &random, 1.0, 0, 0.45), [1; 6]);
    assert_eq!(draws(&logits, &random, 1.0, 0, 0.6), [1, 1, 1, 2, 2, 2]);
    // The nucleus is taken of what top_k kept: 5/8 reaches 0.6.
    assert_eq!(draws(&logits, &random, 1.0, 2, 0.6), [1; 6]);
    assert_eq!(draws(&logits, &random, 0.0, 0, 1.0), [1; 6]);
}

#[test]
fn sample_prefix_that_reaches_top_p_exactly() {
    // Four equal candidates: two reach 0.5.
    assert_eq!(draws(&[1.0; 4], &[0.0, 0.49, 0.5, 0.99], 1.0, 0, 0.5), [0, 0, 1, 1]);
    // The running sum must exceed the random number.
    assert_eq!(draws(&[1.0; 4], &[0.25, 0.5, 0.75], 1.0, 0, 1.0), [1, 2, 3]);
}

#[test]
fn sample_ties_nan_and_extremes() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    assert_eq!(draws(&[2.0, 7.0, 7.0, 7.0], &[0.0, 0.6], 1.0, 2, 1.0), [1, 2]);
    assert_eq!(draws(&[nan, 1.0, nan, 1.0], &[0.0, 0.6, 0.999], 1.0, 0, 1.0), [1, 3, 3]);
    assert_eq!(draws(&[nan, nan], &[0.0, 0.9], 1.0, 0, 1.0), [0, 0]);
    assert_eq!(draws(&[nan, nan], &[0.0, 0.9], 0.0, 0, 1.0), [0, 0]);
    assert_eq!(draws(&[-inf, 0.0, -inf], &[0.0, 0.999], 1.0, 0, 1.0), [1, 1]);
    assert_eq!(draws(&[5.0, inf, 1.0, inf], &[0.0, 0.49, 0.51], 1.0, 0, 1.0), [1, 1, 3]);
    assert_eq!(draws(&[1e30, -1e30, 1e30], &[0.4, 0.6], 1e-30, 0, 1.0), [0, 2]);
}
