//! The RMS normalisation family and layer normalisation.

use super::{DIMS, Maker, check};
use kiln_core::ops::*;
use kiln_core::{DType, Result, Tensor};

/// Types of activations and weights.
const TYPES: [[DType; 2]; 5] = [
    [DType::F32, DType::F32],
    [DType::F16, DType::F32],
    [DType::F16, DType::F16],
    [DType::BF16, DType::F32],
    [DType::BF16, DType::BF16],
];

/// Every pair of types with every length, some rows, and rows enough for several tasks.
fn cases(name: &str, run: impl Fn(&mut Maker<'_>, [DType; 2], [usize; 2]) -> Result<Vec<Tensor>>) {
    for types in TYPES {
        for (index, dim) in DIMS.into_iter().enumerate() {
            let rows = [1, 2, 5, 70][index % 4];
            let label = format!("{name} {} {} [{rows}, {dim}]", types[0], types[1]);
            check(&label, 1e-6, |make| run(make, types, [rows, dim]));
        }
    }
}

#[test]
fn rms_norm() {
    cases("rms_norm", |make, [x, w], [rows, dim]| {
        let input = make.strided(x, [rows, dim])?;
        let weight = make.float(w, [dim])?;
        let outputs = [make.output(x, [rows, dim])?, make.output(x, [rows, dim])?];
        let in_place = make.float(x, [rows, dim])?;
        let mut rec = make.device.record();
        rec.push(RmsNorm { input: &input, weight: Some(&weight), output: &outputs[0], eps: 1e-6 })?;
        rec.push(RmsNorm { input: &input, weight: None, output: &outputs[1], eps: 1e-6 })?;
        rec.push(RmsNorm { input: &in_place, weight: Some(&weight), output: &in_place, eps: 0.1 })?;
        rec.finish()?.run()?;
        let [a, b] = outputs;
        Ok(vec![a, b, in_place])
    });
}

#[test]
fn rms_norm_mul() {
    cases("rms_norm_mul", |make, [x, w], [rows, dim]| {
        let input = make.strided(x, [rows, dim])?;
        let weight = make.float(w, [dim])?;
        let scale = make.strided(x, [rows, dim])?;
        let output = make.output(x, [rows, dim])?;
        let [as_input, as_scale] = [make.float(x, [rows, dim])?, make.float(x, [rows, dim])?];
        let (eps, none) = (1e-5, None);
        let mut rec = make.device.record();
        let (input, scale) = (&input, &scale);
        rec.push(RmsNormMul { input, weight: Some(&weight), scale, output: &output, eps })?;
        let changed = &as_input;
        rec.push(RmsNormMul { input: changed, weight: none, scale, output: changed, eps })?;
        let changed = &as_scale;
        rec.push(RmsNormMul { input, weight: none, scale: changed, output: changed, eps })?;
        rec.finish()?.run()?;
        Ok(vec![output, as_input, as_scale])
    });
}

#[test]
fn rms_norm_triple() {
    cases("rms_norm_triple", |make, [x, w], [rows, dim]| {
        let input = make.strided(x, [rows, dim])?;
        let [a, b, c] = [make.float(w, [dim])?, make.float(w, [dim])?, make.float(x, [dim])?];
        let y = [(); 3].map(|()| make.output(x, [rows, dim]));
        let [y0, y1, y2] = y;
        let (y0, y1, y2) = (y0?, y1?, y2?);
        let mut rec = make.device.record();
        rec.push(RmsNormTriple {
            input: &input,
            weight_a: &a,
            weight_b: &b,
            weight_c: &c,
            output_a: &y0,
            output_b: &y1,
            output_c: &y2,
            eps: 1e-6,
        })?;
        rec.finish()?.run()?;
        Ok(vec![y0, y1, y2])
    });
}

#[test]
fn post_attn_triple_norm() {
    for in_place in [false, true] {
        cases("post_attn_triple_norm", |make, [x, w], [rows, dim]| {
            let hidden = make.strided(x, [rows, dim])?;
            let attn = make.float(x, [rows, dim])?;
            let [post, a] = [make.float(w, [dim])?, make.float(x, [dim])?];
            let [b, c] = [make.float(w, [dim])?, make.float(w, [dim])?];
            let new = make.output(x, [rows, dim])?;
            let residual = if in_place { &hidden } else { &new };
            let output_a = make.output(x, [rows, dim])?;
            let output_b = make.output(x, [rows, dim])?;
            let output_c = make.output(x, [rows, dim])?;
            let mut rec = make.device.record();
            rec.push(PostAttnTripleNorm {
                hidden: &hidden,
                attn: &attn,
                weight_post: &post,
                weight_a: &a,
                weight_b: &b,
                weight_c: &c,
                residual,
                output_a: &output_a,
                output_b: &output_b,
                output_c: &output_c,
                eps: 1e-6,
            })?;
            rec.finish()?.run()?;
            Ok(vec![residual.clone(), output_a, output_b, output_c])
        });
    }
}

#[test]
fn ends_of_layers() {
    for (in_place, top_k) in [(false, 1), (true, 3)] {
        cases("end of a layer", |make, [x, w], [rows, dim]| {
            let [attn, moe] = [make.float(x, [rows, dim])?, make.strided(x, [rows, dim])?];
            let experts = make.float(x, [rows, top_k, dim])?;
            let route = make.float(DType::F32, [rows, top_k])?;
            let [weight_moe, weight_mlp] = [make.float(w, [dim])?, make.float(x, [dim])?];
            let layer_scalar = make.float(w, [if in_place { 1 } else { dim }])?;
            let [mlp, routed_mlp] = [make.output(x, [rows, dim])?, make.output(x, [rows, dim])?];
            let [residual, second] = [make.float(x, [rows, dim])?, make.strided(x, [rows, dim])?];
            let [new, routed] = [make.output(x, [rows, dim])?, make.output(x, [rows, dim])?];
            let output = if in_place { &residual } else { &new };
            let routed_output = if in_place { &second } else { &routed };
            let eps = 1e-6;
            let mut rec = make.device.record();
            rec.push(PostFfNormEndLayer {
                attn: &attn,
                moe: &moe,
                weight_moe: &weight_moe,
                residual: &residual,
                weight_mlp: &weight_mlp,
                layer_scalar: &layer_scalar,
                mlp: &mlp,
                output,
                eps,
            })?;
            rec.push(MoePostFfNormEndLayer {
                attn: &attn,
                experts: &experts,
                route: &route,
                weight_moe: &weight_moe,
                residual: &second,
                weight_mlp: &weight_mlp,
                layer_scalar: &layer_scalar,
                mlp: &routed_mlp,
                output: routed_output,
                eps,
            })?;
            rec.finish()?.run()?;
            Ok(vec![mlp, output.clone(), routed_mlp, routed_output.clone()])
        });
    }
}

#[test]
fn add_rms_norm() {
    cases("add_rms_norm", |make, [x, w], [rows, dim]| {
        let [a, b] = [make.strided(x, [rows, dim])?, make.float(x, [rows, dim])?];
        let weight = make.float(w, [dim])?;
        let residual = make.output(x, [rows, dim])?;
        let output = make.output(x, [rows, dim])?;
        let plain = make.output(x, [rows, dim])?;
        let (a, b, eps) = (&a, &b, 1e-6);
        let mut rec = make.device.record();
        let weight = Some(&weight);
        rec.push(AddRmsNorm { a, b, weight, residual: &residual, output: &output, eps })?;
        rec.push(AddRmsNorm { a, b, weight: None, residual: a, output: &plain, eps })?;
        rec.finish()?.run()?;
        Ok(vec![residual, output, a.clone(), plain])
    });
}

#[test]
fn layer_norm() {
    cases("layer_norm", |make, [x, w], [rows, dim]| {
        let input = make.strided(x, [rows, dim])?;
        let [weight, bias] = [make.float(w, [dim])?, make.float(x, [dim])?];
        let output = make.output(x, [rows, dim])?;
        let (weight, bias, eps) = (&weight, Some(&bias), 1e-5);
        let mut rec = make.device.record();
        rec.push(LayerNorm { input: &input, weight, bias, output: &output, eps })?;
        rec.push(LayerNorm { input: &input, weight, bias: None, output: &input, eps })?;
        rec.finish()?.run()?;
        Ok(vec![output, input])
    });
}

#[test]
fn layer_norm_of_a_large_mean() {
    check("layer_norm of a large mean", 2e-5, |make| {
        let values: Vec<f32> = make.random.values(4 * 1000, 1.0);
        let values: Vec<f32> = values.iter().map(|x| x + 300.0).collect();
        let input = make.put(DType::F32, [4, 1000], &values)?;
        let weight = make.float(DType::F32, [1000])?;
        let output = make.output(DType::F32, [4, 1000])?;
        let mut rec = make.device.record();
        let (weight, eps) = (&weight, 1e-5);
        rec.push(LayerNorm { input: &input, weight, bias: None, output: &output, eps })?;
        rec.finish()?.run()?;
        Ok(vec![output])
    });
}
