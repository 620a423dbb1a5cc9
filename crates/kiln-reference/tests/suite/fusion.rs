//! The fusion pass: what is fused, what must not be, and that the bits stay the same.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{Barriers, DType, PlanOptions, Recording, Tensor};

/// Records operations and returns what to compare.
type Build<'a> = &'a dyn Fn(&Lab, &mut Recording) -> Vec<Tensor>;

/// Names of the planned steps and the bits of the results.
fn outcome(options: PlanOptions, build: Build) -> (Vec<&'static str>, Vec<Vec<u8>>) {
    let lab = Lab::new();
    let mut rec = lab.device.record();
    let results = build(&lab, &mut rec);
    let recorded = rec.ops().len();
    let step = rec.finish_with(options).unwrap();
    let plan = step.plan();
    let names: Vec<_> = plan.steps().iter().map(|step| step.op.name()).collect();
    assert!(options.fuse || names.len() == recorded);
    if options.barriers == Barriers::EveryStep {
        assert_eq!(plan.barriers(), names.len() - 1);
    }
    step.run().unwrap();
    (names, results.iter().map(bits).collect())
}

/// The steps of the fused plan, after a check that every plan gives the same bits.
#[track_caller]
fn fused(build: Build) -> Vec<&'static str> {
    let (names, expected) = outcome(PlanOptions::default(), build);
    for fuse in [true, false] {
        for barriers in [Barriers::Hazards, Barriers::EveryStep] {
            let (_, got) = outcome(PlanOptions { fuse, barriers }, build);
            assert!(got == expected, "fuse {fuse}, {barriers:?}: other bits");
        }
    }
    names
}

const SHAPE: [usize; 2] = [16, 24];

/// A seeded tensor with all bits of its type in use.
fn random(lab: &Lab, seed: u64, dtype: DType, shape: &[usize]) -> Tensor {
    let shape = kiln_core::Shape::from_slice(shape).unwrap();
    lab.of(dtype, &Rng(seed).full_values(shape.iter().product()), shape)
}

/// `RmsNorm` to a temporary, then a product with it.
fn norm_mul(lab: &Lab, rec: &mut Recording, dtype: DType, swapped: bool) -> Vec<Tensor> {
    let [x, s] = [1, 2].map(|seed| random(lab, seed, dtype, &SHAPE));
    let w = random(lab, 3, DType::F32, &SHAPE[1..]);
    let t = rec.temp(dtype, SHAPE).unwrap();
    let y = lab.zeros(dtype, SHAPE);
    rec.push(RmsNorm { input: &x, weight: Some(&w), output: &t, eps: 1e-5 }).unwrap();
    let (a, b) = if swapped { (&s, &t) } else { (&t, &s) };
    rec.push(Mul { a, b, output: &y }).unwrap();
    vec![y]
}

#[test]
fn rms_norm_then_mul() {
    for swapped in [false, true] {
        assert_eq!(fused(&|lab, rec| norm_mul(lab, rec, DType::F32, swapped)), ["rms_norm_mul"]);
    }
    // Smaller types lose a rounding in between.
    for dtype in [DType::F16, DType::BF16] {
        let names = fused(&|lab, rec| norm_mul(lab, rec, dtype, false));
        assert_eq!(names, ["rms_norm", "mul"]);
    }
}

#[test]
fn rms_norm_then_mul_in_place_of_the_scale() {
    let names = fused(&|lab, rec| {
        let [x, s] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
        let t = rec.temp(DType::F32, SHAPE).unwrap();
        rec.push(RmsNorm { input: &x, weight: None, output: &t, eps: 1e-5 }).unwrap();
        rec.push(Mul { a: &t, b: &s, output: &s }).unwrap();
        vec![s]
    });
    assert_eq!(names, ["rms_norm_mul"]);
}

