//! Softmax, argmax and sampling.

use super::{DIMS, Maker, check};
use kiln_core::ops::{Argmax, Sample, Softmax};
use kiln_core::{DType, Result, Tensor};

#[test]
fn softmax() {
    for (x, n) in DType::FLOATS.iter().flat_map(|x| DIMS.map(|n| (*x, n))) {
        check(&format!("softmax {x} {n}"), 2e-6, |make| {
            let input = make.float(x, [3, n + 2])?.slice(1, 1..n + 1)?;
            let wide = make.sized(x, [3, n], 60.0)?;
            let outputs = [make.output(x, [3, n])?, make.output(x, [3, n])?];
            let mut rec = make.device.record();
            rec.push(Softmax { input: &input, output: &outputs[0], scale: 1.0 })?;
            rec.push(Softmax { input: &input, output: &outputs[1], scale: -3.0 })?;
            rec.push(Softmax { input: &wide, output: &wide, scale: 1.5 })?;
            rec.finish()?.run()?;
            let [a, b] = outputs;
            Ok(vec![a, b, wide])
        });
    }
}

#[test]
fn softmax_of_special_values() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    check("softmax of special values", 1e-6, |make| {
        let rows = [
            [0.0, -inf, 1.0, -inf],
            [-inf, -inf, -inf, -inf],
            [0.0, nan, 1.0, 2.0],
            [inf, 0.0, 1.0, -inf],
            [1e30, 1e30, -1e30, 0.0],
        ];
        let input = make.put(DType::F32, [5, 4], &rows.concat())?;
        let output = make.output(DType::F32, [5, 4])?;
        let mut rec = make.device.record();
        rec.push(Softmax { input: &input, output: &output, scale: 2.0 })?;
        rec.finish()?.run()?;
        Ok(vec![output])
    });
}

/// Rows of `n` logits with ties, zeros of both signs, infinities and NaN.
fn logits(make: &mut Maker<'_>, n: usize) -> Result<Tensor> {
    let mut rows = vec![f32::NAN; n];
    rows.extend(vec![f32::NEG_INFINITY; n]);
    rows.extend((0..n).map(|i| if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY }));
    rows.extend((0..n).map(|i| [-0.0, 0.0][i % 2]));
    rows.extend((0..n).map(|i| i as f32));
    rows.extend((0..n).map(|i| -(i as f32)));
    rows.extend((0..n).map(|i| if i == n - 1 { f32::INFINITY } else { 3.0 }));
    for levels in [3, 1000] {
        rows.extend((0..n).map(|_| make.random.below(levels) as f32 / 40.0));
    }
    for size in [0.01, 1.0, 10.0, 100.0] {
        rows.extend(make.random.values(n, size));
    }
    let nan: Vec<f32> = make.random.values(n, 5.0);
    rows.extend(nan.iter().enumerate().map(|(i, x)| if i % 3 == 0 { f32::NAN } else { *x }));
    make.put(DType::F32, [rows.len() / n, n], &rows)
}

#[test]
fn argmax() {
    for n in DIMS.into_iter().chain([5000, 65_536, 65_537, 200_000]) {
        check(&format!("argmax {n}"), 0.0, |make| {
            let input = logits(make, n)?;
            let output = make.device.upload(&vec![u32::MAX; input.extent(0)], [input.extent(0)])?;
            let mut rec = make.device.record();
            rec.push(Argmax { input: &input, output: &output })?;
            rec.finish()?.run()?;
            Ok(vec![output])
        });
    }
}

#[test]
fn sample() {
    for n in [1, 2, 17, 64, 1000, 5000] {
        check(&format!("sample {n}"), 0.0, |make| {
            let logits = logits(make, n)?;
            let rows = logits.extent(0);
            let mut outputs = Vec::new();
            let mut rec = make.device.record();
            for temperature in [0.0, 0.01, 0.7, 1.0, 30.0] {
                for top_k in [0, 1, 5, 40, 999, 5000] {
                    for top_p in [1e-6, 0.5, 0.95, 1.0] {
                        let random = (0..rows).map(|_| (make.random.next() + 1.0) / 2.0);
                        let random: Vec<f32> = random.collect();
                        let random = make.device.upload(&random, [rows])?;
                        let output = make.device.upload(&vec![u32::MAX; rows], [rows])?;
                        rec.push(Sample {
                            logits: &logits,
                            random: &random,
                            output: &output,
                            temperature,
                            top_k,
                            top_p,
                        })?;
                        outputs.push(output);
                    }
                }
            }
            rec.finish()?.run()?;
            Ok(outputs)
        });
    }
}

#[test]
fn sample_at_the_ends_of_the_random_numbers() {
    check("sample at 0 and below 1", 0.0, |make| {
        let logits = make.sized(DType::F32, [2, 3000], 6.0)?;
        let random = make.device.upload(&[0.0f32, 1.0 - f32::EPSILON / 2.0], [2])?;
        let mut outputs = Vec::new();
        let mut rec = make.device.record();
        for (top_k, top_p) in [(0, 1.0), (0, 0.9), (50, 1.0), (50, 0.9)] {
            let output = make.device.tensor(DType::U32, [2])?;
            let (logits, random, output_of) = (&logits, &random, &output);
            let temperature = 1.0;
            rec.push(Sample { logits, random, output: output_of, temperature, top_k, top_p })?;
            outputs.push(output);
        }
        rec.finish()?.run()?;
        Ok(outputs)
    });
}

#[test]
fn equal_logits_are_drawn_by_index() {
    check("sample of equal logits", 0.0, |make| {
        let random: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
        let logits = make.put(DType::F32, [64, 64], &[0.5; 64 * 64])?;
        let random = make.device.upload(&random, [64])?;
        let outputs =
            vec![make.device.tensor(DType::U32, [64])?, make.device.tensor(DType::U32, [64])?];
        let mut rec = make.device.record();
        let (logits, random, temperature) = (&logits, &random, 0.5);
        for (output, top_p) in outputs.iter().zip([1.0, 0.5]) {
            rec.push(Sample { logits, random, output, temperature, top_k: 0, top_p })?;
        }
        rec.finish()?.run()?;
        assert_eq!(outputs[0].to_vec::<u32>()?, (0..64).collect::<Vec<u32>>());
        assert_eq!(outputs[1].to_vec::<u32>()?, (0..64).map(|i| i / 2).collect::<Vec<u32>>());
        Ok(outputs)
    });
}
