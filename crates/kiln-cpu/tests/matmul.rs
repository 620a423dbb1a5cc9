//! Matrix products against plain f64 loops, on every instruction set of this machine.

use kiln_core::ops::{Activation, GatedMatmul, InputLayout, Matmul, Precision};
use kiln_core::{DType, Device, SharedBytes, Tensor, quant};
use kiln_cpu::{Config, device, instruction_sets};

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    /// Rows that quantised activations represent: groups of 32 of 8 bits, and in odd rows of more
    /// than 4 groups one of 15 bits.
    fn coded(&mut self, m: usize, k: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(m * k);
        for (row, group) in (0..m).flat_map(|row| (0..k / 32).map(move |group| (row, group))) {
            let wide = row % 2 == 1 && group == 3 && k >= 256;
            let (largest, unit) = if wide { (127.0 * 128.0, 1024.0) } else { (127.0, 128.0) };
            let start = values.len();
            values.extend((0..32).map(|_| (self.next() * largest).round() / unit));
            values[start] = largest / unit;
        }
        values
    }
}

/// What 8 bits lose in groups without a value beyond `sqrt(12)` times the root mean square: at most
/// `12 / 12 / 127^2`; twice that for the chance of few values.
const ACTIVATION_ERROR: f64 = 1.3e-4;

/// What both factors lose by rounding to bf16, twice: an instruction set with tiles of it.
const BF16_ERROR: f64 = 1e-5;

/// Bound of products of inputs that are exact in `Random::coded`.
fn coded_error(name: &str, m: usize) -> f64 {
    if name == "amx-bf16" && m > 1 { BF16_ERROR } else { 1e-8 }
}

fn weight(
    device: &Device,
    dtype: DType,
    [n, k]: [usize; 2],
    random: &mut Random,
) -> (Tensor, Vec<f32>) {
    let bytes = dtype.row_bytes(k).unwrap();
    let mut packed = vec![0; n * bytes];
    let mut values = vec![0.0; n * k];
    for (row, values) in packed.chunks_exact_mut(bytes).zip(values.chunks_exact_mut(k)) {
        quant::quantize_row(dtype, &random.values(k), row).unwrap();
        quant::dequantize_row(dtype, row, values).unwrap();
    }
    (device.import(dtype, [n, k], SharedBytes::from_vec(packed)).unwrap(), values)
}

fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f64> {
    let dot =
        |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

fn nmse(got: &[f32], expected: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
    error / expected.iter().map(|e| e * e).sum::<f64>().max(1e-30)
}

fn devices() -> impl Iterator<Item = (&'static str, Device)> {
    instruction_sets().into_iter().map(|name| {
        let config = Config { threads: Some(2), instruction_set: Some(name.to_owned()) };
        (name, device(config).unwrap())
    })
}

#[test]
fn every_type_and_route_is_close_to_f64() {
    for (name, device) in devices() {
        for dtype in DType::WEIGHTS {
            let depths: &[usize] =
                if dtype.block_len() == 256 { &[256, 768] } else { &[32, 160, 704] };
            for (&k, m) in depths.iter().flat_map(|k| [1, 2, 3, 8, 9, 13, 33].map(|m| (k, m))) {
                for precision in [Precision::Fast, Precision::Exact] {
                    let mut random = Random((m * k) as u64);
                    let n = 37;
                    let (w, values) = weight(&device, dtype, [n, k], &mut random);
                    let (coded, any) = (random.coded(m, k), random.values(m * k));
                    for (x, fast) in [(coded, coded_error(name, m)), (any, ACTIVATION_ERROR)] {
                        let expected = product(&x, &values, k);
                        let input = device.upload(&x, [m, k]).unwrap();
                        let output = device.upload(&vec![f32::NAN; m * n], [m, n]).unwrap();
                        let mut rec = device.record();
                        let input_layout = InputLayout::RowMajor;
                        rec.push(Matmul {
                            input: &input,
                            weight: &w,
                            output: &output,
                            input_layout,
                            precision,
                        })
                        .unwrap();
                        rec.finish().unwrap().run().unwrap();
                        let error = nmse(&output.to_vec().unwrap(), &expected);
                        let bound = if precision == Precision::Fast { fast } else { 1e-11 };
                        let case = format!("{name} {dtype} m {m} k {k} {precision:?}");
                        assert!(error <= bound, "{case}: {error:e}, not within {bound:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn head_major_input_is_the_same_matrix() {
    for (name, device) in devices() {
        let mut random = Random(3);
        let (heads, m, dim, n) = (3, 11, 64, 20);
        let k = heads * dim;
        let (w, _) = weight(&device, DType::Q4_1, [n, k], &mut random);
        let x = random.values(m * k);
        let row_major = device.upload(&x, [m, k]).unwrap();
        let mut permuted = Vec::new();
        for head in 0..heads {
            for row in 0..m {
                permuted.extend_from_slice(&x[row * k + head * dim..][..dim]);
            }
        }
        let head_major = device.upload(&permuted, [heads, m, dim]).unwrap();
        let outputs = [(&row_major, InputLayout::RowMajor), (&head_major, InputLayout::HeadMajor)]
            .map(|(input, input_layout)| {
                let output = device.tensor(DType::F32, [m, n]).unwrap();
                let mut rec = device.record();
                let precision = Precision::Fast;
                rec.push(Matmul { input, weight: &w, output: &output, input_layout, precision })
                    .unwrap();
                rec.finish().unwrap().run().unwrap();
                output.to_vec::<f32>().unwrap()
            });
        assert_eq!(outputs[0], outputs[1], "{name}");
    }
}

#[test]
fn gated_products_of_mixed_types() {
    for (name, device) in devices() {
        for (gate_type, up_type) in
            [(DType::Q4_0, DType::Q4_0), (DType::Q4K, DType::Q6K), (DType::F16, DType::Q8_0)]
        {
            for (activation, m) in
                [(Activation::Silu, 1), (Activation::GeluTanh, 4), (Activation::Silu, 17)]
            {
                let mut random = Random(5);
                let (n, k) = (35, 256);
                let (gate, gate_values) = weight(&device, gate_type, [n, k], &mut random);
                let (up, up_values) = weight(&device, up_type, [n, k], &mut random);
                let x = random.coded(m, k);
                let act = |x: f64| match activation {
                    Activation::Silu => x / (1.0 + (-x).exp()),
                    Activation::GeluTanh => {
                        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        0.5 * x * (1.0 + u.tanh())
                    }
                };
                let gates = product(&x, &gate_values, k);
                let ups = product(&x, &up_values, k);
                let expected: Vec<f64> = gates.iter().zip(&ups).map(|(g, u)| act(*g) * u).collect();
                let input = device.upload(&x, [m, k]).unwrap();
                let output = device.upload(&vec![f32::NAN; m * n], [m, n]).unwrap();
                let mut rec = device.record();
                let precision = Precision::Fast;
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
                let error = nmse(&output.to_vec().unwrap(), &expected);
                let bound = 4.0 * coded_error(name, m);
                assert!(error <= bound, "{name} {gate_type} {up_type} m {m}: {error:e}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let mut outputs = Vec::new();
    for threads in [1, 2, 3] {
        let device = device(Config { threads: Some(threads), instruction_set: None }).unwrap();
        let mut random = Random(9);
        let (w, _) = weight(&device, DType::Q4K, [300, 512], &mut random);
        let input = device.upload(&random.values(33 * 512), [33, 512]).unwrap();
        let output = device.tensor(DType::F32, [33, 300]).unwrap();
        let mut rec = device.record();
        let (input_layout, precision) = (InputLayout::RowMajor, Precision::Fast);
        rec.push(Matmul { input: &input, weight: &w, output: &output, input_layout, precision })
            .unwrap();
        rec.finish().unwrap().run().unwrap();
        outputs.push(output.to_vec::<f32>().unwrap());
    }
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
}