#[test]
fn a_value_used_elsewhere_is_kept() {
    // The temporary is read again.
    let names = fused(&|lab, rec| {
        let x = random(lab, 1, DType::F32, &SHAPE);
        let t = rec.temp(DType::F32, SHAPE).unwrap();
        let [y, z] = [(); 2].map(|()| lab.zeros(DType::F32, SHAPE));
        rec.push(RmsNorm { input: &x, weight: None, output: &t, eps: 1e-5 }).unwrap();
        rec.push(Mul { a: &t, b: &x, output: &y }).unwrap();
        rec.push(Scale { input: &t, output: &z, factor: 3.0 }).unwrap();
        vec![y, z]
    });
    assert_eq!(names, ["rms_norm", "mul", "scale"]);
    // The value is a tensor that the host can read.
    let names = fused(&|lab, rec| {
        let x = random(lab, 1, DType::F32, &SHAPE);
        let [t, y] = [(); 2].map(|()| lab.zeros(DType::F32, SHAPE));
        rec.push(RmsNorm { input: &x, weight: None, output: &t, eps: 1e-5 }).unwrap();
        rec.push(Mul { a: &t, b: &x, output: &y }).unwrap();
        vec![t, y]
    });
    assert_eq!(names, ["rms_norm", "mul"]);
    // The square of the value.
    let names = fused(&|lab, rec| {
        let x = random(lab, 1, DType::F32, &SHAPE);
        let t = rec.temp(DType::F32, SHAPE).unwrap();
        let y = lab.zeros(DType::F32, SHAPE);
        rec.push(RmsNorm { input: &x, weight: None, output: &t, eps: 1e-5 }).unwrap();
        rec.push(Mul { a: &t, b: &t, output: &y }).unwrap();
        vec![y]
    });
    assert_eq!(names, ["rms_norm", "mul"]);
}

#[test]
fn operations_in_between() {
    // An unrelated one does no harm; one that overwrites the input of the norm does.
    for (overwrite, expected) in
        [(false, &["scale", "rms_norm_mul"][..]), (true, &["rms_norm", "scale", "mul"][..])]
    {
        let names = fused(&|lab, rec| {
            let [x, s] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let t = rec.temp(DType::F32, SHAPE).unwrap();
            let [y, z] = [(); 2].map(|()| lab.zeros(DType::F32, SHAPE));
            rec.push(RmsNorm { input: &x, weight: None, output: &t, eps: 1e-5 }).unwrap();
            let output = if overwrite { &x } else { &z };
            rec.push(Scale { input: &s, output, factor: 2.0 }).unwrap();
            rec.push(Mul { a: &t, b: &s, output: &y }).unwrap();
            vec![x, y, z]
        });
        assert_eq!(names, expected);
    }
}

#[test]
fn add_then_rms_norm() {
    for dtype in DType::FLOATS {
        for in_place in [false, true] {
            let names = fused(&|lab, rec| {
                let [a, b] = [1, 2].map(|seed| random(lab, seed, dtype, &SHAPE));
                let w = random(lab, 3, DType::F32, &SHAPE[1..]);
                let [sum, y] = [(); 2].map(|()| lab.zeros(dtype, SHAPE));
                let sum = if in_place { a.clone() } else { sum };
                rec.push(Add { a: &a, b: &b, output: &sum }).unwrap();
                rec.push(RmsNorm { input: &sum, weight: Some(&w), output: &y, eps: 1e-5 }).unwrap();
                vec![sum, y]
            });
            assert_eq!(names, ["add_rms_norm"], "{dtype}, in place: {in_place}");
        }
    }
}

