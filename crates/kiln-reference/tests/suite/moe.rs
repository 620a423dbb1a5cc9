//! Routing of experts.

use crate::common::*;
use kiln_core::DType;
use kiln_core::ops::*;

fn route(logits: &[f64], top_k: usize, renormalize: bool) -> (Vec<u32>, Vec<f64>) {
    let lab = Lab::new();
    let ids = lab.zeros(DType::U32, [1, top_k]);
    let weights = lab.zeros(DType::F32, [1, top_k]);
    let logits = lab.f32(logits, [1, logits.len()]);
    lab.run(MoeRoute { logits: &logits, ids: &ids, weights: &weights, renormalize });
    (ids.to_vec().unwrap(), values(&weights))
}

#[track_caller]
fn assert_route(got: (Vec<u32>, Vec<f64>), ids: &[u32], weights: &[f64]) {
    assert_eq!(got.0, ids);
    for (got, expected) in got.1.iter().zip(weights) {
        assert!((got - expected).abs() < 1e-7, "{got}, expected {expected}");
    }
}

#[test]
fn softmax_over_all_then_top_k() {
    let logits = [0.1f64, 0.4, 0.2, 0.3].map(f64::ln);
    assert_route(route(&logits, 2, false), &[1, 3], &[0.4, 0.3]);
    assert_route(route(&logits, 2, true), &[1, 3], &[4.0 / 7.0, 3.0 / 7.0]);
    assert_route(route(&logits, 4, false), &[1, 3, 2, 0], &[0.4, 0.3, 0.2, 0.1]);
}

#[test]
fn ties_go_to_the_lowest_index() {
    assert_route(route(&[1.0; 5], 3, true), &[0, 1, 2], &[1.0 / 3.0; 3]);
    assert_route(route(&[0.0, 2.0, 0.0, 2.0], 3, true).clone(), &[1, 3, 0], &[]);
    // Probabilities below the smallest f32 still rank by their logits.
    assert_eq!(route(&[0.0, -900.0, -800.0], 3, false).0, [0, 2, 1]);
}

#[test]
fn nan_never_wins_against_a_number_and_shows_in_the_weights() {
    let nan = f64::NAN;
    let (ids, weights) = route(&[nan, 1.0, nan, f64::NEG_INFINITY], 3, true);
    assert_eq!(ids, [1, 3, 0]);
    assert!(weights.iter().all(|w| w.is_nan()));
}

#[test]
fn the_divisor_is_clamped() {
    // Each of 20000 experts has 5e-5, less than the clamp of 6.1e-5.
    let (_, weights) = route(&[0.0; 20000], 1, true);
    assert!((weights[0] - 5.0 / 6.1).abs() < 1e-6);
}
