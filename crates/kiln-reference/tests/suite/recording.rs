//! What a recording accepts: owners, temporaries, read-only tensors and aliases.

use crate::common::*;
use kiln_core::ops::*;
use kiln_core::{DType, Error, OpError, SharedBytes, Tensor};

fn scale<'a>(input: &'a Tensor, output: &'a Tensor) -> Scale<&'a Tensor> {
    Scale { input, output, factor: 2.0 }
}

#[test]
fn tensors_of_another_device() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (x, y) = (lab.zeros(DType::F32, [2, 2]), other.zeros(DType::F32, [2, 2]));
    let foreign = |tensor| OpError::Foreign { op: "scale", tensor, owner: "device" };
    assert_eq!(lab.refused(scale(&y, &x)), foreign("input"));
    assert_eq!(lab.refused(scale(&x, &y)), foreign("output"));
}

#[test]
fn temporaries_of_another_recording() {
    let lab = Lab::new();
    let x = lab.zeros(DType::F32, [2, 2]);
    let other = lab.device.record();
    let temp = other.temp(DType::F32, [2, 2]).unwrap();
    let error = lab.refused(scale(&x, &temp));
    assert_eq!(error, OpError::Foreign { op: "scale", tensor: "output", owner: "recording" });
    assert_eq!(
        error.to_string(),
        "scale: `output` belongs to another recording than this recording"
    );
}

#[test]
fn temporaries_read_before_they_are_written() {
    let lab = Lab::new();
    let x = lab.zeros(DType::F32, [2, 2]);
    let mut rec = lab.device.record();
    let temp = rec.temp(DType::F32, [2, 2]).unwrap();
    let expected = Error::Op(OpError::Unwritten { op: "scale", tensor: "input" });
    assert_eq!(rec.push(scale(&temp, &x)), Err(expected.clone()));
    // In place is a read, too.
    assert_eq!(rec.push(scale(&temp, &temp)), Err(expected));
    rec.push(scale(&x, &temp)).unwrap();
    rec.push(scale(&temp, &temp)).unwrap();
    rec.push(scale(&temp, &x)).unwrap();
    assert_eq!(rec.ops().len(), 3);

    // A cache is only written in part: it must have been written before.
    let cache = rec.temp(DType::F32, [1, 4, 8]).unwrap();
    let input = lab.zeros(DType::F32, [1, 1, 8]);
    let start = lab.u32(&[0]);
    let append = KvAppend { input: &input, start: &start, cache: &cache, ring: false };
    let expected = OpError::Unwritten { op: "kv_append", tensor: "cache" };
    assert_eq!(rec.push(append), Err(Error::Op(expected)));
}

#[test]
fn weights_are_read_only() {
    let lab = Lab::new();
    let weight = lab.device.import(DType::F32, [2, 2], SharedBytes::from_vec(vec![0; 16])).unwrap();
    let x = lab.zeros(DType::F32, [2, 2]);
    let expected = OpError::ReadOnly { op: "scale", tensor: "output" };
    assert_eq!(lab.refused(scale(&x, &weight)), expected);
    lab.run(scale(&weight, &x));
    assert_eq!(weight.write(&[1.0f32; 4]), Err(Error::ReadOnly));
    assert_eq!(weight.to_vec::<f32>().unwrap(), [0.0; 4]);
}

#[test]
fn outputs_that_overlap_inputs() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0; 16], [4, 4]);
    let alias = |other| OpError::Alias { op: "scale", output: "output", other };
    let rows = |range| x.slice(0, range).unwrap();
    assert_eq!(lab.refused(scale(&rows(0..2), &rows(1..3))), alias("input"));
    lab.run(scale(&rows(0..2), &rows(2..4)));
    lab.run(scale(&rows(1..2), &rows(1..2)));
    assert_eq!(values(&x), [[1.0; 4], [2.0; 4], [2.0; 4], [2.0; 4]].concat());

    // Allowed pairs, and the same view where it is not allowed.
    let w = lab.f32(&[1.0; 4], [4]);
    let y = lab.zeros(DType::F32, [4, 4]);
    assert_eq!(
        lab.refused(RmsNormTriple {
            input: &x,
            weight_a: &w,
            weight_b: &w,
            weight_c: &w,
            output_a: &y,
            output_b: &x,
            output_c: &y,
            eps: 1e-6,
        }),
        OpError::Alias { op: "rms_norm_triple", output: "output_a", other: "output_c" }
    );
    assert_eq!(
        lab.refused(Copy { input: &x, output: &x }),
        OpError::Alias { op: "copy", output: "output", other: "input" }
    );
    assert_eq!(
        lab.refused(AddRmsNorm {
            a: &y,
            b: &x,
            weight: None,
            residual: &x,
            output: &lab.zeros(DType::F32, [4, 4]),
            eps: 1e-6,
        }),
        OpError::Alias { op: "add_rms_norm", output: "residual", other: "b" }
    );
    lab.run(Add { a: &x, b: &x, output: &x });
    let view = rows(0..4);
    lab.run(scale(&view, &x));
}