#[test]
fn add_then_rms_norm_where_it_is_not_legal() {
    // The sum takes the place of `b`, or the norm that of the sum or of `a`; a bias; a sum of other
    // rows than the norm reads.
    let cases: [(&str, Build); 6] = [
        ("b", &|lab, rec| {
            let [a, b] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let y = lab.zeros(DType::F32, SHAPE);
            rec.push(Add { a: &a, b: &b, output: &b }).unwrap();
            rec.push(RmsNorm { input: &b, weight: None, output: &y, eps: 1e-5 }).unwrap();
            vec![b, y]
        }),
        ("sum", &|lab, rec| {
            let [a, b] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let y = lab.zeros(DType::F32, SHAPE);
            rec.push(Add { a: &a, b: &b, output: &y }).unwrap();
            rec.push(RmsNorm { input: &y, weight: None, output: &y, eps: 1e-5 }).unwrap();
            vec![y]
        }),
        ("a", &|lab, rec| {
            let [a, b] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let y = lab.zeros(DType::F32, SHAPE);
            rec.push(Add { a: &a, b: &b, output: &y }).unwrap();
            rec.push(RmsNorm { input: &y, weight: None, output: &a, eps: 1e-5 }).unwrap();
            vec![a, y]
        }),
        ("bias", &|lab, rec| {
            let a = random(lab, 1, DType::F32, &SHAPE);
            let b = random(lab, 2, DType::F32, &SHAPE[1..]);
            let [sum, y] = [(); 2].map(|()| lab.zeros(DType::F32, SHAPE));
            rec.push(Add { a: &a, b: &b, output: &sum }).unwrap();
            rec.push(RmsNorm { input: &sum, weight: None, output: &y, eps: 1e-5 }).unwrap();
            vec![sum, y]
        }),
        ("part", &|lab, rec| {
            let [a, b] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let [sum, y] = [(); 2].map(|()| lab.zeros(DType::F32, SHAPE));
            let part = |t: &Tensor| t.slice(0, 0..7).unwrap();
            rec.push(Add { a: &part(&a), b: &part(&b), output: &part(&sum) }).unwrap();
            rec.push(RmsNorm { input: &sum, weight: None, output: &y, eps: 1e-5 }).unwrap();
            vec![sum, y]
        }),
        ("other rows", &|lab, rec| {
            let [a, b, sum] = [1, 2, 3].map(|seed| random(lab, seed, DType::F32, &SHAPE));
            let y = lab.zeros(DType::F32, [7, SHAPE[1]]);
            let part = |t: &Tensor, first| t.slice(0, first..first + 7).unwrap();
            rec.push(Add { a: &part(&a, 0), b: &part(&b, 0), output: &part(&sum, 0) }).unwrap();
            let input = &part(&sum, 3);
            rec.push(RmsNorm { input, weight: None, output: &y, eps: 1e-5 }).unwrap();
            vec![sum, y]
        }),
    ];
    for (case, build) in cases {
        assert_eq!(fused(build), ["add", "rms_norm"], "{case}");
    }
    let names = fused(&|lab, rec| {
        let [a, b] = [1, 2].map(|seed| random(lab, seed, DType::F32, &SHAPE));
        let [sum, y, z] = [(); 3].map(|()| lab.zeros(DType::F32, SHAPE));
        rec.push(Add { a: &a, b: &b, output: &sum }).unwrap();
        rec.push(Scale { input: &sum, output: &z, factor: 2.0 }).unwrap();
        rec.push(RmsNorm { input: &sum, weight: None, output: &y, eps: 1e-5 }).unwrap();
        vec![sum, y, z]
    });
    assert_eq!(names, ["add", "scale", "rms_norm"]);
}

/// Which products of a gated layer differ from the plain pattern.
#[derive(Clone, Copy, PartialEq)]
enum Gated {
    Plain,
    UpFirst,
    OtherInput,
    OtherPrecision,
    HeadMajor,
}

fn gated(lab: &Lab, rec: &mut Recording, form: Gated, silu: bool) -> Vec<Tensor> {
    let (m, n, k) = (5, 7, 64);
    let x = random(lab, 1, DType::F32, &[m, k]);
    let other = random(lab, 2, DType::F32, &[m, k]);
    let gate_weight = random(lab, 3, DType::Q4_0, &[n, k]);
    let up_weight = random(lab, 4, DType::Q8_0, &[n, k]);
    let [gate, up] = [(); 2].map(|()| rec.temp(DType::F32, [m, n]).unwrap());
    let y = lab.zeros(DType::F32, [m, n]);
    let split = x.reshape([2, m, k / 2]).unwrap();
    let (input, input_layout) = match form {
        Gated::HeadMajor => (&split, InputLayout::HeadMajor),
        _ => (&x, InputLayout::RowMajor),
    };
    let precision = Precision::Fast;
    let gate_op = Matmul { input, weight: &gate_weight, output: &gate, input_layout, precision };
    let up_op = Matmul {
        input: if form == Gated::OtherInput { &other } else { input },
        weight: &up_weight,
        output: &up,
        input_layout,
        precision: if form == Gated::OtherPrecision { Precision::Exact } else { precision },
    };
    if form == Gated::UpFirst {
        rec.push(up_op).unwrap();
        rec.push(gate_op).unwrap();
    } else {
        rec.push(gate_op).unwrap();
        rec.push(up_op).unwrap();
    }
    if silu {
        rec.push(SiluMul { gate: &gate, up: &up, output: &y }).unwrap();
    } else {
        rec.push(GeluMul { gate: &gate, up: &up, output: &y }).unwrap();
    }
    vec![y]
}

