//! Faults planted in kernels are caught.

use super::*;
use crate::Metal;
use kiln_core::ops::{Add, PostAttnTripleNorm, RmsNorm};
use kiln_core::{DType, Device};

/// A device whose sources are changed by `plant`, which must change something.
fn planted(plant: fn(&str) -> String) -> Device {
    let mut host = Host::open(HostConfig { schedules: 2, ..HostConfig::default() }).unwrap();
    host.source = plant;
    Metal::device(host)
}

/// Runs a norm of rows of `dim` values.
fn rms_norm(device: &Device, dim: usize) -> kiln_core::Result<Vec<f32>> {
    let values: Vec<f32> = (0..3 * dim).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = device.upload(&values, [3, dim])?;
    let y = device.tensor(DType::F32, [3, dim])?;
    let mut rec = device.record();
    rec.push(RmsNorm { input: &x, weight: None, output: &y, eps: 1e-6 })?;
    rec.finish()?.run()?;
    y.to_vec::<f32>()
}

/// Runs a norm of two statistics.
fn two_statistics(device: &Device, dim: usize) -> kiln_core::Result<()> {
    let x = device.upload(&vec![0.5f32; dim], [1, dim])?;
    let w = device.upload(&vec![1.0f32; dim], [dim])?;
    let outputs: Vec<_> =
        (0..4).map(|_| device.tensor(DType::F32, [1, dim])).collect::<Result<_, _>>()?;
    let mut rec = device.record();
    rec.push(PostAttnTripleNorm {
        hidden: &x,
        attn: &x,
        weight_post: &w,
        weight_a: &w,
        weight_b: &w,
        weight_c: &w,
        residual: &outputs[0],
        output_a: &outputs[1],
        output_b: &outputs[2],
        output_c: &outputs[3],
        eps: 1e-6,
    })?;
    rec.finish()?.run()
}

fn problem<T: fmt::Debug>(result: kiln_core::Result<T>) -> String {
    result.unwrap_err().to_string().to_lowercase()
}

#[test]
fn kernels_as_they_are_have_no_fault() {
    let device = planted(str::to_owned);
    let y = rms_norm(&device, 512).unwrap();
    let mean = y[..512].iter().map(|y| y * y).sum::<f32>() / 512.0;
    assert!((mean - 1.0).abs() < 1e-4, "{mean}");
    two_statistics(&device, 512).unwrap();
}

#[test]
fn a_missing_barrier_after_the_partial_sums_is_a_conflict() {
    let device =
        planted(|source| source.replace("threadgroup_barrier(mem_flags::mem_threadgroup);", ";"));
    let problem = problem(rms_norm(&device, 512));
    assert!(problem.contains("step 0, rms_norm"), "{problem}");
    assert!(problem.contains("conflict") || problem.contains("nothing wrote"), "{problem}");
}

#[test]
fn scratch_that_is_too_small_is_out_of_bounds() {
    let device = planted(|source| {
        source.replace(
            "threadgroup float partials[2 * MAX_SIMDGROUPS];",
            "threadgroup float partials[MAX_SIMDGROUPS];",
        )
    });
    let problem = problem(two_statistics(&device, 512));
    assert!(problem.contains("post_attn_triple_norm"), "{problem}");
    assert!(problem.contains("threadgroup"), "{problem}");
}

#[test]
fn a_row_too_many_is_out_of_bounds() {
    let device =
        planted(|source| source.replace("const ulong at = group;", "const ulong at = group + 1;"));
    let problem = problem(rms_norm(&device, 512));
    assert!(problem.contains("rms_norm") && problem.contains("which has"), "{problem}");
}

#[test]
fn a_temporary_that_is_not_written_is_found_when_it_is_read() {
    let device =
        planted(|source| source.replace("if (4 * i >= args.dim", "if (4 * i + 4 >= args.dim"));
    let x = device.upload(&[1.0f32; 64], [1, 64]).unwrap();
    let y = device.tensor(DType::F32, [1, 64]).unwrap();
    let mut rec = device.record();
    let h = rec.temp(DType::F32, [1, 64]).unwrap();
    rec.push(Add { a: &x, b: &x, output: &h }).unwrap();
    rec.push(RmsNorm { input: &h, weight: None, output: &y, eps: 1e-6 }).unwrap();
    let options = kiln_core::PlanOptions { fuse: false, ..Default::default() };
    let problem = problem(rec.finish_with(options).and_then(|step| step.run()));
    assert!(problem.contains("step 1, rms_norm") && problem.contains("nothing wrote"), "{problem}");
}

#[test]
fn dispatches_that_share_memory_without_a_barrier_are_refused() {
    let host = Host::open(HostConfig::default()).unwrap();
    let buffer = Arc::new(host.allocate(256).unwrap());
    let bound = |offset, writes| BoundBuffer::<Host> {
        buffer: Arc::clone(&buffer),
        offset,
        bytes: 64,
        writes,
    };
    assert!(conflict(&bound(0, true), &bound(63, false)));
    assert!(!conflict(&bound(0, true), &bound(64, true)));
    assert!(!conflict(&bound(0, false), &bound(0, false)));
}

#[test]
fn independent_commands_run_in_many_orders() {
    let orders: std::collections::HashSet<_> =
        (0..50).map(|seed| Random(seed).order(3..6)).collect();
    assert_eq!(orders.len(), 6);
    assert!(orders.iter().all(|order| (3..6).all(|index| order.contains(&index))));
}