#[test]
fn views_are_in_place_only_when_they_are_the_same() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0; 4], [4]);
    let (wide, tall) = (x.reshape([1, 4]).unwrap(), x.reshape([4, 1]).unwrap());
    let y = lab.zeros(DType::F32, [1, 4]);
    // A vector that lies where the output does is another view.
    let error = lab.refused(Add { a: &y, b: &x, output: &wide });
    assert_eq!(error, OpError::Alias { op: "add", output: "output", other: "b" });
    lab.run(scale(&tall, &tall));
    assert_eq!(values(&x), [2.0; 4]);
}

#[test]
fn rows_of_a_temporary_that_nobody_wrote_are_nan_in_every_run() {
    let lab = Lab::new();
    let x = lab.f32(&[1.0; 4], [2, 2]);
    let [y, z] = [(); 2].map(|()| lab.zeros(DType::F32, [2, 2]));
    let mut rec = lab.device.record();
    let [half, full] = [(); 2].map(|()| rec.temp(DType::F32, [2, 2]).unwrap());
    let row = |t: &Tensor| t.slice(0, 0..1).unwrap();
    rec.push(scale(&row(&x), &row(&half))).unwrap();
    rec.push(scale(&half, &y)).unwrap();
    // Leaves its values in the same place of the arena.
    rec.push(scale(&x, &full)).unwrap();
    rec.push(scale(&full, &z)).unwrap();
    let step = rec.finish().unwrap();
    assert_eq!(step.plan().locate(&half), step.plan().locate(&full));
    for _ in 0..2 {
        step.run().unwrap();
        let y = values(&y);
        assert!(y[..2] == [4.0, 4.0] && y[2..].iter().all(|x| x.is_nan()), "{y:?}");
    }
}

#[test]
fn temporaries_have_no_bytes_for_the_host() {
    let lab = Lab::new();
    let rec = lab.device.record();
    let temp = rec.temp(DType::F32, [2]).unwrap();
    assert!(temp.is_temporary());
    assert_eq!(temp.to_vec::<f32>(), Err(Error::Temporary));
    assert_eq!(temp.write(&[1.0f32, 2.0]), Err(Error::Temporary));
}

#[test]
fn an_executable_keeps_what_it_needs_and_can_be_profiled() {
    let lab = Lab::new();
    let y = lab.zeros(DType::F32, [2, 2]);
    let step = {
        let x = lab.f32(&[1.0, 2.0, 3.0, 4.0], [2, 2]);
        let mut rec = lab.device.record();
        let temp = rec.temp(DType::F32, [2, 2]).unwrap();
        rec.push(scale(&x, &temp)).unwrap();
        rec.push(Mul { a: &temp, b: &x, output: &y }).unwrap();
        rec.finish().unwrap()
    };
    // Would take the buffer of `x` if it were free.
    let _other = lab.f32(&[9.0; 4], [2, 2]);
    step.run().unwrap();
    assert_eq!(values(&y), [2.0, 8.0, 18.0, 32.0]);
    assert_eq!(step.device().name(), "reference");

    let profile = step.profile().unwrap();
    let names: Vec<_> = profile.iter().map(|step| step.name).collect();
    assert_eq!(names, ["scale", "mul"]);
    assert_eq!(profile[1].description, "mul a:f32[2, 2] b:f32[2, 2] output:f32[2, 2]");
    assert_eq!((profile[1].bytes, profile[1].flops), (48, 4));
}

#[test]
fn an_empty_recording_runs() {
    let lab = Lab::new();
    let step = lab.device.record().finish().unwrap();
    step.run().unwrap();
    assert_eq!(step.plan().barriers(), 0);
    assert!(step.profile().unwrap().is_empty());
}