#[test]
fn two_products_then_the_gate() {
    for silu in [true, false] {
        for form in [Gated::Plain, Gated::UpFirst] {
            assert_eq!(fused(&|lab, rec| gated(lab, rec, form, silu)), ["gated_matmul"]);
        }
        let last = if silu { "silu_mul" } else { "gelu_mul" };
        for form in [Gated::OtherInput, Gated::OtherPrecision, Gated::HeadMajor] {
            let names = fused(&|lab, rec| gated(lab, rec, form, silu));
            assert_eq!(names, ["matmul", "matmul", last]);
        }
    }
}

/// `HeadNormRope` to a temporary, then `KvAppend` of it.
fn rope_append(
    lab: &Lab,
    rec: &mut Recording,
    input: DType,
    cache: DType,
    ring: bool,
) -> Vec<Tensor> {
    let (t, h, d) = (9, 3, 32);
    let x = random(lab, 1, input, &[t, h, d]);
    let w = random(lab, 2, DType::F32, &[d]);
    let cache = lab.zeros(cache, [h, 12, d]);
    let heads = rec.temp(input, [t, h, d]).unwrap();
    let positions = lab.u32(&[5, 6, 7, 8, 9, 10, 11, 12, 13]);
    // The last two tokens are past the capacity.
    let start = lab.u32(&[5]);
    rec.push(HeadNormRope {
        input: &x,
        weight: Some(&w),
        positions: Some(&positions),
        freq_factors: None,
        cos: None,
        sin: None,
        cache_start: None,
        output: Some(&heads),
        output_bf16: None,
        output_f32: None,
        cache: None,
        pairing: RopePairing::Leading,
        half: 12,
        theta: 1e6,
        normalize: true,
        eps: 1e-6,
        copy_layout: HeadLayout::TokenMajor,
    })
    .unwrap();
    rec.push(KvAppend { input: &heads, start: &start, cache: &cache, ring }).unwrap();
    vec![cache]
}

#[test]
fn rope_then_append() {
    use DType::*;
    for (input, cache, fuses) in [
        (F32, F32, true),
        (F32, F16, true),
        (F32, BF16, true),
        (F16, F16, true),
        (BF16, BF16, true),
        (F16, F32, false),
        (BF16, F16, false),
        (F32, Q8_0, false),
    ] {
        let names = fused(&|lab, rec| rope_append(lab, rec, input, cache, false));
        let expected: &[_] =
            if fuses { &["head_norm_rope"] } else { &["head_norm_rope", "kv_append"] };
        assert_eq!(names, expected, "{input} to {cache}");
    }
    let names = fused(&|lab, rec| rope_append(lab, rec, F32, F16, true));
    assert_eq!(names, ["head_norm_rope", "kv_append"]);
}

fn matmul(rec: &mut Recording, input: &Tensor, weight: &Tensor, output: &Tensor) {
    let (input_layout, precision) = (InputLayout::RowMajor, Precision::Fast);
    rec.push(Matmul { input, weight, output, input_layout, precision }).unwrap();
}

#[test]
fn a_layer_of_fusions_in_a_row() {
    let names = fused(&|lab, rec| {
        let (m, k) = (4, 32);
        let mut x = random(lab, 1, DType::F32, &[m, k]);
        for layer in 0..3 {
            let weights =
                [2, 3, 4].map(|seed| random(lab, seed + 10 * layer, DType::Q8_0, &[k, k]));
            let [sum, h, gate, up, y] = [(); 5].map(|()| rec.temp(DType::F32, [m, k]).unwrap());
            matmul(rec, &x, &weights[0], &y);
            rec.push(Add { a: &x, b: &y, output: &sum }).unwrap();
            rec.push(RmsNorm { input: &sum, weight: None, output: &h, eps: 1e-6 }).unwrap();
            matmul(rec, &h, &weights[1], &gate);
            matmul(rec, &h, &weights[2], &up);
            let out = lab.zeros(DType::F32, [m, k]);
            rec.push(SiluMul { gate: &gate, up: &up, output: &out }).unwrap();
            x = out;
        }
        vec![x]
    });
    assert_eq!(names, ["matmul", "add_rms_norm", "gated_matmul"].repeat(3));
}
