//! Fused plans give the bits of unfused ones.

use super::{DEVICES, DIMS, Maker, Random, bytes};
use kiln_core::ops::*;
use kiln_core::{DType, PlanOptions, Recording, Result, Tensor};

/// Runs a recording fused and unfused on every device. The fused plan has `fused` steps.
fn check(
    case: &str,
    fused: usize,
    run: impl Fn(&mut Maker<'_>, &mut Recording) -> Result<Vec<Tensor>>,
) {
    for (name, devices) in DEVICES.iter() {
        for device in devices {
            let run = |fuse| {
                let mut rec = device.record();
                let mut make = Maker { device, random: Random(11) };
                let outputs = run(&mut make, &mut rec)?;
                let step = rec.finish_with(PlanOptions { fuse, ..PlanOptions::default() })?;
                step.run()?;
                let outputs: Vec<Vec<u8>> = outputs.iter().map(bytes).collect();
                Ok((step.plan().steps().len(), outputs))
            };
            let run = |fuse| run(fuse).unwrap_or_else(|e: kiln_core::Error| panic!("{case}: {e}"));
            let (plain, expected) = run(false);
            let (steps, got) = run(true);
            assert!(plain > fused && steps == fused, "{case}: {plain} and {steps} steps");
            assert!(got == expected, "{case}, {name}");
        }
    }
}

#[test]
fn rms_norm_then_mul() {
    for (dim, has_weight) in DIMS.into_iter().flat_map(|dim| [(dim, true), (dim, false)]) {
        check(&format!("rms_norm and mul {dim}"), 1, |make, rec| {
            let dims = [5, dim];
            let [x, s] = [make.float(DType::F32, dims)?, make.float(DType::F32, dims)?];
            let weight = make.float(DType::F32, [dim])?;
            let weight = has_weight.then_some(&weight);
            let output = make.output(DType::F32, dims)?;
            let normed = rec.temp(DType::F32, dims)?;
            rec.push(RmsNorm { input: &x, weight, output: &normed, eps: 1e-6 })?;
            rec.push(Mul { a: &normed, b: &s, output: &output })?;
            Ok(vec![output])
        });
    }
}

#[test]
fn add_then_rms_norm() {
    for (dim, x) in DIMS.into_iter().flat_map(|dim| DType::FLOATS.map(|x| (dim, x))) {
        check(&format!("add and rms_norm {x} {dim}"), 1, |make, rec| {
            let dims = [5, dim];
            let [a, b] = [make.float(x, dims)?, make.float(x, dims)?];
            let weight = make.float(DType::F32, [dim])?;
            let output = make.output(x, dims)?;
            rec.push(Add { a: &a, b: &b, output: &a })?;
            rec.push(RmsNorm { input: &a, weight: Some(&weight), output: &output, eps: 1e-6 })?;
            Ok(vec![a, output])
        });
    }
}

#[test]
fn head_norm_rope_then_kv_append() {
    let types = [
        [DType::F32, DType::F32],
        [DType::F32, DType::F16],
        [DType::F32, DType::BF16],
        [DType::F16, DType::F16],
        [DType::BF16, DType::BF16],
    ];
    for [x, cache] in types {
        check(&format!("head_norm_rope and kv_append {x} {cache}"), 1, |make, rec| {
            let [tokens, heads, dim, half] = [5, 3, 72, 18];
            let input = make.float(x, [tokens, heads, dim])?;
            let weight = make.float(DType::F32, [dim])?;
            let positions: Vec<u32> = (4..4 + tokens as u32).collect();
            let positions = make.device.upload(&positions, [tokens])?;
            let start = make.device.upload(&[4u32], [1])?;
            // The last token is past the end.
            let cache = make.float(cache, [heads, 8, dim])?;
            let rotated = rec.temp(x, [tokens, heads, dim])?;
            rec.push(HeadNormRope {
                input: &input,
                weight: Some(&weight),
                positions: Some(&positions),
                freq_factors: None,
                cos: None,
                sin: None,
                cache_start: None,
                output: Some(&rotated),
                output_bf16: None,
                output_f32: None,
                cache: None,
                pairing: RopePairing::Leading,
                half,
                theta: 1e4,
                normalize: true,
                eps: 1e-6,
                copy_layout: HeadLayout::TokenMajor,
            })?;
            rec.push(KvAppend { input: &rotated, start: &start, cache: &cache, ring: false })?;
            Ok(vec![cache])
        });
    }
}

#[test]
fn products_then_gated_activation() {
    for (m, activation) in [(1, Activation::Silu), (33, Activation::GeluTanh)] {
        check(&format!("matmul and {activation:?} {m}"), 1, |make, rec| {
            let [n, k] = [70, 96];
            let input = make.float(DType::F32, [m, k])?;
            let weights = [make.float(DType::F32, [n, k])?, make.float(DType::BF16, [n, k])?];
            let output = make.output(DType::F32, [m, n])?;
            let [gate, up] = [rec.temp(DType::F32, [m, n])?, rec.temp(DType::F32, [m, n])?];
            for (weight, output) in weights.iter().zip([&gate, &up]) {
                let (input_layout, precision) = (InputLayout::RowMajor, Precision::Exact);
                rec.push(Matmul { input: &input, weight, output, input_layout, precision })?;
            }
            let (gate, up) = (&gate, &up);
            match activation {
                Activation::Silu => rec.push(SiluMul { gate, up, output: &output })?,
                Activation::GeluTanh => rec.push(GeluMul { gate, up, output: &output })?,
            }
            Ok(vec![output])
        });
    }
}
