//! Elementwise operations.

use crate::common::*;
use kiln_core::DType;
use kiln_core::ops::*;

#[test]
fn add_and_mul_with_matrix_and_vector() {
    for dtype in DType::FLOATS {
        let lab = Lab::new();
        let a = lab.of(dtype, &[1.0, 2.0, 3.0, 4.0], [2, 2]);
        let b = lab.of(dtype, &[0.5, -1.0, 2.0, 0.0], [2, 2]);
        let vector = lab.f32(&[10.0, -0.5], [2]);
        let y = lab.zeros(dtype, [2, 2]);
        lab.run(Add { a: &a, b: &b, output: &y });
        assert_eq!(values(&y), [1.5, 1.0, 5.0, 4.0]);
        lab.run(Mul { a: &a, b: &vector, output: &y });
        assert_eq!(values(&y), [10.0, -1.0, 30.0, -2.0]);
        lab.run(Add { a: &a, b: &vector, output: &a });
        assert_eq!(values(&a), [11.0, 1.5, 13.0, 3.5]);
        lab.run(Mul { a: &a, b: &b, output: &b });
        assert_eq!(values(&b), [5.5, -1.5, 26.0, 0.0]);
        lab.run(Add { a: &a, b: &a, output: &a });
        assert_eq!(values(&a), [22.0, 3.0, 26.0, 7.0]);
    }
}

#[test]
fn scale_and_softcap() {
    let lab = Lab::new();
    let x = lab.f32(&[0.0, 1.0, -30.0, 1e6], [1, 4]);
    let y = lab.zeros(DType::F32, [1, 4]);
    lab.run(Scale { input: &x, output: &y, factor: -0.5 });
    assert_close(&y, &[0.0, -0.5, 15.0, -5e5]);
    lab.run(Softcap { input: &x, output: &x, cap: 30.0 });
    // tanh(z) = (e^2z - 1) / (e^2z + 1)
    let tanh = |z: f64| ((2.0 * z).exp() - 1.0) / ((2.0 * z).exp() + 1.0);
    assert_close(&x, &[0.0, 30.0 * tanh(1.0 / 30.0), -30.0 * tanh(1.0), 30.0]);
}

#[test]
fn gated_activations() {
    let lab = Lab::new();
    let gate = [-3.0, -0.5, 0.0, 1.0, 2.0, 100.0, -1000.0];
    let up = [2.0, -1.0, 5.0, 3.0, 0.25, 1.0, 1.0];
    let n = gate.len();
    let (g, u) = (lab.f32(&gate, [1, n]), lab.f32(&up, [1, n]));
    let y = lab.zeros(DType::F32, [1, n]);
    lab.run(SiluMul { gate: &g, up: &u, output: &y });
    let sigmoid = |x: f64| 0.5 + 0.5 * (x / 2.0).tanh();
    let expected: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect();
    assert_close(&y, &expected);

    // 0.5 (1 + tanh z) is the logistic function of 2 z.
    let inner = |x: f64| 0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x);
    let gelu = |x: f64| x / (1.0 + (-2.0 * inner(x)).exp());
    let expected: Vec<f64> = gate.iter().zip(up).map(|(g, u)| gelu(*g) * u).collect();
    lab.run(GeluMul { gate: &g, up: &u, output: &u });
    assert_close(&u, &expected);
}
